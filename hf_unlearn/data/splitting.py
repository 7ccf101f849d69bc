"""Splitting a training dataset into what is forgotten and what is kept, and the kind of request."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import numpy as np
import torch

REQUESTS = ("samples", "class", "group")
SMALL = 2**30  # bytes of Arrow; tokens take several times as much as lists
_MARK = re.compile(r"\[hf_unlearn request=(\w+)\]")


class RequestSubset(torch.utils.data.Subset):
    """A subset of a map-style dataset that remembers which kind of forget request made it."""

    def __init__(self, dataset: Any, indices: Sequence[int], request: str):
        super().__init__(dataset, indices)
        self.request = request


def split_forget_retain(
    dataset: Any,
    *,
    column: str | None = None,
    values: Sequence[Any] | None = None,
    fraction: float | None = None,
    stratify_by: str | None = None,
    indices: Sequence[int] | None = None,
    where: Callable[[dict], bool] | None = None,
    request: str | None = None,
    seed: int = 42,
) -> tuple[Any, Any]:
    """Split a training dataset into what must be forgotten and what must stay.

    Exactly one of `column` (with `values`), `fraction`, `indices` and `where` says what is forgotten.

    Args:
        dataset: a `datasets.Dataset`, or any map-style dataset (`__len__`, `__getitem__` giving dicts).
        column: name of the column that holds the class, speaker, author, licence, ...
        values: the values of `column` to forget.
        fraction: share of the samples to forget, in (0, 1), drawn with `seed`; at least one sample.
        stratify_by: with `fraction`: a column whose values keep their proportions.
        indices: sample numbers to forget.
        where: a predicate on a sample; True means forget.
        request: `"samples"`, `"class"` or `"group"`. Left out, `column` makes a `"class"` when it is a label column
            (named `label` or `labels`, or of type `datasets.ClassLabel`) and a `"group"` otherwise; all else is
            `"samples"`.
        seed: seed of `fraction`'s draw.

    Returns:
        `(forget, retain)`, of the type that came in for a `datasets.Dataset`, and `torch.utils.data.Subset`s
        otherwise. Both carry the kind of request, which `hf_unlearn.UnlearningTrainer` reads; it survives `map`,
        `select` and `shuffle`.

    Raises:
        ValueError: when not exactly one way of choosing is given, a column, value or index does not exist, or when a
            side would be empty.

    Examples:
        >>> samples = datasets.Dataset.from_dict({"x": [0.1, 0.2, 0.3, 0.4], "label": [0, 1, 2, 1]})
        >>> forget, retain = split_forget_retain(samples, column="label", values=[1])
        >>> len(forget), len(retain), request_of(forget)
        (2, 2, 'class')
    """
    ways = {"column": column, "fraction": fraction, "indices": indices, "where": where}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) != 1:
        raise ValueError(
            f"split_forget_retain: give exactly one of column, fraction, indices and where, got {given or 'none'}"
        )
    if request is not None and request not in REQUESTS:
        raise ValueError(f"request: expected one of {REQUESTS}, got {request!r}")
    size = len(dataset)
    if column is not None:
        chosen = _with_values(dataset, column, values)
    elif fraction is not None:
        chosen = _draw(dataset, fraction, stratify_by, seed)
    elif indices is not None:
        chosen = _within(indices, size)
    else:
        assert where is not None
        chosen = [i for i in range(size) if where(dataset[i])]
    if not chosen or len(chosen) == size:
        side = "forget" if not chosen else "retain"
        raise ValueError(
            f"split_forget_retain: the {side} dataset would be empty ({len(chosen)} of {size} samples chosen)"
        )

    request = request or (_request_of_column(dataset, column) if column is not None else "samples")
    kept = np.setdiff1d(np.arange(size), chosen).tolist()
    if isinstance(dataset, datasets.Dataset):
        return _mark(dataset.select(chosen), request), _mark(dataset.select(kept), request)
    return RequestSubset(dataset, chosen, request), RequestSubset(dataset, kept, request)


def request_of(dataset: Any) -> str | None:
    """The kind of request (`"samples"`, `"class"`, `"group"`) that `split_forget_retain` left on a dataset, or None."""
    if isinstance(dataset, datasets.Dataset):
        marks = _MARK.findall(dataset.info.description or "")
        return marks[-1] if marks else None
    return getattr(dataset, "request", None)


def _mark(dataset: datasets.Dataset, request: str) -> datasets.Dataset:
    # An attribute would be lost at the first `map`; the dataset's info travels along.
    dataset.info.description = f"{_MARK.sub('', dataset.info.description or '')}[hf_unlearn request={request}]"
    return dataset


def column_of(dataset: Any, column: str) -> list:
    """The values of a column, as plain Python.

    Raises:
        ValueError: the dataset has no such column.
    """
    if isinstance(dataset, datasets.Dataset):
        if column not in dataset.column_names:
            raise ValueError(f"column: {column!r} is not in the dataset; it has {dataset.column_names}")
        return dataset.with_format(None)[column][:]
    first = dataset[0]
    if column not in first:
        raise ValueError(f"column: {column!r} is not in the dataset; it has {list(first)}")
    return [_plain(dataset[i][column]) for i in range(len(dataset))]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, (torch.Tensor, np.generic)) else value


def _some(values: list, most: int = 8) -> str:
    return ", ".join(repr(v) for v in values[:most]) + (f", ... ({len(values)} values)" if len(values) > most else "")


def _request_of_column(dataset: Any, column: str) -> str:
    typed = isinstance(dataset, datasets.Dataset) and isinstance(dataset.features[column], datasets.ClassLabel)
    return "class" if typed or column in ("label", "labels") else "group"


def _with_values(dataset: Any, column: str, values: Sequence[Any] | None) -> list[int]:
    if not values:
        raise ValueError(f"values: say which values of column {column!r} to forget")
    found = column_of(dataset, column)
    there = set(found)
    if missing := [value for value in values if value not in there]:
        raise ValueError(f"values: column {column!r} has no {missing}; it has {_some(sorted(there, key=str))}")
    wanted = set(values)
    return [i for i, value in enumerate(found) if value in wanted]


def _within(indices: Sequence[int], size: int) -> list[int]:
    chosen = sorted({int(i) for i in indices})
    if chosen and not (chosen[0] >= 0 and chosen[-1] < size):
        raise ValueError(f"indices: must lie in [0, {size}), got {chosen[0]} to {chosen[-1]}")
    return chosen


def _draw(dataset: Any, fraction: float, stratify_by: str | None, seed: int) -> list[int]:
    if not 0 < fraction < 1:
        raise ValueError(f"fraction: must lie strictly between 0 and 1, got {fraction}")
    rng = np.random.default_rng(seed)
    strata: dict[Any, list[int]] = {}
    for i, value in enumerate(column_of(dataset, stratify_by) if stratify_by else [None] * len(dataset)):
        strata.setdefault(value, []).append(i)
    counts = {value: max(1, round(fraction * len(samples))) for value, samples in strata.items()}
    return sorted(i for value, samples in strata.items() for i in rng.permutation(samples)[: counts[value]].tolist())


def in_memory(dataset: Any) -> Any:
    """The samples of a dataset as a list, its kind of request kept; a dataset of more than `SMALL` bytes as it is.

    For data so small that reading samples from Arrow takes longer than the model does.
    """
    if isinstance(dataset, datasets.Dataset) and _bytes(dataset) > SMALL:
        return dataset
    samples = list(dataset)
    return RequestSubset(samples, range(len(samples)), request_of(dataset) or "samples")


def _bytes(dataset: datasets.Dataset) -> float:
    """Those of its samples, as large as the samples of its table are on average."""
    return dataset.data.nbytes * len(dataset) / max(1, dataset.data.num_rows)


def subsample(dataset: Any, count: int, seed: int = 0) -> Any:
    """At most `count` samples of a dataset, the same ones for the same seed; the dataset itself when it is no larger."""
    if len(dataset) <= count:
        return dataset
    chosen = sorted(np.random.default_rng(seed).choice(len(dataset), count, replace=False).tolist())
    return (
        dataset.select(chosen) if isinstance(dataset, datasets.Dataset) else torch.utils.data.Subset(dataset, chosen)
    )
