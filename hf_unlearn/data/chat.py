"""From questions, prompts, conversations and plain texts to the tokens and labels of a causal language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from datasets import Dataset

from hf_unlearn.data.columns import USUAL_NAMES, Columns, located, text_of
from hf_unlearn.data.text import BATCH_SIZE, token_limit

# What templates write as today's date: the samples of a request are the same on every day. It is the date that the
# template of Llama 3.2 writes where it is told none.
TEMPLATE_DATE = datetime(2024, 7, 26)
ROLES_OF_SHAREGPT = {
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "model": "assistant", "function_call": "assistant", "function_response": "tool", "observation": "tool",
}  # fmt: skip
# Taori et al. 2023, Stanford Alpaca: with and without an input.
ALPACA = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}"
    "\n\n### Response:\n",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}\n\n### Response:\n",
)


def causal_samples(raw: Columns, model: Any, processor: Any) -> Dataset:
    """The samples with `input_ids` and `labels` in place of what they say."""
    tokenizer = getattr(processor, "tokenizer", processor)
    if raw.find("messages"):
        used = [raw.need("messages")]
    elif raw.find("prompt"):
        used = [raw.need("prompt"), raw.need("completion")]
        is_usual = used[0] in USUAL_NAMES["prompt"] and used[0] != "instruction"
        context: str | None = raw.given.get("input") or (None if is_usual or "input" in used else "input")
        used += [context] if context is not None and context in raw.samples.column_names else []
    else:
        used = [raw.need("text")]
    if raw.find("messages") and not tokenizer.chat_template:
        raise ValueError("processor: the tokenizer has no chat template to write messages with; set chat_template")
    limit = token_limit(tokenizer, model)
    notices = {"_is_cut": f"are longer than the {limit} tokens that the model reads, and are cut there"}
    return raw.apply(_completions, used, BATCH_SIZE, notices, names=used, tokenizer=tokenizer, limit=limit)


def _completions(batch: dict, places: list[str], names: list[str], tokenizer: Any, limit: int) -> dict:
    columns: dict[str, list] = {"input_ids": [], "labels": [], "_is_cut": []}
    for *entries, place in zip(*(batch[name] for name in names), places, strict=True):
        prompt, completion = _prompt_and_completion(entries, place, names, tokenizer)
        if len(prompt) >= limit:
            raise ValueError(
                f"{place}, column {names[0]!r}: has {len(prompt)} tokens, and the model reads {limit}, so that "
                "nothing of the answer is left; shorten it, or take the sample out"
            )
        columns["input_ids"].append((prompt + completion)[:limit])
        columns["labels"].append(([-100] * len(prompt) + completion)[:limit])
        columns["_is_cut"].append(len(prompt) + len(completion) > limit)
    return columns


def _prompt_and_completion(entries: list, place: str, names: list[str], tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens of a sample without loss, and those with loss."""
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    if len(names) == 1 and isinstance(entries[0], str | None):
        tokens = tokenizer(text_of(entries[0], place, names[0])).input_ids
        return [], tokens if tokens[-1:] == end else tokens + end
    if len(names) == 1:
        return _chat_tokens(_messages(entries[0], place, names[0]), place, names[0], tokenizer)
    prompt, completion = (_prompt_text(cell, place, name) for cell, name in zip(entries[:2], names[:2], strict=True))
    context = entries[2] if len(entries) > 2 and entries[2] else ""
    is_chat, is_question = not isinstance(prompt, str), names[0] == "question"
    is_instruction = not is_question and (names[0] == "instruction" or len(names) > 2)
    if is_chat and context:
        raise ValueError(
            f"{place}, column {names[2]!r}: has an input beside a prompt of messages; put it into a message"
        )
    if not is_chat and (is_question or is_instruction) and tokenizer.chat_template:
        prompt, is_chat = [{"role": "user", "content": f"{prompt}\n\n{context}" if context else prompt}], True
    if is_chat:
        answer = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
        return _chat_tokens([*prompt, *answer], place, names[1], tokenizer)
    if not isinstance(completion, str):
        if len(completion) != 1:
            raise ValueError(
                f"{place}, column {names[1]!r}: has {len(completion)} messages for a prompt that is a text; give one, "
                "or a prompt of messages"
            )
        completion = completion[0]["content"]
    if is_question:
        # The space belongs to the answer: one token with its first word, as in running text.
        question = f"{prompt}\n{context}" if context else prompt
        prompt, completion = f"Question: {question}\nAnswer:", f" {completion}"
    elif is_instruction:
        prompt = ALPACA[not context].format(instruction=prompt, input=context)
    tokens = tokenizer(prompt).input_ids
    tokens = tokens[:-1] if tokens[-1:] == end else tokens
    return tokens, tokenizer(completion, add_special_tokens=False).input_ids + end


