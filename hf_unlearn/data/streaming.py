"""Retain samples from a stream: read in order, without the samples to forget, and gone on with from where it was."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import datasets
import fsspec
import numpy as np
from datasets.distributed import split_dataset_by_node
from torch.utils.data import get_worker_info

from hf_unlearn.data.columns import LABELS, column_names, is_transformed
from hf_unlearn.data.hashing import compared_columns, sample_hash
from hf_unlearn.data.splitting import LABEL_COLUMNS, check_map_style, column_of
from hf_unlearn.data.types import AnyDataset

# Samples of a stream that are kept to be measured, before and after: as many as fit into memory, of images, too.
HEAD_SAMPLES = 1000


@dataclass(frozen=True)
class SamplesToForget:
    """What samples of a stream are compared with: those that are equal, or of a forgotten class, are left out.

    Attributes:
        hashes: of the forget samples; see `sample_hash`.
        columns: that the hashes are made of.
        telling: hashes of the one column that tells most forget samples apart: few samples take more than it.
        telling_column: its name.
        label_column: of the labels; None where no class is forgotten.
        classes: those that are forgotten.
    """

    hashes: frozenset[bytes]
    columns: tuple[str, ...]
    telling: frozenset[bytes]
    telling_column: str
    label_column: str | None = None
    classes: frozenset[Any] = field(default_factory=frozenset)

    def __contains__(self, sample: Mapping[str, Any]) -> bool:
        if self.label_column is not None and int(sample[self.label_column]) in self.classes:
            return True
        if sample_hash(sample, (self.telling_column,)) not in self.telling:
            return False
        return sample_hash(sample, self.columns) in self.hashes

    @classmethod
    def of(cls, forget_ds: AnyDataset, columns: list[str] | None) -> SamplesToForget:
        """The forget samples, on the columns that datasets are compared on.

        Args:
            forget_ds: the forget dataset.
            columns: that the model reads; see `compared_columns`.

        Raises:
            ValueError: its samples cannot be told from others; one line.
        """
        check_map_style("forget_ds", forget_ds)
        if len(forget_ds) == 0:
            raise ValueError("forget_ds: is empty; give at least one sample")
        if is_transformed(forget_ds):
            raise ValueError(
                "forget_ds: has a transform, and retain_ds is a stream, whose samples are compared as they are read; "
                "use map for both"
            )
        compared = tuple(compared_columns(forget_ds, columns))
        if set(compared) <= set(LABELS):
            raise ValueError(
                f"forget_ds: stores {', '.join(column_names(forget_ds))}, by which its samples cannot be found in a "
                "stream; give samples that are ready for the model"
            )
        if sample_hash(forget_ds[0], compared) != sample_hash(forget_ds[0], compared):
            raise ValueError(
                "forget_ds: a sample is another each time it is read, and cannot be found in a stream; give the "
                "samples without random augmentation"
            )
        hashes, by_column = set(), {column: set[bytes]() for column in compared}
        for number in range(len(forget_ds)):
            sample = forget_ds[number]
            hashes.add(sample_hash(sample, compared))
            for column, told in by_column.items():
                told.add(sample_hash(sample, (column,)))
        column = max(compared, key=lambda column: len(by_column[column]))
        return cls(frozenset(hashes), compared, frozenset(by_column[column]), column)


class RetainStream:
    """A retain dataset of unknown length, without the samples to forget that come along in it.

    Its head is read once and kept: it stands for the retain dataset wherever one is measured.

    Args:
        dataset: the stream, the same one on every process; the readers share it out.
        to_forget: the samples that are left out.

    Attributes:
        head: the first samples that are kept, at most 1,000.

    Raises:
        ValueError: the stream gives other samples when it is read again; one line.
    """

    def __init__(self, dataset: datasets.IterableDataset, to_forget: SamplesToForget):
        self.dataset, self.to_forget = dataset, to_forget
        self._has_exact_state = True
        self.head = self._read_head()

    def leave_out_classes(self, forget_ds: AnyDataset) -> None:
        """Leave out all samples of the forget samples' classes, too; the head is read again.

        Raises:
            ValueError: samples store no label, or several; one line.
        """
        names = [name for name in LABEL_COLUMNS if name in column_names(forget_ds)]
        if not names or np.ndim(forget_ds[0][names[0]]) != 0:
            found = "several labels a sample" if names else "labels that are not stored"
            raise ValueError(
                f'request: "class" with {found} takes all of retain_ds to know what is forgotten, and it is a stream; '
                'load it whole (streaming=False), or use request="samples"'
            )
        classes = frozenset(column_of(forget_ds, names[0]))
        self.to_forget = replace(self.to_forget, label_column=names[0], classes=classes)
        self.head = self._read_head()

    def reader(self, number: int = 0, readers: int = 1, state: Mapping[str, Any] | None = None) -> StreamReader:
        """The reader of one of `readers` parts of the stream, at its beginning or at a `StreamReader.state`."""
        return StreamReader(self.dataset, self.to_forget, number, readers, self._has_exact_state, state)

    def count_readers(self, processes: int, workers: int) -> int:
        """Into how many parts the stream is shared out: one a worker, where it has as many shards for each.

        Args:
            processes: of the run.
            workers: of the data loader of a process; 0 counts as one.
        """
        readers = processes * max(1, workers)
        return readers if self.dataset.num_shards % readers == 0 else 1

    def _read_head(self) -> list[dict[str, Any]]:
        reader = self.reader()
        head = list(islice(reader.rest_of_pass, 1))
        state = reader.state()
        head += islice(reader.rest_of_pass, HEAD_SAMPLES - 1)
        if not head:
            raise ValueError("retain_ds: is empty, or holds samples to forget alone; give at least one other sample")
        if len(head) > 1 and not self._goes_on(state, head[1]):
            self._has_exact_state = False  # a buffer of shuffled samples is no part of the state
            if not self._goes_on({**state, "dataset": None}, head[1]):
                raise ValueError(
                    "retain_ds: is a stream that gives other samples each time it is read, in which samples to forget "
                    "cannot be found; leave random augmentation out, and give shuffle a seed"
                )
        return head

    def _goes_on(self, state: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
        """Whether a reader goes on from a state with the sample that is expected."""
        verbosity = datasets.logging.get_verbosity()
        datasets.logging.set_verbosity_error()  # it warns of what is tried here
        try:
            sample = next(self.reader(state=state).rest_of_pass, {})
        finally:
            datasets.logging.set_verbosity(verbosity)
        return sample_hash(sample, self.to_forget.columns) == sample_hash(expected, self.to_forget.columns)


@dataclass
class _Counts:
    """Passes over the stream; samples read in this one, kept in all, and left out in all."""

    passes: int = 0
    read: int = 0
    kept: int = 0
    skipped: int = 0


class StreamReader:
    """Reads a part of a stream in order; where the stream ends, it begins again, as its next epoch.

    Args:
        dataset: the whole stream.
        to_forget: the samples that are left out.
        number: of this part.
        readers: parts that the stream is shared out into.
        has_exact_state: whether the stream goes on from its own state exactly; otherwise it is read again up to there.
        state: to go on from.

    Attributes:
        rest_of_pass: the samples that are kept, until the stream ends.
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        to_forget: SamplesToForget,
        number: int,
        readers: int,
        has_exact_state: bool,
        state: Mapping[str, Any] | None = None,
    ):
        # A dataset of its own: the epoch of one dataset is shared by all processes that hold it.
        self._dataset = split_dataset_by_node(dataset, number, readers)
        self._to_forget, self._has_exact_state = to_forget, has_exact_state
        state = state or {"pass": 0, "read": 0, "place": 0, "skipped": 0, "dataset": None}
        self._counts = _Counts(state["pass"], state["read"], state["place"], state["skipped"])
        self.rest_of_pass = self._open(state["dataset"])

    @property
    def place(self) -> int:
        """How many samples were kept so far."""
        return self._counts.kept

    def take(self, first: int, last: int) -> list[dict[str, Any]]:
        """The samples at the places from `first` to before `last`; those before them are read, and dropped."""
        while self.place < first:
            self._next()
        return [self._next() for _ in range(first, last)]

    def state(self) -> dict[str, Any]:
        """From where another reader of the same part goes on: plain values."""
        return {
            "pass": self._counts.passes, "read": self._counts.read, "place": self.place,
            "skipped": self._counts.skipped,
            "dataset": self._dataset.state_dict() if self._has_exact_state else None,
        }  # fmt: skip

    def _next(self) -> dict[str, Any]:
        sample = next(self.rest_of_pass, None)
        if sample is None:
            self._counts.passes, self._counts.read = self._counts.passes + 1, 0
            self.rest_of_pass = self._open(None)
            sample = next(self.rest_of_pass, None)
        if sample is None:
            raise ValueError("retain_ds: a part of the stream holds no sample to keep; give fewer, larger shards")
        return sample

    def _open(self, state: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
        """The samples that are kept of a pass, from a state of the dataset or after those that were read."""
        self._dataset.set_epoch(self._counts.passes)
        if state is not None:
            self._dataset.load_state_dict(dict(state))
        samples = _samples_in_worker(self._dataset) if get_worker_info() is not None else iter(self._dataset)
        samples = samples if state is not None else islice(samples, self._counts.read, None)
        return _kept(samples, self._to_forget, self._counts)


def _kept(samples: Iterator[dict[str, Any]], to_forget: SamplesToForget, counts: _Counts) -> Iterator[dict[str, Any]]:
    """The samples that are not to be forgotten.

    It does not know its reader, which is then freed with it as soon as nobody reads on, and not by the collector of
    cycles, at any time in any thread: a stream of several shards waits for threads of its own when it is closed, and
    waits forever in a thread that has just begun.
    """
    for sample in samples:
        counts.read += 1
        if sample in to_forget:
            counts.skipped += 1
        else:
            counts.kept += 1
            yield sample


def _samples_in_worker(dataset: datasets.IterableDataset) -> Iterator[dict[str, Any]]:
    """The samples of a part of a stream in a worker of a data loader: `iter` would share it out among all workers."""
    fsspec.asyn.reset_lock()  # the worker is a fork of a process that may have read over the network
    warnings.filterwarnings("ignore", "To copy construct")  # `datasets` makes tensors of tensors there
    for batch in dataset.iter(1):
        yield {name: values[0] for name, values in batch.items()}


def open_stream(retain_ds: Any, forget_ds: AnyDataset, columns: list[str] | None) -> RetainStream | None:
    """The stream that a retain dataset is; None where its samples have numbers.

    Args:
        retain_ds: the retain dataset.
        forget_ds: the forget dataset, whose samples are left out of the stream.
        columns: that the model reads.
    """
    if not isinstance(retain_ds, datasets.IterableDataset):
        return None
    return RetainStream(retain_ds, SamplesToForget.of(forget_ds, columns))
