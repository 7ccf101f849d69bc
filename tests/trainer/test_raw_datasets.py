"""Datasets as most of the Hub has them: the inputs of the model are made by a transform or by the collator."""

import datasets
import numpy as np
import pytest
import tiny_data
import torch

from hf_unlearn import UnlearningArguments, UnlearningTrainer, audit
from hf_unlearn.hub.record import verify


def raw_datasets():
    """An image and a label, and a number that the model does not read; labels repeat in all three."""
    rng = np.random.default_rng(0)
    samples = tiny_data.vit_samples(18, rng).rename_column("labels", "label").add_column("id", list(range(18)))
    return [samples.select(indices) for indices in (range(4), range(4, 12), range(12, 18))]


def transformed(samples, processor):
    def make(batch):
        images = [image.convert("RGB") for image in batch["image"]]
        return {**processor(images, return_tensors="pt"), "label": batch["label"], "image": batch["image"]}

    return samples.with_transform(make)


def collator_of(processor):
    def collate(samples):
        images = [sample["image"].convert("RGB") for sample in samples]
        return {
            **processor(images, return_tensors="pt"),
            "labels": torch.tensor([sample["label"] for sample in samples]),
        }

    return collate


@pytest.fixture
def arguments(tmp_path):
    def make(**settings):
        return UnlearningArguments(
            str(tmp_path / "out"), max_steps=1, report_to="none", disable_tqdm=True, use_cpu=True,
            per_device_train_batch_size=4, request="samples", **settings,
        )  # fmt: skip

    return make


@pytest.mark.parametrize("removes", [True, False], ids=["default", "remove_unused_columns=False"])
@pytest.mark.parametrize("form", ["transform", "collator", "dicts"])
@pytest.mark.parametrize("method", ["nabla_tau", "orthograd"])
def test_raw_samples(arguments, method, form, removes, tmp_path):
    model, processor = tiny_data.vit()
    data, collator = raw_datasets(), None if form == "transform" else collator_of(processor)
    if form == "transform":
        data = [transformed(samples, processor) for samples in data]
    elif form == "dicts":
        data = [list(samples) for samples in data]
    forget_ds, retain_ds, unseen_ds = data
    args = arguments(method=method, remove_unused_columns=removes)
    trainer = UnlearningTrainer(model, forget_ds, retain_ds, args, unseen_ds=unseen_ds, data_collator=collator)
    trainer.train()
    trainer.audit()
    audit(model, forget_ds=forget_ds, retain_ds=retain_ds, unseen_ds=unseen_ds, data_collator=collator)
    if method == "nabla_tau" and removes:
        trainer.save_release(tmp_path / "release")
        record = tmp_path / "release" / "unlearning.json"
        assert verify(record, samples=forget_ds).matches
        assert not verify(record, samples=unseen_ds).matches


def test_raw_samples_without_a_collator_are_refused_before_a_step(arguments):
    model, _ = tiny_data.vit()
    forget_ds, retain_ds, unseen_ds = raw_datasets()
    trainer = UnlearningTrainer(model, forget_ds, retain_ds, arguments(), unseen_ds=unseen_ds)
    message = r"^samples: hold image, label, id, none of which ViTForImageClassification reads; make pixel_values of"
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0
    with pytest.raises(ValueError, match=message):
        audit(model, forget_ds=forget_ds, retain_ds=retain_ds, unseen_ds=unseen_ds)
    assert isinstance(forget_ds, datasets.Dataset)
