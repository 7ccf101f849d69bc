"""NaN and infinity: found with dataset and number before the first step, or at the step; nothing is left of them."""

import math

import datasets
import numpy as np
import pytest
import torch
from tiny import Samples, make, samples

from hf_unlearn import UnlearningArguments, UnlearningTrainer, audit
from hf_unlearn.data.finite import check_finite
from hf_unlearn.data.splitting import subsample_numbers
from hf_unlearn.trainer import draws

NUMBERS = [torch.nan, torch.inf, -torch.inf]


def spoilt(name, number, value, column="pixel_values", kind=Samples):
    """`sets=` that puts a value into one sample of a dataset."""

    def spoil(*parts):
        part = dict(zip(("forget_ds", "retain_ds", "unseen_ds"), parts, strict=True))[name]
        sample = part.items[number]
        changed = sample[column].clone().float()
        changed.view(-1)[0] = value
        part.items[number] = {**sample, column: changed}
        return tuple(kind(part.items) for part in parts)

    return spoil


@pytest.mark.parametrize("value", NUMBERS)
@pytest.mark.parametrize(("name", "number"), [("forget_ds", 3), ("retain_ds", 7), ("unseen_ds", 0)])
def test_lists_are_looked_at_before_anything_else(unlearn, name, number, value):
    with pytest.raises(ValueError, match=f"^{name}: sample {number} has {value} in 'pixel_values'; take it out"):
        unlearn(sets=spoilt(name, number, value, kind=list))


@pytest.mark.parametrize(("name", "number"), [("forget_ds", 3), ("retain_ds", 7), ("unseen_ds", 0)])
def test_samples_that_are_made_when_read_are_found_when_measured(unlearn, name, number):
    trainer = unlearn(sets=spoilt(name, number, torch.nan))
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    with pytest.raises(ValueError, match=f"^{name}: sample {number} has nan in 'pixel_values'"):
        trainer.train()
    assert trainer.state.global_step == 0 and trainer.outcome is None
    assert all(torch.equal(value, trainer.model.state_dict()[key]) for key, value in before.items())


@pytest.mark.parametrize("method", ["nabla_tau", "orthograd", "grad_diff"])
def test_retain_samples_that_were_not_measured_are_found_at_the_step(unlearn, method, monkeypatch):
    """Of 10 retain samples 4 are measured."""
    monkeypatch.setattr(draws, "LEAST_DRAWN", 4)
    numbers = subsample_numbers(10, 4, 42)
    number = next(i for i in range(10) if i not in numbers)
    trainer = unlearn(method=method, sets=spoilt("retain_ds", number, torch.nan), max_steps=12, stop_at_target=False)
    with pytest.raises(ValueError, match=f"^retain_ds: sample {number} has nan in 'pixel_values'"):
        trainer.train()
    assert trainer.pace is not None  # steps have begun: not among those measured before them
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_users_loss_is_finite(unlearn, value):
    def losses(outputs, batch):
        values = outputs.logits.square().mean(1)
        return torch.where(batch["pixel_values"][:, 0, 0, 0] == 9, value, values)

    def mark(forget_ds, retain_ds, unseen_ds):
        retain_ds.items[2]["pixel_values"][0, 0, 0] = 9
        return forget_ds, retain_ds, unseen_ds

    trainer = unlearn(per_sample_loss=losses, sets=mark)
    with pytest.raises(ValueError, match=f"^retain_ds: sample 2 has a loss of {value} before it could change"):
        trainer.train()


def regression(forget_label):
    model, batch = make("vit")
    model.config.problem_type = "regression"
    data = samples(batch(24, seed=1))
    for sample in data:
        sample["labels"] = torch.zeros(3)
    data[1]["labels"] = torch.full((3,), forget_label)
    return model, data[:6], data[6:16], data[16:]


