"""Differences of metrics on the same samples: against scikit-learn, numpy and repeated draws."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from hf_unlearn.auditing.differences import (
    auc_statistic,
    difference,
    log_loss_statistic,
    mean_statistic,
    ratio_statistic,
)
from hf_unlearn.auditing.one_offset import Margins, one_offset, one_offset_estimate

STATISTICS = {
    "auc": lambda sides: auc_statistic(*sides),
    "accuracy": lambda sides: mean_statistic("forget", (sides[0] > 0).astype(float)),
    "loss": lambda sides: log_loss_statistic("forget", np.exp(sides[0] / 2)),
    "wer": lambda sides: ratio_statistic("forget", np.stack([sides[0] > 0, 3 + (sides[0] > 1)], axis=1)),
}


def draw(generator, size):
    """Scores of two models on the same forget and unseen samples: what is hard for one is hard for the other."""
    shared = [generator.normal(size=size), generator.normal(size=2 * size)]
    first, second = ([x + 0.3 * generator.normal(size=len(x)) for x in shared] for _ in range(2))
    return first, second


@pytest.mark.parametrize("name", STATISTICS)
def test_the_deviation_is_that_of_repeated_draws(name):
    generator, values, told = np.random.default_rng(0), [], []
    for _ in range(400):
        first, second = (STATISTICS[name](sides) for sides in draw(generator, 60))
        of_both = difference(name, first, [second], spread=False)
        values.append((first.value, of_both.value))
        told.append((first.deviation(), of_both.sampling))
    alone, paired = np.std(values, axis=0)
    assert np.mean(told, axis=0) == pytest.approx([alone, paired], rel=0.15)
    assert paired < 0.75 * alone  # pairing is what makes small differences visible


def test_values():
    generator = np.random.default_rng(1)
    # Rounded, so that there are ties.
    members, non_members = (np.round(generator.normal(mean, 1, n), 1) for mean, n in ((0.4, 50), (0.0, 70)))
    truth = np.repeat([1, 0], [50, 70])
    assert auc_statistic(members, non_members).value == pytest.approx(
        roc_auc_score(truth, np.concatenate([members, non_members]))
    )
    assert log_loss_statistic("forget", np.array([1.0, 3.0])).value == pytest.approx(np.log(2))
    assert ratio_statistic("forget", np.array([[1, 10], [3, 10]])).value == pytest.approx(0.2)
    for statistic in (auc_statistic(members, non_members), ratio_statistic("unseen", np.array([[1, 10], [3, 5]]))):
        assert all(abs(x.mean()) < 1e-12 for x in statistic.influence.values())


def test_losses_are_shown_as_losses():
    of_losses = difference("forget_loss", *(log_loss_statistic("forget", np.array([x, x])) for x in (4.0,)), [
        log_loss_statistic("forget", np.array([1.0, 1.0]))
    ], spread=True)  # fmt: skip
    assert (of_losses.audited, of_losses.expected) == pytest.approx((4.0, 1.0))
    assert of_losses.value == pytest.approx(np.log(4)) and of_losses.low > 0


def test_one_offset():
    generator = np.random.default_rng(0)
    of_class, of_others = generator.normal(-5, 1, 40), generator.normal(-5, 1, 400)
    assert one_offset(Margins(of_class, of_others)) == pytest.approx(0.85, abs=0.1)  # nothing of its own
    held_down = Margins(generator.normal(-99, 1, 40), generator.normal(-120, 1, 400))
    assert one_offset(held_down) == 0  # one number brings it back for nothing
    assert one_offset_estimate([Margins(of_class, of_others), held_down]).value == 0  # the worst of several outputs
    estimate = one_offset_estimate([Margins(of_class, of_others)])
    assert estimate.low < estimate.value < estimate.high and estimate.high - estimate.low < 0.35
    # By hand: nine of ten samples of the class are at -4 or above, where two of four others are.
    by_hand = Margins(np.array([-9.0, -4, -3, -3, -3, -3, -3, -3, -3, -3]), np.array([-5.0, -4, -3.5, -8]))
    assert one_offset(by_hand) == 0.5
    everything_masked = Margins(np.full(20, -1e38), np.full(50, -1e38))
    assert one_offset(everything_masked) == 1
