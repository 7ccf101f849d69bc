"""A model that a benchmark asks, and how it is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_unlearn.auditing.answers import Answer, AnswerTokens, answer_tokens, continuations
from hf_unlearn.auditing.differences import auc_statistic
from hf_unlearn.data.preprocessing import prepare
from hf_unlearn.data.text import token_limit
from hf_unlearn.models.types import Model


@dataclass(frozen=True)
class Examined:
    """A causal language model with the samples of a benchmark.

    Attributes:
        model: the model.
        tokenizer: its tokenizer.
        parts: name to samples; parts that are not needed may be missing.
        batch_size: texts in a batch.
    """

    model: Model
    tokenizer: PreTrainedTokenizerBase
    parts: Mapping[str, Dataset]
    batch_size: int

    @property
    def limit(self) -> int:
        """Tokens that the model reads and writes at most."""
        return token_limit(self.tokenizer, self.model)

    def questions(self, part: str, column: str = "answer") -> list[Answer]:
        """Questions with the answers of a column, as `prepare` writes them: by the chat template where there is one.

        Args:
            part: its name.
            column: one text a sample, or a list of them: then all answers to the first question come first.
        """
        samples, questions, answers = self.parts[part], [], []
        for question, answer in zip(samples["question"], samples[column], strict=True):
            several = answer if isinstance(answer, list) else [answer]
            questions += [question] * len(several)
            answers += several
        prepared: Any = prepare(
            Dataset.from_dict({"question": questions, "answer": answers}), self.model, self.tokenizer, name=part
        )
        return [
            Answer(tokens, next(i for i, label in enumerate(labels) if label != -100))
            for tokens, labels in zip(prepared["input_ids"], prepared["labels"], strict=True)
        ]

    def tokens(self, answers: Sequence[Answer], description: str) -> list[AnswerTokens]:
        """The true answers under the model, by one forward pass each."""
        return answer_tokens(self.model, answers, self.batch_size, f"Scoring {description}")

    def losses(self, part: str, column: str) -> np.ndarray:
        """Mean loss of the answers of a column [n], or [n, answers] where a sample has several.

        Raises:
            ValueError: samples have different numbers of answers.
        """
        losses = [t.loss for t in self.tokens(self.questions(part, column), f"{part} {column}s")]
        samples = self.parts[part]
        if isinstance(samples[column][0], str):
            return np.array(losses)
        counts = {len(several) for several in samples[column]}
        if len(counts) > 1:
            raise ValueError(f"data: {column} of {part} has {min(counts)} to {max(counts)} answers; give all as many")
        return np.array(losses).reshape(len(samples), counts.pop())

    def written(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, description: str) -> list[str]:
        """What the model writes greedily after prompts, without blanks at the ends.

        Args:
            prompts: tokens; those that leave no room for an answer lose their first ones.
            max_new_tokens: of an answer.
            description: of the progress bar.
        """
        room = max(1, self.limit - max_new_tokens) if max_new_tokens < self.limit else self.limit // 2
        kept = [list(prompt)[-room:] for prompt in prompts]
        limits = [min(max_new_tokens, self.limit - len(prompt)) for prompt in kept]
        made = continuations(self.model, kept, limits, self.tokenizer, self.batch_size, f"Answering {description}")
        return [str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in made]

    def prompt_tokens(self, text: str) -> list[int]:
        """The tokens of a prompt, with what the tokenizer puts before a text and without what ends one."""
        tokens = self.tokenizer(text, verbose=False).input_ids
        return tokens[:-1] if tokens[-1:] == [self.tokenizer.eos_token_id] else tokens

    def texts(self, part: str, max_tokens: int = 2048) -> list[Answer]:
        """Texts, all tokens of which are scored but the first."""
        limit = min(max_tokens, self.limit)
        return [Answer(self.tokenizer(text, verbose=False).input_ids[:limit], 1) for text in self.parts[part]["text"]]


def without_end(tokens: AnswerTokens) -> AnswerTokens:
    """The tokens but for the last one, the end of an answer, as open-unlearning counts them; of one, that one."""
    count = max(1, len(tokens.losses) - 1)
    return AnswerTokens(*(column[:count] for column in tokens))


def min_k_loss(losses: np.ndarray, share: float) -> float:
    """Mean loss of the share of tokens, at least one, that the model finds least likely."""
    return float(np.sort(losses)[::-1][: max(1, int(len(losses) * share))].mean())


def membership_auc(members: Sequence[AnswerTokens], others: Sequence[AnswerTokens], share: float = 0.4) -> float:
    """Area under the ROC curve of Min-K %: 1 where every member is more likely than every other text.

    Min-K % of 40 %, as MUSE's PrivLeak has it, without the last token, as open-unlearning has it.
    """
    scores = [np.array([-min_k_loss(without_end(t).losses, share) for t in texts]) for texts in (members, others)]
    return auc_statistic(*scores).value
