"""The label column of samples, with the class numbers of a model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, List, Value

from hf_unlearn.data.columns import Columns

logger = logging.getLogger(__name__)


def label_settings(samples: Dataset, columns: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Settings of a model's configuration for the classes that the label column names; empty if it names none.

    Args:
        samples: as for `prepare`.
        columns: as for `prepare`.

    Examples:
        >>> emotions = List(ClassLabel(names=["joy", "fear"]))
        >>> settings = label_settings(Dataset.from_dict({"label": [[0, 1]]}, Features({"label": emotions})))
        >>> settings["label2id"], settings["problem_type"]
        ({'joy': 0, 'fear': 1}, 'multi_label_classification')
    """
    feature = samples.features.get(Columns(samples, dict(columns or {})).find("label"))
    problem_type = {"problem_type": "multi_label_classification"} if isinstance(feature, List) else {}
    feature = feature.feature if isinstance(feature, List) else feature
    if not isinstance(feature, ClassLabel):
        return {}
    id2label = dict(enumerate(feature.names))
    return {"id2label": id2label, "label2id": {name: i for i, name in id2label.items()}, **problem_type}


def with_labels(raw: Columns, config: Any, kind: str) -> Dataset:
    """The samples with their labels in the column `label`, with the class numbers of the model."""
    column, samples = raw.need("label"), raw.samples
    if column != "label":
        if "label" in samples.column_names:
            raise ValueError(f"columns: label is {column!r}, but there is another column 'label'; remove one of them")
        samples = samples.rename_column(column, "label")
    feature, dtype = samples.features["label"], getattr(samples.features["label"], "dtype", "")
    if kind == "multi_label" and isinstance(feature, List):
        return _with_indicators(samples, config.num_labels)
    if kind != "single_label":
        return samples
    names = [config.id2label[i] for i in range(config.num_labels)]
    has_names = names != [f"LABEL_{i}" for i in range(config.num_labels)]
    if isinstance(feature, ClassLabel):
        return _aligned(samples, names) if has_names else samples
    if "string" in dtype or ("int" in dtype and has_names):
        valid = set(names) if "string" in dtype else set(range(len(names)))
        if unknown := sorted(set(samples.unique("label")) - valid, key=str):
            raise ValueError(f"label: the model has no class {unknown[0]!r}; its classes are {names[:8]}")
        return samples.cast_column("label", ClassLabel(names=names))
    return samples


def _aligned(samples: Dataset, names: list[str]) -> Dataset:
    """The samples with the class numbers that belong to `names`, if these include the names of their own classes."""
    sample_names = samples.features["label"].names
    if sample_names == names:
        return samples
    if {name.lower() for name in sample_names} <= {name.lower() for name in names}:
        return samples.align_labels_with_mapping({name: i for i, name in enumerate(names)}, "label")
    logger.warning(
        f"label: the class names of the samples ({', '.join(sample_names[:4])}, ...) are not those of the model "
        f"({', '.join(names[:4])}, ...); the class numbers are used unchanged"
    )
    return samples


def _with_indicators(samples: Dataset, classes: int) -> Dataset:
    """Lists of class numbers as zeros and ones [classes]; samples that have such indicators already are unchanged."""
    if isinstance(samples.features["label"].feature, Value) and "float" in samples.features["label"].feature.dtype:
        return samples

    def indicators(batch: dict) -> dict:
        return {"label": [np.isin(range(classes), numbers).astype(np.float32) for numbers in batch["label"]]}

    features = Features({**samples.features, "label": List(Value("float32"))})
    return samples.map(indicators, batched=True, features=features, desc="Preparing labels")
