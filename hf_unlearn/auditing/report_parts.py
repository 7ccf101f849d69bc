"""The parts of a report that are no attack: distances to other models, word errors, histograms, breakdown, curves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from transformers import PretrainedConfig

from hf_unlearn.auditing.attack_scores import AttackScores, DatasetStatistics
from hf_unlearn.auditing.attacks import Estimate
from hf_unlearn.auditing.estimates import flat
from hf_unlearn.auditing.measuring import average_gap
from hf_unlearn.auditing.metrics import js_divergence, tug_of_war, unlearning_impact_score
from hf_unlearn.report.audit_result import is_retrained
from hf_unlearn.report.numbers import natural_key

BINS = 30
# Classes or groups in the breakdown: more are counted, not listed.
MAX_GROUPS = 50
CURVES = ("step", "forget_loss", "retain_loss", "target")
Estimates: TypeAlias = Mapping[str, Estimate]


def distances(name: str, estimates: Mapping[str, Estimates], request: str, seed: int) -> dict[str, float]:
    """Gap and tug-of-war to the retrained models, unlearning impact score against the original model.

    Where there are several retrained models, distances are to their mean; those of the second, third, ... to the
    first, which is how far two retrained models are apart.

    Args:
        name: the model whose distances are returned.
        estimates: model to its metrics; what needs a model or a metric that is missing is left out.
        request: `"samples"`, `"class"` or `"group"`.
        seed: of the interval of the gap.
    """
    values = {model: {key: estimate.value for key, estimate in of.items()} for model, of in estimates.items()}
    own_values = values[name]
    accuracies = [f"{dataset}_accuracy" for dataset in ("forget", "retain", "unseen")]
    metrics: dict[str, float] = {}
    if "retrained" in estimates:
        ground_truth = estimates["retrained"] if is_retrained(name) else _mean_of_retrained(estimates)
        retrained = {key: estimate.value for key, estimate in ground_truth.items()}
        metrics |= flat({"gap": _gap_estimate(estimates[name], ground_truth, seed)})
        if all(key in own_values and key in retrained for key in accuracies):
            metrics["tug_of_war"] = tug_of_war([own_values[k] for k in accuracies], [retrained[k] for k in accuracies])
    if "original" in values and all(key in own_values for key in accuracies):
        original_accuracy = values["original"]["unseen_accuracy"]
        if original_accuracy > 0:
            metrics["unlearning_impact_score"] = unlearning_impact_score(
                original_accuracy, own_values["unseen_accuracy"], own_values["forget_accuracy"], request
            )
    return metrics


def _mean_of_retrained(estimates: Mapping[str, Estimates]) -> Estimates:
    """The mean of the retrained models' metrics, and of the ends of their intervals."""
    retrained = [of_model for name, of_model in estimates.items() if is_retrained(name)]
    return {
        key: Estimate(*np.mean([of_model[key] for of_model in retrained], axis=0).tolist())
        for key in retrained[0]
        if all(key in of_model for of_model in retrained)
    }


def _gap_estimate(estimates: Estimates, retrained: Estimates, seed: int, draws: int = 1000) -> Estimate:
    """The average gap, and its interval when every metric moves normally within its own interval.

    An absolute difference of noisy metrics is never small by luck: the interval may start at the value itself.
    """
    generator = np.random.default_rng(seed)

    def draw(of_model: Estimates) -> list[dict[str, float]]:
        columns = {
            key: estimate.value + (estimate.high - estimate.low) / 3.92 * generator.standard_normal(draws)
            for key, estimate in of_model.items()
        }
        return [{key: float(column[i]) for key, column in columns.items()} for i in range(draws)]

    value = average_gap(
        {key: estimate.value for key, estimate in estimates.items()},
        {key: estimate.value for key, estimate in retrained.items()},
    )
    gaps = [average_gap(*pair) for pair in zip(draw(estimates), draw(retrained), strict=True)]
    low, high = np.quantile(gaps, [0.025, 0.975]).tolist()
    return Estimate(value, min(low, value), max(high, value))


def divergences(statistics: Mapping[str, DatasetStatistics]) -> dict[str, float]:
    """Jensen-Shannon divergence of the predictions from the retrained model's, on forget and unseen samples, in nats.

    Args:
        statistics: "audited" and "retrained" to the statistics of both datasets, with log probabilities.
    """
    metrics = {}
    for name in ("forget", "unseen"):
        audited, retrained = (statistics[model][name].log_probs for model in ("audited", "retrained"))
        assert audited is not None and retrained is not None
        if audited.isnan().any() or retrained.isnan().any():
            continue  # a model that has diverged predicts nothing
        metrics[f"{name}_js_divergence"] = js_divergence(audited.double().numpy(), retrained.double().numpy())
    return metrics


