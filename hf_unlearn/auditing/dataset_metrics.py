"""The metrics of a run: forget, retain and unseen loss and accuracy, membership inference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from hf_unlearn.auditing.attacks import logistic_attack
from hf_unlearn.auditing.statistics import SampleStatistics

# With fewer samples on a side, an attack's metric means nothing.
MIN_SAMPLES = 8


def dataset_metrics(statistics: Mapping[str, SampleStatistics], classes: Sequence[int] = ()) -> dict[str, float]:
    """Mean loss and accuracy on every dataset, and the membership inference accuracy on forget against unseen samples.

    Args:
        statistics: `"forget"`, `"retain"` and, where there is unseen data, `"unseen"`.
        classes: the forgotten classes. `unseen_*` is then measured on the other classes, and membership inference
            compares with unseen samples of the forgotten classes: against other classes it would measure the class.

    Returns:
        `forget_loss`, `forget_accuracy`, `retain_loss`, ..., `mia_accuracy`; accuracies in [0, 1], losses in nats;
        `forget_wer`, `forget_rouge_l_recall`, ..., where the statistics have them.
        A metric that is not available is left out.
    """
    metrics: dict[str, float] = {}
    measured, matched = matched_datasets(statistics, classes)
    for name, of_dataset in measured.items():
        if len(of_dataset):
            metrics[f"{name}_loss"] = float(of_dataset.losses.double().mean())
            if not of_dataset.correct.isnan().all():
                metrics[f"{name}_accuracy"] = float(of_dataset.correct.double().nanmean())
            if of_dataset.word_errors is not None:
                errors, words = of_dataset.word_errors.double().nansum(0).tolist()
                metrics[f"{name}_wer"] = errors / max(words, 1)
            for metric, values in (of_dataset.extraction or {}).items():
                metrics[f"{name}_{metric}"] = float(values.double().nanmean())
    if matched is not None and min(len(matched), len(measured["forget"])) >= MIN_SAMPLES:
        members, non_members = measured["forget"].losses.double().numpy(), matched.losses.double().numpy()
        if np.isfinite(members).all() and np.isfinite(non_members).all():
            metrics["mia_accuracy"] = logistic_attack(members, non_members).value
    return metrics


def matched_datasets(
    statistics: Mapping[str, SampleStatistics], classes: Sequence[int] = ()
) -> tuple[dict[str, SampleStatistics], SampleStatistics | None]:
    """The statistics that metrics are made of, and those of the unseen samples that attacks compare with.

    Where whole classes were forgotten, the unseen dataset is split: metrics are made of the other classes, attacks
    compare with the forgotten classes. Otherwise both take all unseen samples.
    """
    measured = dict(statistics)
    matched = measured.get("unseen")
    if classes and matched is not None and matched.labels is not None:
        of_class = torch.isin(matched.labels, torch.tensor(list(classes)))
        measured["unseen"], matched = matched.select(~of_class), matched.select(of_class)
    return measured, matched
