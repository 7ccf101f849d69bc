"""Which column of a dataset holds what, and how it is replaced by the model's inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from datasets import Array2D, Array3D, Audio, ClassLabel, Dataset, Features, Image, List, Value

# The usual names of a column, by its role; the first one present is taken.
USUAL_NAMES = {
    "image": ("image", "img"),
    "audio": ("audio", "file", "path"),
    "text": ("text", "sentence", "transcription", "transcript", "normalized_text"),
    "label": ("label", "labels"),
    "prompt": ("prompt", "question", "source", "document"),
    "completion": ("completion", "answer", "target", "summary"),
    "messages": ("messages",),
}
ROLES = (*USUAL_NAMES, "text_pair")
# What a model learns from a sample, rather than what the sample is.
LABELS = ("label", "labels", "label_ids", "start_positions", "end_positions")
FEATURE_TYPES = {"image": Image, "audio": Audio, "label": ClassLabel}


class Columns:
    """Samples, and the roles of their columns.

    Args:
        samples: the samples.
        given: role to column name, where that is not the usual one.
    """

    def __init__(self, samples: Dataset, given: dict[str, str]):
        self.samples, self.given = samples, given
        for role, name in given.items():
            if name not in samples.column_names:
                raise ValueError(f"columns: there is no column {name!r} for {role}, only {samples.column_names}")

    def find(self, role: str) -> str | None:
        """The name of the column with this role: as given, of a usual name, or the only one of the role's type."""
        if role in self.given:
            return self.given[role]
        if names := [name for name in USUAL_NAMES.get(role, ()) if name in self.samples.column_names]:
            return names[0]
        feature_type = FEATURE_TYPES.get(role, ())
        typed = [name for name, feature in self.samples.features.items() if isinstance(feature, feature_type)]
        return typed[0] if len(typed) == 1 else None

    def need(self, role: str) -> str:
        """As `find`.

        Raises:
            ValueError: there is no such column.
        """
        name = self.find(role)
        if name is None:
            raise ValueError(
                f"columns: none of {self.samples.column_names} is known as {role}; say which, as {role}=its name"
            )
        return name

    def apply(self, convert: Callable, used: Sequence[str], batch_size: int, **settings: Any) -> Dataset:
        """The samples with the columns that `convert` makes of batches in place of those in `used`."""
        # Also brings the tokenizer into its final state, which is part of the cache's fingerprint.
        first = convert(self.samples[:1], **settings)
        remaining = {name: feature for name, feature in self.samples.features.items() if name not in used}
        converted = {name: _feature(values[0]) for name, values in first.items()}
        return self.samples.map(
            convert, batched=True, batch_size=batch_size, writer_batch_size=batch_size, remove_columns=list(used),
            features=Features(remaining | converted), fn_kwargs=settings, desc="Preparing samples",
        )  # fmt: skip


def is_transformed(dataset: Any) -> bool:
    """Whether a transform makes a dataset's columns when they are read (`set_transform`, `with_transform`)."""
    return isinstance(dataset, Dataset) and dataset.format["type"] == "custom"


def column_names(dataset: Any) -> list[str]:
    """The stored columns of a dataset; of one that is no `datasets.Dataset`, the names in its first sample."""
    return list(dataset.column_names) if isinstance(dataset, Dataset) else list(dataset[0])


def inputs_among(dataset: Any, columns: Sequence[str]) -> list[str]:
    """The stored columns of a dataset that are inputs of a model, labels aside.

    Empty where a transform or the collator makes the inputs.

    Args:
        dataset: the samples.
        columns: what the model reads (`hf_unlearn.data.collator.columns_read`).
    """
    if is_transformed(dataset):
        return []
    return [name for name in column_names(dataset) if name in columns and name not in LABELS]


def content_columns(dataset: Any) -> list[str]:
    """The columns that hold what raw samples are, and their labels: of a usual name, or of type image or audio.

    Neither numbers of samples nor other attributes (a speaker, a licence). Empty where no such column has content.
    """
    content = {name for role, names in USUAL_NAMES.items() if role != "label" for name in names}
    features = dataset.features if isinstance(dataset, Dataset) else {}
    names = column_names(dataset)
    found = [name for name in names if name in content or isinstance(features.get(name), (Image, Audio))]
    return [name for name in names if name in found or name in LABELS] if found else []


def _feature(value: Any) -> Any:
    if np.ndim(value) == 1:
        return List(Value("float32" if isinstance(value, np.ndarray) else "int64"))
    # Features of audio vary in length along their first axis.
    return Array3D(value.shape, "float32") if value.ndim == 3 else Array2D((None, value.shape[1]), "float32")
