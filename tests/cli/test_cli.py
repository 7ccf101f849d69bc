"""The command line: the same results as in Python, from folders and files; and its error messages."""

import contextlib
import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import datasets
import numpy as np
import pytest
import tiny_data
import torch
import transformers as tf
from peft import LoraConfig

from hf_unlearn import UnlearningArguments, UnlearningTrainer, split_forget_retain
from hf_unlearn.cli import help_texts, main
from hf_unlearn.cli.audit import AuditSettings
from hf_unlearn.cli.benchmark import BenchmarkSettings
from hf_unlearn.cli.compare import CompareSettings
from hf_unlearn.cli.dashboard import DashboardSettings
from hf_unlearn.cli.demo import DemoSettings
from hf_unlearn.cli.push import PushSettings
from hf_unlearn.cli.run import RunSettings
from hf_unlearn.cli.verify import VerifySettings
from hf_unlearn.comparing import Comparison
from hf_unlearn.comparing.folder import ComparisonFolder
from hf_unlearn.comparing.runs import training_runs
from hf_unlearn.data.hashing import weights_hash
from hf_unlearn.data.loading import load_samples
from hf_unlearn.data.preprocessing import prepare
from hf_unlearn.hub.record import make_record
from hf_unlearn.models.loading import load_model, load_processor

