"""The metrics of a run: forget, retain and unseen loss and accuracy (or word error rate), membership inference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from hf_unlearn.auditing.attacks import logistic_attack
from hf_unlearn.auditing.statistics import SampleStatistics
from hf_unlearn.models.types import Model

# With fewer samples on a side, an attack's metric means nothing.
MIN_SAMPLES = 8


def dataset_metrics(statistics: Mapping[str, SampleStatistics], classes: Sequence[int] = ()) -> dict[str, float]:
    """Mean loss and accuracy on every dataset, and the membership inference accuracy on forget against unseen samples.

    Args:
        statistics: `"forget"`, `"retain"` and, where there is unseen data, `"unseen"`.
        classes: the forgotten classes. `unseen_*` is then measured on the other classes, and membership inference
            compares with unseen samples of the forgotten classes: against other classes it would measure the class.

    Returns:
        `forget_loss`, `forget_accuracy`, `retain_loss`, ..., `mia_accuracy`; accuracies in [0, 1], losses in nats.
        A metric that is not available is left out.
    """
    metrics: dict[str, float] = {}
    measured, matched = matched_datasets(statistics, classes)
    for name, of_dataset in measured.items():
        if len(of_dataset):
            metrics[f"{name}_loss"] = float(of_dataset.losses.double().mean())
            if not of_dataset.correct.isnan().all():
                metrics[f"{name}_accuracy"] = float(of_dataset.correct.double().nanmean())
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


def word_errors(pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """Word errors and reference words [n, 2] of pairs of reference and transcript (`jiwer`)."""
    import jiwer

    outputs = [jiwer.process_words(reference, transcript) for reference, transcript in pairs]
    return np.array([
        (o.substitutions + o.deletions + o.insertions, o.hits + o.substitutions + o.deletions) for o in outputs
    ])  # fmt: skip


def word_error_rate(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Word errors over reference words, 0 is perfect, above 1 possible (`jiwer.wer`).

    Raises:
        ImportError: when jiwer is not installed (`pip install hf-unlearn[speech]`).
    """
    import jiwer

    return float(jiwer.wer(list(references), list(predictions)))


@torch.no_grad()
def transcribe(
    model: Model,
    batches: Iterable[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    generate_kwargs: Mapping[str, Any],
) -> list[tuple[str, str]]:
    """Reference and generated text of every sample of a sequence-to-sequence model.

    Args:
        model: has `generate`.
        batches: collated batches on the model's device, with `labels`.
        tokenizer: decodes labels and predictions.
        generate_kwargs: passed to `generate`.
    """
    pairs: list[tuple[str, str]] = []
    for batch in batches:
        inputs = {k: v for k, v in batch.items() if k not in ("labels", "decoder_input_ids", "decoder_attention_mask")}
        generated = model.generate(**inputs, **generate_kwargs)  # type: ignore[operator]
        labels = [sample[sample != -100].tolist() for sample in batch["labels"]]  # padding tokens are optional
        decoded = [tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in (labels, generated)]
        pairs += list(zip(*decoded, strict=True))
    return pairs
