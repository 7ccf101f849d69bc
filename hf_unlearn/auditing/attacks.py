"""Membership inference attacks: can the forgotten samples be told from samples that were never seen?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_curve
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

# Metric to the false positive rate at which it is taken.
RATES = {"tpr_at_1pct_fpr": 0.01, "tpr_at_01pct_fpr": 0.001}
ALPHA = 0.05


class Estimate(NamedTuple):
    """A metric and its 95 % interval."""

    value: float
    low: float
    high: float


def logistic_attack(members: np.ndarray, non_members: np.ndarray, folds: int = 5, repeats: int = 5) -> Estimate:
    """Balanced accuracy in [0, 1] of a cross-validated logistic regression on one statistic; 0.5 is chance.

    The membership inference of ∇τ's paper (Trippa et al. 2024, arXiv 2403.14339, section 4): members are the forget
    samples, non-members unseen samples. Below 0.5 the regression has learned nothing; a value far from the retrained
    model's, on either side, shows a difference. Interval: corrected resampled t (Nadeau and Bengio 2003, "Inference
    for the generalization error"), because folds share samples: on samples that cannot be told apart, a bootstrap's
    held 0.5 in 3 of 4 cases only.

    Args:
        members: statistic [n] of the forget samples, usually the loss.
        non_members: the same statistic [m] of unseen samples.
        folds: folds of a stratified cross-validation; fewer when a side has fewer samples.
        repeats: the cross-validation is repeated with other shuffles, and averaged.

    Raises:
        ValueError: when a side has fewer than two samples, or a value is not finite.

    Examples:
        >>> logistic_attack(np.linspace(0, 1, 50), np.linspace(2, 3, 50)).value
        1.0
    """
    sides = _checked("logistic_attack", members, non_members)
    features, folds = np.concatenate(sides).reshape(-1, 1), min(folds, *(len(side) for side in sides))
    truth = np.repeat([1, 0], [len(side) for side in sides])
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
    scores = np.concatenate([
        cross_val_score(
            model, features, truth, scoring="balanced_accuracy", error_score="raise",
            cv=StratifiedKFold(folds, shuffle=True, random_state=seed),
        )
        for seed in range(repeats)
    ])  # fmt: skip
    value, deviation = scores.mean(), scores.std(ddof=1) * (1 / len(scores) + 1 / (folds - 1)) ** 0.5
    half = stats.t.ppf(0.975, len(scores) - 1) * deviation
    return Estimate(float(value), float(max(value - half, 0.0)), float(min(value + half, 1.0)))


def threshold_attack(
    members: np.ndarray, non_members: np.ndarray, resamples: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """How well one threshold on a score tells members from non-members, each metric with its 95 % interval.

    Higher scores must speak for membership (minus the loss, margin, minus the entropy). The metrics are
    those of Carlini et al. 2022 (arXiv 2112.03570, section 3): the true positive rate at a low false positive rate
    says more about single samples than the average over all thresholds. Intervals: percentile bootstrap over samples;
    for the true positive rates, binomial bounds of the threshold and of the rate together, because in the tail a
    bootstrap's are too narrow (three of four intervals held the truth at 0.1 % of 1,000 samples).

    Args:
        members: scores [n] of the forget samples.
        non_members: scores [m] of unseen samples of the same distribution.
        resamples: bootstrap samples.
        seed: of the bootstrap, and of the halves below.

    Returns:
        All in [0, 1]. `auc`. `balanced_accuracy`: at the best threshold of one half of the samples, on the other half
        (0.5 is chance, where the best threshold for all samples would never be below it). `tpr_at_1pct_fpr` and
        `tpr_at_01pct_fpr`: only where m is at least 100 and 1,000; with fewer, no threshold has that rate.

    Raises:
        ValueError: when a side has fewer than two samples, or a score is not finite.

    Examples:
        >>> threshold_attack(np.arange(50) + 100.0, np.arange(50.0))["auc"]
        Estimate(value=1.0, low=1.0, high=1.0)
    """
    sides = _checked("threshold_attack", members, non_members)
    generator = np.random.default_rng(seed)
    # The highest score first; samples of the same score pass a threshold together.
    ranks = np.unique(-np.concatenate(sides), return_inverse=True)[1]
    halves = [
        half for side in np.split(ranks, [len(sides[0])]) for half in np.array_split(generator.permutation(side), 2)
    ]
    drawn = [_areas([half[generator.integers(0, len(half), len(half))] for half in halves]) for _ in range(resamples)]
    bounds = np.quantile(drawn, [0.025, 0.975], axis=0).T
    estimates = {
        name: Estimate(float(value), float(low), float(high))
        for name, value, (low, high) in zip(("auc", "balanced_accuracy"), _areas(halves), bounds, strict=True)
    }
    return estimates | {name: _tpr_at(rate, *sides) for name, rate in RATES.items() if len(sides[1]) >= 1 / rate}


def _areas(halves: Sequence[np.ndarray]) -> tuple[float, float]:
    """Area under the curve, and balanced accuracy on each half at the threshold that is best for the other.

    Args:
        halves: for two halves of the members and two of the non-members, the ranks of their scores; 0 is the highest
            score.
    """
    rank_count = max(half.max() for half in halves) + 1
    counts = [np.bincount(half, minlength=rank_count) for half in halves]
    members, non_members = counts[0] + counts[1], counts[2] + counts[3]
    area = non_members @ (members.cumsum() - members / 2) / members.sum() / non_members.sum()
    # True minus false positive rate of every threshold.
    gains = [(counts[i] / len(halves[i]) - counts[i + 2] / len(halves[i + 2])).cumsum() for i in (0, 1)]
    # The threshold that is best on one half, on the other half; none where no threshold gains anything.
    transferred = [other[best.argmax()] if best.max() > 0 else 0.0 for best, other in (gains, gains[::-1])]
    return round(float(area), 12), 0.5 + sum(transferred) / 4


def _tpr_at(rate: float, members: np.ndarray, non_members: np.ndarray) -> Estimate:
    """True positive rate at a false positive rate, with its interval."""
    highest = np.append(np.sort(non_members)[::-1], -np.inf)

    def true_positives(false_positives: float) -> int:
        """Of the lowest threshold with at most so many false positives."""
        return int((members > highest[int(false_positives)]).sum())

    # Of the threshold with exactly this rate: how many non-members may have passed it, and then how many members.
    fewest, most = stats.binom.ppf([ALPHA / 4, 1 - ALPHA / 4], len(non_members), rate)
    bounds = [
        stats.binomtest(true_positives(count), len(members)).proportion_ci(1 - ALPHA / 2) for count in (fewest, most)
    ]
    value = true_positives(rate * len(non_members) + 1e-9) / len(members)
    return Estimate(value, float(bounds[0].low), float(bounds[1].high))


def roc(members: np.ndarray, non_members: np.ndarray, points: int = 200) -> dict[str, list[float]]:
    """`{"fpr": [...], "tpr": [...]}` of a score, from (0, 0) to (1, 1), thinned to about `points` for a picture."""
    sides = _checked("roc", members, non_members)
    truth = np.repeat([1, 0], [len(side) for side in sides])
    fpr, tpr, _ = roc_curve(truth, np.concatenate(sides))
    # Evenly on a log axis: what matters is at the left. Both ends of a step, or it would be drawn as a slope.
    rates = np.append(0.0, np.geomspace(1 / len(sides[1]), 1.0, points // 2))
    shown = np.unique([np.searchsorted(fpr, rates), np.searchsorted(fpr, rates, side="right") - 1])
    return {"fpr": fpr[shown].tolist(), "tpr": tpr[shown].tolist()}


def _checked(name: str, members: np.ndarray, non_members: np.ndarray) -> list[np.ndarray]:
    sides = [np.asarray(side, dtype=float) for side in (members, non_members)]
    if min(len(side) for side in sides) < 2:
        raise ValueError(f"{name}: needs two samples on either side, got {len(sides[0])} and {len(sides[1])}")
    if not all(np.isfinite(side).all() for side in sides):
        raise ValueError(f"{name}: scores must be finite; leave out samples whose loss is not")
    return sides
