"""`audit`: has a model forgotten, and how sure is that? One report for any model, whatever method made it.

The steps, from top to bottom: check the arguments, collect per-sample statistics, attack, estimate, report.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
import transformers
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from hf_unlearn.auditing import report_parts
from hf_unlearn.auditing.attack_scores import AttackScores, DatasetStatistics, attack_scores
from hf_unlearn.auditing.attacks import Estimate, roc
from hf_unlearn.auditing.budget import EPOCHS
from hf_unlearn.auditing.dataset_metrics import matched_datasets
from hf_unlearn.auditing.depth import depth, untried
from hf_unlearn.auditing.estimates import attack_estimates, dataset_estimates, flat
from hf_unlearn.auditing.evidence import Evidence, collect_evidence
from hf_unlearn.auditing.extraction import can_extract, extraction_advantage, with_extraction
from hf_unlearn.auditing.measuring import statistics_of
from hf_unlearn.auditing.robustness import RobustnessResult, robustness
from hf_unlearn.auditing.shadows import Shadows
from hf_unlearn.auditing.subject import Subject, check_subject
from hf_unlearn.auditing.transcription import with_word_errors
from hf_unlearn.auditing.verdict import judge
from hf_unlearn.data.collator import Collator, readable_collator
from hf_unlearn.data.general import GeneralData, general_samples
from hf_unlearn.data.splitting import column_of, resolve_request
from hf_unlearn.data.types import AnyDataset, RequestKind
from hf_unlearn.losses import head_of
from hf_unlearn.models.quantization import check_not_quantized
from hf_unlearn.models.types import Model, inner_model
from hf_unlearn.per_sample.layers import plain_class
from hf_unlearn.report.audit_report import AuditReport
from hf_unlearn.report.audit_result import is_retrained

# Heads that answer in words.
TRANSCRIBING = ("seq2seq_lm", "ctc")


class AuditOptions(TypedDict, total=False):
    """The optional arguments of `audit`, for those that pass them on."""

    original: Model | DatasetStatistics | None
    retrained: Model | Sequence[Model] | None
    shadows: Shadows | None
    request: RequestKind | None
    relearning: bool
    group_column: str | None
    data_collator: Collator | None
    processing_class: PreTrainedTokenizerBase | ProcessorMixin | None
    batch_size: int | None
    resamples: int
    seed: int
    cache_dir: str | Path | None
    training: Sequence[Mapping[str, float]]
    general_ds: GeneralData | None
    training_passes: float | None


def audit(
    model: Model,
    *,
    forget_ds: AnyDataset,
    retain_ds: AnyDataset,
    unseen_ds: AnyDataset | None,
    original: Model | DatasetStatistics | None = None,
    retrained: Model | Sequence[Model] | None = None,
    shadows: Shadows | None = None,
    request: RequestKind | None = None,
    relearning: bool = False,
    group_column: str | None = None,
    data_collator: Collator | None = None,
    processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
    batch_size: int | None = None,
    resamples: int = 1000,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    training: Sequence[Mapping[str, float]] = (),
    general_ds: GeneralData | None = None,
    training_passes: float | None = None,
) -> AuditReport:
    """Measure whether a model has forgotten.

    Args:
        model: the unlearned model, from any method or library.
        forget_ds: the samples that it should have forgotten, ready for the model.
        retain_ds: the samples that it should have kept; at most 2,000 are measured.
        unseen_ds: samples of the same distribution that it was never trained on, and that set no target.
        original: the original model: what damage is judged by without a retrained model, and whether this audit
            would have told a model apart that has forgotten nothing. Or its statistics, with scores, of the datasets
            as they are measured here, for those who have measured it already.
        retrained: a model retrained without the forget samples, or several, trained with other seeds: how much these
            differ widens the intervals of the verdict. Without any there is no ground truth, and after a class was
            removed only what speaks against forgetting.
        shadows: from `train_shadows` on the same datasets, for LiRA and RMIA.
        request: `"samples"`, `"class"` or `"group"`; default: what `split_forget_retain` left on the forget dataset.
        relearning: whether to try to bring the data back, on copies: see `hf_unlearn.auditing.robustness`.
        group_column: the column of the datasets to break metrics down by (a speaker, an author); default: the label.
            Its values stand in the report.
        data_collator: samples to batch; default: the model's, on the columns that it reads.
        processing_class: tokenizer or processor. Speech and text-to-text models are then judged by word error rate as
            well; causal language models are asked for some forget and unseen samples (see
            `hf_unlearn.auditing.extraction`), and attacked by the zlib ratio.
        batch_size: samples a batch; default: at most 64, and of language models no more than have logits of 256 MiB.
        resamples: bootstrap samples.
        seed: of the bootstrap, of the retain samples that are drawn and of relearning.
        cache_dir: where per-sample losses and scores are kept, so that a second audit is instant.
        training: `trainer.state.log_history`, for the curves of the run.
        general_ds: what the model knows beside this data, and should still know: a dataset ready for the model; for
            causal language models also a text file, or texts. At most 64 samples are measured; a loss that has risen
            by more than 0.1 nats is damage.
        training_passes: passes over the retain dataset that retraining takes (epochs); default: 3. `relearning` takes
            at most a tenth of that for each model.

    Raises:
        ValueError: one line that names the argument, what was found and what to do.
    """
    if unseen_ds is None:
        raise ValueError(
            "unseen_ds: is missing; forgotten samples are compared with samples that were never trained on"
        )
    if relearning and not isinstance(model, PeftModel):  # with its adapter merged it is quantised no more
        check_not_quantized(model, "relearning", "cannot be trained")
    head_kind = head_of(model).kind
    measured_original = original if isinstance(original, Mapping) else None
    original = None if isinstance(original, Mapping) else original
    optional_models = {"original": original, "audited": model, **_numbered(retrained)}
    subject = Subject(
        models={name: given for name, given in optional_models.items() if given is not None},
        measured_original=measured_original,
        datasets_by_name={"forget": forget_ds, "retain": retain_ds, "unseen": unseen_ds},
        shadows=shadows, request=resolve_request(request, forget_ds, retain_ds, head_kind), kind=head_kind,
        data_collator=data_collator or readable_collator(model, processing_class),
        tokenizer=getattr(processing_class, "tokenizer", processing_class),
        batch_size=batch_size, cache_dir=cache_dir, resamples=resamples, seed=seed,
        training_passes=EPOCHS if training_passes is None else training_passes,
    )  # fmt: skip
    check_subject(subject)
    if general_ds is not None:
        general_ds = general_samples(general_ds, model, head_kind, processing_class, seed)
        subject = replace(subject, general_ds=general_ds)
    groups = None if group_column is None else _groups(subject, group_column)
    collected = _collect(subject)
    scores = _attack(subject, collected)
    estimated = _estimate(subject, collected, scores)
    if relearning:
        _add_robustness(subject, estimated, has_labels=collected.has_labels)
    return _report(subject, collected, scores, estimated, groups, training)


def _numbered(retrained: Model | Sequence[Model] | None) -> dict[str, Model]:
    """The retrained models by name: "retrained", "retrained 2", ..."""
    models = retrained if isinstance(retrained, Sequence) else [] if retrained is None else [retrained]
    return {"retrained" if number == 1 else f"retrained {number}": model for number, model in enumerate(models, 1)}


@dataclass(frozen=True)
class _Collected:
    """Per-sample statistics of all models.

    Attributes:
        statistics: model to dataset to its statistics.
        shadow_statistics: those of every shadow model, on the forget and the unseen dataset.
        classes: the forgotten classes, when the request is a class.
        compared: [unseen samples], those that attacks compare the forget samples with.
        has_labels: whether a sample has one class label; several labels in a head that leaves it open are no classes.
    """

    statistics: dict[str, DatasetStatistics]
    shadow_statistics: list[DatasetStatistics]
    classes: list[int]
    compared: np.ndarray
    has_labels: bool


@dataclass
class _Estimated:
    """Flat metrics by model, with intervals; what the verdict goes by; notes for the reader; what attempts added."""

    metrics: dict[str, dict[str, float]]
    evidence: Evidence
    notes: list[str]
    attempts: RobustnessResult = field(default_factory=RobustnessResult)


def _groups(subject: Subject, column: str) -> dict[str, list[str]]:
    """The group of every forget and unseen sample."""
    return {
        name: [str(group) for group in column_of(subject.datasets_by_name[name], column, "group_column")]
        for name in ("forget", "unseen")
    }


# ---- collect ---------------------------------------------------------------------------------------------------


def _collect(subject: Subject) -> _Collected:
    """Per-sample statistics of every model on every dataset, and which unseen samples are comparable."""
    measured = subject.measured

    # For the one-offset test of a class, and the divergence from a retrained model.
    has_log_probs = subject.request == "class" or "retrained" in subject.models

    def collect(model: Model, names: Sequence[str], log_probs: bool = False) -> DatasetStatistics:
        return {
            name: statistics_of(
                model, measured[name], description=f"Measuring {name} samples", scores=True,
                log_probs=log_probs and name in ("forget", "unseen"), tokenizer=subject.tokenizer,
                **subject.measuring_options(),
            )
            for name in names
        }  # fmt: skip

    statistics = {} if subject.measured_original is None else {"original": subject.measured_original}
    statistics |= {name: collect(model, list(measured), has_log_probs) for name, model in subject.models.items()}
    forget_labels, unseen_labels = (statistics["audited"][name].labels for name in ("forget", "unseen"))
    classes: list[int] = []
    compared = np.ones(len(measured["unseen"]), bool)
    if subject.request == "class" and forget_labels is not None and unseen_labels is not None:
        classes = forget_labels.unique().tolist()
        compared = torch.isin(unseen_labels, forget_labels).numpy()
    shadow_models = () if subject.shadows is None else subject.shadows.models()
    if subject.kind in TRANSCRIBING and subject.tokenizer is not None:
        for name, model in subject.models.items():
            statistics[name] = with_word_errors(
                statistics[name], model, measured, subject.tokenizer, subject.data_collator,
                subject.generation_batch_size, subject.seed, cache_dir=subject.cache_dir,
            )  # fmt: skip
    asked = {name: measured[name] for name in ("forget", "unseen")}
    for name, model in subject.models.items():
        if can_extract(model, subject.kind, subject.tokenizer):
            statistics[name] = with_extraction(
                statistics[name], model, asked, subject.tokenizer, subject.data_collator,
                subject.generation_batch_size, subject.seed, cache_dir=subject.cache_dir,
            )  # fmt: skip
    return _Collected(
        statistics=statistics,
        shadow_statistics=[collect(model, ("forget", "unseen")) for model in shadow_models],
        classes=classes,
        compared=compared,
        has_labels=forget_labels is not None,
    )


# ---- attack ----------------------------------------------------------------------------------------------------


def _attack(subject: Subject, collected: _Collected) -> dict[str, AttackScores]:
    """The scores of every attack on every model; a retrained model is not compared with itself."""
    retrained = collected.statistics.get("retrained")
    return {
        name: attack_scores(
            statistics, collected.compared, subject.seed, retrained=None if is_retrained(name) else retrained,
            shadows=subject.shadows, shadow_statistics=collected.shadow_statistics,
        )
        for name, statistics in collected.statistics.items()
    }  # fmt: skip


# ---- estimate --------------------------------------------------------------------------------------------------


def _estimate(subject: Subject, collected: _Collected, scores: Mapping[str, AttackScores]) -> _Estimated:
    """Metrics with intervals of every model, then their distances to the other models."""
    estimates: dict[str, dict[str, Estimate]] = {}
    notes: list[str] = []
    for name, statistics in collected.statistics.items():
        of_attacks, attack_notes = attack_estimates(scores[name], subject.resamples, subject.seed)
        estimates[name] = dataset_estimates(matched_datasets(statistics, collected.classes)[0]) | of_attacks
        notes += attack_notes if name == "audited" else []
    evidence = collect_evidence(
        collected.statistics, scores, request=subject.request,
        forgotten_classes=collected.classes, seed=subject.seed,
    )  # fmt: skip
    for name, estimate in evidence.one_offsets.items():
        estimates[name]["one_offset"] = estimate
    metrics = {name: flat(of_model) for name, of_model in estimates.items()}
    for name in estimates.keys() - {"retrained"}:
        metrics[name] |= report_parts.distances(name, estimates, subject.request, subject.seed)
    if "retrained" in subject.models and collected.has_labels:
        metrics["audited"] |= report_parts.divergences(collected.statistics)
    metrics["audited"] |= flat(extraction_advantage(collected.statistics))
    return _Estimated(metrics, evidence, notes)


def _add_robustness(subject: Subject, estimated: _Estimated, has_labels: bool) -> None:
    """Try to bring the data back, and add what that shows."""
    result = robustness(
        subject.models, subject.measured, subject.request, estimated.metrics, budget=subject.budget,
        probe=has_labels, data_collator=subject.data_collator, seed=subject.seed, cache_dir=subject.cache_dir,
    )  # fmt: skip
    estimated.notes += result.notes
    estimated.attempts = result
    for name, metrics in result.metrics.items():
        estimated.metrics[name] |= {key: value for key, value in metrics.items() if np.isfinite(value)}
    retrained = [of_model for name, of_model in estimated.metrics.items() if is_retrained(name)]
    audited = estimated.metrics["audited"]
    audited |= depth(audited, retrained)
    estimated.notes += untried(audited, subject.kind, subject.request, subject.tokenizer is not None)


# ---- report ----------------------------------------------------------------------------------------------------


def _report(
    subject: Subject,
    collected: _Collected,
    scores: Mapping[str, AttackScores],
    estimated: _Estimated,
    groups: Mapping[str, list[str]] | None,
    training: Sequence[Mapping[str, float]],
) -> AuditReport:
    statistics, metrics = collected.statistics, estimated.metrics
    model = subject.models["audited"]
    groups_by_dataset = groups or report_parts.label_names(statistics, model.config)
    measured, _ = matched_datasets(statistics["audited"], collected.classes)
    judgement = judge(replace(estimated.evidence, hidden=estimated.attempts.hidden))
    return AuditReport(
        metrics=metrics["audited"],
        verdict={"level": judgement.level, "sentence": judgement.sentence},
        metrics_by_model=metrics,
        differences=[asdict(difference) for difference in judgement.differences],
        roc={
            name: roc(forget[np.isfinite(forget)], unseen[np.isfinite(unseen)])
            for name, (forget, unseen) in scores["audited"].items()
            if f"mia_{name}_auc" in metrics["audited"]
        },
        histograms=report_parts.histograms(statistics, collected.compared),
        relearning=estimated.attempts.curves,
        breakdown=report_parts.breakdown(statistics, groups_by_dataset),
        training=report_parts.training_curve(training),
        notes=[*judgement.notes, *estimated.notes],
        about={
            "model": plain_class(inner_model(model)).__name__,
            "head": subject.kind,
            "request": subject.request,
            **{f"{name}_samples": len(dataset) for name, dataset in subject.datasets_by_name.items()},
            **({} if subject.general_ds is None else {"general_samples": len(subject.general_ds)}),
            **report_parts.sample_counts(measured, scores["audited"], groups_by_dataset),
            "shadow_models": len(subject.shadows) if subject.shadows is not None else 0,
            **({"kernel": estimated.attempts.kernel} if estimated.attempts.kernel else {}),
            "seed": subject.seed,
            "device": str(model.device),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    )
