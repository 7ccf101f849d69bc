"""Differences of one model's metrics to those of other models on the same samples, and how sure they are.

A sample that is hard for one model is hard for the next, so the difference of two models on the same samples is known
far better than either metric. Its error is the sum of what every sample adds to it (its influence), taken of the
difference itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

# A verdict asks several questions of a model that has forgotten: each at 99 %, so that few such models are found
# fault with.
CONFIDENCE = 0.99
Z = float(stats.norm.ppf(0.5 + CONFIDENCE / 2))
# How much retrained models differ (one deviation) beyond the chance of their samples: accuracies, areas and word error
# rates as shares, losses in logarithms. Wider than what 12 models of digits differ by (benchmarks/known_models.py,
# seed 0: 0.012, 0, none measured, 0.05), because fine-tuned models differ by more.
SPREADS = {"accuracy": 0.01, "auc": 0.015, "wer": 0.03, "loss": 0.12}
# What was measured counts as much as so many retrained models of this very request.
SPREAD_MODELS = 4


class Statistic(NamedTuple):
    """A metric of one model and the influence of every sample on it.

    Attributes:
        value: the metric; of a loss its logarithm, because losses differ by factors.
        influence: dataset to [samples], mean 0: what the metric would move by, were the sample drawn once more,
            times the number of samples.
    """

    value: float
    influence: Mapping[str, np.ndarray]

    def deviation(self) -> float:
        """The standard error of the value by the chance of the samples."""
        return float(np.sqrt(sum(np.var(x, ddof=1) / len(x) for x in self.influence.values() if len(x) > 1)))


def mean_statistic(dataset: str, values: np.ndarray) -> Statistic:
    """The mean of values [n]."""
    return Statistic(float(values.mean()), {dataset: values - values.mean()})


def log_loss_statistic(dataset: str, losses: np.ndarray) -> Statistic:
    """The logarithm of the mean of losses [n]; a mean below 1e-6 counts as 1e-6."""
    mean = max(float(losses.mean()), 1e-6)
    return Statistic(float(np.log(mean)), {dataset: (losses - losses.mean()) / mean})


def ratio_statistic(dataset: str, counts: np.ndarray) -> Statistic:
    """The sum of the first column over the sum of the second, of counts [n, 2]."""
    numerators, denominators = counts.T.astype(float)
    ratio = numerators.sum() / max(denominators.sum(), 1.0)
    return Statistic(float(ratio), {dataset: (numerators - ratio * denominators) / max(denominators.mean(), 1e-12)})


def auc_statistic(members: np.ndarray, non_members: np.ndarray) -> Statistic:
    """The area under the ROC curve of scores of forget [n] and unseen samples [m].

    Influences by the placement values of DeLong et al. 1988 ("Comparing the areas under two or more correlated
    receiver operating characteristic curves").
    """
    n, m = len(members), len(non_members)
    ranks = stats.rankdata(np.concatenate([members, non_members]))
    above = (ranks[:n] - stats.rankdata(members)) / m
    below = 1 - (ranks[n:] - stats.rankdata(non_members)) / n
    return Statistic(float(above.mean()), {"forget": above - above.mean(), "unseen": below - below.mean()})


def minus(one: Statistic, others: Sequence[Statistic]) -> Statistic:
    """One model's metric minus the mean of others' on the same samples."""
    parts = [(1.0, one), *((-1 / len(others), other) for other in others)]
    influence: dict[str, np.ndarray] = {}
    for weight, statistic in parts:
        for dataset, values in statistic.influence.items():
            influence[dataset] = influence.get(dataset, 0.0) + weight * values
    return Statistic(sum(weight * statistic.value for weight, statistic in parts), influence)


@dataclass(frozen=True)
class Difference:
    """How far a metric of the audited model is from what is expected.

    Attributes:
        metric: its name.
        audited: the metric of the audited model.
        expected: that of the retrained models (their mean), of the original, or of a model that has never seen the
            samples.
        value: the difference; of losses that of the logarithms.
        low: the lower end of its 99 % interval, which holds the chance of the samples and, against retrained models,
            how much these differ.
        high: the upper end.
        sampling: the deviation by the chance of the samples alone.
    """

    metric: str
    audited: float
    expected: float
    value: float
    low: float
    high: float
    sampling: float


def difference(metric: str, audited: Statistic, expected: Sequence[Statistic], *, spread: bool) -> Difference:
    """The difference of a metric to other models', with its interval.

    Args:
        metric: its name; the last word says of what kind it is.
        audited: the metric of the audited model.
        expected: that of one or more models, on the same samples.
        spread: whether these are retrained models, of which each could have come out as another.
    """
    of_difference = minus(audited, expected)
    sampling, variance = of_difference.deviation(), 0.0
    if spread:
        measured = SPREADS[metric.rpartition("_")[2]]
        variance = spread_variance(measured, [statistic.value for statistic in expected]) * (1 + 1 / len(expected))
    half = Z * float(np.sqrt(sampling**2 + variance))
    value = of_difference.value
    shown = np.exp if metric.endswith("loss") else float
    return Difference(
        metric, float(shown(audited.value)), float(shown(np.mean([s.value for s in expected]))), value,
        value - half, value + half, sampling,
    )  # fmt: skip


def constant(value: float) -> Statistic:
    """An expectation that no sample moves."""
    return Statistic(value, {})


def spread_variance(measured: float, values: Sequence[float]) -> float:
    """The variance between retrained models: what was measured before, and what those given differ by.

    Args:
        measured: the deviation that was measured before.
        values: the metric of every retrained model that was given.
    """
    return float((SPREAD_MODELS * measured**2 + np.var(values) * len(values)) / (SPREAD_MODELS + len(values) - 1))
