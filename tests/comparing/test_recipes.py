"""The recipes for published models and datasets run: on stand-ins with the same heads, columns, splits and classes."""

import io
from pathlib import Path

import datasets
import numpy as np
import pytest
import tiny_data
import transformers as tf
import yaml
from datasets import ClassLabel, Dataset, List
from PIL import Image
from tiny import make

from hf_unlearn.comparing import Comparison, compare
from hf_unlearn.methods import METHODS

RECIPES = sorted((Path(__file__).parents[2] / "benchmarks/recipes/hub").glob("*.yaml"))
KINDS = {"goemotions_roberta": "multi_label", "librispeech_whisper": "seq2seq_lm", "tofu_llama": "causal_lm"}
LACKING = {
    "ssd": "give more retain samples",
    "idk_dpo": "alternative_ds: is missing",
    "rmu": "has no lists of as many modules",
}
SQUARE, SIZES = {"height": 32, "width": 32}, {"train": 48, "test": 40}


pytestmark = pytest.mark.usefixtures("cache")


def published(folder, splits):
    """A dataset's folder, with parquet files for `configuration:split` as on the Hub; the path."""
    folder.mkdir()
    configurations = {}
    for name, samples in splits.items():
        configuration, _, split = name.rpartition(":")
        samples.to_parquet(folder / f"{configuration}-{split}.parquet")
        file = {"split": split, "path": f"{configuration}-{split}.parquet"}
        configurations.setdefault(configuration or "default", []).append(file)
    card = {"configs": [{"config_name": name, "data_files": files} for name, files in configurations.items()]}
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n")
    return str(folder)


