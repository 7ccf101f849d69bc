"""Membership inference attacks: can the forgotten rows be told from rows that were never seen?"""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression
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