@pytest.mark.parametrize(("label", "problem"), [(1e30, "a loss of inf"), (math.nan, "nan in 'labels'")])
def test_labels_of_regression(tmp_path, label, problem):
    model, forget_ds, retain_ds, unseen_ds = regression(label)
    args = UnlearningArguments(str(tmp_path), max_steps=2, use_cpu=True, report_to="none", disable_tqdm=True)
    with pytest.raises(ValueError, match=f"^forget_ds: sample 1 has {problem}"):
        UnlearningTrainer(model, forget_ds, retain_ds, args, unseen_ds=unseen_ds).train()


@pytest.mark.parametrize("zero_infinity", [False, True])
def test_transcripts_longer_than_their_sound(unlearn, zero_infinity):
    model, _ = make("wav2vec2_ctc")
    model.config.ctc_zero_infinity = zero_infinity

    def lengthen(forget_ds, retain_ds, unseen_ds):
        forget_ds.items[2]["labels"] = torch.arange(4, 34).repeat(4)
        return forget_ds, retain_ds, unseen_ds

    with pytest.raises(
        ValueError, match=r"^forget_ds: sample 2 has a loss of inf .* a transcript longer than its sound"
    ):
        unlearn("wav2vec2_ctc", model=model, sets=lengthen).train()


def arrow(values, **features):
    return datasets.Dataset.from_dict(values, features=datasets.Features(features) if features else None)


def test_arrow_columns(tmp_path):
    images = np.zeros((1200, 1, 2, 2), np.float32)
    images[1100, 0, 1, 1] = np.inf
    features = {"pixel_values": datasets.Array3D((1, 2, 2), "float32"), "other": datasets.Value("float64")}
    one = arrow({"pixel_values": images, "other": [math.nan] * 1200}, **features)
    with pytest.raises(ValueError, match=r"^unseen_ds: sample 1100 has inf in 'pixel_values'"):
        check_finite("unseen_ds", one, ["pixel_values", "labels"])
    ragged = arrow({"input_values": [[0.0], [1.0, math.nan], []], "input_ids": [[1], [2, 3], []]})
    with pytest.raises(ValueError, match=r"^forget_ds: sample 1 has nan in 'input_values'"):
        check_finite("forget_ds", ragged, ["input_values", "input_ids"])
    check_finite("forget_ds", ragged.select([0, 2]), ["input_values", "input_ids"])
    check_finite("retain_ds", arrow({"input_values": [[0.0, None], [1.0]]}), ["input_values"])  # an empty cell is none


@pytest.mark.parametrize("tensors", [1, 3])
def test_weights(unlearn, tensors):
    model, _ = make("vit")
    for p in list(model.parameters())[-tensors:]:
        p.data.view(-1)[0] = torch.nan
    with pytest.raises(
        ValueError, match=rf"^model: {tensors} of its \d+ weight tensors hold nan or infinity, '.*' first"
    ):
        unlearn(model=model)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", math.nan), ("learning_rate", math.inf), ("retain_weight", math.nan),
        ("retain_weight", math.inf), ("forget_target", math.nan), ("forget_target", "inf"), ("weight_decay", math.nan),
        ("max_grad_norm", math.nan), ("forget_target", [0.5, math.nan]), ("adam_beta1", math.inf),
        ("warmup_steps", math.nan), ("num_train_epochs", math.nan),
    ],
)  # fmt: skip
def test_settings(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"^{name}: ") as error:
        UnlearningArguments(str(tmp_path), use_cpu=True, report_to="none", **{name: value})
    assert "\n" not in str(error.value)


def test_an_audit_names_the_sample(unlearn):
    trainer = unlearn()
    data = {"forget_ds": trainer.forget_ds, "retain_ds": trainer.retain_ds, "unseen_ds": list(trainer.unseen_ds)}
    data["unseen_ds"][2] = {**data["unseen_ds"][2], "pixel_values": torch.full((3, 32, 32), torch.inf)}
    with pytest.raises(ValueError, match=r"^unseen_ds: sample 2 has inf in 'pixel_values'"):
        audit(trainer.model, **data)
