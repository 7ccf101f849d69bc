"""The examples: their Hub path on local folders and parquet files, and what their `--tiny` path is built from."""

import importlib
import inspect
import math
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
from blocks import ROOT
from tiny import BOS, EOS
from tiny_data import HUB

from hf_unlearn.data.collator import default_collator

EXAMPLES = ROOT / "examples"
SHARED = ROOT.parent / "shared" / "data"
STEPS = 2
TINY = {
    "vit": "Vit",
    "audio_classification": "AudioClassifier",
    "text_classification": "TextClassifier",
    "text": "Text",
    "whisper": "Whisper",
}

# ---- the Hub path -------------------------------------------------------------------------------------------------


def load(name, monkeypatch):
    """An example as a module; they import each other from their own folder."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module(name)


# Example, method, what to forget, training samples; the column of the ready samples that tells which samples these
# are, what it holds there (classes as the model numbers them), and their number.
RUNS = [
    ("vit", "nabla_tau", "cat", 12, "label", {2}, 4),
    ("vit", "orthograd", "ant", 12, "label", {0}, 4),
    ("audio_classification", "nabla_tau", "cat", 12, "label", {2}, 4),
    ("text_classification", "nabla_tau", "cat", 12, "label", {2}, 4),
    ("text", "nabla_tau", "1", 30, "author_id", {1}, 10),
    ("text", "orthograd", "1", 30, "author_id", {1}, 10),
    ("whisper", "nabla_tau", "1272", 12, "speaker", {"1272"}, 4),
]


# Trainer asks for pinned memory unless told use_cpu; the examples take whatever device there is.
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator:UserWarning")
@pytest.mark.parametrize(
    ("name", "method", "value", "count", "column", "forgotten", "size"),
    RUNS,
    ids=[f"{run[0]}-{run[1]}" for run in RUNS],
)
def test_hub_path(name, method, value, count, column, forgotten, size, tmp_path, monkeypatch, capsys):
    build, make_samples = HUB[name]
    model, processor = build()
    base, out = tmp_path / "base", tmp_path / "forgot"
    model.save_pretrained(base)
    processor.save_pretrained(base)
    make_samples(count, np.random.default_rng(0)).to_parquet(tmp_path / "train.parquet")
    make_samples(10, np.random.default_rng(1)).to_parquet(tmp_path / "unseen.parquet")

    example = load(name, monkeypatch)
    trainers = []

    class Recorded(example.UnlearningTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            trainers.append(self)

    monkeypatch.setattr(example, "UnlearningTrainer", Recorded)
    monkeypatch.setattr("hf_unlearn.trainer.defaults.default_steps", lambda *sizes: STEPS)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    files = {"dataset": "train.parquet", "unseen": "unseen.parquet"}
    options = {"model": base, **files, "forget": value, "method": method, "output": out}
    monkeypatch.setattr(sys, "argv", [name, *(f"--{key}={setting}" for key, setting in options.items())])
    example.main()

    (trainer,) = trainers
    forget_ds, retain_ds = trainer.forget_ds.with_format(None), trainer.retain_ds.with_format(None)
    assert set(forget_ds[column]) == forgotten and not set(retain_ds[column]) & forgotten
    assert (len(forget_ds), len(retain_ds), len(trainer.unseen_ds)) == (size, count - size, 10)
    assert trainer.state.global_step == STEPS

    forgot, loading = type(model).from_pretrained(out, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert forgot.config.architectures == [type(model).__name__]
    assert type(forgot.config) is type(model.config)
    assert type(type(processor).from_pretrained(out)) is type(processor)
    before, after = model.state_dict(), forgot.state_dict()
    assert before.keys() == after.keys()
    assert all(weights.isfinite().all() for weights in after.values())
    assert any(not torch.equal(before[key], after[key]) for key in before)
    assert list(out.glob("*.safetensors")) and not list(out.rglob("*adapter*"))
    assert not (tmp_path / "out").exists()  # --output was obeyed, nothing went to the default
    if name == "text":  # the loss is on answers
        assert all(labels.index(EOS) == len(labels) - 1 and labels[:3] == [-100] * 3 for labels in forget_ds["labels"])
    if name == "whisper":
        decoded = processor.tokenizer.batch_decode(forget_ds["labels"][:], skip_special_tokens=True)
        assert set(" ".join(decoded).split()) == {"one", "two", "nine"}
        assert not any(BOS in labels for labels in forget_ds["labels"])
        printed = capsys.readouterr().out
        assert all(printed.count(f"'{speaker}': ") == 2 for speaker in (84, 251, 1272))  # before and after


# ---- the examples as files, and their own tiny data and models ----------------------------------------------------


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("[!_]*.py")), ids=lambda path: path.stem)
def test_fits_on_a_page(path):
    assert len(path.read_text().splitlines()) <= (20 if path.stem == "quickstart" else 70)


# huggingface's Trainer asks for pinned memory.
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator:UserWarning")
def test_quickstart_runs(tmp_path, monkeypatch, capsys):
    from hf_unlearn import demo

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hf_unlearn.trainer.defaults.default_steps", lambda *sizes: STEPS)
    monkeypatch.setitem(demo.TRAINING, "num_train_epochs", 1)
    exec(compile((EXAMPLES / "quickstart.py").read_text(), "quickstart.py", "exec"), {})
    assert "retrained" in capsys.readouterr().out and (tmp_path / "model-that-forgot" / "config.json").is_file()


@pytest.mark.slow
def test_quickstart_runs_as_it_stands(tmp_path):
    done = subprocess.run(
        [sys.executable, EXAMPLES / "quickstart.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "Consistent with having forgotten" in " ".join(done.stdout.split())


@pytest.mark.shared
@pytest.mark.parametrize("name", sorted(HUB))
def test_tiny_path_starts(name, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    tiny = getattr(load("_tiny", monkeypatch), TINY[name])
    model, (train, unseen, test) = tiny.model().eval(), tiny.data(str(SHARED))
    assert len(train) > len(unseen) > 0 and len(test) > 0
    read = {*inspect.signature(model.forward).parameters, "label"}
    columns = [column for column in train.column_names if column in read]
    for samples in (train, unseen, test):
        batch = samples.select_columns(columns).select(range(4))
        with torch.no_grad():
            outputs = model(**default_collator(model)(list(batch)))
        assert len(outputs.logits) == 4 and math.isfinite(outputs.loss)
