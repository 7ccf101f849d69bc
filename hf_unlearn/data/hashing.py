"""Content hashes of samples and weights, to compare and verify them without storing them."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from torch.distributed.tensor import DTensor
from tqdm.auto import tqdm

from hf_unlearn.data.columns import column_names, content_columns, inputs_among
from hf_unlearn.data.randomness import unchanged_randomness
from hf_unlearn.data.types import AnyDataset

LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


def sample_hashes(
    dataset: AnyDataset, columns: Sequence[str] | None = None, description: str = "Hashing samples"
) -> list[bytes]:
    """A 16-byte content hash of every sample.

    Equal samples have equal hashes in every process, independent of the order of their columns and of the container
    (Arrow, tensors or plain lists).

    Args:
        dataset: a `datasets.Dataset` or any map-style dataset of dicts.
        columns: the columns to hash; default: all.
        description: text of the progress bar, shown when hashing takes more than a second.
    """
    contents = tqdm(
        _contents(dataset, columns),
        total=len(dataset),
        desc=description,
        delay=1.0,
        leave=False,
    )
    return [hashlib.blake2b(content, digest_size=16).digest() for content in contents]


def sample_hash(sample: Mapping[str, Any], columns: Sequence[str]) -> bytes:
    """A 16-byte content hash of one sample, at the precision of float32.

    A stream does not say of which type its numbers are: a sample may come in float64 and be stored in float32. Not the
    hash that `sample_hashes` gives.

    Args:
        sample: columns to values.
        columns: the columns to hash, in this order; those that the sample lacks are left out.

    Examples:
        >>> sample_hash({"x": [0.1, 0.2]}, ["x"]) == sample_hash({"x": torch.tensor([0.1, 0.2])}, ["x"])
        True
    """
    content = _joined([(name, _bytes(_in_float32(sample[name]))) for name in columns if name in sample])
    return hashlib.blake2b(content, digest_size=16).digest()


def dataset_hash(
    dataset: AnyDataset, columns: Sequence[str] | None, description: str = "Hashing samples"
) -> str | None:
    """A hash of all samples of a dataset and of their order; None where a sample is another each time it is read.

    Random numbers that reading takes (augmentation) are given back: whoever draws next gets what was next before.

    Args:
        dataset: as for `sample_hashes`.
        columns: the columns that samples are compared on, where the dataset has them; see `compared_columns`.
        description: text of the progress bar.
    """
    with unchanged_randomness():
        compared = compared_columns(dataset, columns)
        first = None if isinstance(dataset, datasets.Dataset) else {name: dataset[0][name] for name in compared}
        if first is not None and _bytes(first) != _bytes({name: dataset[0][name] for name in compared}):
            return None
        return hashlib.blake2b(b"".join(sample_hashes(dataset, compared, description)), digest_size=16).hexdigest()


def compared_columns(dataset: AnyDataset, columns: Sequence[str] | None) -> list[str]:
    """The sorted columns on which samples are compared: what the samples are, whatever the model reads by name.

    They are those of `columns` that the dataset has, where inputs of the model are among them: samples ready for the
    model. Where a transform or the collator makes the inputs, only a label may be among them; the stored columns
    that hold an image, sound or text are taken then, with the labels, and all columns where there is none. A
    sample's number in another dataset, and what a random transform makes of it, change nothing.

    Args:
        dataset: the samples.
        columns: what the model reads (`hf_unlearn.data.collator.columns_read`); None for all columns.
    """
    names = column_names(dataset)
    if columns is None:
        return sorted(names)
    if inputs_among(dataset, columns):
        return sorted(set(names) & set(columns))
    return sorted(content_columns(dataset) or names)


def _contents(dataset: Any, columns: Sequence[str] | None) -> Iterator[bytes]:
    """The content of every sample; equal values give equal bytes in any container and any process."""
    if isinstance(dataset, datasets.Dataset):
        names = sorted(columns or dataset.column_names)
        files = {name for name in names if isinstance(dataset.features[name], (datasets.Image, datasets.Audio))}
        # As Arrow stores it: no image or sound is decoded.
        for table in dataset.with_format("arrow").select_columns(names).iter(1000):
            for batch in table.combine_chunks().to_batches():
                for i in range(batch.num_rows):
                    entries = {name: batch.column(name).slice(i, 1) for name in names}
                    yield _joined(
                        [(n, _file_bytes(cell) if n in files else _arrow_bytes(cell)) for n, cell in entries.items()]
                    )
        return
    for i in range(len(dataset)):
        sample = dataset[i]
        yield _joined([(name, _bytes(sample[name])) for name in sorted(columns or sample) if name in sample])


def _file_bytes(array: pa.Array) -> bytes:
    """The content of the one stored image or sound of an Arrow array, wherever its file lies."""
    file = array.to_pylist()[0]
    if file is None or file["bytes"] is not None or not os.path.isfile(file["path"] or ""):
        return _bytes(file and (file["bytes"] or file["path"]))
    return _bytes(Path(file["path"]).read_bytes())


def _joined(parts: Sequence[tuple[str, bytes]]) -> bytes:
    return b"".join(f"{name!r} {len(value)} ".encode() + value for name, value in parts)


def _arrow_bytes(array: pa.Array) -> bytes:
    """`_bytes` of the one value of an Arrow array; numbers never become Python objects."""
    shape, inner = [], array.storage if isinstance(array, pa.ExtensionArray) else array
    while any(check(inner.type) for check in LISTS):
        lengths = np.unique(inner.value_lengths().to_numpy(zero_copy_only=False))
        if len(lengths) != 1 or inner.null_count:
            return _bytes(array.to_pylist()[0])
        shape.append(int(lengths[0]))
        inner = inner.flatten()
    if inner.null_count or not (pa.types.is_integer(inner.type) or pa.types.is_floating(inner.type)):
        return _bytes(array.to_pylist()[0])
    return _array_bytes(inner.to_numpy(zero_copy_only=False).reshape(shape))


def _bytes(value: Any) -> bytes:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return _array_bytes(value)
    if isinstance(value, torch.Tensor):
        value = (value.float() if value.dtype == torch.bfloat16 else value).detach().cpu().numpy()
    if isinstance(value, Mapping):
        return _joined([(str(name), _bytes(value[name])) for name in sorted(value)])
    if isinstance(value, (str, bytes, type(None))):
        return repr(value).encode()
    if isinstance(value, (list, tuple)):
        numbers = _array(value)
        if numbers is None:
            return _joined([(str(i), _bytes(element)) for i, element in enumerate(value)])
        return _array_bytes(numbers)
    array = np.asarray(value)
    return _array_bytes(array) if array.dtype.kind in "biuf" else pickle.dumps(value)


def _in_float32(value: Any) -> Any:
    """A value whose floating point numbers are those that float32 holds."""
    if isinstance(value, (list, tuple)):
        numbers = _array(value)
        if numbers is None:
            return [_in_float32(entry) for entry in value]
        value = numbers
    if isinstance(value, np.ndarray):
        return value.astype(np.float32) if value.dtype.kind == "f" else value
    if isinstance(value, torch.Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, (float, np.floating)):
        return np.float32(value)
    return {name: _in_float32(entry) for name, entry in value.items()} if isinstance(value, Mapping) else value


def _array(values: Sequence) -> np.ndarray | None:
    """A regular list of numbers as an array; None for anything else."""
    first: Any = values
    while isinstance(first, (list, tuple)) and first:
        first = first[0]
    if isinstance(first, (str, bytes, Mapping, type(None))):
        return None
    try:
        array = np.asarray(values)
    except ValueError:  # ragged
        return None
    return array if array.dtype.kind in "biuf" else None


def _array_bytes(array: np.ndarray) -> bytes:
    """Shape and values; equal numbers have equal bytes in float32 and float64, and in int32 and int64."""
    kind = "" if not array.size else "<f8" if array.dtype.kind == "f" else "<i8"
    return f"{kind} {array.shape} ".encode() + (array.astype(kind, copy=False).tobytes() if kind else b"")


def weights_hash(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of the names, dtypes, shapes and contents of tensors, independent of their order and device.

    Args:
        state: a state dict.

    Examples:
        >>> state = {"a": torch.zeros(2), "b": torch.ones(3)}
        >>> weights_hash(state) == weights_hash(dict(reversed(state.items()))), weights_hash(state)[:8]
        (True, '8d2e2980')
    """
    digest = hashlib.sha256()
    for name in tqdm(sorted(state), desc="Hashing weights", delay=1.0, leave=False):
        for part, tensor in _plain_tensors(name, state[name].detach()):
            tensor = tensor.cpu().contiguous()
            digest.update(f"{part} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _plain_tensors(name: str, tensor: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """A tensor whole, or those that one of a quantisation library (torchao) is made of."""
    if isinstance(tensor, DTensor):
        yield name, tensor.full_tensor()
    elif hasattr(tensor, "__tensor_flatten__"):
        for attribute in tensor.__tensor_flatten__()[0]:
            yield from _plain_tensors(f"{name}.{attribute}", getattr(tensor, attribute))
    else:
        yield name, tensor