def checkpoint(folder, model, processor):
    """A model and its processor, saved; the path."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def classes(count):
    return ClassLabel(names=[f"class {i}" for i in range(count)])


def pictures(column, size, **labels):
    """Samples of noise with the labels `name=(numbers, feature)`."""
    files, rng = [], np.random.default_rng(size)
    for _ in range(size):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file := io.BytesIO(), format="PNG")
        files.append({"bytes": file.getvalue(), "path": None})
    return tiny_data.table(**{column: (files, datasets.Image())}, **labels)


def cifar10(folder):
    splits = {n: pictures("img", size, label=([i % 4 for i in range(size)], classes(10))) for n, size in SIZES.items()}
    return {"base": checkpoint(folder / "base", make("resnet")[0], tf.ViTImageProcessor(size=SQUARE))}, splits


def cifar100(folder):
    options, splits = cifar10(folder)
    fine = {name: samples.rename_column("label", "fine_label") for name, samples in splits.items()}
    fine = {name: samples.cast_column("fine_label", classes(100)) for name, samples in fine.items()}
    return options, {name: samples.add_column("coarse_label", [0] * len(samples)) for name, samples in fine.items()}


def imagenet_vit(folder):
    names = classes(1000)
    sizes = {"train": 48, "validation": 40}
    splits = {n: pictures("image", k, label=([339 + i % 4 for i in range(k)], names)) for n, k in sizes.items()}
    return {"base": checkpoint(folder / "base", make("vit")[0], tf.ViTImageProcessor(size=SQUARE))}, splits


def goemotions_roberta(folder):
    feature, rng = List(classes(28)), np.random.default_rng(0)
    splits = {}
    for name, size in {"train": 48, "validation": 40, "test": 32}.items():
        several = [sorted(rng.choice(28, size=1 + i % 2, replace=False).tolist()) for i in range(size)]
        ids = [f"{name}{i}" for i in range(size)]
        splits[f"simplified:{name}"] = tiny_data.table(text=texts(size, rng), labels=(several, feature), id=ids)
    _, tokenizer = tiny_data.text_classification()
    trained = {"num_labels": 28, "problem_type": "multi_label_classification"}
    config = tf.RobertaConfig(**make("roberta")[0].config.to_dict() | {"id2label": None} | trained)
    paths = {"base": checkpoint(folder / "base", make("roberta")[0], tokenizer)}
    model = tf.RobertaForSequenceClassification(config)
    return paths | {"original": checkpoint(folder / "original", model, tokenizer)}, splits


def librispeech_whisper(folder):
    splits, rng = {}, np.random.default_rng(0)
    for name, speakers in {"train.100": (374, 2843, 5456, 19), "validation": (1272, 84), "test": (61, 121)}.items():
        samples = tiny_data.whisper_samples(24, rng)
        samples = samples.remove_columns("speaker_id").add_column(
            "speaker_id", [speakers[i % len(speakers)] for i in range(24)]
        )
        splits[f"clean:{name}"] = samples.add_column("id", [f"{name}-{i}" for i in range(24)])
    return {"base": checkpoint(folder / "base", *tiny_data.whisper())}, splits


def tofu_llama(folder):
    rng = np.random.default_rng(0)
    sizes = {"full": 4000, "holdout05": 200, "holdout10": 400}
    splits = {
        f"{n}:train": Dataset.from_dict({"question": texts(k, rng), "answer": texts(k, rng)}) for n, k in sizes.items()
    }
    model, tokenizer = tiny_data.text()
    return {name: checkpoint(folder / name, model, tokenizer) for name in ("base", "original", "retrained")}, splits


def texts(count, rng):
    """Texts that do not come twice."""
    return [f"{first} {i}" for i, first in enumerate(tiny_data.texts(count, rng))]


def on_stand_ins(path, tmp_path):
    """The settings of a recipe with one request and one seed, its models and data replaced, one step a method."""
    settings = yaml.safe_load(path.read_text())
    paths, splits = globals()[path.stem](tmp_path)
    options = settings["options"]
    options |= {"base": paths.pop("base"), "dataset": published(tmp_path / "dataset", splits)}
    options["training"] |= {"max_steps": 2, "use_cpu": True}  # bfloat16 is refused elsewhere
    name, request = next(iter(settings["requests"].items()))
    forget = request["forget"]
    request["forget"] = forget[0] if isinstance(forget, list) else forget
    if "retrained" in request:
        request["retrained"] = paths.pop("retrained")
    assert paths.keys() == settings.keys() & {"original"}
    reduced = {"name": path.stem, "requests": {name: request}, "seeds": [0], "budget": {"max_steps": 1}}
    return settings | paths | reduced


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_of_the_hub_runs_on_stand_ins(path, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "hf_unlearn.data.splitting.MAX_BYTES_IN_MEMORY", 2 * 10**5
    )  # images, as those at full size, stay on disk
    settings = on_stand_ins(path, tmp_path)
    # Every method on every head stands below and in test_architectures.py.
    methods = settings["methods"]
    methods = dict.fromkeys(methods) if isinstance(methods, list) else methods
    methods = {name: entry for name, entry in methods.items() if entry or name in ("nabla_tau", "orthograd")}
    results = compare(Comparison.from_dict(settings | {"methods": methods}), tmp_path / "out", progress=False)
    assert {run["model"]: run["error"] for run in results["runs"] if run["status"] != "done"} == {}
    assert {"original", "retrained", *methods} <= {run["model"] for run in results["runs"]}


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_method_is_compared_or_refuses_the_head_by_name(path, tmp_path):
    settings = on_stand_ins(path, tmp_path) | {"methods": {"all": None}}
    results = compare(Comparison.from_dict(settings), tmp_path / "out", progress=False)
    runs = {run["model"]: run for run in results["runs"]}
    for name, method in METHODS.items():
        if method.head_kinds and KINDS.get(path.stem, "single_label") not in method.head_kinds:
            assert runs[name]["error"].startswith(f"method: {name} works on heads of kind")
        elif runs[name]["status"] != "done":  # the stand-in lacks what it needs
            assert LACKING[name] in runs[name]["error"]
