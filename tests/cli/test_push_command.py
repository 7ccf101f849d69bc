"""`hf-unlearn run`, then `push`: what is uploaded, what is not, what is refused; to a Hub on loopback."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import tiny
import tiny_data
import torch
from hub_server import TOKEN
from safetensors.torch import load_file, save_file

from hf_unlearn.cli import main
from hf_unlearn.hub.upload import push_folder
from hf_unlearn.models.loading import load_model

# huggingface_hub streams files in a way that its own HTTP client has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
CLAIMS = {"README.md", "audit.html", "audit.json", "unlearning.json"}
SAVED = {
    "vit": CLAIMS | {"config.json", "model.safetensors", "preprocessor_config.json"},
    "text": CLAIMS | {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja",
    },
}  # fmt: skip
FORGET = {"vit": "label=cat", "text": "25%"}
# Other files that a folder may have, which are not uploaded: weights, states, notes.
AROUND = [
    "checkpoint-1/model.safetensors", "checkpoint-1/optimizer.pt", "training_args.bin", "pytorch_model.bin",
    "model-00001-of-00002.safetensors", "adapter_model.safetensors", "notes.txt", "forget/samples.parquet", ".env",
]  # fmt: skip
SECRET = b"the forgotten samples themselves"


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Models in folders, with samples beside them, and their folders after `run`: `<name>-out`."""
    folder = tmp_path_factory.mktemp("cellar")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        for name in SAVED:
            build, samples = tiny_data.HUB[name]
            model, processor = build()
            model.save_pretrained(folder / name)
            processor.save_pretrained(folder / name)
            samples(12, np.random.default_rng(0)).to_parquet(folder / f"{name}-train.parquet")
            samples(9, np.random.default_rng(1)).to_parquet(folder / f"{name}-unseen.parquet")
            assert main(run(folder, name, f"--output_dir={folder / name}-out")) == 0
    return folder


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    level = logging.getLogger("transformers").level
    yield
    logging.getLogger("transformers").setLevel(level)


@pytest.fixture
def out(bases, tmp_path):
    """A copy of a saved folder."""
    return Path(shutil.copytree(bases / "vit-out", tmp_path / "out"))


def run(folder, name, *flags):
    files = {"model": name, "dataset": f"{name}-train.parquet", "unseen_dataset": f"{name}-unseen.parquet"}
    quick = ["--max_steps=2", "--use_cpu", "--disable_tqdm=true", "--per_device_train_batch_size=4"]
    data = [f"--{flag}={folder / file}" for flag, file in files.items()]
    return ["run", *data, f"--forget={FORGET[name]}", *quick, *flags]


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def arrived(hub, name):
    repo = hub.repos[name]
    return {path: data for path, data in repo.files().items() if path != ".gitattributes"}


def refused(capsys, argv, code=1):
    """The one line that a command ends with; the token is nowhere."""
    capsys.readouterr()
    assert main(argv) == code
    output = capsys.readouterr()
    assert TOKEN not in output.out + output.err
    [line] = [line for line in output.err.splitlines() if line.startswith("hf-unlearn")]
    return line


LOADER = """
import sys, torch
sys.modules["hf_unlearn"] = None  # an import of it fails
import transformers as tf
logits = {}
for name, (cls, batch) in torch.load("in.pt").items():
    model = getattr(tf, cls).from_pretrained(f"me/{name}").eval()
    with torch.no_grad():
        logits[name] = model(**batch).logits
tf.AutoImageProcessor.from_pretrained("me/vit")
assert tf.AutoTokenizer.from_pretrained("me/text")("who wrote")["input_ids"]
torch.save(logits, "out.pt")
"""


def test_run_push_and_load_where_this_library_is_not(bases, hub, tmp_path, capsys):
    before = {name: load_model(str(bases / name)).eval() for name in SAVED}
    after = {name: load_model(str(bases / f"{name}-out")).eval() for name in SAVED}
    batches = {name: tiny.make("vit" if name == "vit" else "llama")[1](3, seed=9) for name in SAVED}
    for name in SAVED:
        folder = shutil.copytree(bases / f"{name}-out", tmp_path / f"{name}-out")
        assert files_in(folder) == SAVED[name]  # what `run` saves is what is uploaded
        for path in AROUND:
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes(SECRET)
        assert main(["push", str(folder), f"me/{name}"]) == 0
        files, repo = arrived(hub, f"me/{name}"), hub.repos[f"me/{name}"]
        assert files == {path: (folder / path).read_bytes() for path in SAVED[name]}
        assert [commit["message"] for commit in repo.commits.values()] == ["initial commit", "End of unlearning"]
        assert repo.private and f"commit/{repo.refs['main']}" in capsys.readouterr().out
        card = files["README.md"].decode()
        assert json.loads(files["audit.json"])["verdict"]["sentence"] in card
    sent = hub.sent()
    assert b"nabla_tau" in sent  # the search can find something
    assert not any(secret in sent for secret in (SECRET, TOKEN.encode(), bases.name.encode(), b".parquet"))

    torch.save({name: (type(after[name]).__name__, batches[name]) for name in SAVED}, "in.pt")
    env = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "PYTHONPATH")}
    env |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", LOADER], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, logits in torch.load("out.pt").items():
        with torch.no_grad():
            assert torch.equal(logits, after[name](**batches[name]).logits), name
            assert not torch.equal(logits, before[name](**batches[name]).logits), name


