"""Loading samples from the Hub or disk, and parsing a forget request written as one line of text."""

from __future__ import annotations

import os
import re
from typing import Any

import datasets
from datasets import Audio, ClassLabel, Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetNotFoundError

from hf_unlearn.names import did_you_mean

FILES = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}
GRAMMAR = "COLUMN=VALUE,..., COLUMN=FIRST..LAST, 10%, fraction=0.1, samples=FIRST..LAST or indices=FILE"


# ---- samples ------------------------------------------------------------------------------------------------------


def load_samples(dataset: str, split: str | None = None) -> Dataset:
    """The samples of one split of a dataset. Audio is not decoded.

    Args:
        dataset: name on the Hub (`name` or `name@revision`), a local folder (data files, or the output of
            `save_to_disk`), or one file (.parquet, .json, .jsonl, .csv).
        split: `split` or `configuration:split`; for the Hub and data files also a slice of one (`train[:1000]`).
            Default: `train`, or the only split.

    Raises:
        ValueError: no such dataset, no such split (the message lists the splits), or an unsupported file type.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(folder)
        ...     load_samples(folder)["text"][:]
        ['a', 'b']
    """
    config, _, part = (split or "").rpartition(":") if "[" not in (split or "") else _partition(split or "")
    if os.path.isfile(dataset):
        samples = _load_file(dataset, config, part or "train")
    elif _is_saved(dataset):
        samples = _load_saved(dataset, config, part)
    else:
        samples = _load_builder(dataset, config or None, part)
    for name, feature in samples.features.items():
        if isinstance(feature, Audio) and feature.decode:
            samples = samples.cast_column(name, Audio(decode=False))
    return samples


def _partition(split: str) -> tuple[str, str, str]:
    """`configuration`, `:` and the rest of a split with a slice in brackets, which may contain colons itself."""
    name, bracket, part = split.partition("[")
    config, colon, name = name.rpartition(":")
    return config, colon, name + bracket + part


def _load_file(path: str, config: str, split: str) -> Dataset:
    kind = FILES.get(os.path.splitext(path)[1].lower())
    if kind is None:
        raise ValueError(f"dataset: {path!r} is no data file; use one of {', '.join(FILES)}, or a folder")
    if config or re.sub(r"\[.*", "", split) != "train":
        raise ValueError(f"split: {config and config + ':'}{split} is not in {path!r}; one file has the split 'train'")
    return load_dataset(kind, data_files=path, split=split)


def _is_saved(folder: str) -> bool:
    return any(os.path.isfile(os.path.join(folder, name)) for name in ("state.json", "dataset_dict.json"))


def _load_saved(folder: str, config: str, split: str) -> Dataset:
    loaded = load_from_disk(folder)
    splits = loaded if isinstance(loaded, DatasetDict) else {split or "train": loaded}
    if config:
        raise ValueError(f"split: {config!r} is not in {folder!r}, which was saved without configurations")
    return splits[_resolve_split(folder, split, list(splits))]


def _load_builder(dataset: str, config: str | None, split: str) -> Dataset:
    is_local = os.path.isdir(dataset)
    name, _, revision = (dataset, "", "") if is_local else dataset.partition("@")
    try:
        splits = datasets.get_dataset_split_names(name, config, revision=revision or None)
    except (DatasetNotFoundError, ConnectionError, FileNotFoundError) as error:
        raise ValueError(
            f"dataset: {dataset!r} is no file or folder here, and not found on the Hub ({_first_line(error)}); "
            "give a file, a folder, or a name on the Hub"
        ) from error
    except ValueError as error:
        raise ValueError(f"dataset: {dataset!r} does not load: {_first_line(error)}") from error
    resolved = _resolve_split(dataset, split, splits)
    return load_dataset(name, config, split=resolved, revision=revision or None)


def _resolve_split(dataset: str, split: str, available: list[str]) -> str:
    """`split`, which may have a slice; if empty, `train` or the only one."""
    if not split and ("train" in available or len(available) == 1):
        return "train" if "train" in available else available[0]
    if not split or re.sub(r"\[.*", "", split) not in available:
        problem = f"{split!r} is not in {dataset!r}" if split else f"say which one of {dataset!r}"
        raise ValueError(f"split: {problem}, which has {available}{did_you_mean(split, available)}")
    return split


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0]


# ---- the forget request ------------------------------------------------------------------------------------------


