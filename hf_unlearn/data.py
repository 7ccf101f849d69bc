"""The forget set beside the retain set: splitting, pairing and collating them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from torch.utils.data import Sampler

REQUESTS = ("rows", "class", "group")
SMALL = 2**30  # bytes of Arrow; tokens take several times as much as lists
_MARK = re.compile(r"\[hf_unlearn request=(\w+)\]")


# ---- splitting -------------------------------------------------------------------------------------------------


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
    """Split a training set into what must be forgotten and what must stay.

    Exactly one of `column` (with `values`), `fraction`, `indices` and `where` says what is forgotten.

    Args:
        dataset: a `datasets.Dataset`, or any map-style dataset (`__len__`, `__getitem__` giving dicts).
        column: name of the column that holds the class, speaker, author, licence, ...
        values: the values of `column` to forget.
        fraction: share of the rows to forget, in (0, 1), drawn with `seed`; at least one row.
        stratify_by: with `fraction`: a column whose values keep their proportions.
        indices: row numbers to forget.
        where: a predicate on a row; True means forget.
        request: `"rows"`, `"class"` or `"group"`. Left out, `column` makes a `"class"` when it is a label column
            (named `label` or `labels`, or of type `datasets.ClassLabel`) and a `"group"` otherwise; all else is
            `"rows"`.
        seed: seed of `fraction`'s draw.

    Returns:
        `(forget, retain)`, of the type that came in for a `datasets.Dataset`, and `torch.utils.data.Subset`s
        otherwise. Both carry the kind of request, which `hf_unlearn.UnlearningTrainer` reads; it survives `map`,
        `select` and `shuffle`.

    Raises:
        ValueError: when not exactly one way of choosing is given, a column, value or index does not exist, or when a
            side would be empty.

    Examples:
        >>> rows = datasets.Dataset.from_dict({"x": [0.1, 0.2, 0.3, 0.4], "label": [0, 1, 2, 1]})
        >>> forget, retain = split_forget_retain(rows, column="label", values=[1])
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
        raise ValueError(f"split_forget_retain: the {side} set would be empty ({len(chosen)} of {size} rows chosen)")

    request = request or (_request_of_column(dataset, column) if column is not None else "rows")
    kept = np.setdiff1d(np.arange(size), chosen).tolist()
    if isinstance(dataset, datasets.Dataset):
        return _mark(dataset.select(chosen), request), _mark(dataset.select(kept), request)
    return RequestSubset(dataset, chosen, request), RequestSubset(dataset, kept, request)


def request_of(dataset: Any) -> str | None:
    """The kind of request (`"rows"`, `"class"`, `"group"`) that `split_forget_retain` left on a dataset, or None."""
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
    counts = {value: max(1, round(fraction * len(rows))) for value, rows in strata.items()}
    return sorted(i for value, rows in strata.items() for i in rng.permutation(rows)[: counts[value]].tolist())


