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
from hf_unlearn.auditing.dataset_metrics import matched_sets
from hf_unlearn.auditing.estimates import attack_figures, flat, set_figures
from hf_unlearn.auditing.measuring import signals_of
from hf_unlearn.auditing.robustness import robustness
from hf_unlearn.auditing.shadows import Shadows
from hf_unlearn.auditing.verdict import verdict_of
from hf_unlearn.data.collator import columns_read, readable_collator
from hf_unlearn.data.hashing import row_hashes
from hf_unlearn.data.splitting import REQUESTS, column_of, request_of, sample_rows
from hf_unlearn.data.validation import check_sets
from hf_unlearn.losses import head_of
from hf_unlearn.losses.head import LANGUAGE
from hf_unlearn.report.audit_report import MODELS, AuditReport

# Rows of the retain set that are looked at: enough for half a point of accuracy.
RETAIN_ROWS = 2000
LIKELIHOOD = ("single_label", *LANGUAGE)


def audit(
    model: Any,
    *,
    forget: Any,
    retain: Any,
    unseen: Any,
    original: Any = None,
    reference: Any = None,
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
        forget: the rows that it should have forgotten, ready for the model.
        retain: the rows that it should have kept; at most 2,000 are looked at.
        unseen: rows of the same distribution that it was never trained on, and that set no target.
        original: the model before.
        reference: a model retrained without the forget rows. Without it there is no ground truth, and after a class
            was removed no verdict.
        shadows: from `train_shadows` on the same sets, for LiRA and RMIA.
        request: `"rows"`, `"class"` or `"group"`; default: what `split_forget_retain` left on the forget set.
        relearning: whether to try to bring the data back, on copies: see `auditing.robustness`.
        group_column: the column of the sets to break figures down by (a speaker, an author); default: the label.
            Its values stand in the report.
        data_collator: rows to batch; default: the model's, on the columns that it reads.
        processing_class: tokenizer or processor. Speech and text-to-text models are then judged by word error rate as
            well, and language models by the zlib ratio.
        batch_size: rows a batch.
        resamples: bootstrap samples.
        seed: of the bootstrap, of the retain sample and of relearning.
        cache_dir: where per-row losses and scores are kept, so that a second audit is instant.
        training: `trainer.state.log_history`, for the curves of the run.

    Raises:
        ValueError: one line that names the argument, what was found and what to do.
    """
    if unseen is None:
        raise ValueError("unseen: is missing; forgotten rows are compared with rows that were never trained on")
    given = zip(MODELS, (original, model, reference), strict=True)
    models = {name: each for name, each in given if each is not None}
    if request not in (None, *REQUESTS):
        raise ValueError(f"request: expected one of {REQUESTS}, got {request!r}")
    kind = head_of(model).kind
    _check_models(models)
    check_sets(forget, retain, unseen, columns_read(model), suffix="")
    if shadows is not None:
        _check_shadows(shadows, {"forget": forget, "unseen": unseen}, kind)
    groups = None
    if group_column is not None:
        groups = {
            name: list(map(str, column_of(rows, group_column)))
            for name, rows in (("forget", forget), ("unseen", unseen))
        }
    request = request or request_of(forget) or "rows"
    sets = {"forget": forget, "retain": sample_rows(retain, RETAIN_ROWS, seed), "unseen": unseen}
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    data_collator = data_collator or readable_collator(model, processing_class)
    options = {"data_collator": data_collator, "batch_size": batch_size, "cache_dir": cache_dir}

    def signals(each: Any, names: Sequence[str]) -> dict[str, Any]:
        return {
            name: signals_of(
                each, sets[name], description=f"Measuring {name} rows", scores=True, tokenizer=tokenizer, **options
            )
            for name in names
        }

    found = {name: signals(each, list(sets)) for name, each in models.items()}
    labels = [found["audited"][name].labels for name in ("forget", "unseen")]
    classes, compared = [], np.ones(len(unseen), bool)
    if request == "class" and labels[0] is not None:
        classes = labels[0].unique().tolist()
        compared = torch.isin(labels[1], labels[0]).numpy()
    theirs = [] if shadows is None else [signals(each, ("forget", "unseen")) for each in shadows.models()]
    scores = {}
    for name, each in found.items():
        known = found.get("reference") if name != "reference" else None
        scores[name] = comparisons.every_score(each, compared, seed, reference=known, shadows=shadows, theirs=theirs)

    estimates, notes = {}, []
    for name, each in found.items():
        attacks, missing = attack_figures(scores[name], resamples, seed)
        estimates[name] = set_figures(matched_sets(each, classes)[0]) | attacks
        notes += missing if name == "audited" else []
        if kind == "seq2seq_lm" and tokenizer is not None:
            estimates[name] |= details.word_error_rates(models[name], sets, tokenizer, data_collator, batch_size)
    figures = {name: flat(each) for name, each in estimates.items()}
    for name in estimates.keys() - {"reference"}:
        figures[name] |= details.against_others(name, estimates, request, seed)
    # Labels that are no class numbers make several labels of a head that leaves it open.
    one_label = labels[0] is not None
    if "reference" in models and one_label:
        figures["audited"] |= details.divergences(models, sets, options)
    hidden: list[str] = []
    curves: dict[str, Any] = {}
    if relearning:
        more, curves, hidden, said = robustness(
            models, sets, request, figures, probe=one_label, data_collator=data_collator, seed=seed
        )
        notes += said
        for name, each in more.items():
            figures[name] |= {key: value for key, value in each.items() if np.isfinite(value)}
    return AuditReport(
        metrics=figures["audited"],
        verdict=verdict_of(figures, request, hidden),
        figures={name: figures[name] for name in MODELS if name in figures},
        roc={
            name: roc(forget[np.isfinite(forget)], others[np.isfinite(others)])
            for name, (forget, others) in scores["audited"].items()
            if f"mia_{name}_auc" in figures["audited"]
        },
        histograms=details.histograms(found, compared),
        relearning=curves,
        breakdown=details.breakdown(found, groups or details.label_names(found, model.config)),
        training=details.training_curve(training),
        notes=notes,
        about={
            "model": type(model.get_base_model() if isinstance(model, PeftModel) else model).__name__,
            "request": request,
            **{f"{name}_rows": len(rows) for name, rows in {**sets, "retain": retain}.items()},
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
    for name, rows in sets.items():
        known = shadows.members[name].shape[1] if name in shadows.members else 0
        if known != len(rows):
            raise ValueError(
                f"shadows: know {known} {name} rows, the set has {len(rows)}; give train_shadows the sets of the audit"
            )
    for name, rows in sets.items():
        if name in shadows.hashes and shadows.hashes[name] != row_hashes(rows):
            raise ValueError(
                f"shadows: know other {name} rows than the set has; give train_shadows the sets of the audit"
            )