SAVED = {"config.json", "model.safetensors", "README.md", "audit.html", "audit.json", "unlearning.json"}
QUICK = ["--max_steps=2", "--use_cpu", "--disable_tqdm=true", "--per_device_train_batch_size=4"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Models in folders, `<name>-train.parquet` and `<name>-unseen.parquet` beside them."""
    folder = tmp_path_factory.mktemp("bases")
    for name, (build, samples) in tiny_data.HUB.items():
        model, processor = build()
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
        samples(12, np.random.default_rng(0)).to_parquet(folder / f"{name}-train.parquet")
        samples(9, np.random.default_rng(1)).to_parquet(folder / f"{name}-unseen.parquet")
    return folder


@pytest.fixture(autouse=True)
def surroundings(bases, tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.chdir(tmp_path)
    level = logging.getLogger("transformers").level
    yield
    logging.getLogger("transformers").setLevel(level)


def data(bases, name="vit"):
    files = {"model": name, "dataset": f"{name}-train.parquet", "unseen_dataset": f"{name}-unseen.parquet"}
    return [f"--{flag}={bases / file}" for flag, file in files.items()]


def weights(model):
    return (model if isinstance(model, tf.PreTrainedModel) else load_model(str(model))).state_dict()


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def refused(capsys, argv, code):
    """The one line that a command ends with."""
    capsys.readouterr()
    assert main(argv) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-unlearn")]
    assert len(lines) == 1
    return lines[0]


# ---- run and audit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "forget", "flags"),
    [
        ("vit", "label=cat", []),
        ("text_classification", "25%", ["--peft_config=lora"]),
        ("text", "indices=samples.txt", ["--method=grad_diff", "--general_ds=general.txt"]),
        ("whisper", "speaker_id=1272,84", []),
    ],
)
def test_run(bases, tmp_path, name, forget, flags, capsys):
    (tmp_path / "samples.txt").write_text("0 3 5")
    (tmp_path / "general.txt").write_text("who wrote the book one two ann bob " * 60)
    assert main(["run", *data(bases, name), f"--forget={forget}", "--output_dir=out", *flags, *QUICK]) == 0
    out, before = capsys.readouterr().out, weights(bases / name)
    assert "Warning: the audit cannot tell whether the model in out has forgotten" in out
    audited = json.loads((tmp_path / "out" / "audit.json").read_text())["metrics"]
    assert ("forget_wer" in audited) == (name == "whisper")
    assert ({"forget_exact_match", "general_loss"} <= audited.keys()) == (name == "text")
    assert not same(before, weights("out")) and all(w.isfinite().all() for w in weights("out").values())
    build = tiny_data.HUB[name][0]
    assert type(load_processor("out", load_model("out"))) is type(load_processor(str(bases / name), build()[0]))
    processor = {"preprocessor_config.json"} if name == "vit" else {"tokenizer.json", "tokenizer_config.json"}
    if name == "whisper":
        processor.add("processor_config.json")
    saved = {path.name for path in (tmp_path / "out").iterdir()} - {"generation_config.json", "chat_template.jinja"}
    assert saved == SAVED | processor
    # The verdict of the audit is printed, and the same in the model card.
    verdict = json.loads((tmp_path / "out" / "audit.json").read_text())["verdict"]["sentence"]
    assert verdict in " ".join(out.split()) and f"> **{verdict}**" in (tmp_path / "out" / "README.md").read_text()
    assert main(["verify", "out/unlearning.json", "--model=out"]) == 0


def test_run_is_the_python(bases, tmp_path):
    settings = {"method": "neggrad_plus", "seed": 3, "learning_rate": 1e-3, "retain_batch_size": 2, "request": "group"}
    flags = [f"--{name}={value}" for name, value in settings.items()]
    assert main(["run", *data(bases), "--forget=label=cat", "--output_dir=cli", *flags, *QUICK]) == 0
    base = str(bases / "vit")
    model = load_model(base)
    processor = load_processor(base, model)
    train, unseen = (prepare(load_samples(f"{base}-{part}.parquet"), model, processor) for part in ("train", "unseen"))
    forget, retain = split_forget_retain(train, column="label", values=[2], request="group")
    quick = {"max_steps": 2, "use_cpu": True, "disable_tqdm": True, "per_device_train_batch_size": 4}
    args = UnlearningArguments("python", **settings, **quick)
    trainer = UnlearningTrainer(model, forget, retain, args, unseen_ds=unseen)
    trainer.train()
    assert same(weights(trainer.model), weights("cli"))


def test_settings_from_a_file_give_way_to_flags(bases, tmp_path):
    (tmp_path / "run.yaml").write_text(
        f"model: {bases / 'vit'}\ndataset: {bases / 'vit-train.parquet'}\nforget: label=cat\nmethod: grad_diff\n"
        "forget_target: [1.5, 2.5]\nlearning_rate: 1e-4\nmax_steps: 9\nuse_cpu: true\ndisable_tqdm: true\n"
        "lr_scheduler_kwargs: {min_lr_rate: 0.5}\nstop_at_target: false\ncolumns: {image: image}\n"
        "save_strategy: steps\nsave_steps: 1\n"
    )
    assert main(["run", "--config", "run.yaml", "--max_steps=1", "--output_dir=out"]) == 0
    args = torch.load(tmp_path / "out" / "checkpoint-1" / "training_args.bin", weights_only=False)
    assert (args.method, args.learning_rate, args.max_steps, args.forget_target) == ("grad_diff", 1e-4, 1, [1.5, 2.5])
    assert args.lr_scheduler_kwargs == {"min_lr_rate": 0.5} and args.stop_at_target is False


def test_prepared_samples_need_no_processor(bases, tmp_path, capsys):
    model, _ = tiny_data.vit()
    model.save_pretrained("plain")
    model = load_model(str(bases / "vit"))
    ready = prepare(load_samples(str(bases / "vit-train.parquet")), model, load_processor(str(bases / "vit"), model))
    ready.save_to_disk("ready")
    assert main(["run", "--model=plain", "--dataset=ready", "--forget=10%", "--output_dir=out", *QUICK]) == 0
    argv = ["run", "--model=plain", f"--dataset={bases / 'vit-train.parquet'}", "--forget=10%", *QUICK]
    assert "--model: 'plain' has no processor" in refused(capsys, argv, 2)
    # A folder without a tokenizer makes one that knows no word.
    tiny_data.text_classification()[0].save_pretrained("words")
    argv = ["run", "--model=words", f"--dataset={bases / 'text_classification-train.parquet'}", "--forget=10%", *QUICK]
    assert "--model: 'words' has no processor (its tokenizer has no tokens)" in refused(capsys, argv, 2)


def test_peft_config(bases, capsys):
    LoraConfig(r=2, target_modules=["q_proj"]).save_pretrained("mine")
    for name, moved in (("mine", {"q_proj"}), ("none", None)):
        argv = ["run", *data(bases), "--forget=label=cat", f"--peft_config={name}", f"--output_dir=out-{name}", *QUICK]
        assert main([*argv, "--method=orthograd"]) == 0
        before, after = weights(bases / "vit"), weights(f"out-{name}")
        changed = {key.split(".")[-2] for key in before if not torch.equal(before[key], after[key])}
        assert changed == moved if moved else len(changed) > 8


def test_audit(bases, tmp_path, capsys):
    shared = [*data(bases), "--forget=label=cat"]
    argv = ["audit", *shared, f"--original={bases / 'vit'}", f"--retrained={bases / 'vit'}", "--out=reports/a.html"]
    assert main(argv) == 0
    report = json.loads((tmp_path / "reports" / "a.json").read_text())
    assert report["about"]["forget_samples"] == 4 and report["about"]["request"] == "class"
    assert set(report["metrics_by_model"]) == {"original", "audited", "retrained"}
    assert "<html" in (tmp_path / "reports" / "a.html").read_text()
    out = capsys.readouterr().out
    assert "audited" in out and "Report: reports/a.html, metrics: reports/a.json" in out


def test_verify(bases, tmp_path, capsys):
    build, _ = tiny_data.HUB["vit"]
    model, processor = build()
    before = weights_hash(weights(bases / "vit"))
    forget = prepare(load_samples(str(bases / "vit-train.parquet")), model, processor).filter(
        lambda sample: sample["label"] == 2
    )
    with torch.no_grad():
        model.classifier.bias += 1
    model.save_pretrained("out")
    processor.save_pretrained("out")
    record = make_record(
        forget_ds=forget, columns=["label", "pixel_values"], request="class", request_id=None, method={}, settings={},
        weights={"kind": "model", "before": before, "after": weights_hash(weights("out"))}, report=None,
    )  # fmt: skip
    (tmp_path / "unlearning.json").write_text(json.dumps(record))
    samples = ["--model=out", f"--dataset={bases / 'vit-train.parquet'}"]
    for flags, code, words in (
        (["--model=out"], 0, "weights: those of the record after unlearning"),
        ([f"--model={bases / 'vit'}"], 1, "weights: those from BEFORE unlearning"),
        ([*samples, "--forget=label=cat"], 0, "samples: all 4 given are among the 4"),
        ([*samples, "--forget=label=cat,ant"], 1, "samples: 4 of 8 given are among the 4"),
    ):
        assert main(["verify", "unlearning.json", *flags]) == code
        assert words in capsys.readouterr().out


def test_a_request_after_another(bases, tmp_path, capsys):
    train = load_samples(str(bases / "vit-train.parquet"))
    train.filter(lambda sample: sample["labels"] != 0).to_parquet("rest.parquet")
    assert main(["run", *data(bases), "--forget=label=cat", "--output_dir=out", *QUICK]) == 0
    later = ["run", "--after=out/unlearning.json", f"--unseen_dataset={bases / 'vit-unseen.parquet'}", *QUICK]
    again = refused(capsys, [*later, f"--dataset={bases / 'vit-train.parquet'}", "--forget=label=bird"], 2)
    assert "--dataset: has 4 samples that were forgotten before (sample 0 by record 1 of 1); take them out" in again
    later += ["--dataset=rest.parquet"]
    assert main([*later, "--forget=label=bird", "--output_dir=out-2"]) == 0
    assert not same(weights("out"), weights("out-2"))
    capsys.readouterr()
    records = ["out/unlearning.json", "out-2/unlearning.json"]
    assert main(["verify", *records, "--model=out-2", f"--dataset={bases / 'vit-train.parquet'}",
                 "--forget=label=cat,bird"]) == 0  # fmt: skip
    printed = capsys.readouterr().out
    assert "all 8 given are among the 8 forgotten samples of 2 requests; chain: 2 requests, each record" in printed
    content = json.loads((tmp_path / "out-2" / "unlearning.json").read_text())
    content["chain"][0]["request"]["kind"] = "samples"
    (tmp_path / "changed.json").write_text(json.dumps(content))
    assert main(["verify", "changed.json", "--model=out-2"]) == 1
    assert "chain: record 2 of 2 does not follow record 1 of 2: one of them has changed" in capsys.readouterr().out
    assert main(["verify", *records[::-1], "--model=out"]) == 1
    assert "chain: record 1 of those given is not in the chain of the last" in capsys.readouterr().out
    argv = [*later, "--model", str(bases / "vit"), "--forget=label=bird"]
    assert "--after: is not the record of this model (weights: those from BEFORE" in refused(capsys, argv, 2)


# ---- help ------------------------------------------------------------------------------------------------------


def test_help_needs_no_torch():
    code = (
        "import sys; from hf_unlearn.cli import main\n"
        "words = (['--help'], ['run', '--help'], ['audit', '-h'], ['demo', '-h'], ['no'], [])\n"
        "codes = [main(argv) for argv in words]\n"
        "assert codes == [0, 0, 0, 0, 2, 0], codes; assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: hf-unlearn") == 5


SETTINGS = {
    "run": (RunSettings, UnlearningArguments),
    "audit": (AuditSettings,),
    "benchmark": (BenchmarkSettings,),
    "compare": (CompareSettings,),
    "demo": (DemoSettings,),
    "verify": (VerifySettings,),
    "dashboard": (DashboardSettings,),
    "push": (PushSettings,),
}


@pytest.mark.parametrize("text", [help_texts.OVERVIEW, *help_texts.HELP.values()], ids=["", *help_texts.HELP])
def test_help_fits_a_screen_and_names_settings_that_exist(text):
    lines = text.splitlines()
    assert len(lines) <= 40 and all(len(line) <= 119 for line in lines) and "example" in text
    commands = [name for name in SETTINGS if f"hf-unlearn {name}" in text]
    settings = {field.name for name in commands for cls in SETTINGS[name] for field in fields(cls)}
    named = set(re.findall(r"--([a-z_\-]+)", text))
    assert named <= settings | {"help", "help-all", "debug", "config", "setting"}
    assert named >= {"forget", "dataset", "model"} or {"benchmark", "demo", "compare", "dashboard", "push"} & set(
        commands
    )
    for command in re.findall(r"^  hf-unlearn (.*)$", text.replace("\\\n", ""), re.M):
        words = shlex.split(command)
        assert words[0] in commands and {word[2:] for word in words if word[:2] == "--"} <= settings


@pytest.mark.parametrize("command", list(SETTINGS))
def test_help_all(command, capsys):
    assert main([command, "--help-all"]) == 0
    printed = capsys.readouterr().out
    assert all(f"--{field.name}" in printed for cls in SETTINGS[command] for field in fields(cls) if field.init)


def test_version(capsys):
    assert main(["--version"]) == 0 and re.fullmatch(r"\d+\.\d+\.\d+\n", capsys.readouterr().out)


# ---- errors: most are in tests/bad_inputs ------------------------------------------------------------------------


def test_debug_shows_the_trace(bases, capsys):
    argv = ["run", *data(bases), "--forget=label=dog", *QUICK]
    refused(capsys, argv, 2)
    assert main([*argv, "--debug"]) == 2
    errors = capsys.readouterr().err
    assert "Traceback" in errors and "parse_forget" in errors


def test_one_of_several_processes_prints_the_error(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert main(["fly"]) == 2 and capsys.readouterr().err == ""


# ---- Ctrl-C ----------------------------------------------------------------------------------------------------


def test_ctrl_c_leaves_a_checkpoint_to_resume_from(bases, tmp_path, capsys):
    steps = 50
    argv = ["run", *data(bases), "--forget=label=cat", f"--max_steps={steps}", "--use_cpu", "--disable_tqdm=true"]
    argv += ["--per_device_train_batch_size=4", "--logging_steps=1"]
    command = [sys.executable, "-u", "-m", "hf_unlearn.cli", *argv, "--output_dir=stopped"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as run:
        for line in run.stdout:
            if "forget_loss" in line:  # a step has been done
                break
        run.send_signal(signal.SIGINT)
        errors = run.communicate(timeout=60)[1]
    assert run.returncode == 130, errors[-2000:]
    [checkpoint] = (tmp_path / "stopped").iterdir()  # no unlearned model
    done = int(checkpoint.name.removeprefix("checkpoint-"))
    assert 0 < done < steps
    assert (
        f"hf-unlearn run: interrupted after step {done}; --resume continues from stopped/checkpoint-{done}" in errors
    )
    assert "Traceback" not in errors

    assert main([*argv, "--output_dir=stopped", "--resume"]) == 0
    output = capsys.readouterr().out
    assert output.count("'grad_norm'") == steps - done
    assert f"These in stopped still hold the data, and are never pushed; delete them: checkpoint-{done}\n" in output
    assert main([*argv, "--output_dir=whole"]) == 0
    assert "still hold the data" not in capsys.readouterr().out
    stopped, whole = (tmp_path / name / "model.safetensors" for name in ("stopped", "whole"))
    assert stopped.read_bytes() == whole.read_bytes()


@pytest.fixture
def ctrl_c():
    """Ctrl-C raises KeyboardInterrupt, as in a terminal: a shell starts background processes with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("killed", [False, True])
def test_ctrl_c_and_kill_end_every_worker_of_a_comparison(tmp_path, ctrl_c, killed):
    task, endless = Path(__file__).parents[1] / "comparing_task.py", {"method": "nabla_tau", "max_steps": 10**9}
    settings = {"task": f"{task}:Small", "requests": {"a": {"forget": "10%"}}, "seeds": [0], "retrained": 1}
    Path("endless.yaml").write_text(json.dumps({**settings, "methods": {str(i): endless for i in range(8)}}))
    config = Comparison.from_yaml("endless.yaml")
    for training_run in training_runs(config):  # here, where everything is imported
        ComparisonFolder(config, "out").train(training_run)
    command = [sys.executable, "-m", "hf_unlearn.cli", "compare", "endless.yaml", "--output_dir=out", "--workers=2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as run:
        try:
            while len(list(tmp_path.glob("out/runs/*retrained*"))) < 1 and run.poll() is None:
                time.sleep(0.1)
            if killed:
                run.kill()
            else:
                os.killpg(run.pid, signal.SIGINT)  # as a terminal does
            errors = run.communicate(timeout=60)[1]  # waits for all that can write there: the workers, too
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == (-signal.SIGKILL if killed else 130), errors[-2000:]
    assert ("hf-unlearn compare: interrupted" in errors) == (not killed)
    assert not list(tmp_path.glob("out/runs/a-0-[0-9]*"))  # the runs that never end


def test_ctrl_c_before_the_run_and_twice(bases, monkeypatch, capsys, ctrl_c):
    argv = ["run", *data(bases), "--forget=label=cat", *QUICK, "--output_dir=out"]

    def interrupt(*_, **__):
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr("hf_unlearn.cli.run.load_model", interrupt)
        assert refused(capsys, argv, 130) == "hf-unlearn run: interrupted"

    def twice(*_, **__):
        signal.raise_signal(signal.SIGINT)
        time.sleep(1.1)
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(UnlearningTrainer, "compute_loss", twice)
    assert refused(capsys, argv, 130) == "hf-unlearn run: interrupted; no checkpoint was written"
    assert signal.getsignal(signal.SIGINT) is before
