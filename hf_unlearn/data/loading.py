"""Samples as they stand on the Hub or on disk, and which of them to forget, said in one line of text."""

from __future__ import annotations

import os
import re
from typing import Any

import datasets
from datasets import Audio, ClassLabel, Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetNotFoundError

FILES = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}
GRAMMAR = "COLUMN=VALUE,..., COLUMN=FIRST..LAST, 10%, fraction=0.1, samples=FIRST..LAST or indices=FILE"


# ---- samples ------------------------------------------------------------------------------------------------------


def load_samples(dataset: str, split: str | None = None) -> Dataset:
    """The samples of one split of a dataset. Sound stays undecoded.

    Args:
        dataset: name on the Hub (`name` or `name@revision`), a local folder (data files, or what `save_to_disk`
            wrote), or one file (.parquet, .json, .jsonl, .csv).
        split: `split` or `configuration:split`; a part of one (`train[:1000]`) on the Hub and of data files. Default:
            `train`, or the only one.

    Raises:
        ValueError: no such dataset, no such split (the message has those found), or a file of another kind.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(folder)
        ...     load_samples(folder)["text"][:]
        ['a', 'b']
    """
    config, _, part = (split or "").rpartition(":") if "[" not in (split or "") else _cut(split or "")
    if os.path.isfile(dataset):
        samples = _of_file(dataset, config, part or "train")
    elif _is_saved(dataset):
        samples = _of_saved(dataset, config, part)
    else:
        samples = _of_builder(dataset, config or None, part)
    for name, feature in samples.features.items():
        if isinstance(feature, Audio) and feature.decode:
            samples = samples.cast_column(name, Audio(decode=False))
    return samples


def _cut(split: str) -> tuple[str, str, str]:
    """`configuration`, `:` and the rest of a split with a part in brackets, which has colons of its own."""
    name, bracket, part = split.partition("[")
    config, colon, name = name.rpartition(":")
    return config, colon, name + bracket + part


def _of_file(path: str, config: str, split: str) -> Dataset:
    kind = FILES.get(os.path.splitext(path)[1].lower())
    if kind is None:
        raise ValueError(f"dataset: {path!r} is no data file; use one of {', '.join(FILES)}, or a folder")
    if config or re.sub(r"\[.*", "", split) != "train":
        raise ValueError(f"split: {config and config + ':'}{split} is not in {path!r}; one file has the split 'train'")
    return load_dataset(kind, data_files=path, split=split)


def _is_saved(folder: str) -> bool:
    return any(os.path.isfile(os.path.join(folder, name)) for name in ("state.json", "dataset_dict.json"))


def _of_saved(folder: str, config: str, split: str) -> Dataset:
    found = load_from_disk(folder)
    parts = found if isinstance(found, DatasetDict) else {split or "train": found}
    if config:
        raise ValueError(f"split: {config!r} is not in {folder!r}, which was saved without configurations")
    return parts[_split_of(folder, split, list(parts))]


def _of_builder(dataset: str, config: str | None, split: str) -> Dataset:
    local = os.path.isdir(dataset)
    name, _, revision = (dataset, "", "") if local else dataset.partition("@")
    try:
        splits = datasets.get_dataset_split_names(name, config, revision=revision or None)
    except (DatasetNotFoundError, ConnectionError, FileNotFoundError) as error:
        raise ValueError(
            f"dataset: {dataset!r} is no file or folder here, and not found on the Hub ({_line(error)})"
        ) from error
    except ValueError as error:
        raise ValueError(f"dataset: {dataset!r} does not load: {_line(error)}") from error
    chosen = _split_of(dataset, split, splits)
    return load_dataset(name, config, split=chosen, revision=revision or None)


def _split_of(dataset: str, split: str, found: list[str]) -> str:
    """The split that was asked for, a part of one included; without one `train`, or the only one."""
    if not split and ("train" in found or len(found) == 1):
        return "train" if "train" in found else found[0]
    if not split or re.sub(r"\[.*", "", split) not in found:
        asked = f"{split!r} is not in {dataset!r}" if split else f"say which one of {dataset!r}"
        raise ValueError(f"split: {asked}, which has {found}")
    return split


