"""Is the data still in the model, behind what it predicts? Relearning, probe, rounding, tuning, dropped adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from peft import PeftModel

from hf_unlearn.auditing.estimates import dataset_estimates, flat, share_estimate
from hf_unlearn.auditing.measuring import statistics_of
from hf_unlearn.auditing.probing import PROBE_SAMPLES, linear_probe
from hf_unlearn.auditing.recovery import BITS, quantised, without_adapter
from hf_unlearn.auditing.relearning import MEASURED_SAMPLES, Curve, finetune, relearn, relearn_advantage, relearn_time

# Forget samples that relearning trains on, at most a quarter of the set.
RELEARN_ROWS = 16
# A model that has the data back after so few steps had not lost it.
SOON = 10
# Steps on retain samples.
TUNING_STEPS = 50
# Accuracies on forget samples that say whether they came back, and how.
WAYS = {
    "probe_forget_accuracy": "a probe of its features",
    "finetuned_forget_accuracy": f"{TUNING_STEPS} steps of training on retain samples",
    "int8_forget_accuracy": "rounding to 8 bits",
    "int4_forget_accuracy": "rounding to 4 bits",
}
# Points of accuracy below the original's at which the data counts as back.
ALMOST = 0.1

Metrics = Mapping[str, Mapping[str, float]]


def robustness(
    models: Mapping[str, Any],
    sets: Mapping[str, Any],
    request: str,
    metrics: Metrics,
    *,
    probe: bool,
    data_collator: Callable | None = None,
    seed: int = 0,
) -> tuple[dict[str, dict[str, float]], dict[str, Curve], list[str], list[str]]:
    """Try to bring the forget samples back, on copies of the models.

    Args:
        models: "audited", and where there are "original" and "retrained".
        sets: `"forget"`, `"retain"`, `"unseen"`.
        request: `"samples"`, `"class"` or `"group"`.
        metrics: model to what was measured on it: the original's forget accuracy says when the data is back.
        probe: whether the samples have one label each, which a probe needs.
        data_collator: samples to batch; default: the models' own.
        seed: of the samples that are trained on.

    Returns:
        Metrics by model; relearning curves by model; what shows that the data was hidden, not forgotten; notes.
    """
    compared = {name: model for name, model in models.items() if name != "original"}
    found: dict[str, dict[str, float]] = {name: {} for name in models}
    curves: dict[str, Curve] = {}
    hidden: list[str] = []
    notes: list[str] = []
    count = min(RELEARN_ROWS, len(sets["forget"]) // 4)
    if request == "class":
        # All samples have one label: any model learns to answer it, the retrained one as fast as any.
        notes.append("Relearning says nothing about a class: a few samples of one label teach any model that label.")
    elif count:
        curves = {
            name: relearn(
                m, sets["forget"], samples=count, seed=seed, measure_every=2, steps=30, data_collator=data_collator
            )
            for name, m in compared.items()
        }
        hidden += _soon(curves, metrics)
        if "retrained" in curves:
            found["audited"] |= relearn_advantage(curves["audited"], curves["retrained"])
        for name in [name for name, curve in curves.items() if not np.isfinite(curve["forget_loss"]).all()]:
            notes.append(f"Relearning ({name}): the loss is not finite, so there is no curve.")
            del curves[name]
    else:
        notes.append(f"Relearning needs four forget samples, to train on one; there are {len(sets['forget'])}.")
    if probe:
        try:
            for name, model in models.items():
                found[name] |= _probe(model, sets, seed, data_collator)
        except ValueError as error:  # too few samples, no linear head, a model that has diverged
            notes.append(f"There is no probe. {error}")
    options: dict[str, Any] = {"seed": seed, "measure_every": TUNING_STEPS, "data_collator": data_collator}
    for name, model in compared.items():
        found[name] |= _last(
            finetune(model, sets["retain"], sets["forget"], steps=TUNING_STEPS, **options), len(sets["forget"])
        )
        changed = {f"int{bits}": quantised(model, bits) for bits in BITS}
        if isinstance(model, PeftModel):
            changed["without_adapter"] = without_adapter(model)
        for way, each in changed.items():
            metrics_of_copy = dataset_estimates(
                {"forget": statistics_of(each, sets["forget"], data_collator=data_collator)}
            )
            found[name] |= {f"{way}_{key}": value for key, value in flat(metrics_of_copy).items()}
    return found, curves, hidden + _came_back(found, metrics), notes


def _came_back(found: Metrics, metrics: Metrics) -> list[str]:
    """The ways that bring the forget samples back as they were, and do not on a retrained model.

    Two retrained models differ by more than the interval of their samples (45 and 73 % by a probe, one class of digits):
    it takes an accuracy that cannot be told from the original's.
    """
    if "original" not in metrics or "retrained" not in found:
        return []
    ours, theirs, shown = found["audited"], found["retrained"], []
    for key, way in WAYS.items():
        if f"{key}_low" not in ours or f"{key}_low" not in theirs:
            continue
        before = {**metrics["original"], **found["original"]}
        original_low = before.get(f"{key}_low", before["forget_accuracy_low"])
        if ours[f"{key}_high"] >= original_low and ours[f"{key}_low"] > theirs[f"{key}_high"]:
            shown.append(
                f"{way}: {100 * ours[key]:.0f} % of the forget samples right, retrained {100 * theirs[key]:.0f} %"
            )
    return shown


def _soon(curves: Mapping[str, Curve], metrics: Metrics) -> list[str]:
    """What the relearning curves show, where there is an original and a retrained model to compare with."""
    known = metrics.get("original", {}).get("forget_accuracy")
    if known is None or "retrained" not in curves:
        return []
    times = {name: relearn_time(curve, max(known - ALMOST, 0.0)) for name, curve in curves.items()}
    ours, theirs = times["audited"], times["retrained"]
    if ours is None or ours == 0 or ours > SOON or (theirs is not None and theirs <= SOON):
        return []
    later = "never" if theirs is None else f"after {theirs}"
    return [f"{ours} steps on a few forget samples bring the rest back, on a retrained model {later}"]


def _probe(model: Any, sets: Mapping[str, Any], seed: int, data_collator: Callable | None) -> dict[str, float]:
    found = linear_probe(model, sets["forget"], sets["retain"], seed=seed, data_collator=data_collator)
    estimates = {}
    for name in ("forget", "retain"):
        samples = min(len(sets[name]), PROBE_SAMPLES)
        estimates[f"probe_{name}_accuracy"] = share_estimate(found[f"probe_{name}_accuracy"], samples - samples // 2)
    return flat(estimates)


def _last(curve: Curve, samples: int) -> dict[str, float]:
    """The metrics after fine-tuning, of `samples` forget samples."""
    found = {"finetuned_forget_loss": curve["forget_loss"][-1]}
    if "forget_accuracy" not in curve:
        return found
    accuracy = share_estimate(curve["forget_accuracy"][-1], min(samples, MEASURED_SAMPLES))
    return found | flat({"finetuned_forget_accuracy": accuracy})
