"""The label column of samples, with the class numbers of a model."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, List, Value

from hf_unlearn.data.columns import Columns

logger = logging.getLogger(__name__)


def label_settings(samples: Dataset, columns: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Settings of a fresh head for the classes of the label column; empty if there is none.

    A `ClassLabel` names them. Of a column of texts they are the values, sorted; of whole numbers, those from 0 to the
    largest. Floats are the targets of a regression; lists of classes mean several labels a sample.

    Args:
        samples: as for `prepare`.
        columns: as for `prepare`.

    Raises:
        ValueError: a label is empty, or a class is a negative number.

    Examples:
        >>> emotions = List(ClassLabel(names=["joy", "fear"]))
        >>> settings = label_settings(Dataset.from_dict({"label": [[0, 1]]}, Features({"label": emotions})))
        >>> settings["label2id"], settings["problem_type"]
        ({'joy': 0, 'fear': 1}, 'multi_label_classification')
        >>> label_settings(Dataset.from_dict({"label": ["b", "a", "b"]}))["label2id"]
        {'a': 0, 'b': 1}
    """
    raw = Columns(samples, dict(columns or {}))
    column = raw.find("label")
    feature = samples.features.get(column)
    is_list = isinstance(feature, List)
    problem_type = {"problem_type": "multi_label_classification"} if is_list else {}
    feature = feature.feature if is_list else feature
    if isinstance(feature, ClassLabel):
        return {**_names(feature.names), **problem_type}
    dtype = getattr(feature, "dtype", "")
    if column is None or not dtype or ("float" in dtype and is_list):
        return {}
    _check_labels(raw, column)
    if "float" in dtype:
        return {"num_labels": 1, "problem_type": "regression"}
    values = samples.with_format(None)[column]
    if is_list and _are_indicators(values, dtype, len(values[0]) if values else 0):
        return {}
    distinct = sorted({value for cell in values for value in cell} if is_list else set(values))
    if "string" in dtype:
        return {**_names(distinct), **problem_type}
    return {"num_labels": int(distinct[-1]) + 1 if distinct else 1, **problem_type}


def _names(names: Sequence[str]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


def _check_labels(raw: Columns, column: str) -> None:
    """Refuse labels that are empty, not finite, or negative class numbers (-1 marks a sample without a label).

    Raises:
        ValueError: one line that names dataset, sample and column.
    """
    for index, cell in enumerate(raw.samples.with_format(None)[column]):
        for value in cell if isinstance(cell, list) else [cell]:
            empty = value is None or value == "" or (isinstance(value, float) and not math.isfinite(value))
            if empty or (isinstance(value, int) and value < 0):
                found = "is empty" if value is None or value == "" else f"is {value}"
                raise ValueError(
                    f"{raw.name}: sample {index}, column {column!r}: {found}; give a label, or take the sample out"
                )


def with_labels(raw: Columns, config: Any, kind: str) -> Dataset:
    """The samples with their labels in the column `label`, with the class numbers of the model."""
    column, samples = raw.need("label"), raw.samples
    _check_labels(raw, column)
    if column != "label":
        if "label" in samples.column_names:
            raise ValueError(f"columns: label is {column!r}, but there is another column 'label'; remove one of them")
        samples = samples.rename_column(column, "label")
    feature, dtype = samples.features["label"], getattr(samples.features["label"], "dtype", "")
    names = [config.id2label[i] for i in range(config.num_labels)]
    if kind == "multi_label" and isinstance(feature, List):
        return _with_indicators(samples, names)
    if kind != "single_label":
        return samples
    if dtype == "bool":
        samples, dtype = samples.cast_column("label", Value("int64")), "int64"
    has_names = names != [f"LABEL_{i}" for i in range(config.num_labels)]
    if isinstance(feature, ClassLabel):
        return _aligned(samples, names) if has_names else samples
    if "string" in dtype or "int" in dtype:
        valid = set(names) if "string" in dtype else set(range(len(names)))
        if unknown := sorted(set(samples.unique("label")) - valid, key=str):
            raise ValueError(f"label: the model has no class {unknown[0]!r}; its classes are {names[:8]}")
        return samples.cast_column("label", ClassLabel(names=names)) if "string" in dtype or has_names else samples
    return samples


def _aligned(samples: Dataset, names: list[str]) -> Dataset:
    """The samples with the class numbers that belong to `names`, if these include the names of their own classes."""
    sample_names = samples.features["label"].names
    if sample_names == names:
        return samples
    if set(sample_names) <= set(names):
        numbers = [names.index(name) for name in sample_names]
        features = Features({**samples.features, "label": ClassLabel(names=names)})
        return samples.map(_renumbered, batched=True, fn_kwargs={"numbers": numbers}, features=features)
    lowered = {name.lower() for name in names}
    keeps_apart = len(lowered) == len(names) and len({name.lower() for name in sample_names}) == len(sample_names)
    if keeps_apart and {name.lower() for name in sample_names} <= lowered:
        return samples.align_labels_with_mapping({name: i for i, name in enumerate(names)}, "label")
    logger.warning(
        f"label: the class names of the samples ({', '.join(sample_names[:4])}, ...) are not those of the model "
        f"({', '.join(names[:4])}, ...); the class numbers are used unchanged"
    )
    return samples


def _renumbered(batch: dict, numbers: list[int]) -> dict:
    return {"label": [numbers[value] for value in batch["label"]]}


def _are_indicators(entries: Sequence[list], dtype: str, size: int) -> bool:
    """Whether lists of truth values or whole numbers are zeros and ones [size]: classes of a sample never repeat."""
    if "int" not in dtype:
        return dtype == "bool"
    is_binary = all(len(cell) == size and set(cell) <= {0, 1} for cell in entries)
    return is_binary and any(len(set(cell)) < len(cell) for cell in entries)


def _with_indicators(samples: Dataset, names: list[str]) -> Dataset:
    """Lists of classes as zeros and ones [classes]; samples that have such indicators already are unchanged."""
    feature = samples.features["label"].feature
    if isinstance(feature, Value) and "float" in feature.dtype:
        return samples
    entries = samples.with_format(None)["label"]
    if isinstance(feature, Value) and _are_indicators(entries, feature.dtype, len(names)):
        return samples.cast_column("label", List(Value("float32")))
    classes: list = names if getattr(feature, "dtype", "") == "string" else list(range(len(names)))
    values = {value for cell in entries for value in cell}
    if unknown := sorted(values - set(classes), key=str):
        raise ValueError(f"label: the model has no class {unknown[0]!r}; its classes are {names[:8]}")

    def indicators(batch: dict) -> dict:
        return {"label": [np.isin(classes, cell).astype(np.float32) for cell in batch["label"]]}

    features = Features({**samples.features, "label": List(Value("float32"))})
    return samples.map(indicators, batched=True, features=features, desc="Preparing labels")