def _prompt_text(cell: Any, place: str, column: str) -> Any:
    """A text, or messages."""
    return _messages(cell, place, column) if isinstance(cell, list) else text_of(cell, place, column)


def _messages(cell: Any, place: str, column: str) -> list[dict[str, Any]]:
    """The messages in a cell as templates want them, whichever form they are stored in.

    Raises:
        ValueError: there is none, or one has no text.
    """
    if not cell or not isinstance(cell, list):
        raise ValueError(f"{place}, column {column!r}: holds no messages; give a list of them, or take the sample out")
    return [_message(message, f"{place}, message {i}", column) for i, message in enumerate(cell)]


def _message(message: Any, place: str, column: str) -> dict[str, Any]:
    """A message with `role` and `content`, the latter one text; those of ShareGPT have `from` and `value`."""
    names = ("from", "value") if isinstance(message, Mapping) and "from" in message else ("role", "content")
    if not isinstance(message, Mapping) or not set(names) <= message.keys() or not isinstance(message[names[0]], str):
        found = sorted(message) if isinstance(message, Mapping) else f"{message!r:.40}"
        raise ValueError(
            f"{place}, column {column!r}: found {found}; a message has role and content, or from and value"
        )
    role, content = (message[name] for name in names)
    # Arrow gives every message the keys of all, with None; templates ask whether a key is there.
    others = {key: value for key, value in message.items() if key not in names and value is not None}
    if isinstance(content, list):
        kinds = {part.get("type") for part in content}
        if kinds != {"text"}:
            raise ValueError(
                f"{place}, column {column!r}: has parts of type {sorted(map(str, kinds))}; only text is read"
            )
        content = "".join(part["text"] for part in content)
    if others.get("tool_calls"):
        return {**others, "role": role, "content": content or ""}
    role = ROLES_OF_SHAREGPT.get(role, role) if "from" in names else role
    return {**others, "role": role, "content": text_of(content, place, column)}


def _chat_tokens(messages: list[dict], place: str, column: str, tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens of a conversation up to its last answer, and those of that answer with what ends its turn.

    Raises:
        ValueError: the conversation does not end with an answer, or the template refuses it.
    """
    *history, last = messages
    if last["role"] not in ("assistant", "model"):
        raise ValueError(
            f"{place}, column {column!r}: ends with a message of {last['role']!r}, and the model learns the answer to "
            "it; give one of the assistant at the end, or take the sample out"
        )
    with located(place, column, "the chat template does not take it"):
        prompt = chat_text(history, tokenizer, add_generation_prompt=True) if history else ""
        whole = chat_text(messages, tokenizer)
    answer = whole[_common_length(prompt, whole) :]
    prompt_tokens = tokenizer(prompt, add_special_tokens=False).input_ids
    if last["content"].strip()[-20:] not in answer:  # a template that writes questions only
        end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
        return prompt_tokens, tokenizer(last["content"], add_special_tokens=False).input_ids + end
    tokens = tokenizer(whole, add_special_tokens=False).input_ids
    start = _common_length(prompt_tokens, tokens)
    return tokens[:start], tokens[start:]


def _common_length(one: Sequence, other: Sequence) -> int:
    """How many elements two sequences have in common at their start."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def chat_text(messages: list[dict], tokenizer: Any, **settings: Any) -> str:
    """Messages as the tokenizer's template writes them; where it writes today's date, that is always the same."""
    template = tokenizer.get_chat_template()
    if "strftime_now" in template:
        template = _dated() + template
    return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **settings)


def _dated() -> str:
    """A macro in place of the function of transformers that gives templates the date; arguments are plain data."""
    codes = {f"%{code}": TEMPLATE_DATE.strftime(f"%{code}") for code in "aAbBdHIjmMpSUwWyYxXc"} | {"%-d": "26"}
    filters = "".join(f"|replace({code!r}, {text!r})" for code, text in codes.items())
    return f"{{%- macro strftime_now(format) %}}{{{{ format{filters} }}}}{{%- endmacro %}}"
