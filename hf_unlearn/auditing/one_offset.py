"""The one-offset test of a forgotten class: does one number, added to its output, bring it back?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hf_unlearn.auditing.attacks import Estimate
from hf_unlearn.auditing.dataset_metrics import MIN_SAMPLES
from hf_unlearn.auditing.statistics import SampleStatistics

# The share of the class's samples that the number has to bring back.
BROUGHT_BACK = 0.9
DRAWS = 500


class Margins(NamedTuple):
    """Margins of an output: its logit minus the best other, of samples of the class [n] and of other classes [m]."""

    of_class: np.ndarray
    of_others: np.ndarray


def class_margins(
    forget: SampleStatistics, unseen: SampleStatistics, classes: Sequence[int], spare: Sequence[int]
) -> list[Margins]:
    """The margins of every output that could answer for a forgotten class, on unseen samples.

    A class may have been renamed: outputs of which no sample has the label are looked at as well.

    Args:
        forget: the statistics of the forget samples, with labels and log probabilities; they stand in for unseen
            samples of a class that has too few.
        unseen: those of the unseen samples.
        classes: the forgotten classes.
        spare: outputs that are no sample's label.
    """
    assert unseen.labels is not None and forget.labels is not None
    unseen_labels, forget_labels = unseen.labels.numpy(), forget.labels.numpy()
    others = ~np.isin(unseen_labels, classes)
    margins = []
    for label in classes:
        for output in (label, *spare):
            of_unseen, of_forget = _margins(unseen, output), _margins(forget, output)
            of_class = of_unseen[unseen_labels == label]
            if len(of_class) < MIN_SAMPLES:
                of_class = of_forget[forget_labels == label]
            margins.append(Margins(of_class, of_unseen[others]))
    return margins


def one_offset(margins: Margins) -> float:
    """The share in [0, 1] of other classes' samples that an output takes when a number brings 90 % of the class to it.

    High is good, because to a model that never met the class its samples are nothing of their own. Near 0, the class
    is known, and only its output is held down.

    Examples:
        >>> one_offset(Margins(np.array([-1.0, -2.0, -3.0]), np.array([-9.0, -2.5, -8.0, -7.0])))
        0.25
    """
    return float(_taken(*(side[None] for side in margins))[0])


def one_offset_estimate(margins: Sequence[Margins], seed: int = 0) -> Estimate:
    """The smallest share over the outputs, with its 95 % interval by a bootstrap over samples."""
    generator, drawn = np.random.default_rng(seed), []
    for sides in margins:
        resampled = (side[generator.integers(0, len(side), (DRAWS, len(side)))] for side in sides)
        drawn.append(_taken(*resampled))
    value = min(one_offset(sides) for sides in margins)
    low, high = np.quantile(np.min(drawn, axis=0), [0.025, 0.975]).tolist()
    return Estimate(value, min(low, value), max(high, value))


def _taken(of_class: np.ndarray, of_others: np.ndarray) -> np.ndarray:
    """For margins [draws, n] and [draws, m], the share [draws] of the others at or above the class's lower tenth."""
    position = int((1 - BROUGHT_BACK) * of_class.shape[1] + 1e-9)
    threshold = np.partition(of_class, position, axis=1)[:, position]
    return (of_others >= threshold[:, None]).mean(axis=1)


def _margins(statistics: SampleStatistics, output: int) -> np.ndarray:
    assert statistics.log_probs is not None
    log_probs = statistics.log_probs.double().numpy()
    others = np.delete(log_probs, output, axis=1)
    return log_probs[:, output] - others.max(axis=1)