def histograms(statistics: Mapping[str, DatasetStatistics], compared: np.ndarray) -> dict[str, Any]:
    """Counts of losses on common edges, by model and dataset.

    Args:
        statistics: model to dataset to its statistics.
        compared: [unseen samples], those that the attacks used: only they are counted.
    """
    losses = {
        model: {
            name: of_dataset.losses.double().numpy()[compared if name == "unseen" else slice(None)]
            for name, of_dataset in by_dataset.items()
        }
        for model, by_dataset in statistics.items()
    }
    finite = np.concatenate([values for by_dataset in losses.values() for values in by_dataset.values()])
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return {}
    # Losses run from thousandths to tens: bins grow, and the first holds losses near zero.
    top = max(float(finite.max()), 1e-2)
    edges = np.append(0.0, np.geomspace(max(1e-3, min(top / 10, 1e-3)), top * 1.001, BINS))
    counts = {
        model: {name: np.histogram(values, edges)[0].tolist() for name, values in by_dataset.items()}
        for model, by_dataset in losses.items()
    }
    return {"edges": edges.tolist(), "counts": counts}


def label_names(statistics: Mapping[str, DatasetStatistics], config: PretrainedConfig) -> dict[str, list[str]]:
    """The name of the label of every forget and unseen sample; nothing for heads without one label a sample."""
    names = getattr(config, "id2label", None) or {}
    labels_by_dataset = {name: statistics["audited"][name].labels for name in ("forget", "unseen")}
    return {
        name: [str(names.get(label, label)) for label in labels.tolist()]
        for name, labels in labels_by_dataset.items()
        if labels is not None
    }


def breakdown(
    statistics: Mapping[str, DatasetStatistics], groups_by_dataset: Mapping[str, list[str]]
) -> list[dict[str, Any]]:
    """Accuracy (the loss, where the head has none) by group, of forget and unseen samples.

    Args:
        statistics: model to dataset to its statistics.
        groups_by_dataset: dataset to the group of every sample.

    Returns:
        One entry a dataset and group, of at most `MAX_GROUPS` groups, those of forget samples first and then the
        largest: `group`, `dataset`, `samples`, and model to its mean, where that is finite.
    """
    counts = Counter(group for groups in groups_by_dataset.values() for group in groups)
    forgotten = set(groups_by_dataset.get("forget", ()))
    shown = sorted(counts, key=lambda group: (group not in forgotten, -counts[group]))[:MAX_GROUPS]
    entries: list[dict[str, Any]] = []
    for name, groups in groups_by_dataset.items():
        for group in sorted(set(shown).intersection(groups), key=natural_key):
            of_group = torch.tensor([g == group for g in groups])
            means = {}
            for model, by_dataset in statistics.items():
                selected = by_dataset[name].select(of_group)
                values = selected.losses if by_dataset[name].correct.isnan().all() else selected.correct
                means[model] = float(values.double().nanmean())
            finite = {model: mean for model, mean in means.items() if np.isfinite(mean)}
            entries.append({"group": group, "dataset": name, "samples": int(of_group.sum()), **finite})
    return entries


def sample_counts(
    measured: DatasetStatistics, scores: AttackScores, groups_by_dataset: Mapping[str, list[str]]
) -> dict[str, Any]:
    """How many samples the numbers of a report are of.

    Args:
        measured: dataset to the statistics that its metrics are made of.
        scores: attack to the scores of the forget and of the unseen samples.
        groups_by_dataset: dataset to the group of every sample.

    Returns:
        `measured`: dataset to samples; `attacked`: attack to forget and unseen samples with a finite score; `groups`:
        how many there are, shown or not.
    """
    attacked = {
        attack: {name: int(np.isfinite(side).sum()) for name, side in zip(("forget", "unseen"), sides, strict=True)}
        for attack, sides in scores.items()
    }
    return {
        "measured": {name: len(of_dataset) for name, of_dataset in measured.items()},
        "attacked": attacked,
        "groups": len({group for groups in groups_by_dataset.values() for group in groups}),
    }


def training_curve(history: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """The entries of a log that belong to a training step, with the values that the report draws."""
    return [
        {key: float(entry[key]) for key in CURVES if key in entry and np.isfinite(entry[key])}
        for entry in history
        if "forget_loss" in entry and "step" in entry
    ]
