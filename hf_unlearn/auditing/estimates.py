"""Metrics of one model with their 95 % intervals, as a flat dict."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from scipy.stats import binomtest, bootstrap

from hf_unlearn.auditing.attacks import Estimate, logistic_attack, threshold_attack
from hf_unlearn.auditing.dataset_metrics import MIN_SAMPLES
from hf_unlearn.auditing.statistics import SampleStatistics

# Numbers drawn at a time.
MAX_DRAWN = 2**18


def mean_estimate(values: np.ndarray, resamples: int = 1000, seed: int = 0) -> Estimate:
    """Mean [n] -> 1: Wilson's interval for zeros and ones, percentile bootstrap otherwise.

    Examples:
        >>> [round(x, 3) for x in mean_estimate(np.array([1.0] * 8 + [0.0] * 2))]
        [0.8, 0.49, 0.943]
    """
    values = np.asarray(values, dtype=float)
    if np.isin(values, (0.0, 1.0)).all():
        return share_estimate(float(values.mean()), len(values))
    return _bootstrapped((values,), np.mean, resamples, seed)


def share_estimate(value: float, count: int) -> Estimate:
    """A share of `count` samples with Wilson's interval."""
    interval = binomtest(round(value * count), count).proportion_ci(method="wilson")
    return Estimate(value, float(interval.low), float(interval.high))


def loss_estimate(value: float, error: float) -> Estimate:
    """A mean loss with its 95 % interval, normal in the logarithm, from its standard error.

    Examples:
        >>> [round(x, 3) for x in loss_estimate(0.5, 0.1)]
        [0.5, 0.338, 0.74]
    """
    factor = float(np.exp(1.96 * error / max(value, 1e-6)))
    return Estimate(value, value / factor, value * factor)


def ratio_estimate(counts: np.ndarray, resamples: int = 1000, seed: int = 0) -> Estimate:
    """Sum of the first column over sum of the second, of counts [n, 2] a sample; percentile bootstrap over samples."""
    return _bootstrapped(tuple(counts.T), _ratio, resamples, seed)


def _ratio(numerators: np.ndarray, denominators: np.ndarray, axis: int = -1) -> np.ndarray:
    return numerators.sum(axis) / denominators.sum(axis).clip(1)


def _bootstrapped(
    columns: tuple[np.ndarray, ...], statistic: Callable[..., np.ndarray], resamples: int, seed: int
) -> Estimate:
    """A statistic of columns [n] that belong together sample by sample, with its percentile bootstrap over samples."""
    value, count = float(statistic(*columns, axis=-1)), len(columns[0])
    if count < 2:  # which scipy refuses
        return Estimate(value, value, value)
    drawn = bootstrap(
        columns, statistic, n_resamples=resamples, paired=len(columns) > 1, vectorized=True, method="percentile",
        batch=MAX_DRAWN // count + 1, rng=np.random.default_rng(seed),
    ).bootstrap_distribution  # fmt: skip
    return Estimate(value, *np.quantile(drawn, [0.025, 0.975]).tolist())


def dataset_estimates(statistics: Mapping[str, SampleStatistics]) -> dict[str, Estimate]:
    """`forget_loss`, `forget_accuracy`, `retain_loss`, ...: those that are finite, of datasets that are not empty."""
    estimates = {}
    for name, of_dataset in statistics.items():
        if len(of_dataset):
            if of_dataset.losses.isfinite().all():
                estimates[f"{name}_loss"] = mean_estimate(of_dataset.losses.double().numpy())
            correct = of_dataset.correct.double().numpy()
            if not np.isnan(correct).all():
                estimates[f"{name}_accuracy"] = mean_estimate(correct[~np.isnan(correct)])
            if of_dataset.word_errors is not None:
                counts = of_dataset.word_errors.double().numpy()
                estimates[f"{name}_wer"] = ratio_estimate(counts[np.isfinite(counts).all(1)])
            for metric, values in (of_dataset.extraction or {}).items():
                estimates[f"{name}_{metric}"] = mean_estimate(values[values.isfinite()].double().numpy())
    return estimates


def attack_estimates(
    scores: Mapping[str, tuple[np.ndarray, np.ndarray]], resamples: int = 1000, seed: int = 0
) -> tuple[dict[str, Estimate], list[str]]:
    """Membership inference by every score, and notes about metrics that are not available.

    Args:
        scores: attack to the scores of the forget samples [n] and of the unseen samples [m].
        resamples: bootstrap samples.
        seed: of the bootstrap.

    Returns:
        `mia_<attack>_auc`, `mia_<attack>_balanced_accuracy`, `mia_<attack>_tpr_at_1pct_fpr`,
        `mia_<attack>_tpr_at_01pct_fpr`, and, from the loss, `mia_accuracy` (logistic regression); and the notes.
    """
    estimates: dict[str, Estimate] = {}
    notes: list[str] = []
    for name, sides in scores.items():
        finite = [side[np.isfinite(side)] for side in sides]
        if left_out := sum(len(a) - len(b) for a, b in zip(sides, finite, strict=True)):
            notes.append(f"{name}: {left_out} samples without a finite score were left out.")
        if min(len(side) for side in finite) < MIN_SAMPLES:
            counts = " forget and ".join(str(len(side)) for side in finite)
            notes.append(
                f"Attack by {name}: {counts} unseen samples are too few for a metric; {MIN_SAMPLES} are the least."
            )
            continue
        metrics = threshold_attack(finite[0], finite[1], resamples, seed)
        # A bootstrap chooses the best threshold anew, and may do better than on the samples themselves every time.
        estimates |= {
            f"mia_{name}_{metric}": Estimate(value, min(low, value), max(high, value))
            for metric, (value, low, high) in metrics.items()
        }
        if name == "loss":
            estimates["mia_accuracy"] = logistic_attack(*finite)
    unseen = max((len(sides[1]) for sides in scores.values()), default=0)
    for rate, least in (("1 %", 100), ("0.1 %", 1000)):
        if unseen < least:
            notes.append(
                f"True positives at {rate} false positives need {least:,} unseen samples; there are {unseen}."
            )
    return estimates, notes


def flat(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    """Every metric, and its interval in `<name>_low` and `<name>_high`; infinite losses are left out."""
    metrics: dict[str, float] = {}
    for name, estimate in estimates.items():
        if np.isfinite(estimate).all():
            metrics |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return metrics