def _line(error: Exception) -> str:
    return str(error).split("\n")[0]


# ---- the forget request ------------------------------------------------------------------------------------------


def parse_forget(text: str, samples: Dataset) -> dict[str, Any]:
    """What to forget, as keywords of `hf_unlearn.split_forget_retain`.

    | text | the forget dataset |
    |---|---|
    | `label=3`, `label=Sandal` | a class, by number or by name |
    | `speaker=1272,1284` | the samples whose column holds one of the values |
    | `author_id=190..199` | the same for all whole numbers from 190 to 199 |
    | `10%`, `fraction=0.1` | a random share |
    | `samples=3800..3999` | samples by their numbers, from 0 |
    | `indices=FILE` | the sample numbers in a text file, from 0, parted by white space or commas |

    `fraction`, `samples` and `indices` are never columns. A name of a class goes before its number, and may have commas
    in it.

    Args:
        text: the request.
        samples: the samples that it is about, ready for the model; class numbers are theirs.

    Raises:
        ValueError: not of this form, an unknown column, class or file, or a value that the column cannot hold.

    Examples:
        >>> samples = Dataset.from_dict({"label": [0, 1, 1]}).cast_column("label", ClassLabel(names=["Bag", "Sandal"]))
        >>> parse_forget("label=Sandal", samples), parse_forget("10%", samples)
        ({'column': 'label', 'values': [1]}, {'fraction': 0.1})
    """
    text = text.strip()
    if re.fullmatch(r"[\d.]+\s*%", text):
        return {"fraction": _fraction(text.rstrip("% "), text, 100)}
    column, sign, value = (part.strip() for part in text.partition("="))
    if not (column and sign and value):
        raise ValueError(f"forget: {text!r} is no forget request; use {GRAMMAR}")
    if column == "fraction":
        return {"fraction": _fraction(value, text)}
    if column == "indices":
        return {"indices": _indices(value)}
    if column == "samples":
        return {"indices": [_value(column, each, "int64") for each in _listed(value)]}
    if column not in samples.column_names:
        raise ValueError(f"forget: there is no column {column!r}, only {samples.column_names}; use {GRAMMAR}")
    feature = samples.features[column]
    if isinstance(feature, ClassLabel):
        whole = value in feature.names
        return {"column": column, "values": [_class(v, feature) for v in ([value] if whole else _listed(value))]}
    return {"column": column, "values": [_value(column, v, getattr(feature, "dtype", "")) for v in _listed(value)]}


def _fraction(value: str, text: str, whole: int = 1) -> float:
    try:
        return float(value) / whole
    except ValueError as error:
        raise ValueError(f"forget: {text!r} names no share; use 10% or fraction=0.1") from error


def _indices(path: str) -> list[int]:
    try:
        with open(path) as file:
            return [int(word) for word in file.read().replace(",", " ").split()]
    except OSError as error:
        raise ValueError(
            f"forget: {path!r} does not open ({error.strerror}); give a file of sample numbers"
        ) from error
    except ValueError as error:
        raise ValueError(f"forget: {path!r} holds something else than sample numbers: {_line(error)}") from error


def _listed(value: str) -> list[str]:
    """The single values of a list, ranges written out."""
    found: list[str] = []
    for part in (part.strip() for part in value.split(",")):
        ends = re.fullmatch(r"(-?\d+)\s*\.\.\s*(-?\d+)", part)
        found += map(str, range(int(ends[1]), int(ends[2]) + 1)) if ends else [part]
    if not found:
        raise ValueError(f"forget: the range {value!r} is empty; give FIRST..LAST with FIRST <= LAST")
    return found


def _class(value: str, feature: ClassLabel) -> int:
    if value in feature.names:
        return feature.names.index(value)
    if value.isdigit() and int(value) < len(feature.names):
        return int(value)
    names = ", ".join(feature.names[:8]) + (f", ... ({len(feature.names)} classes)" if len(feature.names) > 8 else "")
    raise ValueError(f"forget: there is no class {value!r}; the classes are {names}")


def _value(column: str, value: str, dtype: str) -> Any:
    """A value of the type that the column has."""
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
