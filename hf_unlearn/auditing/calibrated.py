"""Scores for membership that are calibrated by other models or by other samples.

Scores are higher where a sample is remembered; `attacks.threshold_attack` turns them into metrics.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

# From so many models on a side a deviation is estimated for every sample; with fewer, one for all samples.
MIN_MODELS_PER_SAMPLE = 32
# Smaller deviations are rounding errors.
MIN_DEVIATION = 1e-6


def population_scores(
    losses: np.ndarray, population: np.ndarray, labels: np.ndarray | None = None, classes: np.ndarray | None = None
) -> np.ndarray:
    """Share of unseen samples (of the same class) that have a higher loss than this sample, in [0, 1].

    The population attack of Ye et al. 2022 (arXiv 2111.09679, section 4, attack P): a threshold for every class, set
    by a population of unseen samples instead of shadow models.

    Args:
        losses: [n] of the samples to score.
        population: losses [m] of unseen samples.
        labels: [n], for one threshold a class; without them one threshold for all samples.
        classes: labels [m] of the population.

    Examples:
        >>> population_scores(np.array([0.1, 3.0]), np.array([1.0, 2.0, 4.0, 5.0])).tolist()
        [1.0, 0.5]
    """
    if labels is None or classes is None:
        ordered = np.sort(population)
        return 1 - np.searchsorted(ordered, losses, side="right") / len(ordered)
    scores = np.full(len(losses), 0.5)  # for a class without a population, no evidence
    for label in np.intersect1d(labels, classes):
        of_class = labels == label
        scores[of_class] = population_scores(losses[of_class], population[classes == label])
    return scores


def lira_scores(
    statistic: np.ndarray, shadows: np.ndarray, members: np.ndarray, non_members: np.ndarray | None = None
) -> np.ndarray:
    """Log likelihood ratio of each sample's statistic: models trained on the sample against models that were not.

    LiRA (Carlini et al. 2022, arXiv 2112.03570, algorithm 1): a normal distribution is fitted to the statistic of each
    sample over the shadow models that were trained on it, and another over those that were not. With unlearned shadow
    models, where `members` marks the samples that each of them has forgotten, it is U-LiRA (Hayes et al. 2024, arXiv
    2403.01218): can the forgotten samples be told from unseen samples?

    Args:
        statistic: [n] of the audited model; close to normal over models, such as `logit_confidence`.
        shadows: [models, n], the same statistic of every shadow model.
        members: [models, n], whether the model was trained on the sample (U-LiRA: has forgotten it).
        non_members: [models, n], whether the model was never trained on the sample; default: `~members`.

    Returns:
        [n]

    Raises:
        ValueError: for some sample there are fewer than two shadow models of either kind.
    """
    non_members = ~members if non_members is None else non_members
    fewest = min(members.sum(0).min(), non_members.sum(0).min())
    if fewest < 2:
        raise ValueError(
            f"shadows: some sample has {fewest} models that were trained on it, or that were not; train more, two are "
            "the least"
        )
    return norm.logpdf(statistic, *_normal(shadows, members)) - norm.logpdf(statistic, *_normal(shadows, non_members))


def _normal(shadows: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation [n] of each sample over the models where `mask` [models, n] is true."""
    masked, count = np.where(mask, shadows, np.nan), mask.sum(0)
    mean = np.nanmean(masked, axis=0)
    squares = np.nansum((masked - mean) ** 2, axis=0)
    if count.min() >= MIN_MODELS_PER_SAMPLE:
        deviation = np.sqrt(squares / (count - 1))
    else:
        deviation = np.full(len(mean), np.sqrt(squares.sum() / (count - 1).sum()))
    return mean, np.maximum(deviation, MIN_DEVIATION)


def logit_confidence(losses: np.ndarray) -> np.ndarray:
    """`log(p / (1 - p))` with `p = exp(-loss)`, which is close to normal over models (Carlini et al. 2022, eq. 4).

    Examples:
        >>> logit_confidence(np.array([np.log(2.0)])).round(12).tolist()
        [0.0]
    """
    losses = np.maximum(losses, 1e-12)  # p = 1 in floating point
    return -losses - np.log(-np.expm1(-losses))


def rmia_scores(
    losses: np.ndarray,
    shadows: np.ndarray,
    population: np.ndarray,
    population_shadows: np.ndarray,
    gamma: float = 1.0,
    offline: float | None = None,
) -> np.ndarray:
    """Share of a population that a sample exceeds in likelihood ratio, in [0, 1].

    RMIA (Zarifzadeh et al. 2024, arXiv 2312.03262, eq. 2 and 4): the ratio of a sample is `p(x | model) / p(x)`, p(x)
    the mean over the shadow models; the score is the share of population samples z with `ratio(x) / ratio(z) >=
    gamma`.

    Args:
        losses: [n] of the audited model; `p = exp(-loss)`.
        shadows: losses [models, n] of the shadow models, half of which were trained on each sample.
        population: losses [m] of the audited model on samples that it was not trained on.
        population_shadows: losses [models, m].
        gamma: the factor by which a sample has to exceed another, at least 1.
        offline: a in [0, 1], when no shadow model was trained on the samples:
            `p(x) = ((1 + a) p_out(x) + 1 - a) / 2`.

    Returns:
        [n]
    """

    def log_ratio(model_losses: np.ndarray, shadow_losses: np.ndarray) -> np.ndarray:
        mean = np.exp(-shadow_losses).mean(0)
        if offline is not None:
            mean = ((1 + offline) * mean + 1 - offline) / 2
        return -model_losses - np.log(mean)

    sample_ratios = log_ratio(losses, shadows)
    population_ratios = np.sort(log_ratio(population, population_shadows))
    return np.searchsorted(population_ratios, sample_ratios - np.log(gamma), side="right") / len(population_ratios)
