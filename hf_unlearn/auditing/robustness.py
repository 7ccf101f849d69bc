"""Is the data still in the model, behind what it predicts? Relearning, probe, rounding, tuning, dropped adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from peft import PeftModel

from hf_unlearn.auditing.budget import MEASURE_EVERY, RELEARNING_STEPS, RETAIN_PER_RELEARNED, Budget
from hf_unlearn.auditing.caching import cached, setting_key
from hf_unlearn.auditing.estimates import dataset_estimates, flat, loss_estimate, share_estimate
from hf_unlearn.auditing.measuring import statistics_of
from hf_unlearn.auditing.power import detectable_difference
from hf_unlearn.auditing.probing import linear_probe
from hf_unlearn.auditing.recovery import (
    BITS,
    SIMULATED,
    quantisation_kernel,
    quantised,
    quantised_by_kernels,
    without_adapter,
)
from hf_unlearn.auditing.relearning import Curve, finetune, relearn, relearn_advantage, relearn_time
from hf_unlearn.data.collator import Collator
from hf_unlearn.data.splitting import subsample
from hf_unlearn.data.types import AnyDataset
from hf_unlearn.models.types import Model
from hf_unlearn.report.audit_result import is_retrained

# A model that has the data back after so few steps had not lost it.
FAST_STEPS = 10
# Accuracy on forget samples to what was done before it was measured.
RECOVERIES = {
    "probe_forget_accuracy": "a probe of its features",
    "finetuned_forget_accuracy": "further training on retain samples",
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
        kernel: what rounded the weights, as `quantisation_kernel` says it; empty where nothing was tried.
    """

    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    hidden: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    kernel: str = ""