def parse_forget(text: str, samples: Dataset) -> dict[str, Any]:
    """Parse a forget request into keyword arguments of `hf_unlearn.split_forget_retain`.

    | text | the forget dataset |
    |---|---|
    | `label=3`, `label=Sandal` | a class, by number or by name |
    | `speaker=1272,1284` | the samples whose column has one of these values |
    | `author_id=190..199` | the same for all integers from 190 to 199 |
    | `10%`, `fraction=0.1` | a random share |
    | `samples=3800..3999` | samples by their numbers, from 0 |
    | `indices=FILE` | the sample numbers in a text file, from 0, separated by white space or commas |

    `fraction`, `samples` and `indices` are never columns. A value that is the name of a class is not read as a class
    number; the name, and a text of the column, may contain commas.

    Args:
        text: the request.
        samples: the preprocessed samples that the request selects from; class numbers refer to their label column.

    Raises:
        ValueError: not of this form, an unknown column, class or file, or a value of another type than the column's.

    Examples:
        >>> samples = Dataset.from_dict({"label": [0, 1, 1]}).cast_column("label", ClassLabel(names=["Bag", "Sandal"]))
        >>> parse_forget("label=Sandal", samples), parse_forget("10%", samples)
        ({'column': 'label', 'values': [1]}, {'fraction': 0.1})
    """
    column, value = split_forget(text)
    if column in ("fraction", "indices"):
        return {column: value}
    if column == "samples":
        return {"indices": [_parse_value(column, number, "int64") for number in _parse_list(value, len(samples))]}
    if column not in samples.column_names:
        names = samples.column_names
        raise ValueError(
            f"forget: there is no column {column!r}, only {names}; use {GRAMMAR}{did_you_mean(column, names)}"
        )
    feature = samples.features[column]
    if isinstance(feature, ClassLabel):
        names = [value] if value in feature.names else _parse_list(value, len(samples))
        return {"column": column, "values": [_parse_class(name, feature) for name in names]}
    dtype = getattr(feature, "dtype", "")
    is_whole = "string" in dtype and value in samples.unique(column)
    parts = [value] if is_whole else _parse_list(value, len(samples))
    return {"column": column, "values": [_parse_value(column, part, dtype) for part in parts]}


def split_forget(text: str) -> tuple[str, Any]:
    """What a forget request says by itself: `("fraction", share)`, `("indices", numbers)`, or a column and its values.

    Args:
        text: the request, see `parse_forget`.

    Raises:
        ValueError: it is no request whatever the samples are.

    Examples:
        >>> split_forget("10%"), split_forget("speaker=1272,1284")
        (('fraction', 0.1), ('speaker', '1272,1284'))
    """
    text = text.strip()
    if re.fullmatch(r"[\d.]+\s*%", text):
        return "fraction", _parse_fraction(text.rstrip("% "), text, 100)
    column, sign, value = (part.strip() for part in text.partition("="))
    if not (column and sign and value):
        raise ValueError(f"forget: {text!r} is no forget request; use {GRAMMAR}")
    if column == "fraction":
        return column, _parse_fraction(value, text)
    if column == "indices":
        return column, _read_indices(value)
    return column, value


def _parse_fraction(value: str, text: str, whole: int = 1) -> float:
    try:
        share = float(value) / whole
    except ValueError as error:
        raise ValueError(f"forget: {text!r} names no share; use 10% or fraction=0.1") from error
    if not 0 < share < 1:
        raise ValueError(f"forget: {text!r} is not between nothing and everything; use 10% or fraction=0.1")
    return share


def _read_indices(path: str) -> list[int]:
    try:
        with open(path) as file:
            return [int(word) for word in file.read().replace(",", " ").split()]
    except OSError as error:
        raise ValueError(
            f"forget: {path!r} does not open ({error.strerror}); give a file of sample numbers"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"forget: {path!r} holds something else than sample numbers; give whole numbers from 0"
        ) from error


def _parse_list(value: str, size: int) -> list[str]:
    """The values of a comma-separated list, with ranges written out; `size` samples have no more values than that."""
    values: list[str] = []
    for part in (part.strip() for part in value.split(",")):
        ends = re.fullmatch(r"(-?\d+)\s*\.\.\s*(-?\d+)", part)
        if ends and (count := int(ends[2]) - int(ends[1]) + 1) > size:
            raise ValueError(f"forget: the range {part!r} has {count} values for {size} samples; shorten it")
        if ends and count < 1:
            raise ValueError(f"forget: the range {part!r} is empty; give FIRST..LAST with FIRST <= LAST")
        values += map(str, range(int(ends[1]), int(ends[2]) + 1)) if ends else [part]
    return values


def _parse_class(value: str, feature: ClassLabel) -> int:
    if value in feature.names:
        return feature.names.index(value)
    if value.isdecimal() and int(value) < len(feature.names):
        return int(value)
    names = ", ".join(feature.names[:8]) + (f", ... ({len(feature.names)} classes)" if len(feature.names) > 8 else "")
    raise ValueError(
        f"forget: there is no class {value!r}; the classes are {names}{did_you_mean(value, feature.names)}"
    )


def _parse_value(column: str, value: str, dtype: str) -> Any:
    """The value in the type of its column."""
    try:
        if dtype in ("string", "large_string"):
            return value
        if dtype == "bool":
            return {"true": True, "false": False}[value.lower()]
        if "int" in dtype:
            return int(value)
        if "float" in dtype:
            return float(value)
    except (ValueError, KeyError) as error:
        raise ValueError(f"forget: column {column!r} holds values of type {dtype}, not {value!r}") from error
    raise ValueError(f"forget: column {column!r} holds no plain values to choose by; use {GRAMMAR}")
