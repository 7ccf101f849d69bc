"""The examples: their Hub path on local folders and parquet files, and what their `--tiny` path is built from."""

import importlib
import inspect
import math
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from tiny import BOS, EOS
from tiny_data import HUB

from hf_unlearn.data.collator import default_collator

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SHARED = ROOT.parent / "shared" / "data"
STEPS = 2

# ---- the Hub path -------------------------------------------------------------------------------------------------


def load(name, monkeypatch):
    """An example as a module; they import each other from their own folder."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module(name)


# Example, method, what to forget, training rows; the column of the ready rows that tells which rows these are, what
# it holds there (classes as the model numbers them), and their number.
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
    ("name", "method", "value", "count", "column", "found", "size"), RUNS, ids=[f"{run[0]}-{run[1]}" for run in RUNS]
)
def test_hub_path(name, method, value, count, column, found, size, tmp_path, monkeypatch, capsys):
    build, make_rows = HUB[name]
    model, processor = build()
    base, out = tmp_path / "base", tmp_path / "forgot"
    model.save_pretrained(base)
    processor.save_pretrained(base)
    make_rows(count, np.random.default_rng(0)).to_parquet(tmp_path / "train.parquet")
    make_rows(10, np.random.default_rng(1)).to_parquet(tmp_path / "unseen.parquet")

    example = load(name, monkeypatch)
    trainers = []

    class Kept(example.UnlearningTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            trainers.append(self)

    monkeypatch.setattr(example, "UnlearningTrainer", Kept)
    monkeypatch.setattr("hf_unlearn.trainer.defaults.default_steps", lambda *sizes: STEPS)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    files = {"dataset": "train.parquet", "unseen": "unseen.parquet"}
    options = {"model": base, **files, "forget": value, "method": method, "output": out}
    monkeypatch.setattr(sys, "argv", [name, *(f"--{key}={setting}" for key, setting in options.items())])
    example.main()

    (trainer,) = trainers
    forget, retain = trainer.forget_ds.with_format(None), trainer.retain_ds.with_format(None)
    assert set(forget[column]) == found and not set(retain[column]) & found
    assert (len(forget), len(retain), len(trainer.unseen_ds)) == (size, count - size, 10)
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
        assert all(row.index(EOS) == len(row) - 1 and row[:3] == [-100] * 3 for row in forget["labels"])
    if name == "whisper":
        heard = set(" ".join(processor.tokenizer.batch_decode(forget["labels"][:], skip_special_tokens=True)).split())
        assert heard == {"one", "two", "nine"} and not any(BOS in row for row in forget["labels"])
        printed = capsys.readouterr().out
        assert all(printed.count(f"'{speaker}': ") == 2 for speaker in (84, 251, 1272))  # before and after


# ---- the examples as files, and their own tiny data and models ----------------------------------------------------


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_fits_on_a_page(path):
    assert len(path.read_text().splitlines()) < 100


@pytest.mark.shared
@pytest.mark.parametrize("name", sorted(HUB))
def test_tiny_path_starts(name, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    example = load(name, monkeypatch)
    model, (train, unseen, test) = example.tiny_model().eval(), example.tiny_data(str(SHARED))
    assert len(train) > len(unseen) > 0 and len(test) > 0
    read = {*inspect.signature(model.forward).parameters, "label"}
    columns = [column for column in train.column_names if column in read]
    for rows in (train, unseen, test):
        batch = rows.select_columns(columns).select(range(4))
        with torch.no_grad():
            outputs = model(**default_collator(model)(list(batch)))
        assert len(outputs.logits) == 4 and math.isfinite(outputs.loss)
