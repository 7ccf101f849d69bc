"""The numbers at which a run is stopped, and the default learning rates: each is a claim of the documentation."""

import math

import pytest
import torch
from tiny import make

from hf_unlearn.auditing.statistics import SampleStatistics
from hf_unlearn.methods import METHODS


def statistics(loss=0.0, accuracy=1.0, count=200):
    right = torch.zeros(count)
    right[: round(accuracy * count)] = 1.0
    return SampleStatistics(torch.full((count,), float(loss)), right)


@pytest.mark.parametrize(("rise", "has_diverged"), [(0.0, False), (0.68, False), (0.70, True), (math.nan, True)])
def test_the_guard_is_a_rise_of_ln_2_and_is_asked_before_the_target(unlearn, monkeypatch, rise, has_diverged):
    trainer = unlearn(method="grad_diff", max_steps=1)
    trainer.train()
    guard = trainer.guard
    trainer.unlearning_state.metrics_before["retain_loss"] = 1.0
    monkeypatch.setattr(trainer, "_collect_statistics", lambda dataset: statistics(loss=1.0 + rise))
    assert guard.is_good(5) is not has_diverged
    if has_diverged:
        assert "the retain loss rose from 1 to" in guard.reason and guard.good_step == 0
    else:
        assert guard.reason is None and guard.good_step == 5


def test_default_learning_rates(unlearn):
    """The method's own, whatever the number of weights, to begin the calibration from."""
    for method in ("nabla_tau", "grad_diff"):
        args = unlearn(method=method).args
        assert args.learning_rate == METHODS[method].learning_rate and args.calibrates_learning_rate
    assert not unlearn(learning_rate=1e-3).args.calibrates_learning_rate
    assert not unlearn(lr_scheduler_type="linear").args.calibrates_learning_rate


def test_an_adapter_trains_at_its_default_rate(unlearn):
    trainer = unlearn(model=make("vit")[0], method="orthograd")
    assert trainer.args.learning_rate == 2e-3
