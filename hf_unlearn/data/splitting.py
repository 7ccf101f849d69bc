"""Splitting a training dataset into forget and retain datasets, and the kind of forget request."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from typing import Any

import datasets
import numpy as np
import torch

from hf_unlearn.data.columns import column_names
from hf_unlearn.data.types import AnyDataset, RequestKind, check_request
from hf_unlearn.names import did_you_mean

LABEL_COLUMNS = ("label", "labels", "label_ids")
CLASSIFIERS = ("single_label", "multi_label", "custom")  # a custom loss may be one of a classifier
MAX_BYTES_IN_MEMORY = 2**30  # of Arrow; tokens take several times as much as lists
logger = logging.getLogger(__name__)


class RequestDescription(str):
    """A description of a dataset that carries the kind of forget request it was made for.

    The description is part of `Dataset.info`, which every method of `datasets` hands on. The kind of request is an
    attribute and not part of the text, so that neither `save_to_disk` nor `push_to_hub` writes it.

    Attributes:
        request: the kind of request.
        column: the column that the request was derived from; None if the kind was given, or there is no column.
    """

    request: RequestKind
    column: str | None

    def __new__(cls, text: str, request: RequestKind, column: str | None = None) -> RequestDescription:
        """The description `text`, with the request as attributes."""
        description = super().__new__(cls, text)
        description.request, description.column = request, column
        return description

    def __getnewargs__(self) -> tuple[str, RequestKind, str | None]:  # type: ignore[override]
        return str(self), self.request, self.column

    def __eq__(self, other: object) -> bool:
        # Datasets that are concatenated keep their info only where all infos are equal: not those of two requests.
        if isinstance(other, RequestDescription) and (self.request, self.column) != (other.request, other.column):
            return False
        return super().__eq__(other)

    __hash__ = str.__hash__


class RequestSubset(torch.utils.data.Subset):
    """A subset of a map-style dataset with the attributes of a `RequestDescription`."""

    def __init__(self, dataset: Any, indices: Sequence[int], request: RequestKind, column: str | None = None):
        super().__init__(dataset, indices)
        self.request, self.column = request, column


def split_forget_retain(
    dataset: AnyDataset,
    *,
    column: str | None = None,
    values: Sequence[Any] | None = None,
    fraction: float | None = None,
    stratify_by: str | None = None,
    indices: Sequence[int] | None = None,
    where: Callable[[dict], bool] | None = None,
    request: RequestKind | None = None,
    seed: int = 42,
) -> tuple[Any, Any]:
    """Split a training dataset into the forget dataset and the retain dataset.

    Exactly one of `column` (with `values`), `fraction`, `indices` and `where` selects the samples to forget.

    Args:
        dataset: a `datasets.Dataset`, or any map-style dataset (`__len__`, `__getitem__` giving dicts).
        column: name of the column that holds the class, speaker, author, licence, ...
        values: the values of `column` to forget.
        fraction: share of the samples to forget, in (0, 1), drawn with `seed`; at least one sample.
        stratify_by: with `fraction`: a column whose values keep their proportions.
        indices: sample numbers to forget.
        where: a predicate on a sample; True means forget.
        request: `"samples"`, `"class"` or `"group"`. Left out, `column` makes a `"class"` if it is a label column
            (named `label`, `labels` or `label_ids`, or of type `datasets.ClassLabel`) and a `"group"` otherwise;
            everything else is `"samples"`. Trainer and audit treat such a class as a group if it is not the label
            that the model's head predicts, see `request_for_head`.
        seed: seed of `fraction`'s draw.

    Returns:
        `(forget_ds, retain_ds)`: each a `datasets.Dataset` where `dataset` is one, and a `RequestSubset` otherwise.
        Both carry the kind of request, which `hf_unlearn.UnlearningTrainer` reads. It survives the methods of
        `datasets.Dataset` (`map`, `filter`, `select`, `with_transform`, `train_test_split`, ...) and pickling; it is
        not written by `save_to_disk` and `push_to_hub`.

    Raises:
        ValueError: not exactly one way of selecting is given, a column, value or index does not exist, or one of the
            two datasets would be empty.

    Examples:
        >>> samples = datasets.Dataset.from_dict({"x": [0.1, 0.2, 0.3, 0.4], "label": [0, 1, 2, 1]})
        >>> forget_ds, retain_ds = split_forget_retain(samples, column="label", values=[1])
        >>> len(forget_ds), len(retain_ds), request_of(forget_ds)
        (2, 2, 'class')
    """
    if request is not None:
        check_request(request)
    forget_indices = chosen_numbers(
        dataset, column=column, values=values, fraction=fraction, stratify_by=stratify_by, indices=indices,
        where=where, seed=seed,
    )  # fmt: skip
    if request is not None:
        column = None
    return _split(dataset, forget_indices, request or _request_of_column(dataset, column), column)


def chosen_numbers(
    dataset: AnyDataset,
    *,
    column: str | None = None,
    values: Sequence[Any] | None = None,
    fraction: float | None = None,
    stratify_by: str | None = None,
    indices: Sequence[int] | None = None,
    where: Callable[[dict], bool] | None = None,
    seed: int = 42,
) -> list[int]:
    """The numbers, ascending, of the samples that `split_forget_retain` puts into the forget dataset; as there.

    Examples:
        >>> chosen_numbers(datasets.Dataset.from_dict({"label": [0, 1, 2, 1]}), column="label", values=[1])
        [1, 3]
    """
    check_map_style("dataset", dataset)
    selectors = {"column": column, "fraction": fraction, "indices": indices, "where": where}
    given = [name for name, value in selectors.items() if value is not None]
    if len(given) != 1:
        raise ValueError(
            f"split_forget_retain: give exactly one of column, fraction, indices and where, got {given or 'none'}"
        )
    if column is not None:
        return _indices_of_values(dataset, column, values)
    if fraction is not None:
        return _draw(dataset, fraction, stratify_by, seed)
    return _selected(dataset, indices, where)


def check_map_style(name: str, dataset: Any) -> None:
    """Refuse what has no samples by number: streams, and dicts of splits.

    Args:
        name: of the argument, for the message.
        dataset: what was given for it.

    Raises:
        ValueError: one line that names the argument, what was found and what to do.
    """
    if isinstance(dataset, Mapping):
        raise ValueError(f"{name}: got a {type(dataset).__name__} of {sorted(map(str, dataset))}; give one of them")
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")) or isinstance(dataset, str | bytes):
        raise ValueError(
            f"{name}: got a {type(dataset).__name__}, whose samples have no number; load it whole (streaming=False)"
        )


def _split(dataset: Any, forget_indices: list[int], request: RequestKind, column: str | None) -> tuple[Any, Any]:
    size = len(dataset)
    if not forget_indices or len(forget_indices) == size:
        name = "retain" if forget_indices else "forget"
        raise ValueError(
            f"split_forget_retain: the {name} dataset would be empty ({len(forget_indices)} of {size} samples chosen)"
        )
    retain_indices = np.setdiff1d(np.arange(size), forget_indices).tolist()
    if isinstance(dataset, datasets.Dataset):
        forget_ds, retain_ds = dataset.select(forget_indices), dataset.select(retain_indices)
        return _mark(forget_ds, request, column), _mark(retain_ds, request, column)
    return (
        RequestSubset(dataset, forget_indices, request, column),
        RequestSubset(dataset, retain_indices, request, column),
    )


def request_of(dataset: AnyDataset) -> RequestKind | None:
    """The kind of request (`"samples"`, `"class"`, `"group"`) that `split_forget_retain` stored, or None."""
    return getattr(_carrier(dataset), "request", None)


def _carrier(dataset: Any) -> Any:
    """What holds the attributes `request` and `column` of a dataset, if it has them."""
    return dataset.info.description if isinstance(dataset, datasets.Dataset) else dataset


def request_for_head(forget_ds: AnyDataset, retain_ds: AnyDataset, head_kind: str) -> RequestKind | None:
    """The stored kind of request, for a model with this kind of head; None if there is none.

    A class that was derived from a column is a class only if the column is the label that the head predicts: the head
    is a classifier, and the column has the name of a label, or no retain sample has the label of a forget sample.
    Otherwise it is a group: the speaker of a speech recogniser, or of a classifier of emotions.

    Args:
        forget_ds: the forget dataset.
        retain_ds: the retain dataset.
        head_kind: kind of the model's head (`hf_unlearn.losses.Head.kind`).
    """
    request, column = request_of(forget_ds), getattr(_carrier(forget_ds), "column", None)
    if request != "class" or column is None:
        return request
    return "class" if head_kind in CLASSIFIERS and _is_label(column, forget_ds, retain_ds) else "group"


def _is_label(column: str, forget_ds: Any, retain_ds: Any) -> bool:
    if column in LABEL_COLUMNS:
        return True
    forget_labels, retain_labels = stored_labels(forget_ds), stored_labels(retain_ds)
    # Labels that a transform or the collator makes are compared when the target is made.
    return forget_labels is None or retain_labels is None or not forget_labels & retain_labels


def stored_labels(dataset: AnyDataset) -> set | None:
    """The distinct labels of a dataset; None if it stores no label, or several a sample."""
    names = column_names(dataset)
    for name in LABEL_COLUMNS:
        if name in names and np.ndim(dataset[0].get(name, 0)) == 0:
            return set(column_of(dataset, name))
    return None


def _mark(dataset: datasets.Dataset, request: RequestKind, column: str | None) -> datasets.Dataset:
    dataset.info.description = RequestDescription(dataset.info.description or "", request, column)
    return dataset


def resolve_request(
    request: RequestKind | None, forget_ds: AnyDataset, retain_ds: AnyDataset, head_kind: str
) -> RequestKind:
    """The kind of request: as given, as stored (see `request_for_head`), or `"samples"` with a warning.

    Args:
        request: the kind that a user has set, or None.
        forget_ds: the forget dataset.
        retain_ds: the retain dataset.
        head_kind: kind of the model's head (`hf_unlearn.losses.Head.kind`).
    """
    resolved = request or request_for_head(forget_ds, retain_ds, head_kind)
    if resolved is None:
        logger.warning(
            'request: forget_ds has no kind of forget request, "samples" is assumed; set request="class" or "group" '
            "if it is one"
        )
    return resolved or "samples"


def column_of(dataset: AnyDataset, column: str, argument: str = "column") -> list:
    """The values of a column, as plain Python.

    Args:
        dataset: the samples.
        column: its name.
        argument: what gave the name, for the message.

    Raises:
        ValueError: the dataset has no such column.
    """
    names = column_names(dataset)
    if column not in names:
        raise ValueError(f"{argument}: {column!r} is not in the dataset; it has {names}{did_you_mean(column, names)}")
    if isinstance(dataset, datasets.Dataset):
        return dataset.with_format(None)[column][:]
    return [_plain(dataset[i][column]) for i in range(len(dataset))]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, (torch.Tensor, np.generic)) else value


def _abbreviated(values: list, limit: int = 8) -> str:
    rest = f", ... ({len(values)} values)" if len(values) > limit else ""
    return ", ".join(repr(value) for value in values[:limit]) + rest


def _request_of_column(dataset: Any, column: str | None) -> RequestKind:
    if column is None:
        return "samples"
    is_typed = isinstance(dataset, datasets.Dataset) and isinstance(dataset.features[column], datasets.ClassLabel)
    return "class" if is_typed or column in LABEL_COLUMNS else "group"


def _indices_of_values(dataset: Any, column: str, values: Sequence[Any] | None) -> list[int]:
    if values is None or (isinstance(values, Sized) and not len(values)):
        raise ValueError(f"values: say which values of column {column!r} to forget; give a list")
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise ValueError(f"values: expected a list, got {values!r}; write values=[{values!r}]")
    column_values = column_of(dataset, column)
    distinct = set(column_values)
    if missing := [value for value in values if value not in distinct]:
        present = _abbreviated(sorted(distinct, key=str))
        raise ValueError(
            f"values: column {column!r} has no {missing}; it has {present}{did_you_mean(missing[0], distinct)}"
        )
    forget_values = set(values)
    return [i for i, value in enumerate(column_values) if value in forget_values]


def _selected(dataset: Any, indices: Sequence[int] | None, where: Callable[[dict], bool] | None) -> list[int]:
    """The valid sample numbers among `indices`, sorted, or those of the samples for which `where` is True."""
    size = len(dataset)
    if indices is None:
        assert where is not None
        return [i for i in range(size) if where(dataset[i])]
    array = np.asarray(indices)
    if array.dtype == bool:
        raise ValueError("indices: got a boolean mask; give the numbers of the samples, np.flatnonzero(mask)")
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise ValueError(f"indices: expected a list of whole numbers, got {array.tolist()!r:.80}")
    numbers = sorted(set(array.tolist()))
    if numbers and not (numbers[0] >= 0 and numbers[-1] < size):
        raise ValueError(f"indices: must lie in [0, {size}), got {numbers[0]} to {numbers[-1]}")
    return numbers


def _draw(dataset: Any, fraction: float, stratify_by: str | None, seed: int) -> list[int]:
    if not 0 < fraction < 1:
        raise ValueError(f"fraction: must lie strictly between 0 and 1, got {fraction}")
    rng = np.random.default_rng(seed)
    strata: dict[Any, list[int]] = {}
    for i, value in enumerate(
        column_of(dataset, stratify_by, "stratify_by") if stratify_by else [None] * len(dataset)
    ):
        strata.setdefault(value, []).append(i)
    counts = {value: max(1, round(fraction * len(samples))) for value, samples in strata.items()}
    return sorted(i for value, samples in strata.items() for i in rng.permutation(samples)[: counts[value]].tolist())


def in_memory(dataset: AnyDataset) -> AnyDataset:
    """The samples of a dataset as a list with its kind of request; a large dataset is returned as it is.

    For data so small that reading samples from Arrow takes longer than the model does: up to `MAX_BYTES_IN_MEMORY`.
    """
    if isinstance(dataset, datasets.Dataset) and _bytes(dataset) > MAX_BYTES_IN_MEMORY:
        return dataset
    samples = list(dataset)  # type: ignore[call-overload]  # whatever has a length and items can be iterated
    column = getattr(_carrier(dataset), "column", None)
    return RequestSubset(samples, range(len(samples)), request_of(dataset) or "samples", column)


def _bytes(dataset: datasets.Dataset) -> float:
    """Estimated bytes of its samples: their number times the mean size of a sample of the table behind them."""
    return dataset.data.nbytes * len(dataset) / max(1, dataset.data.num_rows)


def subsample(dataset: AnyDataset, count: int, seed: int = 0) -> AnyDataset:
    """At most `count` samples of a dataset, drawn with `seed`; the dataset itself when it is no larger."""
    if len(dataset) <= count:
        return dataset
    return select(dataset, subsample_numbers(len(dataset), count, seed))


def subsample_numbers(size: int, count: int, seed: int = 0) -> list[int]:
    """The numbers, ascending, of the samples that `subsample` draws from a dataset of `size` samples."""
    if size <= count:
        return list(range(size))
    return sorted(np.random.default_rng(seed).choice(size, count, replace=False).tolist())


def select(dataset: AnyDataset, indices: list[int]) -> AnyDataset:
    """The samples of a dataset that have these numbers, in their order."""
    if isinstance(dataset, datasets.Dataset):
        return dataset.select(indices)
    return torch.utils.data.Subset(dataset, indices)  # type: ignore[arg-type]
