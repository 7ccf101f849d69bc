"""The scores of the attacks on one model: of its forget samples and of the unseen samples that they are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hf_unlearn.auditing.calibrated import lira_scores, logit_confidence, population_scores, rmia_scores
from hf_unlearn.auditing.shadows import Shadows
from hf_unlearn.auditing.statistics import SampleStatistics

Found = Mapping[str, SampleStatistics]
# Attack to the scores of the forget samples [n] and of the unseen samples [m].
Scores = dict[str, tuple[np.ndarray, np.ndarray]]


def every_score(
    found: Found,
    compared: np.ndarray,
    seed: int,
    *,
    retrained: Found | None = None,
    shadows: Shadows | None = None,
    theirs: Sequence[Found] = (),
) -> Scores:
    """The scores of all attacks that what is given allows; the functions below have the arguments.

    The population and the shadow models need two unseen samples; with fewer, those attacks are left out.
    """
    scores = own_scores(found, compared)
    enough = compared.sum() > 1  # half of the unseen samples are a population
    if enough:
        scores |= against_population(found, compared, seed)
    if retrained is not None:
        with np.errstate(invalid="ignore"):  # the difference of infinite losses is no score, and is left out
            scores |= reference_scores(found, retrained, compared)
    if enough and shadows is not None:
        scores |= against_shadows(found, compared, shadows, theirs, seed)
    return scores


def own_scores(found: Found, compared: np.ndarray) -> Scores:
    """What the model alone says: loss, confidence, margin, entropy, Min-K %, ...

    Args:
        found: signals of the forget and the unseen dataset, with scores.
        compared: [unseen samples], those that the forget samples are compared with.
    """
    forget, unseen = found["forget"].scores, found["unseen"].scores
    return {name: (forget[name].double().numpy(), unseen[name].double().numpy()[compared]) for name in forget}


def reference_scores(found: Found, retrained: Found, compared: np.ndarray) -> Scores:
    """How much lower the loss is than a reference model's (Carlini et al. 2021, arXiv 2012.07805, section 5.2)."""
    ours, theirs = _losses(found, compared), _losses(retrained, compared)
    return {"reference": (theirs[0] - ours[0], theirs[1] - ours[1])}


def against_population(found: Found, compared: np.ndarray, seed: int) -> Scores:
    """See `population_scores`: one half of the unseen samples is the population, the other has to be told from."""
    (forget, unseen), (population, tested) = _losses(found, compared), _halves(compared, seed)
    labels = [found[name].labels for name in ("forget", "unseen")]
    if labels[0] is None or labels[1] is None:
        return {"population": tuple(population_scores(each, unseen[population]) for each in (forget, unseen[tested]))}  # type: ignore[dict-item]
    own, others = labels[0].numpy(), labels[1].numpy()[compared]
    return {
        "population": (
            population_scores(forget, unseen[population], own, others[population]),
            population_scores(unseen[tested], unseen[population], others[tested], others[population]),
        )
    }


def against_shadows(
    found: Found, compared: np.ndarray, shadows: Shadows, theirs: Sequence[Found], seed: int
) -> Scores:
    """LiRA (U-LiRA with unlearned shadow models) and RMIA.

    Args:
        found: signals of the model on the forget and the unseen dataset.
        compared: [unseen samples], those that the forget samples are compared with.
        shadows: which samples the shadow models know.
        theirs: the same signals of every shadow model.
        seed: of the half of the unseen samples that RMIA takes for a population.
    """
    ours = _losses(found, compared)
    both = [np.stack(side) for side in zip(*(_losses(each, compared) for each in theirs), strict=True)]
    population, tested = _halves(compared, seed)
    members, others = (
        np.concatenate([masks["forget"], masks["unseen"][:, compared]], axis=1)
        for masks in (shadows.members, shadows.unseen)
    )
    # All samples at once: where few shadow models leave one deviation for all samples, both sides must have the same.
    everything = logit_confidence(np.concatenate(ours)), logit_confidence(np.concatenate(both, axis=1))
    lira = np.split(lira_scores(*everything, members, others), [len(ours[0])])
    rmia = [
        rmia_scores(own, other, ours[1][population], both[1][:, population])
        for own, other in ((ours[0], both[0]), (ours[1][tested], both[1][:, tested]))
    ]
    return {"lira": (lira[0], lira[1]), "rmia": (rmia[0], rmia[1])}


def _losses(found: Found, compared: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return found["forget"].losses.double().numpy(), found["unseen"].losses.double().numpy()[compared]


def _halves(compared: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng(seed).permutation(int(compared.sum()))
    return order[: len(order) // 2], order[len(order) // 2 :]
