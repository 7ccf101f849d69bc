"""Is the data still in the model, behind what it predicts? Relearning, probe, rounding, tuning, dropped adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from peft import PeftModel

from hf_unlearn.auditing.estimates import dataset_estimates, flat, share_estimate
from hf_unlearn.auditing.measuring import statistics_of
from hf_unlearn.auditing.probing import PROBE_SAMPLES, linear_probe
from hf_unlearn.auditing.recovery import BITS, quantised, without_adapter
from hf_unlearn.auditing.relearning import MEASURED_SAMPLES, Curve, finetune, relearn, relearn_advantage, relearn_time
from hf_unlearn.data.collator import Collator
from hf_unlearn.data.types import AnyDataset
from hf_unlearn.models.types import Model
from hf_unlearn.report.audit_result import is_retrained

# Forget samples that relearning trains on, at most a quarter of the dataset.
RELEARN_SAMPLES = 16
# A model that has the data back after so few steps had not lost it.
FAST_STEPS = 10
# Steps on retain samples.
TUNING_STEPS = 50
# Accuracy on forget samples to what was done before it was measured.
RECOVERIES = {
    "probe_forget_accuracy": "a probe of its features",
    "finetuned_forget_accuracy": f"{TUNING_STEPS} steps of training on retain samples",
    "int8_forget_accuracy": "rounding to 8 bits",
    "int4_forget_accuracy": "rounding to 4 bits",
}
# Difference to the original's accuracy at which the data counts as back.
TOLERANCE = 0.1

MetricsByModel: TypeAlias = Mapping[str, Mapping[str, float]]


@dataclass
class RobustnessResult:
    """What attempts to bring the data back have shown.

    Attributes:
        metrics: model to flat metrics.
        curves: model to its relearning curve.
        hidden: evidence that the data was hidden, not forgotten.
        notes: what could not be tried, and why.
    """

    metrics: dict[str, dict[str, float]]
    curves: dict[str, Curve] = field(default_factory=dict)
    hidden: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def robustness(
    models: Mapping[str, Model],
    datasets_by_name: Mapping[str, AnyDataset],
    request: str,
    metrics: MetricsByModel,
    *,
    probe: bool,
    data_collator: Collator | None = None,
    seed: int = 0,
) -> RobustnessResult:
    """Try to bring the forget samples back, on copies of the models.

    Args:
        models: "audited", and where given "original", "retrained", "retrained 2", ...
        datasets_by_name: `"forget"`, `"retain"`, `"unseen"`.
        request: `"samples"`, `"class"` or `"group"`.
        metrics: model to its metrics so far: the original's forget accuracy says when the data is back.
        probe: whether the samples have one label each, which a probe needs.
        data_collator: samples to batch; default: the models' own.
        seed: of the samples that are trained on.
    """
    result = RobustnessResult({name: {} for name in models})
    without_original = {name: model for name, model in models.items() if name != "original"}
    _relearn(result, without_original, datasets_by_name["forget"], request, metrics, data_collator, seed)
    if probe:
        try:
            for name, model in models.items():
                result.metrics[name] |= _probe_metrics(model, datasets_by_name, seed, data_collator)
        except ValueError as error:  # too few samples, no linear head, a model that has diverged
            result.notes.append(f"There is no probe. {error}")
    for name, model in without_original.items():
        result.metrics[name] |= _finetuned_metrics(model, datasets_by_name, seed, data_collator)
        result.metrics[name] |= _copy_metrics(model, datasets_by_name["forget"], data_collator)
    result.hidden += _recovered(result.metrics, metrics)
    return result


def _relearn(
    result: RobustnessResult,
    models: Mapping[str, Model],
    forget_ds: AnyDataset,
    request: str,
    metrics: MetricsByModel,
    data_collator: Collator | None,
    seed: int,
) -> None:
    """Add the relearning curves of the models, and what they show."""
    count = min(RELEARN_SAMPLES, len(forget_ds) // 4)
    if request == "class":
        # All samples have one label: any model learns to answer it, the retrained one as fast as any.
        result.notes.append(
            "Relearning says nothing about a class: a few samples of one label teach any model that label."
        )
        return
    if not count:
        result.notes.append(f"Relearning needs four forget samples, to train on one; there are {len(forget_ds)}.")
        return
    curves = {
        name: relearn(
            model, forget_ds, samples=count, seed=seed, measure_every=2, steps=30, data_collator=data_collator
        )
        for name, model in models.items()
    }
    evidence, note = relearned_fast(curves, metrics)
    result.hidden += evidence
    result.notes += note
    if "retrained" in curves:
        result.metrics["audited"] |= relearn_advantage(curves["audited"], curves["retrained"])
    for name, curve in curves.items():
        if np.isfinite(curve["forget_loss"]).all():
            result.curves[name] = curve
        else:
            result.notes.append(f"Relearning ({name}): the loss is not finite, so there is no curve.")


def relearned_fast(curves: Mapping[str, Curve], metrics: MetricsByModel) -> tuple[list[str], list[str]]:
    """What relearning shows, where there are an original and a retrained model to compare with; and a note."""
    original_accuracy = metrics.get("original", {}).get("forget_accuracy")
    if original_accuracy is None or "retrained" not in curves:
        return [], []
    threshold = max(original_accuracy - TOLERANCE, 0.0)
    times = {name: relearn_time(curve, threshold) for name, curve in curves.items()}
    audited, retrained = times["audited"], [time for name, time in times.items() if is_retrained(name)]
    reached = [time for time in retrained if time is not None]
    if 0 in reached:
        return [], [
            f"Relearning: a retrained model has {100 * threshold:.0f} % of the forget samples right before any step: "
            "how fast they are relearned says nothing."
        ]
    if audited is None or audited == 0 or audited > FAST_STEPS or any(time <= FAST_STEPS for time in reached):
        return [], []
    later = f"after {min(reached)}" if reached else "never"
    return [f"{audited} steps on a few forget samples bring the rest back, on a retrained model {later}"], []


def _probe_metrics(
    model: Model, datasets_by_name: Mapping[str, AnyDataset], seed: int, data_collator: Collator | None
) -> dict[str, float]:
    accuracies = linear_probe(
        model, datasets_by_name["forget"], datasets_by_name["retain"], seed=seed, data_collator=data_collator
    )
    estimates = {}
    for name in ("forget", "retain"):
        samples = min(len(datasets_by_name[name]), PROBE_SAMPLES)
        tested = samples - samples // 2
        estimates[f"probe_{name}_accuracy"] = share_estimate(accuracies[f"probe_{name}_accuracy"], tested)
    return flat(estimates)


def _finetuned_metrics(
    model: Model, datasets_by_name: Mapping[str, AnyDataset], seed: int, data_collator: Collator | None
) -> dict[str, float]:
    """Forget loss and accuracy of a copy that was trained on retain samples."""
    forget_ds = datasets_by_name["forget"]
    curve = finetune(
        model, datasets_by_name["retain"], forget_ds, steps=TUNING_STEPS, seed=seed, measure_every=TUNING_STEPS,
        data_collator=data_collator,
    )  # fmt: skip
    metrics = {"finetuned_forget_loss": curve["forget_loss"][-1]}
    if "forget_accuracy" not in curve:
        return metrics
    accuracy = share_estimate(curve["forget_accuracy"][-1], min(len(forget_ds), MEASURED_SAMPLES))
    return metrics | flat({"finetuned_forget_accuracy": accuracy})


def _copy_metrics(model: Model, forget_ds: AnyDataset, data_collator: Collator | None) -> dict[str, float]:
    """Forget metrics of copies with rounded weights, and of one without the adapter."""
    copies = {f"int{bits}": quantised(model, bits) for bits in BITS}
    if isinstance(model, PeftModel):
        copies["without_adapter"] = without_adapter(model)
    metrics: dict[str, float] = {}
    for name, altered in copies.items():
        statistics = statistics_of(altered, forget_ds, data_collator=data_collator)
        estimates = dataset_estimates({"forget": statistics})
        metrics |= {f"{name}_{key}": value for key, value in flat(estimates).items()}
    return metrics


def _recovered(recovery_metrics: MetricsByModel, metrics: MetricsByModel) -> list[str]:
    """The recoveries that bring the forget samples back to the original's accuracy, and do not on any retrained model.

    Two retrained models differ by more than the interval of their samples (45 and 73 % by a probe, one class of
    digits): it takes an accuracy that cannot be told from the original's.
    """
    if "original" not in metrics or "retrained" not in recovery_metrics:
        return []
    audited = recovery_metrics["audited"]
    of_retrained = [of_model for name, of_model in recovery_metrics.items() if is_retrained(name)]
    original = {**metrics["original"], **recovery_metrics.get("original", {})}
    evidence = []
    for key, recovery in RECOVERIES.items():
        if f"{key}_low" not in audited or not all(f"{key}_low" in of_model for of_model in of_retrained):
            continue
        retrained = max(of_retrained, key=lambda of_model: of_model[f"{key}_high"])
        original_low = original.get(f"{key}_low", original["forget_accuracy_low"])
        if audited[f"{key}_high"] >= original_low and audited[f"{key}_low"] > retrained[f"{key}_high"]:
            evidence.append(
                f"{recovery}: {100 * audited[key]:.0f} % of the forget samples right, "
                f"retrained {100 * retrained[key]:.0f} %"
            )
    return evidence
