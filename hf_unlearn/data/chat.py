"""From questions, prompts, conversations and plain texts to the tokens and labels of a causal language model."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from hf_unlearn.data.columns import Columns
from hf_unlearn.data.text import BATCH_SIZE, token_limit


def causal_samples(raw: Columns, model: Any, processor: Any) -> Dataset:
    """The samples with `input_ids` and `labels` in place of what they say."""
    tokenizer = getattr(processor, "tokenizer", processor)
    if raw.find("messages"):
        used = [raw.need("messages")]
    elif raw.find("prompt"):
        used = [raw.need("prompt"), raw.need("completion")]
    else:
        used = [raw.need("text")]
    if raw.find("messages") and not tokenizer.chat_template:
        raise ValueError("processor: the tokenizer has no chat template to write messages with; set chat_template")
    is_question = used[0] == "question"
    limit = token_limit(tokenizer, model.config)
    settings = {"names": used, "tokenizer": tokenizer, "limit": limit, "is_question": is_question}
    return raw.apply(_completions, used, BATCH_SIZE, **settings)


def _completions(batch: dict, names: list[str], tokenizer: Any, limit: int, is_question: bool) -> dict:
    columns: dict[str, list] = {"input_ids": [], "labels": []}
    for values in zip(*(batch[name] for name in names), strict=True):
        prompt, completion = _prompt_and_completion(values, tokenizer, is_question)
        columns["input_ids"].append((prompt + completion)[:limit])
        columns["labels"].append(([-100] * len(prompt) + completion)[:limit])
    return columns


def _prompt_and_completion(values: tuple, tokenizer: Any, is_question: bool) -> tuple[list[int], list[int]]:
    """The tokens of a sample without loss, and those with loss."""
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    if len(values) == 1 and isinstance(values[0], str):
        tokens = tokenizer(values[0]).input_ids
        return [], tokens if tokens[-1:] == end else tokens + end
    if len(values) == 1:
        *history, last = values[0]
        values = (history, last["content"])
    prompt, completion = (
        value if isinstance(value, str) or i == 0 else value[-1]["content"] for i, value in enumerate(values)
    )
    if is_question and tokenizer.chat_template:
        prompt = [{"role": "user", "content": prompt}]
    elif is_question:
        # The space belongs to the answer: one token with its first word, as in running text.
        prompt, completion = f"Question: {prompt}\nAnswer:", f" {completion}"
    is_chat = not isinstance(prompt, str)
    if is_chat:
        prompt = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    tokens = tokenizer(prompt, add_special_tokens=not is_chat).input_ids
    tokens = tokens[:-1] if tokens[-1:] == end else tokens
    return tokens, tokenizer(completion, add_special_tokens=False).input_ids + end
