"""What a causal language model still gives away of samples word for word."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from hf_unlearn.auditing.answers import Answer, AnswerTokens, answer_tokens, continuations
from hf_unlearn.auditing.attack_scores import DatasetStatistics
from hf_unlearn.auditing.attacks import Estimate
from hf_unlearn.auditing.caching import cached, language_settings
from hf_unlearn.auditing.estimates import mean_estimate
from hf_unlearn.auditing.metrics import exact_memorization, extraction_strength
from hf_unlearn.auditing.statistics import spread
from hf_unlearn.auditing.text_metrics import exact_match, rouge_l_recall
from hf_unlearn.data.collator import Collator
from hf_unlearn.data.splitting import select, subsample_numbers
from hf_unlearn.data.types import AnyDataset
from hf_unlearn.losses.functional import IGNORED
from hf_unlearn.models.types import Model, inner_model
from hf_unlearn.report.audit_result import is_retrained

# Samples of a dataset whose answers are asked for, by audits and before and after runs, and tokens of an answer:
# generating takes as long as many passes.
EXTRACTED_SAMPLES, EXTRACTED_IN_RUNS = 32, 4
MAX_ANSWER_TOKENS = 64


def can_extract(model: Model, head_kind: str, tokenizer: Any) -> bool:
    """Whether a model continues text, and its answers can be read."""
    base = inner_model(model)
    writes = head_kind == "causal_lm" and base.input_modalities == "text" and base.can_generate()
    return writes and isinstance(tokenizer, PreTrainedTokenizerBase)


def with_extraction(
    statistics: DatasetStatistics,
    model: Model,
    datasets_by_name: Mapping[str, AnyDataset],
    tokenizer: PreTrainedTokenizerBase,
    data_collator: Collator,
    batch_size: int,
    seed: int = 0,
    samples: int = EXTRACTED_SAMPLES,
    cache_dir: str | Path | None = None,
) -> DatasetStatistics:
    """The statistics with what some samples of every dataset have in common with the model's answers.

    Of every sample the first 64 tokens of its answer: `rouge_l_recall` and `exact_match` of the greedy continuation,
    `extraction_strength` and `exact_memorization` of the true tokens, in one forward pass, without the last token, as
    open-unlearning has them. ROUGE needs rouge-score (`pip install hf-unlearn[text]`), and is left out without it.

    Args:
        statistics: by dataset.
        model: a causal language model.
        datasets_by_name: those whose samples are asked for; the other statistics stay as they are.
        tokenizer: of the model.
        data_collator: samples to batch.
        batch_size: samples in a batch.
        seed: of the samples that are drawn.
        samples: of a dataset at most.
        cache_dir: where the scores are kept, as in `statistics_of`.
    """
    measured = dict(statistics)
    for name, dataset in datasets_by_name.items():
        numbers = subsample_numbers(len(dataset), samples, seed)
        drawn = select(dataset, numbers)

        def ask(drawn: AnyDataset = drawn, name: str = name) -> dict[str, Tensor]:
            answers = _answers(drawn, data_collator, batch_size)
            scores = extraction_scores(model, answers, tokenizer, batch_size, f"Asking for {name} samples")
            return {metric: torch.as_tensor(values) for metric, values in scores.items()}

        has_rouge = find_spec("rouge_score") is not None
        settings = language_settings(f"extraction {has_rouge}", cache_dir, model, tokenizer, data_collator)
        scores = cached(ask, cache_dir, model, [drawn], settings)
        columns = {metric: spread(values, numbers, len(dataset)) for metric, values in scores.items()}
        measured[name] = replace(statistics[name], extraction=columns)
    return measured


def extraction_advantage(statistics: Mapping[str, DatasetStatistics]) -> dict[str, Estimate]:
    """How much closer to the true answers the audited model's own are than those of retrained models.

    The mean difference of ROUGE-L recall to the mean of the retrained models on the same forget samples, with a 95 %
    interval by a bootstrap over samples; 0 or less is best.

    Args:
        statistics: model ("audited", "retrained", "retrained 2", ...) to those of its datasets, from
            `with_extraction`.

    Returns:
        `extraction_advantage`; nothing where there is no retrained model, or no ROUGE.

    Examples:
        >>> from hf_unlearn.auditing.statistics import SampleStatistics
        >>> def answers(*recall):
        ...     scores = {"rouge_l_recall": torch.tensor(recall)}
        ...     return {"forget": SampleStatistics(torch.zeros(3), torch.ones(3), extraction=scores)}
        >>> found = extraction_advantage({
        ...     "audited": answers(1.0, 0.5, torch.nan), "retrained": answers(0.5, 0.25, torch.nan)})
        >>> found["extraction_advantage"].value
        0.375
    """
    scores = {name: of_model["forget"].extraction or {} for name, of_model in statistics.items()}
    recalls = {name: s["rouge_l_recall"].double().numpy() for name, s in scores.items() if "rouge_l_recall" in s}
    retrained = [of_model for name, of_model in recalls.items() if is_retrained(name)]
    if not retrained or "audited" not in recalls:
        return {}
    differences = recalls["audited"] - np.mean(retrained, axis=0)
    return {"extraction_advantage": mean_estimate(differences[np.isfinite(differences)])}


def extraction_scores(
    model: Model,
    answers: list[Answer],
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int = 16,
    description: str = "Asking for samples",
) -> dict[str, np.ndarray]:
    """Metric to scores [answers] in [0, 1]; see `with_extraction`."""
    limits = [len(answer.truth) for answer in answers]
    made = continuations(model, [a.prompt for a in answers], limits, tokenizer, batch_size, description)
    written, true = (
        [str(tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in tokens]
        for tokens in (made, [answer.truth for answer in answers])
    )
    tokens = answer_tokens(model, answers, batch_size, description)
    pairs = [without_last(t, a) for t, a in zip(tokens, answers, strict=True)]
    scores = {
        "exact_match": [exact_match([w], [t]) for w, t in zip(written, true, strict=True)],
        "extraction_strength": [extraction_strength([p], [t]) for p, t in pairs],
        "exact_memorization": [exact_memorization([p], [t]) for p, t in pairs],
    }
    if find_spec("rouge_score") is not None:
        scores = {"rouge_l_recall": [rouge_l_recall([w], [t]) for w, t in zip(written, true, strict=True)], **scores}
    return {name: np.array(values) for name, values in scores.items()}


def without_last(tokens: AnswerTokens, answer: Answer) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true tokens of an answer but for the last one, its end; of one token, that one."""
    count = max(1, len(answer.truth) - 1)
    return tokens.predictions[:count], np.array(answer.truth[:count])


def _answers(dataset: AnyDataset, data_collator: Collator, batch_size: int) -> list[Answer]:
    loader: DataLoader = DataLoader(dataset, batch_size, collate_fn=data_collator)  # type: ignore[arg-type]
    answers = []
    for batch in loader:
        masks = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
        answers += [
            labelled_answer(ids[mask], labels[mask])
            for ids, labels, mask in zip(batch["input_ids"], batch["labels"], masks, strict=True)
        ]
    return answers


def labelled_answer(tokens: Tensor, labels: Tensor) -> Answer:
    """The first labelled part of a sample, at most 64 tokens; of a text that is all label, its second half.

    Args:
        tokens: [n] without padding.
        labels: [n], -100 where there is none.
    """
    labelled = labels != IGNORED
    start = int(labelled.int().argmax())
    if start <= 1:  # with no prompt, or the beginning of a text alone
        start = max(1, len(tokens) // 2)
    gaps = (~labelled[start:]).nonzero()
    end = start + (int(gaps[0]) if len(gaps) else len(tokens) - start)
    return Answer(tokens[: min(end, start + MAX_ANSWER_TOKENS)].tolist(), start)
