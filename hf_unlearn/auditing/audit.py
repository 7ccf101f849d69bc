"""`audit`: has a model forgotten, and how sure is that? One report for any model, whatever method made it."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from peft import PeftModel

from hf_unlearn.auditing import comparisons, details
from hf_unlearn.auditing.attacks import roc
from hf_unlearn.auditing.dataset_metrics import matched_datasets
from hf_unlearn.auditing.estimates import attack_estimates, dataset_estimates, flat
from hf_unlearn.auditing.measuring import statistics_of
from hf_unlearn.auditing.robustness import robustness
from hf_unlearn.auditing.shadows import Shadows
from hf_unlearn.auditing.verdict import verdict_of
from hf_unlearn.data.collator import columns_read, readable_collator
from hf_unlearn.data.hashing import sample_hashes
from hf_unlearn.data.splitting import REQUESTS, column_of, request_of, subsample
from hf_unlearn.data.validation import check_datasets
from hf_unlearn.losses import head_of
from hf_unlearn.losses.head import LANGUAGE
from hf_unlearn.report.audit_report import MODELS, AuditReport

# Samples of the retain dataset that are looked at: enough for half a point of accuracy.
RETAIN_SAMPLES = 2000
LIKELIHOOD = ("single_label", *LANGUAGE)


def audit(
    model: Any,
    *,
    forget_ds: Any,
    retain_ds: Any,
    unseen_ds: Any,
    original: Any = None,
    retrained: Any = None,
    shadows: Shadows | None = None,
    request: str | None = None,
    relearning: bool = False,
    group_column: str | None = None,
    data_collator: Any = None,
    processing_class: Any = None,
    batch_size: int = 256,
    resamples: int = 1000,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    training: Sequence[Mapping[str, float]] = (),
) -> AuditReport:
    """Measure whether a model has forgotten.

    Args:
        model: the unlearned model, from any method or library.
        forget_ds: the samples that it should have forgotten, ready for the model.
        retain_ds: the samples that it should have kept; at most 2,000 are looked at.
        unseen_ds: samples of the same distribution that it was never trained on, and that set no target.
        original: the original model.
        retrained: a model retrained without the forget samples. Without it there is no ground truth, and after a class
            was removed no verdict.
        shadows: from `train_shadows` on the same sets, for LiRA and RMIA.
        request: `"samples"`, `"class"` or `"group"`; default: what `split_forget_retain` left on the forget dataset.
        relearning: whether to try to bring the data back, on copies: see `auditing.robustness`.
        group_column: the column of the sets to break metrics down by (a speaker, an author); default: the label.
            Its values stand in the report.
        data_collator: samples to batch; default: the model's, on the columns that it reads.
        processing_class: tokenizer or processor. Speech and text-to-text models are then judged by word error rate as
            well, and language models by the zlib ratio.
        batch_size: samples a batch.
        resamples: bootstrap samples.
        seed: of the bootstrap, of the retain sample and of relearning.
        cache_dir: where per-sample losses and scores are kept, so that a second audit is instant.
        training: `trainer.state.log_history`, for the curves of the run.

    Raises:
        ValueError: one line that names the argument, what was found and what to do.
    """
    if unseen_ds is None:
        raise ValueError(
            "unseen_ds: is missing; forgotten samples are compared with samples that were never trained on"
        )
    given = zip(MODELS, (original, model, retrained), strict=True)
    models = {name: each for name, each in given if each is not None}
    if request not in (None, *REQUESTS):
        raise ValueError(f"request: expected one of {REQUESTS}, got {request!r}")
    kind = head_of(model).kind
    _check_models(models)
    check_datasets(forget_ds, retain_ds, unseen_ds, columns_read(model))
    if shadows is not None:
        _check_shadows(shadows, {"forget": forget_ds, "unseen": unseen_ds}, kind)
    groups = None
    if group_column is not None:
        groups = {
            name: list(map(str, column_of(samples, group_column)))
            for name, samples in (("forget", forget_ds), ("unseen", unseen_ds))
        }
    request = request or request_of(forget_ds) or "samples"
    sets = {"forget": forget_ds, "retain": subsample(retain_ds, RETAIN_SAMPLES, seed), "unseen": unseen_ds}
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    data_collator = data_collator or readable_collator(model, processing_class)
    options = {"data_collator": data_collator, "batch_size": batch_size, "cache_dir": cache_dir}

    def signals(each: Any, names: Sequence[str]) -> dict[str, Any]:
        return {
            name: statistics_of(
                each, sets[name], description=f"Measuring {name} samples", scores=True, tokenizer=tokenizer, **options
            )
            for name in names
        }

    found = {name: signals(each, list(sets)) for name, each in models.items()}
    labels = [found["audited"][name].labels for name in ("forget", "unseen")]
    classes, compared = [], np.ones(len(unseen_ds), bool)
    if request == "class" and labels[0] is not None:
        classes = labels[0].unique().tolist()
        compared = torch.isin(labels[1], labels[0]).numpy()
    theirs = [] if shadows is None else [signals(each, ("forget", "unseen")) for each in shadows.models()]
    scores = {}
    for name, each in found.items():
        known = found.get("retrained") if name != "retrained" else None
        scores[name] = comparisons.every_score(each, compared, seed, retrained=known, shadows=shadows, theirs=theirs)

    estimates, notes = {}, []
    for name, each in found.items():
        attacks, missing = attack_estimates(scores[name], resamples, seed)
        estimates[name] = dataset_estimates(matched_datasets(each, classes)[0]) | attacks
        notes += missing if name == "audited" else []
        if kind == "seq2seq_lm" and tokenizer is not None:
            estimates[name] |= details.word_error_rates(models[name], sets, tokenizer, data_collator, batch_size)
    metrics = {name: flat(each) for name, each in estimates.items()}
    for name in estimates.keys() - {"retrained"}:
        metrics[name] |= details.against_others(name, estimates, request, seed)
    # Labels that are no class numbers make several labels of a head that leaves it open.
    one_label = labels[0] is not None
    if "retrained" in models and one_label:
        metrics["audited"] |= details.divergences(models, sets, options)
    hidden: list[str] = []
    curves: dict[str, Any] = {}
    if relearning:
        more, curves, hidden, said = robustness(
            models, sets, request, metrics, probe=one_label, data_collator=data_collator, seed=seed
        )
        notes += said
        for name, each in more.items():
            metrics[name] |= {key: value for key, value in each.items() if np.isfinite(value)}
    return AuditReport(
        metrics=metrics["audited"],
        verdict=verdict_of(metrics, request, hidden),
        metrics_by_model={name: metrics[name] for name in MODELS if name in metrics},
        roc={
            name: roc(forget[np.isfinite(forget)], others[np.isfinite(others)])
            for name, (forget, others) in scores["audited"].items()
            if f"mia_{name}_auc" in metrics["audited"]
        },
        histograms=details.histograms(found, compared),
        relearning=curves,
        breakdown=details.breakdown(found, groups or details.label_names(found, model.config)),
        training=details.training_curve(training),
        notes=notes,
        about={
            "model": type(model.get_base_model() if isinstance(model, PeftModel) else model).__name__,
            "request": request,
            **{f"{name}_samples": len(samples) for name, samples in {**sets, "retain": retain_ds}.items()},
            "shadow_models": len(shadows) if shadows is not None else 0,
            "seed": seed,
            "device": str(model.device),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    )


def _check_models(models: Mapping[str, Any]) -> None:
    plain = {name: m.get_base_model() if isinstance(m, PeftModel) else m for name, m in models.items()}
    wanted = plain["audited"]
    for name, found in plain.items():
        if type(found) is not type(wanted):
            raise ValueError(
                f"{name}: is a {type(found).__name__}, the model a {type(wanted).__name__}; use one class"
            )
        for what in ("num_labels", "vocab_size"):
            one, other = (getattr(m.config, what, None) for m in (found, wanted))
            if one != other:
                raise ValueError(f"{name}: has {what}={one}, the model {other}; compare models of one label space")


def _check_shadows(shadows: Shadows, sets: Mapping[str, Any], kind: str) -> None:
    if kind not in LIKELIHOOD:
        raise ValueError(f"shadows: LiRA and RMIA need likelihoods, and a {kind} head has none; leave shadows out")
    for name, samples in sets.items():
        known = shadows.members[name].shape[1] if name in shadows.members else 0
        if known != len(samples):
            raise ValueError(
                f"shadows: know {known} {name} samples, the set has {len(samples)}; give train_shadows the sets of the audit"
            )
    for name, samples in sets.items():
        if name in shadows.hashes and shadows.hashes[name] != sample_hashes(samples):
            raise ValueError(
                f"shadows: know other {name} samples than the set has; give train_shadows the sets of the audit"
            )
