"""Samples that hold NaN or infinity, or have no finite loss: found by dataset and number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch

from hf_unlearn.data.columns import is_transformed
from hf_unlearn.data.hashing import LISTS
from hf_unlearn.data.types import AnyDataset


def check_finite(name: str, dataset: AnyDataset, columns: Sequence[str]) -> None:
    """Refuse a dataset with NaN or infinity in a column that the model reads, where all samples are at hand.

    Those are Arrow datasets without a transform, and lists. Samples that are made when they are read are seen when
    they are measured, or at the step.

    Args:
        name: of the dataset, for the error.
        dataset: the samples.
        columns: those that the model reads.

    Raises:
        ValueError: the first sample, by number and column.
    """
    if isinstance(dataset, datasets.Dataset):
        if is_transformed(dataset):
            return
        stored = dataset.with_format("arrow")
        for column in sorted(set(columns) & set(dataset.column_names)):
            first = 0
            for table in stored.select_columns([column]).iter(1000):
                for chunk in table.column(column).chunks:
                    number = _first_not_finite(chunk)
                    if number is not None:
                        raise _refusal(name, first + number, column, _floats(chunk.slice(number, 1)))
                    first += len(chunk)
    elif isinstance(dataset, list):
        for number, sample in enumerate(dataset):
            if problem := _column_not_finite(sample, columns):
                raise _refusal(name, number, *problem)


def refuse_losses(name: str, dataset: AnyDataset, losses: torch.Tensor, numbers: Sequence[int]) -> None:
    """Refuse samples without a finite loss under a model that is good.

    Args:
        name: of the dataset, for the error.
        dataset: all of its samples.
        losses: of the samples with these numbers.
        numbers: which samples were measured, in the order of the losses.

    Raises:
        ValueError: the first of them by number, and the column that holds NaN or infinity, if one does.
    """
    positions = (~losses.isfinite()).nonzero().flatten().tolist()
    if not positions:
        return
    number, loss = numbers[positions[0]], float(losses[positions[0]])
    if problem := _column_not_finite(dataset[number]):
        raise _refusal(name, number, *problem)
    raise ValueError(
        f"{name}: sample {number} has a loss of {loss} before it could change anything; take it out, or mend it (a "
        "label far out of range, a transcript longer than its sound, or per_sample_loss)"
    )


def _refusal(name: str, number: int, column: str, values: np.ndarray) -> ValueError:
    value = values[~np.isfinite(values)].flat[0]
    return ValueError(f"{name}: sample {number} has {value} in {column!r}; take it out, or mend it")


def _column_not_finite(sample: Any, columns: Sequence[str] | None = None) -> tuple[str, np.ndarray] | None:
    """The first column of a sample that holds NaN or infinity, and its values."""
    if not isinstance(sample, Mapping):
        return None
    for column in sorted(sample if columns is None else set(columns) & sample.keys()):
        value = sample[column]
        if isinstance(value, torch.Tensor):
            value = value.detach().float().cpu().numpy() if value.is_floating_point() else 0
        try:
            values = np.asarray(value)
        except ValueError:  # ragged
            continue
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            return column, values
    return None


def _first_not_finite(chunk: pa.Array) -> int | None:
    """The number of the first sample of a chunk that holds NaN or infinity."""
    if np.isfinite(_floats(chunk)).all():
        return None
    return next(i for i in range(len(chunk)) if not np.isfinite(_floats(chunk.slice(i, 1))).all())


def _floats(array: pa.Array) -> np.ndarray:
    """The floating point numbers of an Arrow array of numbers, or of lists of them; none of anything else."""
    inner = array.storage if isinstance(array, pa.ExtensionArray) else array
    while any(is_list(inner.type) for is_list in LISTS):
        inner = inner.flatten()
    if not pa.types.is_floating(inner.type):
        return np.empty(0)
    return inner.drop_null().to_numpy(zero_copy_only=False)