def test_a_run_that_pushes_does_so_once(bases, hub, tmp_path, capfd):
    flags = ["--push_to_hub", "--hub_model_id=me/end", "--save_strategy=steps", "--save_steps=1", "--output_dir=done"]
    assert main(run(bases, "vit", *flags)) == 0
    repo, folder = hub.repos["me/end"], tmp_path / "done"
    assert [commit["message"] for commit in repo.commits.values()] == ["initial commit", "End of unlearning"]
    assert repo.private
    assert arrived(hub, "me/end") == {path: (folder / path).read_bytes() for path in SAVED["vit"]}
    output = "".join(capfd.readouterr())
    cached = re.findall("holds the samples, too; delete it once they are to be gone: (.+)", output)
    assert cached and all(datasets.config.HF_DATASETS_CACHE.name in path for path in cached)
    assert all([*Path(path).glob("*.arrow")] for path in cached)
    checkpoints = "These in done still hold the data, and are never pushed; delete them: checkpoint-1, checkpoint-2\n"
    assert checkpoints in output and TOKEN not in output and f"Pushed to {hub.url}/me/end/commit/" in output
    assert not any(TOKEN.encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(("flags", "dtype"), [([], torch.float32), (["--dtype=bfloat16"], torch.bfloat16)])
def test_a_checkpoint_in_half_precision(flags, dtype, bases, tmp_path, caplog):
    model = load_model(str(bases / "text")).to(torch.bfloat16)
    shutil.copytree(bases / "text", tmp_path / "half")
    model.save_pretrained(tmp_path / "half")
    argv = run(bases, "text", f"--model={tmp_path / 'half'}", "--output_dir=out", "--method=grad_diff", *flags)
    assert main(argv) in (0, 3)  # whether it has forgotten is not the question
    assert load_model("out").dtype == dtype
    assert ("is in bfloat16, and trains in float32" in caplog.text) == (dtype == torch.float32)
    assert ("small steps are lost to rounding" in caplog.text) == (dtype == torch.bfloat16)


def test_settings_reach_the_hub(bases, hub, out, capsys):
    named = [str(out), "me/settings"]
    assert main(["push", *named, "--revision=forgot-7", "--commit_message=Seven", "--private=false"]) == 0
    repo = hub.repos["me/settings"]
    assert not repo.private and repo.commits[repo.refs["forgot-7"]]["message"] == "Seven"
    assert "model.safetensors" in repo.files("forgot-7") and "model.safetensors" not in repo.files()
    assert main(["push", *named, "--create_pr"]) == 0
    assert "/me/settings/discussions/1" in capsys.readouterr().out and "model.safetensors" in repo.files("refs/pr/1")
    line = refused(capsys, ["push", *named, "--create_pr", "--revision=forgot-7"], 2)
    assert line.startswith("hf-unlearn push: --create_pr: a pull request goes to main, got --revision=forgot-7")


def move_weights(out):
    state = load_file(out / "model.safetensors")
    state["classifier.bias"] += 1e-6
    save_file(state, out / "model.safetensors", {"format": "pt"})


def only_checkpoints(out):
    (out / "unlearning.json").unlink()
    (out / "checkpoint-1").mkdir()


def another_audit(out):
    (out / "audit.json").write_text('{"breakdown": "by name of person"}')


def another_card(out):
    (out / "README.md").write_text((out / "README.md").read_text() + "\nMore.\n")


def another_config(out):
    (out / "config.json").write_text((out / "config.json").read_text().replace("cat", "rat"))


def audit_where_there_was_none(out):
    record = json.loads((out / "unlearning.json").read_text())
    (out / "unlearning.json").write_text(json.dumps(record | {"audit": None}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "hf-unlearn push: FOLDER: 'out' has no unlearning.json; give the folder of a run"),
        (lambda out: (out / "unlearning.json").unlink(), "hf-unlearn push: FOLDER: 'out' has no unlearning.json; "),
        (only_checkpoints, "hf-unlearn push: FOLDER: 'out' has only checkpoints, which still hold the data; let"),
        (lambda out: (out / "model.safetensors").unlink(), "hf-unlearn push: FOLDER: 'out' lacks the weights of its"),
        (
            move_weights,
            "hf-unlearn push: FOLDER: 'out' does not match its unlearning.json (weights: neither those from before "
            "nor those from after unlearning); it has changed, run again",
        ),
        (another_audit, "hf-unlearn push: FOLDER: audit.json in 'out' does not match unlearning.json"),
        (audit_where_there_was_none, "hf-unlearn push: FOLDER: audit.html in 'out' does not match"),
        (lambda out: (out / "audit.html").unlink(), "hf-unlearn push: FOLDER: 'out' lacks audit.html of its"),
        (
            another_card,
            "hf-unlearn push: FOLDER: README.md in 'out' does not match unlearning.json; restore it",
        ),
        (another_config, "hf-unlearn push: FOLDER: config.json in 'out' does not match unlearning.json; restore the"),
    ],
)
def test_a_folder_that_is_not_what_its_record_says(change, message, out, hub, capsys):
    change(out)
    asked = len(hub.requests)
    assert refused(capsys, ["push", "out", "me/refused"], 2).startswith(message)
    assert len(hub.requests) == asked and "me/refused" not in hub.repos


