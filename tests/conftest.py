"""Shared by all tests: no network, one thread, quiet progress bars."""

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["OMP_NUM_THREADS"] = "1"

import pytest

# Imported where it is used: the process that hands out the tests to others reads this file, and needs no torch.


def pytest_collection_finish():
    """Every run of a trainer collects garbage: half of its time, if all that was imported is searched each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def hub():
    """The server, and huggingface_hub talking to it: its settings are read when it is imported."""
    from hub_server import Hub
    from huggingface_hub import constants

    with Hub() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield hub


def answers(labels):
    """Other label tokens of the same length: a reversed answer."""
    return labels.flip(0)


@pytest.fixture
def unlearn(tmp_path):
    """Builds a trainer on a tiny model and random data: `unlearn("vit", method="orthograd", max_steps=2)`."""
    import torch
    from tiny import Samples, make, samples

    from hf_unlearn import UnlearningArguments, UnlearningTrainer
    from hf_unlearn.methods import METHODS

    def build(
        name="vit",
        *,
        forget=6,
        retain=10,
        unseen=8,
        dtype=torch.float32,
        model=None,
        sets=None,
        without_model=False,
        **settings,
    ):
        own, batch = make(name)
        model = own if model is None else model
        if not getattr(model, "is_quantized", False):  # which transformers does not convert
            model = model.to(dtype)
        data = samples(batch(forget + retain + unseen, seed=1))
        data = [{k: torch.as_tensor(v) for k, v in sample.items()} for sample in data]
        data = [{k: v.to(dtype) if v.is_floating_point() else v for k, v in sample.items()} for sample in data]
        forget_ds, retain_ds = Samples(data[:forget]), Samples(data[forget : forget + retain])
        unseen_ds = Samples(data[forget + retain :]) if unseen else None
        if sets is not None:
            forget_ds, retain_ds, unseen_ds = sets(forget_ds, retain_ds, unseen_ds)
        if METHODS.get(settings.get("method")) and METHODS[settings["method"]].needs_alternative_ds:
            settings.setdefault(
                "alternative_ds", [{**sample, "labels": answers(sample["labels"])} for sample in forget_ds]
            )
        extra = {k: settings.pop(k) for k in ("peft_config", "callbacks", "compute_metrics", "eval_dataset",
                 "per_sample_loss", "processing_class", "model_init", "alternative_ds", "optimizers", "data_collator",
                 "optimizer_cls_and_kwargs", "general_ds", "base_model") if k in settings}  # fmt: skip
        defaults = {
            "output_dir": str(tmp_path / settings.pop("folder", "out")), "max_steps": 2, "logging_steps": 1,
            "per_device_train_batch_size": 4, "report_to": "none", "disable_tqdm": True, "use_cpu": True,
        }  # fmt: skip
        args = UnlearningArguments(**{**defaults, **settings})
        return UnlearningTrainer(
            None if without_model else model, forget_ds, retain_ds, args, unseen_ds=unseen_ds, **extra
        )

    return build


@pytest.fixture
def cache(tmp_path_factory, monkeypatch):
    """What `datasets` reads and makes goes to a folder of the test's own."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
