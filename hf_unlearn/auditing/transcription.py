"""What a recogniser of speech says, in words: transcripts, and the errors in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from hf_unlearn.auditing.attack_scores import DatasetStatistics
from hf_unlearn.auditing.caching import cached, language_settings
from hf_unlearn.auditing.measuring import preserve_modes
from hf_unlearn.auditing.statistics import spread
from hf_unlearn.data.splitting import select, subsample_numbers
from hf_unlearn.data.types import AnyDataset
from hf_unlearn.models.types import Model

# Samples of a dataset that are transcribed, which takes longer than a forward pass: by an audit, and before and after
# a run, which should not spend its time on them.
TRANSCRIBED_SAMPLES, TRANSCRIBED_IN_RUNS = 200, 8


def with_word_errors(
    statistics: DatasetStatistics,
    model: Model,
    datasets_by_name: Mapping[str, AnyDataset],
    tokenizer: PreTrainedTokenizerBase,
    data_collator: Callable,
    batch_size: int,
    seed: int = 0,
    generate_kwargs: Mapping[str, Any] | None = None,
    samples: int = TRANSCRIBED_SAMPLES,
    cache_dir: str | Path | None = None,
) -> DatasetStatistics:
    """The statistics with the word errors of some samples of every dataset, by greedy decoding.

    Args:
        statistics: by dataset.
        model: a recogniser.
        datasets_by_name: the datasets that the statistics are of.
        tokenizer: decodes labels and predictions.
        data_collator: samples to batch.
        batch_size: samples in a batch.
        seed: of the samples that are drawn.
        generate_kwargs: passed to `generate`.
        samples: of a dataset that are drawn at most.
        cache_dir: where the counts are kept, as in `statistics_of`.
    """
    device = Accelerator().device
    measured = {}
    for name, dataset in datasets_by_name.items():
        numbers = subsample_numbers(len(dataset), samples, seed)
        drawn = select(dataset, numbers)

        def listen(drawn: AnyDataset = drawn, name: str = name) -> dict[str, torch.Tensor]:
            loader: DataLoader = DataLoader(drawn, batch_size, collate_fn=data_collator)  # type: ignore[arg-type]
            shown = tqdm(loader, desc=f"Transcribing {name} samples", delay=1.0, leave=False)
            batches = (send_to_device(batch, device) for batch in shown)
            with preserve_modes(model.to(device)):
                counts = word_errors(transcribe(model.eval(), batches, tokenizer, generate_kwargs or {}))
            return {"counts": torch.from_numpy(counts)}

        options = sorted((generate_kwargs or {}).items())
        settings = (*language_settings("transcription", cache_dir, model, tokenizer, data_collator), repr(options))
        counts = cached(listen, cache_dir, model, [drawn], settings)["counts"]
        measured[name] = replace(statistics[name], word_errors=spread(counts, numbers, len(dataset)))
    return measured


def word_errors(pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """Word errors and labelled words [n, 2] of pairs of labelled and recognised text (`jiwer`)."""
    import jiwer

    outputs = [jiwer.process_words(reference, transcript) for reference, transcript in pairs]
    return np.array([
        (o.substitutions + o.deletions + o.insertions, o.hits + o.substitutions + o.deletions) for o in outputs
    ])  # fmt: skip


def word_error_rate(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Word errors over labelled words, 0 is perfect, above 1 possible (`jiwer.wer`).

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
    """Labelled and recognised text of every sample: generated, or of a CTC head its most likely tokens.

    Args:
        model: a sequence-to-sequence model or one with a CTC head.
        batches: collated batches on the model's device, with `labels`.
        tokenizer: decodes labels and predictions.
        generate_kwargs: passed to `generate`.
    """
    pairs: list[tuple[str, str]] = []
    for batch in batches:
        inputs = {k: v for k, v in batch.items() if k not in ("labels", "decoder_input_ids", "decoder_attention_mask")}
        labels = [sample[sample != -100].tolist() for sample in batch["labels"]]  # padding tokens are optional
        if model.can_generate():
            recognised = model.generate(**inputs, **generate_kwargs)  # type: ignore[operator]
            decoded = [tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in (labels, recognised)]
        else:
            recognised = model(**inputs).logits.argmax(-1)
            # A label that is there twice was said twice.
            said = tokenizer.batch_decode(labels, skip_special_tokens=True, group_tokens=False)
            decoded = [said, tokenizer.batch_decode(recognised, skip_special_tokens=True)]
        pairs += list(zip(*decoded, strict=True))
    return pairs
