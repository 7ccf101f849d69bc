"""The parts of a report that are no attack: distances to other models, word errors, histograms, breakdown, curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader

from hf_unlearn.auditing.attacks import Estimate
from hf_unlearn.auditing.dataset_metrics import transcribe, word_errors
from hf_unlearn.auditing.estimates import flat, ratio_estimate
from hf_unlearn.auditing.measuring import average_gap, evaluating, statistics_of
from hf_unlearn.auditing.metrics import js_divergence, tug_of_war, unlearning_impact_score
from hf_unlearn.auditing.statistics import SampleStatistics

BINS = 30
# Classes in the breakdown.
GROUPS = 50
CURVES = ("step", "forget_loss", "retain_loss", "target")
Estimates = Mapping[str, Mapping[str, Estimate]]


def against_others(name: str, estimates: Estimates, request: str, seed: int) -> dict[str, float]:
    """Gap and tug-of-war to the retrained model, and unlearning impact against the original, those that can be had."""
    own = {key: each.value for key, each in estimates[name].items()}
    accuracies = [f"{kind}_accuracy" for kind in ("forget", "retain", "unseen")]
    found: dict[str, float] = {}
    if "retrained" in estimates:
        retrained = {key: each.value for key, each in estimates["retrained"].items()}
        found |= flat({"gap": _gap_estimate(estimates[name], estimates["retrained"], seed)})
        if all(key in own and key in retrained for key in accuracies):
            found["tug_of_war"] = tug_of_war([own[k] for k in accuracies], [retrained[k] for k in accuracies])
    if "original" in estimates and all(key in own for key in accuracies):
        before = estimates["original"]["unseen_accuracy"].value
        if before > 0:
            found["unlearning_impact_score"] = unlearning_impact_score(
                before, own["unseen_accuracy"], own["forget_accuracy"], request
            )
    return found


def _gap_estimate(
    found: Mapping[str, Estimate], retrained: Mapping[str, Estimate], seed: int, draws: int = 1000
) -> Estimate:
    """The gap, and where it lies when every metric moves normally within its interval.

    An absolute difference of noisy metrics is never small by luck: the interval may start at the value itself.
    """
    generator = np.random.default_rng(seed)

    def drawn(estimates: Mapping[str, Estimate]) -> list[dict[str, float]]:
        columns = {
            key: each.value + (each.high - each.low) / 3.92 * generator.standard_normal(draws)
            for key, each in estimates.items()
        }
        return [{key: float(column[i]) for key, column in columns.items()} for i in range(draws)]

    value = average_gap(*({key: each.value for key, each in one.items()} for one in (found, retrained)))
    gaps = [average_gap(ours, theirs) for ours, theirs in zip(drawn(found), drawn(retrained), strict=True)]
    low, high = np.quantile(gaps, [0.025, 0.975]).tolist()
    return Estimate(value, min(low, value), max(high, value))


def divergences(models: Mapping[str, Any], sets: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, float]:
    """Jensen-Shannon divergence of the predictions from the retrained model's, in nats, on forget and unseen samples."""
    found = {}
    for name in ("forget", "unseen"):
        ours, theirs = (
            statistics_of(models[which], sets[name], log_probs=True, **options).log_probs
            for which in ("audited", "retrained")
        )
        assert ours is not None and theirs is not None
        if ours.isnan().any() or theirs.isnan().any():
            continue  # a model that has diverged predicts nothing
        found[f"{name}_js_divergence"] = js_divergence(ours.double().numpy(), theirs.double().numpy())
    return found


def word_error_rates(
    model: Any, sets: Mapping[str, Any], tokenizer: Any, data_collator: Callable, batch_size: int
) -> dict[str, Estimate]:
    """`forget_wer`, `retain_wer`, `unseen_wer`, by greedy generation; 0 is perfect, above 1 possible."""
    device, found = Accelerator().device, {}
    for name, samples in sets.items():
        loader = DataLoader(samples, batch_size=batch_size, collate_fn=data_collator)
        batches = (send_to_device(batch, device) for batch in loader)
        with evaluating(model.to(device)):
            found[f"{name}_wer"] = ratio_estimate(word_errors(transcribe(model.eval(), batches, tokenizer, {})))
    return found


def histograms(found: Mapping[str, Mapping[str, SampleStatistics]], compared: np.ndarray) -> dict[str, Any]:
    """Counts of losses on common edges, by model and set; the unseen samples are those of the attacks."""
    losses = {
        model: {
            name: each.losses.double().numpy()[compared if name == "unseen" else slice(None)]
            for name, each in sets.items()
        }
        for model, sets in found.items()
    }
    everything = np.concatenate([side for sets in losses.values() for side in sets.values()])
    everything = everything[np.isfinite(everything)]
    if not len(everything):
        return {}
    # Losses run from thousandths to tens: bins grow, and the first holds what is next to nothing.
    top = max(float(everything.max()), 1e-2)
    edges = np.append(0.0, np.geomspace(max(1e-3, min(top / 10, 1e-3)), top * 1.001, BINS))
    counts = {
        model: {name: np.histogram(side, edges)[0].tolist() for name, side in sets.items()}
        for model, sets in losses.items()
    }
    return {"edges": edges.tolist(), "counts": counts}


def label_names(found: Mapping[str, Mapping[str, SampleStatistics]], config: Any) -> dict[str, list[str]]:
    """The name of the label of every forget and unseen sample; nothing for heads without one label a sample."""
    names = getattr(config, "id2label", None) or {}
    labels = {name: found["audited"][name].labels for name in ("forget", "unseen")}
    return {
        name: [str(names.get(label, label)) for label in each.tolist()]
        for name, each in labels.items()
        if each is not None
    }


def breakdown(
    found: Mapping[str, Mapping[str, SampleStatistics]], belonging: Mapping[str, list[str]]
) -> list[dict[str, Any]]:
    """Accuracy (the loss, where the head has none) by group, of forget and unseen samples; the largest when many."""
    entries: list[dict[str, Any]] = []
    for name, of_samples in belonging.items():
        for group in dict.fromkeys(of_samples):
            samples = torch.tensor([each == group for each in of_samples])
            metrics = {}
            for model, signals in found.items():
                chosen = signals[name].select(samples)
                scores = chosen.losses if signals[name].correct.isnan().all() else chosen.correct
                metrics[model] = float(scores.double().nanmean())
            if all(np.isfinite(list(metrics.values()))):
                entries.append({"group": group, "set": name, "samples": int(samples.sum()), **metrics})
    largest = sorted(entries, key=lambda entry: -entry["samples"])[:GROUPS]
    return sorted(largest, key=lambda entry: (entry["set"], entry["group"]))


def training_curve(history: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """The entries of a log that belong to a step, with what a picture shows of them."""
    return [
        {key: float(entry[key]) for key in CURVES if key in entry and np.isfinite(entry[key])}
        for entry in history
        if "forget_loss" in entry and "step" in entry
    ]
