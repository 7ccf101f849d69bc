"""Scores for membership from the predictions of a batch: higher where a sample is remembered."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_unlearn.losses import Head
from hf_unlearn.losses.head import LANGUAGE_KINDS

# Share of tokens, the least likely ones, that Min-K % is the mean of (Shi et al. 2024 and Zhang et al. 2024 use 20 %).
MIN_K_SHARE = 0.2
# Logits of language models that are processed at a time: the vocabulary is large, and several copies are needed.
MAX_LOGITS = 2**24


def sample_scores(
    head: Head, outputs: Any, batch: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None = None
) -> dict[str, Tensor]:
    """Scores [batch] of every sample, by name; higher speaks for membership.

    Single-label heads: `margin`, the log-probability of the label minus that of the most likely other class, and
    `entropy`, minus the entropy of the prediction, which needs no label. What ranks samples as the loss does is left
    out: the probability of the label, and of two classes the margin. Language models, over the labelled tokens:
    `entropy`, minus its mean; `min_k`, the mean log-probability of the 20 % least likely tokens (Shi et al. 2024,
    arXiv 2310.16789); `min_k_plus_plus`, the same after subtracting from each log-probability its mean over the
    vocabulary and dividing by its deviation (Zhang et al. 2024, arXiv 2404.02936, eq. 3); with a tokenizer `zlib`,
    minus the mean loss of the tokens over the bytes that zlib makes of the labelled text (Carlini et al. 2021, arXiv
    2012.07805, section 5.2, as open-unlearning computes it).

    Args:
        head: the head of the model.
        outputs: of the forward pass.
        batch: collated, labels included.
        tokenizer: decodes the labels.
    """
    kind = head.kind_for(batch)
    if kind == "single_label":
        return _class_scores(outputs["logits"].float().log_softmax(-1), batch["labels"].flatten())
    if kind not in LANGUAGE_KINDS:
        return {}
    logits, labels = head.decisions(outputs, batch)
    samples = max(1, MAX_LOGITS // logits[0].numel())
    parts = [_token_scores(*part) for part in zip(logits.split(samples), labels.split(samples), strict=True)]
    scores = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    if tokenizer is not None:
        # The batch's own labels: those of a causal model are shifted, and the first token is part of the text.
        texts = [
            str(tokenizer.decode(sample[sample != -100], skip_special_tokens=True)) for sample in batch["labels"].cpu()
        ]
        lengths = torch.tensor([len(zlib.compress(text.encode())) for text in texts], device=labels.device)
        scores["zlib"] = -head.losses(outputs, batch) / lengths
    return scores


def _class_scores(log_probs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    of_label = log_probs.gather(1, labels[:, None]).squeeze(1)
    best_other = log_probs.scatter(1, labels[:, None], -torch.inf).amax(1)
    scores = {"margin": of_label - best_other, "entropy": (log_probs.exp() * log_probs).nansum(1)}
    if log_probs.shape[1] <= 2:
        del scores["margin"]  # what the label lacks, the other class has: the loss again
    return scores


def _token_scores(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    labelled = labels != -100
    log_probs = logits.float().log_softmax(-1)
    of_label = log_probs.gather(2, labels.clamp_min(0)[..., None]).squeeze(2)
    probs = log_probs.exp()
    mean = torch.einsum("btv,btv->bt", probs, log_probs)
    deviation = (torch.einsum("btv,btv,btv->bt", probs, log_probs, log_probs) - mean.square()).clamp_min(0).sqrt()
    count = labelled.sum(1).clamp_min(1)
    return {
        "entropy": (mean * labelled).sum(1) / count,
        "min_k": _min_k(of_label, labelled),
        "min_k_plus_plus": _min_k((of_label - mean) / deviation.clamp_min(1e-6), labelled),
    }


def _min_k(values: Tensor, labelled: Tensor) -> Tensor:
    """Mean [batch] of the lowest fifth, at least one, of the labelled values [batch, tokens]."""
    count = (labelled.sum(1) * MIN_K_SHARE).long().clamp_min(1)
    ordered = values.masked_fill(~labelled, torch.inf).sort(1).values
    chosen = torch.arange(values.shape[1], device=values.device) < count[:, None]
    return ordered.where(chosen, 0).sum(1) / count