def robustness(
    models: Mapping[str, Model],
    datasets_by_name: Mapping[str, AnyDataset],
    request: str,
    metrics: MetricsByModel,
    *,
    budget: Budget,
    probe: bool,
    data_collator: Collator | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
) -> RobustnessResult:
    """Try to bring the forget samples back, on copies of the models.

    Args:
        models: "audited", and where given "original", "retrained", "retrained 2", ...
        datasets_by_name: `"forget"`, `"retain"`, `"unseen"`.
        request: `"samples"`, `"class"` or `"group"`.
        metrics: model to its metrics so far: the original's forget accuracy says when the data is back.
        budget: of the attempts on one model.
        probe: whether the samples have one label each, which a probe needs.
        data_collator: samples to batch; default: the models' own.
        seed: of the samples that are trained on.
        cache_dir: where the results are kept, as in `statistics_of`.
    """
    dtype = models["audited"].dtype
    result = RobustnessResult(kernel=quantisation_kernel(dtype))
    if result.kernel == SIMULATED and dtype != torch.float64:
        result.notes.append(
            "Rounding to 8 and 4 bits is simulated: weights are rounded and multiplied out again. "
            "With bitsandbytes (pip install 'hf-unlearn[quantization]') models compute with integers."
        )
    count = len(datasets_by_name["forget"])
    relearned, beside = min(budget.relearned, count // 4), 0
    if request == "class":
        relearned = min(max(1, budget.mixed // (1 + RETAIN_PER_RELEARNED)), count // 4)
        beside = min(budget.mixed - 1, relearned * RETAIN_PER_RELEARNED)
    if not relearned:
        result.notes.append(f"Relearning needs four forget samples, to train on one; there are {count}.")
    attempts = _Attempts(datasets_by_name, replace(budget, relearned=relearned), beside, probe, data_collator, seed)
    key = (
        ()
        if cache_dir is None
        else (*astuple(attempts.budget), beside, probe, result.kernel, setting_key("data_collator", data_collator))
    )
    measured = [datasets_by_name[name] for name in ("forget", "retain")]
    tried = {
        name: cached(
            partial(attempts.on, model, name == "original"), cache_dir, model, measured,
            ("attempts", name == "original", seed, *key),
        )
        for name, model in models.items()
    }  # fmt: skip
    for name, of_model in tried.items():
        result.metrics[name] = {**of_model["probe"], **of_model["metrics"]}
        if of_model["no_probe"] and of_model["no_probe"] not in result.notes:
            result.notes.append(of_model["no_probe"])
    curves: dict[str, Curve] = {name: of_model["curve"] for name, of_model in tried.items() if of_model["curve"]}
    if curves:
        _compare_curves(result, curves, metrics, min(count - relearned, budget.looked_at))
    result.hidden += _recovered(result.metrics, metrics)
    _add_power(result, attempts.probed("forget"))
    return result


@dataclass(frozen=True)
class _Attempts:
    """What is tried on each model; see `robustness`."""

    datasets_by_name: Mapping[str, AnyDataset]
    budget: Budget
    beside: int  # retain samples that relearning trains on, beside forget samples
    probe: bool
    data_collator: Collator | None
    seed: int

    def on(self, model: Model, is_original: bool) -> dict[str, Any]:
        """The relearning curve of a model, the metrics of its probe or why there is none, and the other metrics.

        Of the original only the probe.
        """
        found: dict[str, Any] = {"curve": {}, "probe": {}, "no_probe": "", "metrics": {}}
        if not is_original and self.budget.relearned:
            found["curve"] = relearn(
                model, self.datasets_by_name["forget"], samples=self.budget.relearned, seed=self.seed,
                retain_ds=subsample(self.datasets_by_name["retain"], self.beside, self.seed) if self.beside else None,
                measure_every=MEASURE_EVERY, steps=RELEARNING_STEPS, data_collator=self.data_collator,
                measured_samples=self.budget.looked_at,
            )  # fmt: skip
        if self.probe:
            try:
                found["probe"] = self._probe_metrics(model)
            except ValueError as error:  # too few samples, no linear head, a model that has diverged
                found["no_probe"] = f"There is no probe. {error}"
        if not is_original:
            found["metrics"] = self._finetuned_metrics(model) | self._copy_metrics(model)
        return found

    def _probe_metrics(self, model: Model) -> dict[str, float]:
        accuracies = linear_probe(
            model, self.datasets_by_name["forget"], self.datasets_by_name["retain"], seed=self.seed,
            data_collator=self.data_collator, samples=self.budget.probed,
        )  # fmt: skip
        estimates = {}
        for name in ("forget", "retain"):
            accuracy = accuracies[f"probe_{name}_accuracy"]
            estimates[f"probe_{name}_accuracy"] = share_estimate(accuracy, self.probed(name))
        return flat(estimates)

    def probed(self, name: str) -> int:
        """Samples of a dataset that the probe is tested on."""
        samples = min(len(self.datasets_by_name[name]), self.budget.probed)
        return samples - samples // 2

    def _finetuned_metrics(self, model: Model) -> dict[str, float]:
        """Forget loss and accuracy of a copy that was trained on retain samples."""
        forget_ds, steps = self.datasets_by_name["forget"], self.budget.tuning_steps
        curve = finetune(
            model, self.datasets_by_name["retain"], forget_ds, steps=steps, seed=self.seed, measure_every=steps,
            batch_size=self.budget.tuning_batch, data_collator=self.data_collator,
            measured_samples=self.budget.looked_at,
        )  # fmt: skip
        loss = loss_estimate(curve["forget_loss"][-1], curve["forget_loss_error"][-1])
        metrics = flat({"finetuned_forget_loss": loss})
        if "forget_accuracy" not in curve:
            return metrics
        accuracy = share_estimate(curve["forget_accuracy"][-1], min(len(forget_ds), self.budget.looked_at))
        return metrics | flat({"finetuned_forget_accuracy": accuracy})

    def _copy_metrics(self, model: Model) -> dict[str, float]:
        """Forget metrics of copies with rounded weights, and of one without the adapter."""
        rounded = quantised if quantisation_kernel(model.dtype) == SIMULATED else quantised_by_kernels
        copies = {f"int{bits}": rounded(model, bits) for bits in BITS}
        if isinstance(model, PeftModel):
            copies["without_adapter"] = without_adapter(model)
        forget_ds = subsample(self.datasets_by_name["forget"], self.budget.looked_at, self.seed)
        metrics: dict[str, float] = {}
        for name, altered in copies.items():
            statistics = statistics_of(altered, forget_ds, data_collator=self.data_collator)
            estimates = dataset_estimates({"forget": statistics})
            metrics |= {f"{name}_{key}": value for key, value in flat(estimates).items()}
        return metrics


def _compare_curves(
    result: RobustnessResult, curves: dict[str, Curve], metrics: MetricsByModel, measured: int
) -> None:
    """Add the relearning curves of the models, and what they show by so many samples."""
    evidence, note = relearned_fast(curves, metrics, measured)
    result.hidden += evidence
    result.notes += note
    if "retrained" in curves:
        result.metrics["audited"] |= relearn_advantage(curves["audited"], curves["retrained"])
    for name, curve in curves.items():
        if accuracies := curve.get("forget_accuracy"):
            mean = share_estimate(float(np.mean(accuracies[1:])), measured)
            result.metrics[name] |= flat({"relearned_forget_accuracy": mean})
        # The samples are the same at every step: the error of the mean over steps is at most the mean of the errors.
        loss, error = (float(np.mean(curve[key][1:])) for key in ("forget_loss", "forget_loss_error"))
        result.metrics[name] |= flat({"relearned_forget_loss": loss_estimate(loss, error)})
        if np.isfinite(curve["forget_loss"]).all():
            result.curves[name] = {key: values for key, values in curve.items() if key != "forget_loss_error"}
        else:
            result.notes.append(f"Relearning ({name}): the loss is not finite, so there is no curve.")


def _add_power(result: RobustnessResult, samples: int) -> None:
    """Say what the probe of so many forget samples could have found, where there are retrained models."""
    name = "probe_forget_accuracy"
    retrained = [of_model for model, of_model in result.metrics.items() if is_retrained(model)]
    if not retrained or not all(name in of_model for of_model in (result.metrics["audited"], *retrained)):
        return
    mean = 100 * float(np.mean([of_model[name] for of_model in retrained]))
    detectable = 100 * detectable_difference(name, retrained, samples)
    if np.isnan(detectable):
        could = f"could not have found any advantage over the retrained models' {mean:.0f} %"
    else:
        result.metrics["audited"]["probe_detectable"] = detectable
        could = (
            f"would have found {detectable:.0f} points more than the retrained models' {mean:.0f} % with a power of "
            "80 % at the level of 5 %; less may be there"
        )
    result.notes.append(f"The probe was tested on {samples} forget samples: it {could}.")


def relearned_fast(curves: Mapping[str, Curve], metrics: MetricsByModel, measured: int) -> tuple[list[str], list[str]]:
    """What relearning shows, where there are an original and a retrained model to compare with; and a note.

    The accuracy that counts as back has to be above every retrained model's at that step by more than the intervals of
    the `measured` samples.
    """
    original_accuracy = metrics.get("original", {}).get("forget_accuracy")
    if original_accuracy is None or "retrained" not in curves:
        return [], []
    threshold = max(original_accuracy - TOLERANCE, 0.0)
    times = {name: relearn_time(curve, threshold) for name, curve in curves.items()}
    retrained_names = [name for name in curves if is_retrained(name)]
    audited = times["audited"]
    reached = [time for name in retrained_names if (time := times[name]) is not None]
    if 0 in reached:
        return [], [
            f"Relearning: a retrained model has {100 * threshold:.0f} % of the forget samples right before any step: "
            "how fast they are relearned says nothing."
        ]
    if audited is None or audited == 0 or audited > FAST_STEPS or any(time <= FAST_STEPS for time in reached):
        return [], []
    step = curves["audited"]["steps"].index(audited)
    low, *highs = (
        share_estimate(curves[name]["forget_accuracy"][step], measured) for name in ("audited", *retrained_names)
    )
    if low.low <= max(of_retrained.high for of_retrained in highs):
        return [], []
    later = f"after {min(reached)}" if reached else "never"
    return [f"{audited} steps on a few forget samples bring the rest back, on a retrained model {later}"], []


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
