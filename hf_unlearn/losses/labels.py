"""Labels that do not fit a head, refused before the first step rather than by an index error on the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hf_unlearn.losses.functional import IGNORED
from hf_unlearn.losses.head import Batch, Head, HeadKind

# Kinds of head whose samples have a label, or -100, for every token.
TOKEN_LABELLED: tuple[HeadKind, ...] = ("token", "causal_lm", "seq2seq_lm")


def label_problem(head: Head, batch: Batch) -> str | None:
    """What is wrong with the labels of a collated batch, in one line; None if nothing is.

    Checked are: a missing entry; for class labels, integers in [0, num_labels); for tokens, the same or -100; for
    language models and CTC, integers in [0, vocabulary) or -100; for multi-label, shape [batch, num_labels] and
    values in [0, 1]; for regression, finite values; for multiple choice, integers below the number of choices; for
    segmentation, shape [batch, height, width], class labels or the ignored one; for question answering, positions that
    are not negative (positions past the text mean "no answer in it"). Samples with nothing to score are a problem, too
    (see `unscored_tokens`): their loss of 0 would count as perfectly remembered. Kind `"custom"` is not checked.
    """
    for name in head.label_names:
        if name not in batch:
            return f"{name}: found only {', '.join(batch)}; a {head.kind} head needs {name}"
    kind, config = head.kind_for(batch), head.model.config
    match kind:
        case "custom":
            return None
        case "regression":
            return _finite_problem(batch["labels"])
        case "multi_label":
            return _multi_label_problem(batch["labels"], config.num_labels)
        case "question_answering":
            problems = [_range_problem(name, batch[name], math.inf, "token positions") for name in head.label_names]
            return problems[0] or problems[1] or _unscored_problem(head, batch)
        case "multiple_choice" | "contrastive":
            choices = batch["input_ids"].shape[1]
            return _range_problem("labels", batch["labels"], choices, "the number of the right choice")
        case "segmentation":
            return _pixel_problem(head, batch)
        case "single_label":
            return _range_problem("labels", batch["labels"], config.num_labels, "class labels")
        case "token":
            limit, what = config.num_labels, "token labels"
        case _:
            limit, what = config.get_text_config(decoder=True).vocab_size, "token ids"
    labels = batch["labels"]
    problem = _range_problem("labels", labels[labels != IGNORED], limit, f"-100 or {what}")
    return problem or _unscored_problem(head, batch)


def unscored_tokens(kind: str, labels: Tensor) -> Tensor:
    """Which samples [batch] have no label that their loss could score; labels `[batch, positions]`.

    Of a causal model the first label is never scored. None for masked models, whose masks are often drawn again and
    again, and for CTC, where silence is scored.
    """
    if kind not in TOKEN_LABELLED:
        return labels.new_zeros(len(labels), dtype=torch.bool)
    return (labels[:, int(kind == "causal_lm") :] == IGNORED).all(dim=1)


def _unscored_problem(head: Head, batch: Batch) -> str | None:
    name = head.label_names[0]
    if head.kind == "question_answering":
        length = batch[head.model.main_input_name].shape[1]
        missing = ((batch["start_positions"] >= length) & (batch["end_positions"] >= length)).flatten()
        advice = "give positions in the text, or 0 for both where it has no answer"
    else:
        missing, advice = unscored_tokens(head.kind, batch[name]), "take it out of the dataset"
    if not missing.any():
        return None
    return f"{name}: sample {int(missing.nonzero()[0])} of a batch has nothing to score; {advice}"


def _pixel_problem(head: Head, batch: Batch) -> str | None:
    config, labels = head.model.config, batch["labels"]
    if labels.dim() != 3:
        return f"labels: found shape {list(labels.shape)}; a segmentation head needs [batch, height, width]"
    labelled = (labels != config.semantic_loss_ignore_index) & (labels != IGNORED)
    what = f"class labels of pixels ({config.semantic_loss_ignore_index} for none)"
    problem = _range_problem("labels", labels[labelled], config.num_labels, what)
    missing = ~labelled.flatten(1).any(dim=1)
    if problem or not missing.any():
        return problem
    return f"labels: sample {int(missing.nonzero()[0])} of a batch has nothing to score; take it out of the dataset"


def _range_problem(name: str, labels: Tensor, limit: float, what: str) -> str | None:
    expected = f"give {what}, integers in [0, {limit})"
    if labels.is_floating_point():
        return f"{name}: found {labels.dtype}; {expected}"
    invalid = labels[(labels < 0) | (labels >= limit)]
    return f"{name}: found {invalid[0].item()}; {expected}" if len(invalid) else None


def _multi_label_problem(labels: Tensor, num_labels: int) -> str | None:
    expected = f"a multi-label head needs shape [batch, {num_labels}] and values in [0, 1]"
    if labels.shape[1:] != (num_labels,):
        return f"labels: found {labels.dtype} of shape {list(labels.shape)}; {expected} (integers for a single label)"
    invalid = labels[~((labels >= 0) & (labels <= 1))]
    return f"labels: found {invalid[0].item()}; {expected}" if len(invalid) else None


def _finite_problem(labels: Tensor) -> str | None:
    invalid = labels[~labels.isfinite()]
    return f"labels: found {invalid[0].item()}; give finite numbers" if len(invalid) else None
