"""The numbers at which a run is stopped, and the default learning rates: each is a claim of the documentation."""

import math

import pytest
import torch
from tiny import make

from hf_unlearn.auditing.statistics import SampleStatistics
from hf_unlearn.methods import METHODS
from hf_unlearn.trainer.callbacks import CHECK_STEPS, TargetStoppingCallback
from hf_unlearn.trainer.defaults import default_learning_rate


@pytest.fixture
def stops(unlearn, monkeypatch):
    """Whether a run stops after a step at which the forget and retain samples have these statistics."""

    def check(forget, retain, **settings):
        trainer = unlearn(method="grad_diff", max_steps=1, **settings)
        trainer.train()
        callback = TargetStoppingCallback(trainer, trainer.guard)
        trainer.unlearning_state.retain_loss_before = 1.0
        given = {id(callback.forget_ds): forget, id(trainer.guard.retain_ds): retain}
        monkeypatch.setattr(trainer, "_collect_statistics", lambda dataset: given[id(dataset)])
        trainer.state.global_step, trainer.control.should_training_stop = CHECK_STEPS, False
        callback.on_step_end(trainer.args, trainer.state, trainer.control)
        return trainer.control.should_training_stop

    return check


def statistics(loss=0.0, accuracy=1.0, count=200):
    right = torch.zeros(count)
    right[: round(accuracy * count)] = 1.0
    return SampleStatistics(torch.full((count,), float(loss)), right)


@pytest.mark.parametrize(("accuracy", "is_reached"), [(0.5, False), (0.02, False), (0.01, True), (0.0, True)])
def test_a_class_is_forgotten_at_one_percent(stops, accuracy, is_reached):
    class_labels = {"sets": one_class, "request": "class"}
    assert stops(statistics(loss=9.0, accuracy=accuracy), statistics(loss=1.0), **class_labels) is is_reached


def one_class(forget_ds, retain_ds, unseen_ds):
    for dataset, label in ((forget_ds, 0), (retain_ds, 1)):
        for sample in dataset.items:
            sample["labels"] = torch.tensor(label)
    return forget_ds, retain_ds, unseen_ds


@pytest.mark.parametrize(("rise", "has_diverged"), [(0.0, False), (0.68, False), (0.70, True), (math.nan, True)])
def test_the_guard_is_a_rise_of_ln_2_and_is_asked_before_the_target(unlearn, monkeypatch, rise, has_diverged):
    trainer = unlearn(method="grad_diff", max_steps=1)
    trainer.train()
    guard = trainer.guard
    trainer.unlearning_state.retain_loss_before = 1.0
    monkeypatch.setattr(trainer, "_collect_statistics", lambda dataset: statistics(loss=1.0 + rise))
    assert guard.is_good(5) is not has_diverged
    if has_diverged:
        assert "the retain loss rose from 1 to" in guard.reason and guard.good_step == 0
    else:
        assert guard.reason is None and guard.good_step == 5


def test_default_learning_rates():
    """2e-3 for an adapter of any size; for all weights the method's own up to a million, then by the square root."""
    nabla_tau, grad_diff = METHODS["nabla_tau"], METHODS["grad_diff"]
    assert default_learning_rate(nabla_tau, 10_000, is_adapter=True) == 2e-3
    assert default_learning_rate(grad_diff, 10**9, is_adapter=True) == 2e-3
    assert default_learning_rate(nabla_tau, 10**6, is_adapter=False) == 3e-4
    assert default_learning_rate(nabla_tau, 4 * 10**6, is_adapter=False) == pytest.approx(1.5e-4)
    assert default_learning_rate(grad_diff, 1000, is_adapter=False) == 3e-5


def test_an_adapter_trains_at_its_default_rate(unlearn):
    trainer = unlearn(model=make("vit")[0], method="orthograd")
    assert trainer.args.learning_rate == 2e-3
