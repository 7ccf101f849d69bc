"""The metrics of a run: forget, retain and unseen loss and accuracy (or word error rate), membership inference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from hf_unlearn.auditing.attacks import logistic_attack
from hf_unlearn.auditing.statistics import SampleStatistics

# Fewer samples than this on a side make an attack's metric meaningless.
LEAST_SAMPLES = 8


def dataset_metrics(signals: Mapping[str, SampleStatistics], classes: Sequence[int] = ()) -> dict[str, float]:
    """Mean loss and accuracy of every set, and the membership inference accuracy on forget against unseen.

    Args:
        signals: `"forget"`, `"retain"` and, where there is unseen data, `"unseen"`.
        classes: the forgotten classes. `unseen_*` then speaks of the other classes, and membership inference compares
            with unseen samples of the forgotten classes: against other classes it would measure the class.

    Returns:
        `forget_loss`, `forget_accuracy`, `retain_loss`, ..., `mia_accuracy`; accuracies in [0, 1], losses in nats.
        A metric that is not available is left out.
    """
    result: dict[str, float] = {}
    sets, matched = matched_datasets(signals, classes)
    for name, found in sets.items():
        if len(found):
            result[f"{name}_loss"] = float(found.losses.double().mean())
            if not found.correct.isnan().all():
                result[f"{name}_accuracy"] = float(found.correct.double().nanmean())
    if matched is not None and min(len(matched), len(sets["forget"])) >= LEAST_SAMPLES:
        members, others = sets["forget"].losses.double().numpy(), matched.losses.double().numpy()
        if np.isfinite(members).all() and np.isfinite(others).all():
            result["mia_accuracy"] = logistic_attack(members, others).value
    return result


def matched_datasets(
    signals: Mapping[str, SampleStatistics], classes: Sequence[int] = ()
) -> tuple[dict[str, SampleStatistics], SampleStatistics | None]:
    """The sets with the forgotten classes taken out of the unseen one, and the unseen samples that attacks compare with.

    These are unseen samples of the forgotten classes, where whole classes were forgotten, and all unseen samples otherwise.
    """
    sets = dict(signals)
    matched = sets.get("unseen")
    if classes and matched is not None and matched.labels is not None:
        of_class = torch.isin(matched.labels, torch.tensor(list(classes)))
        sets["unseen"], matched = matched.select(~of_class), matched.select(of_class)
    return sets, matched


def word_errors(pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """Word errors and reference words [n, 2] of pairs of reference and transcript (`jiwer`)."""
    import jiwer

    found = [jiwer.process_words(reference, said) for reference, said in pairs]
    return np.array([
        (each.substitutions + each.deletions + each.insertions, each.hits + each.substitutions + each.deletions)
        for each in found
    ])  # fmt: skip


def word_error_rate(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Word errors over reference words, 0 is perfect, above 1 possible (`jiwer.wer`).

    Raises:
        ImportError: when jiwer is not installed (`pip install hf-unlearn[speech]`).
    """
    import jiwer

    return float(jiwer.wer(list(references), list(predictions)))


@torch.no_grad()
def transcribe(model: Any, batches: Any, tokenizer: Any, generate_kwargs: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Reference and generated text of every sample of a sequence-to-sequence model.

    Args:
        model: has `generate`.
        batches: iterable of collated batches on the model's device, with `labels`.
        tokenizer: decodes labels and predictions.
        generate_kwargs: passed to `generate`.
    """
    pairs: list[tuple[str, str]] = []
    for batch in batches:
        inputs = {k: v for k, v in batch.items() if k not in ("labels", "decoder_input_ids", "decoder_attention_mask")}
        generated = model.generate(**inputs, **generate_kwargs)
        labels = batch["labels"].masked_fill(batch["labels"] == -100, tokenizer.pad_token_id)
        decoded = [tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in (labels, generated)]
        pairs += list(zip(*decoded, strict=True))
    return pairs
