"""Labels that do not fit a head, refused before the first step rather than by an index error on the device."""

from __future__ import annotations

import math

from torch import Tensor

from hf_unlearn.losses.functional import IGNORED
from hf_unlearn.losses.head import Batch, Head


def label_problem(head: Head, batch: Batch) -> str | None:
    """What is wrong with the labels of a collated batch, in one line; None if nothing is.

    Checked are: a missing entry; for class labels, integers in [0, num_labels); for tokens, the same or -100; for
    language models and CTC, integers in [0, vocabulary) or -100; for multi-label, shape [batch, num_labels] and
    values in [0, 1]; for regression, finite values; for question answering, positions that are not negative
    (positions past the text mean "no answer in it"). Kind `"custom"` is not checked.
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
            return problems[0] or problems[1]
        case "single_label":
            return _range_problem("labels", batch["labels"], config.num_labels, "class labels")
        case "token":
            limit, what = config.num_labels, "token labels"
        case _:
            limit, what = config.get_text_config(decoder=True).vocab_size, "token ids"
    labels = batch["labels"]
    return _range_problem("labels", labels[labels != IGNORED], limit, f"-100 or {what}")


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
