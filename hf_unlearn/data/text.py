"""From texts to tokens: text classifiers, and models from text to text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from torch import nn

from hf_unlearn.data.columns import Columns, text_of

BATCH_SIZE = 1000


def token_limit(tokenizer: Any, model: Any) -> int:
    """The maximum number of tokens of both tokenizer and model."""
    positions = getattr(model.config, "max_position_embeddings", None) or 10**9
    for name, module in model.named_modules():
        # RoBERTa and its relatives count from the position after that of padding.
        if (
            name.endswith("position_embeddings")
            and isinstance(module, nn.Embedding)
            and module.padding_idx is not None
        ):
            positions = module.num_embeddings - module.padding_idx - 1
    return min(tokenizer.model_max_length, positions)


def text_samples(raw: Columns, model: Any, processor: Any) -> Dataset:
    """The samples of a classifier, with tokens in place of their text."""
    strings = [name for name, feature in raw.samples.features.items() if getattr(feature, "dtype", "") == "string"]
    text = raw.find("text") or (strings[0] if len(strings) == 1 else raw.need("text"))
    used = [text, *([raw.given["text_pair"]] if "text_pair" in raw.given else [])]
    limit = token_limit(processor, model)
    notices = {"_is_cut": f"are longer than the {limit} tokens that the model reads, and are cut there"}
    return raw.apply(_tokens, used, BATCH_SIZE, notices, names=used, tokenizer=processor, limit=limit)


def _tokens(batch: dict, places: list[str], names: list[str], tokenizer: Any, limit: int) -> dict:
    texts = [_texts(batch, places, name) for name in names]
    encoded = dict(tokenizer(*texts, truncation=True, max_length=limit))
    return {**encoded, "_is_cut": _are_cut(tokenizer, encoded["input_ids"], limit, *texts)}


def _texts(batch: dict, places: list[str], name: str) -> list[str]:
    return [text_of(cell, place, name) for cell, place in zip(batch[name], places, strict=True)]


def _are_cut(tokenizer: Any, tokens: Sequence[list[int]], limit: int, *texts: list[str], **targets: Any) -> list[bool]:
    """Which samples have more tokens than `limit`, by their tokens and, of those that reach it, their texts."""
    candidates = [i for i, ids in enumerate(tokens) if len(ids) >= limit]
    if not candidates:
        return [False] * len(tokens)
    chosen = [[column[i] for i in candidates] for column in texts]
    named = {name: [column[i] for i in candidates] for name, column in targets.items()}
    whole = tokenizer(*chosen, **named, verbose=False).input_ids
    cut = {i for i, ids in zip(candidates, whole, strict=True) if len(ids) > limit}
    return [i in cut for i in range(len(tokens))]


def text_to_text_samples(raw: Columns, model: Any, processor: Any) -> Dataset:
    """The samples with the tokens of a source and of its target, `labels`, in place of both."""
    tokenizer = getattr(processor, "tokenizer", processor)
    used = [raw.need("prompt"), raw.need("completion")]
    limit = token_limit(tokenizer, model)
    notices = {
        f"_{name}_is_cut": f"have more than {limit} tokens in {column!r}, and are cut there"
        for name, column in zip(("source", "target"), used, strict=True)
    }
    return raw.apply(_text_to_text, used, BATCH_SIZE, notices, names=used, tokenizer=tokenizer, limit=limit)


def _text_to_text(batch: dict, places: list[str], names: list[str], tokenizer: Any, limit: int) -> dict:
    source, target = (_texts(batch, places, name) for name in names)
    encoded = dict(tokenizer(source, text_target=target, truncation=True, max_length=limit))
    return {
        **encoded,
        "_source_is_cut": _are_cut(tokenizer, encoded["input_ids"], limit, source),
        "_target_is_cut": _are_cut(tokenizer, encoded["labels"], limit, text_target=target),
    }
