"""From texts to tokens: text classifiers, and models from text to text."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from hf_unlearn.data.columns import Columns

BATCH_SIZE = 1000


def token_limit(tokenizer: Any, config: Any) -> int:
    """The maximum number of tokens of both tokenizer and model."""
    return min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or 10**9)


def text_samples(raw: Columns, model: Any, processor: Any) -> Dataset:
    """The samples of a classifier, with tokens in place of their text."""
    strings = [name for name, feature in raw.samples.features.items() if getattr(feature, "dtype", "") == "string"]
    text = raw.find("text") or (strings[0] if len(strings) == 1 else raw.need("text"))
    used = [text, *([raw.given["text_pair"]] if "text_pair" in raw.given else [])]
    return raw.apply(
        _tokens, used, BATCH_SIZE, names=used, tokenizer=processor, limit=token_limit(processor, model.config)
    )


def _tokens(batch: dict, names: list[str], tokenizer: Any, limit: int) -> dict:
    return dict(tokenizer(*(batch[name] for name in names), truncation=True, max_length=limit))


def text_to_text_samples(raw: Columns, model: Any, processor: Any) -> Dataset:
    """The samples with the tokens of a source and of its target, `labels`, in place of both."""
    tokenizer = getattr(processor, "tokenizer", processor)
    used = [raw.need("prompt"), raw.need("completion")]
    return raw.apply(
        _text_to_text, used, BATCH_SIZE, names=used, tokenizer=tokenizer, limit=token_limit(tokenizer, model.config)
    )


def _text_to_text(batch: dict, names: list[str], tokenizer: Any, limit: int) -> dict:
    source, target = (batch[name] for name in names)
    return dict(tokenizer(source, text_target=target, truncation=True, max_length=limit))
