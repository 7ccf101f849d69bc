"""Membership inference attacks: can the forgotten rows be told from rows that were never seen?"""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import auc, roc_curve
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def logistic_attack(members: np.ndarray, non_members: np.ndarray, folds: int = 5, repeats: int = 5) -> float:
    """Balanced accuracy in [0, 1] of a cross-validated logistic regression on one signal; 0.5 is chance.

    The membership inference of ∇τ's paper (Trippa et al. 2024, arXiv 2403.14339, section 4): members are the forget
    rows, non-members unseen rows. Below 0.5 there is nothing to learn; far from the retrained model's figure on either
    side, there is.

    Args:
        members: signal [n] of the forget rows, usually the loss.
        non_members: signal [m] of unseen rows.
        folds: folds of a stratified cross-validation; fewer when a side has fewer rows.
        repeats: the cross-validation is repeated with other shuffles, and averaged.

    Raises:
        ValueError: when a side has fewer than two rows.

    Examples:
        >>> logistic_attack(np.linspace(0, 1, 50), np.linspace(2, 3, 50))
        1.0
    """
    smallest = min(len(members), len(non_members))
    if smallest < 2:
        raise ValueError(f"logistic_attack: needs two rows on either side, got {len(members)} and {len(non_members)}")
    signal = np.concatenate([members, non_members]).astype(float).reshape(-1, 1)
    truth = np.concatenate([np.ones(len(members)), np.zeros(len(non_members))])
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
    scores = [
        cross_val_score(
            model,
            signal,
            truth,
            scoring="balanced_accuracy",
            cv=StratifiedKFold(min(folds, smallest), shuffle=True, random_state=seed),
        )
        for seed in range(repeats)
    ]
    return float(np.mean(scores))


def threshold_attack(
    members: np.ndarray, non_members: np.ndarray, resamples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """How well one threshold on a score tells members from non-members, each figure with its 95 % interval.

    Higher scores must speak for membership (minus the loss, confidence, margin, minus the entropy). The figures are
    those of Carlini et al. 2022 (arXiv 2112.03570, section 3): the share of members found at a low rate of false
    alarms says more about single rows than the average over all thresholds. Intervals: percentile bootstrap over rows.

    Args:
        members: scores [n] of the rows in question.
        non_members: scores [m] of rows of the same distribution that were never seen.
        resamples: bootstrap samples.
        seed: of the bootstrap.

    Returns:
        `auc`, `balanced_accuracy` (at the best threshold, so never below 0.5), `tpr_at_1pct_fpr` and
        `tpr_at_01pct_fpr`: value, low, high, in [0, 1].

    Raises:
        ValueError: when a side has fewer than two rows, or a score is not finite.

    Examples:
        >>> threshold_attack(np.arange(50) + 100.0, np.arange(50.0))["auc"]
        (1.0, 1.0, 1.0)
    """
    sides = [np.asarray(side, dtype=float) for side in (members, non_members)]
    if min(len(side) for side in sides) < 2:
        raise ValueError(f"threshold_attack: needs two rows on either side, got {len(sides[0])} and {len(sides[1])}")
    if not all(np.isfinite(side).all() for side in sides):
        raise ValueError("threshold_attack: scores must be finite; leave out rows whose loss is not")
    generator = np.random.default_rng(seed)
    drawn = [_curve_figures(*(generator.choice(side, len(side)) for side in sides)) for _ in range(resamples)]
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    values = _curve_figures(*sides)
    return {name: (float(v), float(a), float(b)) for name, v, a, b in zip(FIGURES, values, low, high, strict=True)}


FIGURES = ("auc", "balanced_accuracy", "tpr_at_1pct_fpr", "tpr_at_01pct_fpr")


def _curve_figures(members: np.ndarray, non_members: np.ndarray) -> list[float]:
    truth = np.concatenate([np.ones(len(members)), np.zeros(len(non_members))])
    fpr, tpr, _ = roc_curve(truth, np.concatenate([members, non_members]), drop_intermediate=False)
    area = round(float(auc(fpr, tpr)), 12)  # trapezoids add up to a little more or less than 1
    return [area, ((tpr + 1 - fpr) / 2).max(), *(tpr[fpr <= rate].max() for rate in (0.01, 0.001))]
