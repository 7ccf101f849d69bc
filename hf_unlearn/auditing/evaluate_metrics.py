"""The metrics as `evaluate.Metric`: nothing is downloaded, and no sample is written to disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import evaluate
import numpy as np
from datasets import Features, List, Value
from typing_extensions import override

from hf_unlearn.auditing import measuring, metrics, text_metrics

GAP_METRICS = ("forget_accuracy", "retain_accuracy", "unseen_accuracy", "mia_accuracy")


def average_gap(predictions: Sequence[float], references: Sequence[float]) -> float:
    """Mean absolute difference to a retrained model, in points: `measuring.average_gap`. Lower is better.

    Args:
        predictions: accuracies in [0, 1] on forget, retain and unseen samples, and that of the membership inference;
            the last ones may be left out.
        references: the same accuracies of the retrained model.

    Raises:
        ValueError: lengths differ, are 0 or above 4, or an accuracy is out of range.

    Examples:
        >>> average_gap([0.9, 1.0], [0.88, 1.0])
        1.0
    """
    metrics.check_pairs(predictions, references)
    if len(predictions) > len(GAP_METRICS):
        raise ValueError(f"predictions: at most {', '.join(GAP_METRICS)}, got {len(predictions)} metrics")
    arguments = {"predictions": predictions, "references": references}
    checked = [metrics.check_numbers(name, values, 0, 1).tolist() for name, values in arguments.items()]
    return measuring.average_gap(*(dict(zip(GAP_METRICS, values, strict=False)) for values in checked))


NUMBER, INTEGER, STRING = Value("float64"), Value("int64"), Value("string")


def _pairs(feature: Any) -> Features:
    return Features({"predictions": feature, "references": feature})


# Name to function and columns; the columns have the names of the function's arguments.
METRICS: dict[str, tuple[Callable[..., float], Features]] = {
    "accuracy": (metrics.accuracy, _pairs(INTEGER)),
    "tug_of_war": (metrics.tug_of_war, _pairs(NUMBER)),
    "gap": (average_gap, _pairs(NUMBER)),
    "kl_divergence": (metrics.kl_divergence, _pairs(List(NUMBER))),
    "js_divergence": (metrics.js_divergence, _pairs(List(NUMBER))),
    "wer": (text_metrics.wer, _pairs(STRING)),
    "cer": (text_metrics.cer, _pairs(STRING)),
    "rouge_l_recall": (text_metrics.rouge_l_recall, _pairs(STRING)),
    "exact_match": (text_metrics.exact_match, _pairs(STRING)),
    "verbatim_memorization": (text_metrics.verbatim_memorization, _pairs(STRING)),
    "exact_memorization": (metrics.exact_memorization, _pairs(List(INTEGER))),
    "extraction_strength": (metrics.extraction_strength, _pairs(List(INTEGER))),
    "forget_quality": (text_metrics.forget_quality, _pairs(NUMBER)),
    "perplexity": (text_metrics.perplexity, Features(losses=List(NUMBER))),
    "answer_probability": (text_metrics.answer_probability, Features(losses=NUMBER)),
    "choice_probability": (
        text_metrics.choice_probability,
        Features(correct_losses=NUMBER, wrong_losses=List(NUMBER)),
    ),
    "truth_ratio": (
        text_metrics.truth_ratio,
        Features(paraphrased_losses=NUMBER, perturbed_losses=List(NUMBER)),
    ),
    "model_utility": (text_metrics.model_utility, Features(scores=NUMBER)),
    "unlearning_impact_score": (
        metrics.unlearning_impact_score,
        Features(original_test=NUMBER, unlearned_test=NUMBER, unlearned_forget=NUMBER),
    ),
    "privacy_leakage": (text_metrics.privacy_leakage, Features(auc=NUMBER, retrained_auc=NUMBER)),
    "run_time_ratio": (metrics.run_time_ratio, Features(unlearn_seconds=NUMBER, retrain_seconds=NUMBER)),
}
# Functions of single numbers: a sample is a run, and the metric is the mean over runs.
METRICS_OF_RUNS = ("unlearning_impact_score", "privacy_leakage", "run_time_ratio")


def load(name: str) -> evaluate.Metric:
    """One of `METRICS` as an `evaluate.Metric`, without network access.

    `compute` takes the arguments of the function; `evaluate.combine` takes several metrics with the same columns.
    Samples stay in memory: data to be forgotten is not written to evaluate's cache.

    Raises:
        ValueError: there is no metric of this name.

    Examples:
        >>> load("accuracy").compute(predictions=[0, 1], references=[0, 0])
        {'accuracy': 0.5}
    """
    if name not in METRICS:
        raise ValueError(f"name: must be one of {', '.join(METRICS)}, got {name!r}")
    return _FunctionMetric(name)


class _FunctionMetric(evaluate.Metric):
    def __init__(self, name: str) -> None:
        self._metric = name
        super().__init__(keep_in_memory=True)
        self.info.module_name = name  # evaluate's own choice is the name of the class

    @override
    def _build_data_dir(self) -> str:
        return ""  # nothing is written to disk, so no folder is needed

    @override
    def _info(self) -> evaluate.MetricInfo:
        function, features = METRICS[self._metric]
        description = function.__doc__ or ""
        return evaluate.MetricInfo(description=description, citation="", features=features)

    @override
    def _compute(self, **inputs: Any) -> dict[str, float]:
        function, features = METRICS[self._metric]
        if self._metric not in METRICS_OF_RUNS:
            return {self._metric: function(**inputs)}
        columns = [inputs.pop(column) for column in features]
        samples = [dict(zip(features, sample, strict=True)) for sample in zip(*columns, strict=True)]
        return {self._metric: float(np.mean([function(**sample, **inputs) for sample in samples]))}
