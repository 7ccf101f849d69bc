"""What a verdict goes by: metrics of every model sample by sample, paired, and what is broken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hf_unlearn.auditing.attack_scores import AttackScores, DatasetStatistics
from hf_unlearn.auditing.attacks import Estimate
from hf_unlearn.auditing.dataset_metrics import MIN_SAMPLES
from hf_unlearn.auditing.differences import (
    Statistic,
    auc_statistic,
    log_loss_statistic,
    mean_statistic,
    ratio_statistic,
)
from hf_unlearn.auditing.one_offset import class_margins, one_offset_estimate
from hf_unlearn.report.audit_result import is_retrained

# The attacks that a verdict goes by; the others are shown.
ATTACKS = ("loss", "lira", "rmia")
Statistics = dict[str, Statistic]


@dataclass(frozen=True)
class Evidence:
    """What a verdict goes by.

    Attributes:
        request: `"samples"`, `"class"` or `"group"`.
        audited: metric to its statistic, of the audited model.
        original: likewise, where the original model was given.
        retrained: likewise, of every retrained model.
        broken: dataset to the samples whose loss is not finite in the audited model alone, and to all samples; a
            forget sample's infinite loss is not broken.
        infinite: the forget samples whose loss is infinite in the audited model alone: their label is masked.
        one_offsets: model to the result of the one-offset test, after a class was removed.
        wrong_class_loss: after a class was removed, the mean loss of the audited model were samples of other classes
            labelled with yet another of these: what a class costs that a model knows not to be there.
        classes: number of classes that the head knows.
        hidden: signs that the data is still in the model behind its predictions.
    """

    request: str
    audited: Statistics
    original: Statistics | None = None
    retrained: Sequence[Statistics] = ()
    broken: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    infinite: int = 0
    one_offsets: Mapping[str, Estimate] = field(default_factory=dict)
    wrong_class_loss: float | None = None
    classes: int | None = None
    hidden: Sequence[str] = ()


def collect_evidence(
    statistics: Mapping[str, DatasetStatistics],
    scores: Mapping[str, AttackScores],
    *,
    request: str,
    forgotten_classes: Sequence[int],
    seed: int,
) -> Evidence:
    """Pair the metrics of all models.

    Args:
        statistics: model to dataset to per-sample statistics, with log probabilities after a class was removed.
        scores: model to the scores of its attacks.
        request: `"samples"`, `"class"` or `"group"`.
        forgotten_classes: when the request is a class.
        seed: of the bootstrap of the one-offset test.
    """
    by_model: dict[str, Statistics] = {name: {} for name in statistics}
    broken: dict[str, tuple[int, int]] = {}
    for dataset in statistics["audited"]:
        of_models = {name: of_model[dataset] for name, of_model in statistics.items() if dataset in of_model}
        measured = np.ones(len(of_models["audited"]), bool)
        labels = of_models["audited"].labels
        if dataset == "unseen" and forgotten_classes and labels is not None:
            measured = ~np.isin(labels.numpy(), forgotten_classes)  # of other classes, as the metrics are
        losses = {name: of_model.losses.double().numpy() for name, of_model in of_models.items()}
        for name in losses.keys() - {"audited"}:
            measured &= np.isfinite(losses[name])
        finite = measured & np.isfinite(losses["audited"])
        is_broken = np.isnan(losses["audited"]) if dataset == "forget" else ~finite
        broken[dataset] = int((measured & is_broken).sum()), int(measured.sum())
        if dataset == "forget":
            infinite = int((measured & np.isposinf(losses["audited"])).sum())
        for name, of_model in of_models.items():
            correct = of_model.correct.double().numpy()[finite]
            if finite.sum() < MIN_SAMPLES:
                continue
            by_model[name][f"{dataset}_loss"] = log_loss_statistic(dataset, losses[name][finite])
            if np.isfinite(correct).all():
                by_model[name][f"{dataset}_accuracy"] = mean_statistic(dataset, correct)
            if of_model.word_errors is not None:
                counts = of_model.word_errors.double().numpy()
                by_model[name][f"{dataset}_wer"] = ratio_statistic(dataset, counts[np.isfinite(counts).all(1)])
    for attack in ATTACKS:
        for name, statistic in _attack_statistics(attack, scores).items():
            by_model[name][f"mia_{attack}_auc"] = statistic
    one_offsets, wrong_class_loss = _class_evidence(statistics, forgotten_classes, seed)
    log_probs = statistics["audited"]["unseen"].log_probs
    return Evidence(
        request, by_model["audited"], by_model.get("original"),
        [of_model for name, of_model in by_model.items() if is_retrained(name)],
        broken, infinite, one_offsets, wrong_class_loss, None if log_probs is None else log_probs.shape[1],
    )  # fmt: skip


def _attack_statistics(attack: str, scores: Mapping[str, AttackScores]) -> Statistics:
    """The area under the curve of an attack by model, over samples with a finite score in all models."""
    of_models = {name: of_model[attack] for name, of_model in scores.items() if attack in of_model}
    if not of_models:
        return {}
    finite = [np.all([np.isfinite(sides[i]) for sides in of_models.values()], axis=0) for i in (0, 1)]
    if min(mask.sum() for mask in finite) < MIN_SAMPLES:
        return {}
    return {name: auc_statistic(sides[0][finite[0]], sides[1][finite[1]]) for name, sides in of_models.items()}


def _class_evidence(
    statistics: Mapping[str, DatasetStatistics], forgotten: Sequence[int], seed: int
) -> tuple[dict[str, Estimate], float | None]:
    """The one-offset test of every model, and the audited model's loss on wrong classes."""
    audited = statistics["audited"]
    log_probs, unseen_labels = audited["unseen"].log_probs, audited["unseen"].labels
    if not forgotten or log_probs is None or unseen_labels is None or log_probs.isnan().any():
        return {}, None
    retain_labels = audited["retain"].labels
    assert retain_labels is not None
    labels = unseen_labels.numpy()
    others = ~np.isin(labels, forgotten)
    used = set(labels.tolist()) | set(retain_labels.tolist()) | set(forgotten)
    spare = [output for output in range(log_probs.shape[1]) if output not in used]
    if not others.any():
        return {}, None
    one_offsets = {
        name: one_offset_estimate(class_margins(of_model["forget"], of_model["unseen"], forgotten, spare), seed)
        for name, of_model in statistics.items()
        if of_model["unseen"].log_probs is not None  # statistics that were measured elsewhere may have none
    }
    other_classes = sorted(used - set(forgotten))
    wrong = -log_probs.double().numpy()[others][:, other_classes]
    is_right = labels[others][:, None] == np.array(other_classes)
    wrong_losses = wrong[~is_right]
    return one_offsets, float(wrong_losses.mean()) if len(wrong_losses) else None
