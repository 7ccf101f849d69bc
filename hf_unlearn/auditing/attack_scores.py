"""The scores of all attacks on one model: of its forget samples, and of the unseen samples they are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from hf_unlearn.auditing.calibrated import lira_scores, logit_confidence, population_scores, rmia_scores
from hf_unlearn.auditing.shadows import Shadows
from hf_unlearn.auditing.statistics import SampleStatistics

# "forget", "unseen", ... to the statistics of one model.
DatasetStatistics: TypeAlias = Mapping[str, SampleStatistics]
# Attack to the scores of the forget samples [n] and of the unseen samples [m].
AttackScores: TypeAlias = dict[str, tuple[np.ndarray, np.ndarray]]


def attack_scores(
    statistics: DatasetStatistics,
    compared: np.ndarray,
    seed: int,
    *,
    retrained: DatasetStatistics | None = None,
    shadows: Shadows | None = None,
    shadow_statistics: Sequence[DatasetStatistics] = (),
) -> AttackScores:
    """The scores of all attacks that the arguments allow.

    The population attack and the shadow models need two unseen samples; with fewer, those attacks are left out.

    Args:
        statistics: of the model on the forget and the unseen dataset, with scores.
        compared: [unseen samples], true for those that the forget samples are compared with.
        seed: of the half of the unseen samples that is taken for a population.
        retrained: the statistics of a retrained model, for the reference-model attack.
        shadows: which samples the shadow models were trained on, for LiRA and RMIA.
        shadow_statistics: the statistics of every shadow model.
    """
    scores = model_scores(statistics, compared)
    has_population = compared.sum() > 1  # half of the unseen samples are a population
    if has_population:
        scores |= population_attack(statistics, compared, seed)
    if retrained is not None:
        with np.errstate(invalid="ignore"):  # the difference of infinite losses is no score, and is left out
            scores |= reference_attack(statistics, retrained, compared)
    if has_population and shadows is not None:
        scores |= shadow_attacks(statistics, compared, shadows, shadow_statistics, seed)
    return scores


def model_scores(statistics: DatasetStatistics, compared: np.ndarray) -> AttackScores:
    """The scores that need no other model and no other sample: loss, margin, entropy, Min-K %, ..."""
    forget, unseen = statistics["forget"].scores, statistics["unseen"].scores
    return {name: (forget[name].double().numpy(), unseen[name].double().numpy()[compared]) for name in forget}


def reference_attack(
    statistics: DatasetStatistics, retrained: DatasetStatistics, compared: np.ndarray
) -> AttackScores:
    """How much lower the loss is than a reference model's (Carlini et al. 2021, arXiv 2012.07805, section 5.2)."""
    losses, retrained_losses = _losses(statistics, compared), _losses(retrained, compared)
    return {"reference": (retrained_losses[0] - losses[0], retrained_losses[1] - losses[1])}


def population_attack(statistics: DatasetStatistics, compared: np.ndarray, seed: int) -> AttackScores:
    """One half of the unseen samples is the population, the other is attacked; see `population_scores`."""
    (forget, unseen), (population, attacked) = _losses(statistics, compared), _halves(compared, seed)
    forget_labels, unseen_labels = statistics["forget"].labels, statistics["unseen"].labels
    if forget_labels is None or unseen_labels is None:
        return {
            "population": (
                population_scores(forget, unseen[population]),
                population_scores(unseen[attacked], unseen[population]),
            )
        }
    labels, classes = forget_labels.numpy(), unseen_labels.numpy()[compared]
    return {
        "population": (
            population_scores(forget, unseen[population], labels, classes[population]),
            population_scores(unseen[attacked], unseen[population], classes[attacked], classes[population]),
        )
    }


def shadow_attacks(
    statistics: DatasetStatistics,
    compared: np.ndarray,
    shadows: Shadows,
    shadow_statistics: Sequence[DatasetStatistics],
    seed: int,
) -> AttackScores:
    """LiRA (U-LiRA with unlearned shadow models) and RMIA; arguments as in `attack_scores`."""
    forget, unseen = _losses(statistics, compared)
    pairs = [_losses(of_shadow, compared) for of_shadow in shadow_statistics]
    shadow_forget, shadow_unseen = (np.stack(losses) for losses in zip(*pairs, strict=True))  # [models, samples]
    population, attacked = _halves(compared, seed)
    members, non_members = (
        np.concatenate([masks["forget"], masks["unseen"][:, compared]], axis=1)
        for masks in (shadows.members, shadows.unseen)
    )
    # All samples at once: where few shadow models leave one deviation for all samples, both sides must have the same.
    lira = lira_scores(
        logit_confidence(np.concatenate([forget, unseen])),
        logit_confidence(np.concatenate([shadow_forget, shadow_unseen], axis=1)),
        members,
        non_members,
    )
    rmia = [
        rmia_scores(losses, of_shadows, unseen[population], shadow_unseen[:, population])
        for losses, of_shadows in ((forget, shadow_forget), (unseen[attacked], shadow_unseen[:, attacked]))
    ]
    return {"lira": (lira[: len(forget)], lira[len(forget) :]), "rmia": (rmia[0], rmia[1])}


def _losses(statistics: DatasetStatistics, compared: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return statistics["forget"].losses.double().numpy(), statistics["unseen"].losses.double().numpy()[compared]


def _halves(compared: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng(seed).permutation(int(compared.sum()))
    return order[: len(order) // 2], order[len(order) // 2 :]