def test_original_weights_are_refused(bases, out, capsys):
    shutil.copy(bases / "vit" / "model.safetensors", out)
    assert "(weights: those from BEFORE unlearning)" in refused(capsys, ["push", "out", "me/refused"], 2)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["push"], "hf-unlearn push: FOLDER REPO: expected two words first, got nothing; give the folder"),
        (["push", "out"], "hf-unlearn push: FOLDER REPO: expected two words first, got out; give the folder"),
        (
            ["push", "out", "me/x", f"--token={TOKEN}"],
            "hf-unlearn push: --token: others may read it; set HF_TOKEN, or",
        ),
        (["push", "out", "me/x", "--token", TOKEN], "hf-unlearn push: --token: others may read it; set HF_TOKEN, or"),
        (["push", "out", "me/x", f"--hub_token={TOKEN}"], "hf-unlearn push: --hub_token: others may read it; set"),
        (
            ["run", "--model=x", f"--hub-token={TOKEN}"],
            "hf-unlearn run: --hub-token: others may read it; set HF_TOKEN",
        ),
        (["run", "--hub_token", TOKEN], "hf-unlearn run: --hub_token: others may read it; set HF_TOKEN"),
        (["audit", "--token", TOKEN], "hf-unlearn audit: --token: others may read it; set HF_TOKEN"),
        (["run", "--config=token.yaml"], "hf-unlearn run: --hub_token: others may read it; set HF_TOKEN"),
    ],
)
def test_bad_usage(argv, message, capsys):
    Path("token.yaml").write_text(f"hub_token: {TOKEN}\n")
    assert refused(capsys, argv, 2).startswith(message)


@pytest.mark.parametrize(
    ("where", "status", "message"),
    [
        ("POST /api/repos/create", 401, "the Hub does not accept the token; log in with `hf auth login`"),
        ("GET .*/tree/", 404, "there is no such repository or revision, or the token may not see it; check repo_id"),
        ("POST .*/commit/", 500, "the Hub has an internal error; push again later"),
    ],
)
def test_what_the_hub_refuses_is_one_line(where, status, message, bases, out, hub, capsys):
    hub.fault(where, status)
    line = refused(capsys, ["push", "out", f"me/fault-{status}"])
    start = f"hf-unlearn push: push_to_hub: nothing is confirmed as pushed to me/fault-{status}: {message}"
    assert line.startswith(start) and f"(status {status}: as planned, Bearer ***" in line
    if status == 401:  # a run that is to push knows before it trains
        hub.fault(where, status)
        argv = run(bases, "vit", "--push_to_hub", "--hub_model_id=me/early", "--output_dir=early")
        assert "hf-unlearn run: --push_to_hub: nothing is confirmed" in refused(capsys, argv)
        assert not Path("early").exists()
    assert main(["push", "out", f"me/fault-{status}"]) == 0
    assert arrived(hub, f"me/fault-{status}").keys() == SAVED["vit"]


def test_a_run_whose_push_fails_can_be_pushed(bases, hub, tmp_path, capsys):
    hub.fault("POST .*/commit/", 500)
    argv = run(bases, "vit", "--push_to_hub", "--hub_model_id=me/late", "--output_dir=late")
    assert "the Hub has an internal error; push again later" in refused(capsys, argv)
    assert main(["push", "late", "me/late"]) == 0 and arrived(hub, "me/late").keys() == SAVED["vit"]


def test_from_python(out, hub):
    commit = push_folder(out, "me/python", token=TOKEN)
    assert commit.oid == hub.repos["me/python"].refs["main"] and hub.repos["me/python"].private
