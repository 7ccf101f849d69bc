"""Scores for membership that compare a sample with what other models, or other samples, make of it.

Scores are higher where a sample is remembered; `attacks.threshold_attack` turns them into metrics.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

# Models on a side from which a sample's own deviation is estimated; with fewer, one deviation serves all samples.
OWN_DEVIATION = 32
# Below this a deviation is rounding.
SMALLEST = 1e-6


def population_scores(
    losses: np.ndarray, population: np.ndarray, labels: np.ndarray | None = None, classes: np.ndarray | None = None
) -> np.ndarray:
    """Share of never seen samples (of the same class) that the model predicts worse than this sample, in [0, 1].

    The population attack of Ye et al. 2022 (arXiv 2111.09679, section 4, attack P): a threshold for every class, set
    by samples of a population in place of shadow models.

    Args:
        losses: [n] of the samples in question.
        population: losses [m] of samples that were never seen.
        labels: [n], for one threshold a class; without them one for all samples.
        classes: labels [m] of the population.

    Examples:
        >>> population_scores(np.array([0.1, 3.0]), np.array([1.0, 2.0, 4.0, 5.0])).tolist()
        [1.0, 0.5]
    """
    if labels is None or classes is None:
        ordered = np.sort(population)
        return 1 - np.searchsorted(ordered, losses, side="right") / len(ordered)
    scores = np.full(len(losses), 0.5)  # a class without a population says nothing
    for label in np.intersect1d(labels, classes):
        of_class = labels == label
        scores[of_class] = population_scores(losses[of_class], population[classes == label])
    return scores


def lira_scores(
    signal: np.ndarray, shadows: np.ndarray, members: np.ndarray, others: np.ndarray | None = None
) -> np.ndarray:
    """Logarithm of how much likelier a sample's signal is among models that had the sample than among those that had not.

    LiRA (Carlini et al. 2022, arXiv 2112.03570, algorithm 1): a normal distribution is fitted to the signal of each
    sample over the shadow models that were trained on it, and another over those that were not. With unlearned shadow
    models, `members` saying which samples each of them has forgotten, it is U-LiRA (Hayes et al. 2024, arXiv 2403.01218):
    can the forgotten samples be told from samples never seen?

    Args:
        signal: [n] of the audited model; close to normal over models, such as `logit_confidence`.
        shadows: [models, n], the same signal of every shadow model.
        members: [models, n], whether the model was trained on the sample (U-LiRA: has forgotten it).
        others: [models, n], whether the model never saw the sample; default: where it is no member.

    Returns:
        [n]

    Raises:
        ValueError: for some sample there are fewer than two shadow models of either kind.
    """
    others = ~members if others is None else others
    least = min(members.sum(0).min(), others.sum(0).min())
    if least < 2:
        raise ValueError(
            f"shadows: some sample has {least} models that were trained on it, or that were not; train more, two are the "
            "least"
        )
    return norm.logpdf(signal, *_normal(shadows, members)) - norm.logpdf(signal, *_normal(shadows, others))


def _normal(shadows: np.ndarray, of_sample: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation [n] of each sample over the models where `of_sample` [models, n] is true."""
    chosen, count = np.where(of_sample, shadows, np.nan), of_sample.sum(0)
    mean = np.nanmean(chosen, axis=0)
    squares = np.nansum((chosen - mean) ** 2, axis=0)
    if count.min() >= OWN_DEVIATION:
        deviation = np.sqrt(squares / (count - 1))
    else:
        deviation = np.full(len(mean), np.sqrt(squares.sum() / (count - 1).sum()))
    return mean, np.maximum(deviation, SMALLEST)


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
    """Share of a population that a sample beats in likelihood ratio, in [0, 1].

    RMIA (Zarifzadeh et al. 2024, arXiv 2312.03262, eq. 2 and 4): the ratio of a sample is `p(x | model) / p(x)`, p(x) the
    mean over the shadow models; the score is the share of population samples z with `ratio(x) / ratio(z) >= gamma`.

    Args:
        losses: [n] of the audited model; `p = exp(-loss)`.
        shadows: losses [models, n] of the shadow models, half of which were trained on each sample.
        population: losses [m] of the audited model on samples that it was not trained on.
        population_shadows: losses [models, m].
        gamma: how much a sample has to beat another by, at least 1.
        offline: a in [0, 1], where no shadow model was trained on the samples: `p(x) = ((1 + a) p_out(x) + 1 - a) / 2`.

    Returns:
        [n]
    """

    def ratio(own: np.ndarray, others: np.ndarray) -> np.ndarray:
        mean = np.exp(-others).mean(0)
        if offline is not None:
            mean = ((1 + offline) * mean + 1 - offline) / 2
        return -own - np.log(mean)

    ours, theirs = ratio(losses, shadows), np.sort(ratio(population, population_shadows))
    return np.searchsorted(theirs, ours - np.log(gamma), side="right") / len(theirs)
