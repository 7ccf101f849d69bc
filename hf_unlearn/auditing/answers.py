"""What a causal language model makes of answers: their tokens in one forward pass, and its own continuation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerBase

from hf_unlearn.auditing.measuring import preserve_modes
from hf_unlearn.models.types import Model, inner_model

# Logits of a batch: four bytes each.
MAX_LOGITS = 2**26
# Greedy decoding, whatever the model's own settings say: values that are given are not taken from these.
GREEDY = {
    "do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0, "min_length": 0, "temperature": 1.0, "top_p": 1.0, "top_k": 50,
}  # fmt: skip


class Answer(NamedTuple):
    """A text of tokens whose end is to be answered.

    Attributes:
        tokens: prompt and answer.
        start: number of tokens of the prompt, at least 1.
    """

    tokens: Sequence[int]
    start: int

    @property
    def prompt(self) -> list[int]:
        """The tokens before the answer."""
        return list(self.tokens[: self.start])

    @property
    def truth(self) -> list[int]:
        """The tokens of the true answer."""
        return list(self.tokens[self.start :])


class AnswerTokens(NamedTuple):
    """The tokens of an answer as a model sees them, each given all true tokens before it.

    Attributes:
        losses: [tokens] negative log-likelihoods in nats.
        predictions: [tokens] the most likely tokens.
        means: [tokens] mean log-probability over the vocabulary, weighted by probability.
        deviations: [tokens] deviation of the log-probability over the vocabulary, likewise.
    """

    losses: np.ndarray
    predictions: np.ndarray
    means: np.ndarray
    deviations: np.ndarray

    @property
    def loss(self) -> float:
        """Mean over the tokens, in nats."""
        return float(self.losses.mean())


@torch.no_grad()
def answer_tokens(
    model: Model, answers: Sequence[Answer], batch_size: int = 16, description: str = "Scoring answers"
) -> list[AnswerTokens]:
    """The true answers under a model, by one forward pass each.

    Args:
        model: a causal language model.
        answers: of one token or more each.
        batch_size: answers in a batch, at most; fewer where the vocabulary is large.
        description: of the progress bar, shown after a second.
    """
    vocabulary = inner_model(model).get_output_embeddings().weight.shape[0]
    scored: dict[int, AnswerTokens] = {}
    with preserve_modes(model.eval()):
        for numbers in _batches([len(a.tokens) for a in answers], batch_size, vocabulary, description):
            tokens, mask = _padded([list(answers[i].tokens) for i in numbers], 0, model.device, left=False)
            logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
            for sample, i in enumerate(numbers):
                start, end = answers[i].start, len(answers[i].tokens)
                scored[i] = _token_statistics(logits[sample, start - 1 : end - 1], tokens[sample, start:end])
    return [scored[i] for i in range(len(answers))]


def _token_statistics(logits: Tensor, labels: Tensor) -> AnswerTokens:
    """Of logits [tokens, vocabulary] and labels [tokens]."""
    log_probs = logits.float().log_softmax(-1)
    probs = log_probs.exp()
    means = torch.einsum("tv,tv->t", probs, log_probs)
    variances = torch.einsum("tv,tv,tv->t", probs, log_probs, log_probs) - means.square()
    losses = -log_probs.gather(1, labels[:, None]).squeeze(1)
    columns = (losses, log_probs.argmax(-1), means, variances.clamp_min(0).sqrt())
    return AnswerTokens(*(column.cpu().numpy() for column in columns))


@torch.no_grad()
def next_token_losses(
    model: Model,
    prompts: Sequence[Sequence[int]],
    candidates: Sequence[int],
    batch_size: int = 16,
    description: str = "Choosing answers",
) -> np.ndarray:
    """Losses [prompts, candidates] in nats of the tokens that may come next.

    Args:
        model: a causal language model.
        prompts: tokens, at least one each.
        candidates: tokens.
        batch_size: prompts in a batch, at most; fewer where the vocabulary is large.
        description: of the progress bar, shown after a second.
    """
    vocabulary = inner_model(model).get_output_embeddings().weight.shape[0]
    losses = np.empty((len(prompts), len(candidates)))
    with preserve_modes(model.eval()):
        for numbers in _batches([len(prompt) for prompt in prompts], batch_size, vocabulary, description):
            tokens, mask = _padded([list(prompts[i]) for i in numbers], 0, model.device, left=False)
            logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
            last = logits[torch.arange(len(numbers)), mask.sum(1) - 1].float().log_softmax(-1)
            losses[numbers] = -last[:, list(candidates)].double().cpu().numpy()
    return losses


@torch.no_grad()
def continuations(
    model: Model,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int = 16,
    description: str = "Answering",
) -> list[list[int]]:
    """Greedy continuations, token by token, up to the end of the text and without it.

    Args:
        model: a causal language model.
        prompts: tokens, at least one each; padded on the left in batches of similar length.
        max_new_tokens: of every prompt, how many tokens its continuation may have.
        tokenizer: knows the end of a text where the model does not.
        batch_size: prompts in a batch.
        description: of the progress bar, shown after a second.
    """
    ends = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    end_ids = set(ends if isinstance(ends, list) else [] if ends is None else [ends])
    fill = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(end_ids, default=0)
    continued: dict[int, list[int]] = {}
    with preserve_modes(model.eval()):
        lengths = [len(prompt) + limit for prompt, limit in zip(prompts, max_new_tokens, strict=True)]
        for numbers in _batches(lengths, batch_size, 1, description):
            tokens, mask = _padded([list(prompts[i]) for i in numbers], fill, model.device, left=True)
            settings = GenerationConfig(
                **GREEDY, max_new_tokens=max(max_new_tokens[i] for i in numbers), pad_token_id=fill, eos_token_id=ends
            )
            made = model.generate(input_ids=tokens, attention_mask=mask, generation_config=settings)  # type: ignore[operator]
            for i, new in zip(numbers, made[:, tokens.shape[1] :].tolist(), strict=True):
                stop = next((k for k, token in enumerate(new) if token in end_ids), len(new))
                continued[i] = new[: min(stop, max_new_tokens[i])]
    return [continued[i] for i in range(len(prompts))]


def _batches(lengths: Sequence[int], batch_size: int, vocabulary: int, description: str) -> Iterator[list[int]]:
    """Numbers of samples, longest first, as many in a batch as its logits allow; with a progress bar."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    with tqdm(total=len(order), desc=description, delay=1.0, leave=False) as bar:
        first = 0
        while first < len(order):
            fitting = max(1, min(batch_size, MAX_LOGITS // (max(1, lengths[order[first]]) * vocabulary)))
            batch = order[first : first + fitting]
            yield batch
            bar.update(len(batch))
            first += len(batch)


def _padded(samples: list[list[int]], fill: int, device: torch.device, *, left: bool) -> tuple[Tensor, Tensor]:
    """Tokens and attention mask [samples, longest]."""
    longest = max(map(len, samples))
    gaps = [longest - len(sample) for sample in samples]
    tokens = [[fill] * gap + s if left else s + [fill] * gap for s, gap in zip(samples, gaps, strict=True)]
    masks = [
        [0] * gap + [1] * len(s) if left else [1] * len(s) + [0] * gap for s, gap in zip(samples, gaps, strict=True)
    ]
    return torch.tensor(tokens, device=device), torch.tensor(masks, device=device)
