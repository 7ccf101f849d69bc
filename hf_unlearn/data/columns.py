"""Which column of a dataset holds what, and how it is replaced by the model's inputs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from datasets import Array2D, Array3D, Audio, ClassLabel, Dataset, Features, Image, List, Value

from hf_unlearn._version import __version__
from hf_unlearn.names import did_you_mean

logger = logging.getLogger(__name__)
# The usual names of a column, by its role; the first one present is taken.
USUAL_NAMES = {
    "image": ("image", "img"),
    "audio": ("audio", "file", "path"),
    "text": ("text", "sentence", "transcription", "transcript", "normalized_text"),
    "label": ("label", "labels"),
    "prompt": ("prompt", "question", "instruction", "source", "document"),
    "completion": ("completion", "answer", "output", "response", "target", "summary"),
    "messages": ("messages", "conversations", "conversation"),
}
ROLES = (*USUAL_NAMES, "text_pair", "input")
# What a model learns from a sample, rather than what the sample is.
LABELS = ("label", "labels", "label_ids", "start_positions", "end_positions")
FEATURE_TYPES = {"image": Image, "audio": Audio, "label": ClassLabel}
# Of a causal language model: 1 at the tokens that are labels, in samples without labels.
LABEL_MASKS = ("completion_mask", "assistant_masks")


class Columns:
    """Samples, and the roles of their columns.

    Args:
        samples: the samples.
        given: role to column name, where that is not the usual one.
        name: of the dataset, for errors and warnings.
    """

    def __init__(self, samples: Dataset, given: dict[str, str], name: str = "samples"):
        self.samples, self.given, self.name = samples, given, name
        for role, column in given.items():
            if column not in samples.column_names:
                names = samples.column_names
                raise ValueError(
                    f"columns: there is no column {column!r} for {role}, only {names}{did_you_mean(column, names)}"
                )

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

    def apply(
        self,
        convert: Callable,
        used: Sequence[str],
        batch_size: int,
        notices: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> Dataset:
        """The samples with the columns that `convert` makes of batches in place of those in `used`.

        Args:
            convert: `convert(batch, places, **settings)`, where `places` names every sample of the batch for errors.
            used: the columns that it reads.
            batch_size: samples in memory at a time.
            notices: name of a column of truth values that `convert` makes, too, to what it says of the samples where
                it is true: their number is logged, and the column removed.
            **settings: for `convert`.
        """
        settings = {"convert": convert, "name": self.name, "version": __version__, "settings": settings}
        # Also brings the tokenizer into its final state, which is part of the cache's fingerprint.
        first = _convert(self.samples[:1], [0], **settings)
        remaining = {name: feature for name, feature in self.samples.features.items() if name not in used}
        converted = {name: _feature(values[0]) for name, values in first.items()}
        prepared = self.samples.map(
            _convert, batched=True, with_indices=True, batch_size=batch_size, writer_batch_size=batch_size,
            remove_columns=list(used), features=Features(remaining | converted), fn_kwargs=settings,
            desc="Preparing samples",
        )  # fmt: skip
        for column, statement in (notices or {}).items():
            numbers = np.flatnonzero(prepared.with_format("numpy")[column])
            if len(numbers):
                logger.warning(
                    f"{self.name}: {len(numbers)} of {len(prepared)} samples {statement}; the first is {numbers[0]}"
                )
        return prepared.remove_columns(list(notices or {}))


def _convert(batch: dict, indices: list[int], *, convert: Callable, name: str, version: str, settings: dict) -> dict:
    """A batch, converted. Samples in the cache that another version has made are not read."""
    return convert(batch, [f"{name}: sample {index}" for index in indices], **settings)


@contextmanager
def located(place: str, column: str, problem: str) -> Iterator[None]:
    """Turn an error of a library that reads a cell into one line that says which cell it is.

    Args:
        place: dataset and number of the sample.
        column: of the cell.
        problem: what an error in the block means.
    """
    try:
        yield
    except ImportError:
        raise  # no fault of the cell
    except Exception as error:
        reason = " ".join(str(error).split("\n")[0].split(" <")[0].split())  # without the address of an object
        raise ValueError(
            f"{place}, column {column!r}: {problem} ({reason}); mend it, or take the sample out"
        ) from error


def text_of(cell: Any, place: str, column: str, what: str = "text") -> str:
    """The text in a cell.

    Raises:
        ValueError: there is none.
    """
    if isinstance(cell, str) and cell.strip():
        return cell
    found = "is empty" if cell is None or cell == "" or isinstance(cell, (str, float)) else f"holds {cell!r:.40}"
    raise ValueError(f"{place}, column {column!r}: {found}; give a {what}, or take the sample out")


def file_of(cell: Any, place: str, column: str) -> dict[str, Any]:
    """The undecoded file in a cell of an image or a sound: its bytes, or its path.

    Raises:
        ValueError: there is none.
    """
    if cell is None or not (cell["bytes"] or cell["path"]):
        raise ValueError(f"{place}, column {column!r}: is empty; give a file, or take the sample out")
    return cell


def is_transformed(dataset: Any) -> bool:
    """Whether a transform makes a dataset's columns when they are read (`set_transform`, `with_transform`)."""
    return isinstance(dataset, Dataset) and dataset.format["type"] == "custom"


def column_names(dataset: Any) -> list[str]:
    """The columns that a dataset says it has; of one that says nothing, the names in its first sample."""
    return list(dataset.column_names if hasattr(dataset, "column_names") else dataset[0])


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
    """The columns that hold what raw samples are, and their labels: of a usual name, or neither a number nor a text.

    Neither numbers of samples nor other attributes (a speaker, a licence). Empty where no such column has content.
    """
    content = {"input", *(name for role, names in USUAL_NAMES.items() if role != "label" for name in names)}
    names = column_names(dataset)
    if not {"source", "target"} <= set(names):
        content -= {"source", "target"}  # alone, where a sample is from, and its class
    entries = dataset.features if isinstance(dataset, Dataset) else dataset[0]
    found = [name for name in names if name not in LABELS and (name in content or not _is_plain(entries[name]))]
    return [name for name in names if name in found or name in LABELS] if found else []


def _is_plain(cell: Any) -> bool:
    """Whether a cell, or the type of a column, is one number or text."""
    return isinstance(cell, (Value, ClassLabel, str, int, float, type(None))) or getattr(cell, "ndim", 1) == 0


def _feature(value: Any) -> Any:
    if isinstance(value, bool):
        return Value("bool")
    if np.ndim(value) == 1:
        return List(Value("float32" if isinstance(value, np.ndarray) else "int64"))
    # Features of audio vary in length along their first axis.
    return Array3D(value.shape, "float32") if value.ndim == 3 else Array2D((None, value.shape[1]), "float32")
