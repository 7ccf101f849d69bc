"""Samples of what a model knows beside the data of a request, which an unlearning run should not harm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from datasets import Dataset

from hf_unlearn.data.collator import columns_read
from hf_unlearn.data.splitting import check_map_style, subsample
from hf_unlearn.data.text import token_limit
from hf_unlearn.data.types import AnyDataset
from hf_unlearn.data.validation import check_finite
from hf_unlearn.models.types import Model, ProcessingClass

# Enough to see a rise of a hundredth of the loss, as the same samples are measured before and after.
GENERAL_SAMPLES = 64
TOKENS_OF_A_SAMPLE = 128
# What is read of texts: as many characters as hold many times the tokens that are measured.
MAX_CHARACTERS = 4_000_000
GeneralData: TypeAlias = AnyDataset | Sequence[str] | str | Path


def general_samples(
    given: GeneralData, model: Model, head_kind: str, processing_class: ProcessingClass | None, seed: int = 0
) -> AnyDataset:
    """At most 64 samples that general ability is measured on.

    Args:
        given: a dataset ready for the model; for causal language models also texts, or a text file, which are cut
            into samples of 128 tokens.
        model: the model.
        head_kind: of its head.
        processing_class: has the tokenizer of texts.
        seed: of the samples that are drawn.

    Raises:
        ValueError: there is nothing in it, texts are given to a model that reads none, or without a tokenizer.
    """
    if isinstance(given, str | Path):
        return _text_samples([_read(Path(given))], model, head_kind, processing_class, seed)
    if not hasattr(given, "column_names") and len(given) and isinstance(given[0], str):
        return _text_samples([str(text) for text in given], model, head_kind, processing_class, seed)  # type: ignore[union-attr]
    check_map_style("general_ds", given)
    if not len(given):
        raise ValueError("general_ds: is empty; give at least one sample")
    drawn = subsample(given, GENERAL_SAMPLES, seed)
    check_finite("general_ds", drawn, columns_read(model))
    return drawn


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(MAX_CHARACTERS)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ValueError(f"general_ds: {str(path)!r} does not open ({reason}); give a text file") from error


def _text_samples(texts: list[str], model: Model, head_kind: str, processing_class: Any, seed: int) -> Dataset:
    if head_kind != "causal_lm":
        raise ValueError(
            f"general_ds: is text, and a {head_kind} head is measured on samples; give a dataset ready for the model"
        )
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    if tokenizer is None:
        raise ValueError("general_ds: is text, and there is no processing_class; give the model's tokenizer")
    tokens = tokenizer("\n".join(texts)[:MAX_CHARACTERS], add_special_tokens=False, verbose=False).input_ids
    length = min(TOKENS_OF_A_SAMPLE, token_limit(tokenizer, model))
    blocks = [tokens[i : i + length] for i in range(0, len(tokens), length)]
    blocks = [block for block in blocks if len(block) == length] or [block for block in blocks if len(block) > 1]
    if not blocks:
        raise ValueError("general_ds: holds no text; give some, a hundred paragraphs or more")
    columns = {"input_ids": blocks, "attention_mask": [[1] * len(block) for block in blocks], "labels": blocks}
    return subsample(Dataset.from_dict(columns), GENERAL_SAMPLES, seed)