# ---- pairing ---------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """One forget row, the retain rows that travel with it, and the forget row's number in the forget set.

    `alternative`: the same row with the answer to give instead, where there is one.
    """

    forget: dict
    retain: list[dict]
    number: int
    alternative: dict | None = None


class PairedDataset(torch.utils.data.Dataset):
    """Forget and retain rows side by side, in an order that depends on the seed and on the position alone.

    Position `t` of an endless stream is one forget row and its share of the batch's retain rows. Consecutive positions
    make up the batches, so 1 process with batches of 8, 4 accumulated batches of 2 and 2 processes with batches of 4
    all see the same rows in the same optimizer step; both sets are shuffled anew at every pass over them.

    Args:
        forget: map-style dataset of rows to forget.
        retain: map-style dataset of rows to keep.
        alternative: map-style dataset, row by row the forget set with other answers, or None.
        forget_per_step: forget rows of one optimizer step, over all processes and accumulated batches.
        retain_per_step: retain rows of one optimizer step, likewise.
        seed: seed of the order.
    """

    def __init__(
        self,
        forget: Any,
        retain: Any,
        alternative: Any = None,
        *,
        forget_per_step: int,
        retain_per_step: int,
        seed: int,
    ):
        self.forget, self.retain, self.alternative, self.seed = forget, retain, alternative, seed
        self.forget_per_step, self.retain_per_step = forget_per_step, retain_per_step
        self.steps = max(math.ceil(len(retain) / retain_per_step), math.ceil(len(forget) / forget_per_step))
        self._orders: dict[int, tuple[int, torch.Tensor]] = {}

    def __len__(self) -> int:
        """Positions in one epoch: whole optimizer steps that cover the larger set once."""
        return self.steps * self.forget_per_step

    def __getitem__(self, position: int) -> Pair:
        """The pair at `position` of the endless stream (epoch 1 begins at `len(self)`)."""
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[Pair]:
        """The pairs of a batch at once: `datasets` reads many rows in the time of a few."""
        indices = [self._order(0, len(self.forget), position) for position in positions]
        shares = [self._share(position) for position in positions]
        retain = iter(_read(self.retain, [self._order(1, len(self.retain), row) for share in shares for row in share]))
        alternatives = [None] * len(indices) if self.alternative is None else _read(self.alternative, indices)
        return [
            Pair(row, [next(retain) for _ in share], index, alternative)
            for row, share, index, alternative in zip(
                _read(self.forget, indices), shares, indices, alternatives, strict=True
            )
        ]

    def _share(self, position: int) -> range:
        first, last = (p * self.retain_per_step // self.forget_per_step for p in (position, position + 1))
        return range(first, last)

    def _order(self, stream: int, size: int, position: int) -> int:
        """The row at `position` of an endless stream of shuffled passes over `size` rows."""
        cycle, offset = divmod(position, size)
        if self._orders.get(stream, (None, None))[0] != cycle:
            generator = torch.Generator().manual_seed(hash((self.seed, stream, cycle)) % 2**63)
            self._orders[stream] = (cycle, torch.randperm(size, generator=generator))
        return int(self._orders[stream][1][offset])


def _read(dataset: Any, indices: list[int]) -> list[dict]:
    return dataset.__getitems__(indices) if hasattr(dataset, "__getitems__") else [dataset[i] for i in indices]


class PairSampler(Sampler[int]):
    """The positions of one epoch, in order; the trainer sets `epoch`, because loaders that resume do not reach it."""

    def __init__(self, length: int):
        self.length, self.epoch = length, 0

    def __len__(self) -> int:
        """Positions in one epoch."""
        return self.length

    def __iter__(self) -> Iterator[int]:
        """Positions `epoch * length` to `(epoch + 1) * length - 1`."""
        return iter(range(self.epoch * self.length, (self.epoch + 1) * self.length))


class PairCollator:
    """Collates pairs into `{"forget": batch, "retain": batch, "index": forget row numbers [B]}`.

    Alternatives follow the forget rows in the same batch, [2 B] rows then: one forward pass sees both.
    """

    def __init__(self, collator: Callable[[list], Mapping[str, Any]]):
        self.collator = collator

    def __call__(self, pairs: list[Pair]) -> dict[str, Any]:
        """Collate the forget rows and the retain rows apart, each as the user's collator does it."""
        alternatives = [pair.alternative for pair in pairs if pair.alternative is not None]
        return {
            "forget": self.collator([pair.forget for pair in pairs] + alternatives),
            "retain": self.collator([row for pair in pairs for row in pair.retain]),
            "index": torch.tensor([pair.number for pair in pairs]),
        }


def in_memory(dataset: Any) -> Any:
    """The rows of a dataset as a list, its kind of request kept; a dataset of more than `SMALL` bytes as it is.

    For data so small that reading rows from Arrow takes longer than the model does.
    """
    if isinstance(dataset, datasets.Dataset) and _bytes(dataset) > SMALL:
        return dataset
    rows = list(dataset)
    return RequestSubset(rows, range(len(rows)), request_of(dataset) or "rows")


def _bytes(dataset: datasets.Dataset) -> float:
    """Those of its rows, as large as the rows of its table are on average."""
    return dataset.data.nbytes * len(dataset) / max(1, dataset.data.num_rows)


def sample_rows(dataset: Any, count: int, seed: int = 0) -> Any:
    """At most `count` rows of a dataset, the same ones for the same seed; the dataset itself when it is no larger."""
    if len(dataset) <= count:
        return dataset
    chosen = sorted(np.random.default_rng(seed).choice(len(dataset), count, replace=False).tolist())
    return (
        dataset.select(chosen) if isinstance(dataset, datasets.Dataset) else torch.utils.data.Subset(dataset, chosen)
    )
