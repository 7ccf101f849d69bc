"""Pairs of forget and retain samples: their order over a run, and their batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler

from hf_unlearn.data.streaming import RetainStream, StreamReader
from hf_unlearn.data.types import AnyDataset


class Pair(NamedTuple):
    """One forget sample, its share of the batch's retain samples, and its number in the forget dataset.

    `alternative`: the same sample with the answer to give instead, if there is one. `stream`: of the last pair of a
    batch whose retain samples come from a stream, the number of the reader and its state after the batch.
    """

    forget: dict
    retain: list[dict]
    number: int
    alternative: dict | None = None
    stream: tuple[int, dict[str, Any]] | None = None


class PairedDataset(torch.utils.data.Dataset):
    """Pairs of forget and retain samples, in an order that depends on the seed and the position only.

    Position `t` of an endless stream is one forget sample and its share of the batch's retain samples. Consecutive
    positions make up the batches, so 1 process with batches of 8, 4 accumulated batches of 2 and 2 processes with
    batches of 4 all see the same samples in the same optimizer step. Both datasets are reshuffled at every pass.

    Args:
        forget_ds: the forget dataset.
        retain_ds: the retain dataset.
        alternative_ds: the forget dataset, sample by sample, with other answers; or None.
        forget_per_step: forget samples of one optimizer step, over all processes and accumulated batches.
        retain_per_step: retain samples of one optimizer step, likewise.
        seed: seed of the order.
    """

    def __init__(
        self,
        forget_ds: AnyDataset,
        retain_ds: AnyDataset,
        alternative_ds: AnyDataset | None = None,
        *,
        forget_per_step: int,
        retain_per_step: int,
        seed: int,
    ):
        self.forget_ds: Any = forget_ds
        self.retain_ds: Any = retain_ds
        self.alternative_ds: Any = alternative_ds
        self.seed = seed
        self.forget_per_step, self.retain_per_step = forget_per_step, retain_per_step
        forget_size, retain_size = (len(dataset) for dataset in (forget_ds, retain_ds))
        self.steps = max(math.ceil(retain_size / retain_per_step), math.ceil(forget_size / forget_per_step))
        self._orders: dict[int, tuple[int, torch.Tensor]] = {}

    def __len__(self) -> int:
        """Positions in one epoch: whole optimizer steps that cover the larger dataset once."""
        return self.steps * self.forget_per_step

    def __getitem__(self, position: int) -> Pair:
        """The pair at `position` of the endless stream (epoch 1 begins at `len(self)`)."""
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[Pair]:
        """The pairs of a batch: `datasets` reads many samples at once in the time of a few."""
        indices = [self._index(0, len(self.forget_ds), position) for position in positions]
        shares = [self._share(position) for position in positions]
        retain = iter(self._read_retain(shares))
        alternatives = [None] * len(indices) if self.alternative_ds is None else _read(self.alternative_ds, indices)
        forget = _read(self.forget_ds, indices)
        return [
            Pair(sample, [next(retain) for _ in share], index, alternative)
            for sample, share, index, alternative in zip(forget, shares, indices, alternatives, strict=True)
        ]

    def numbers(self, first_step: int, last_step: int) -> tuple[list[int], list[int]]:
        """The numbers of the forget and of the retain samples of the steps from the first to before the last."""
        positions = range(first_step * self.forget_per_step, last_step * self.forget_per_step)
        forget = {self._index(0, len(self.forget_ds), position) for position in positions}
        retain = {self._index(1, len(self.retain_ds), place) for p in positions for place in self._share(p)}
        return sorted(forget), sorted(retain)

    def _read_retain(self, shares: list[range]) -> list[dict]:
        """The retain samples of a batch, by their places."""
        return _read(
            self.retain_ds, [self._index(1, len(self.retain_ds), place) for share in shares for place in share]
        )

    def _share(self, position: int) -> range:
        """The places in the stream of retain samples that belong to a position."""
        first, last = (p * self.retain_per_step // self.forget_per_step for p in (position, position + 1))
        return range(first, last)

    def _index(self, stream: int, size: int, position: int) -> int:
        """The number of the sample at `position` of an endless stream of shuffled passes over `size` samples."""
        cycle, offset = divmod(position, size)
        if self._orders.get(stream, (None, None))[0] != cycle:
            sequence = np.random.SeedSequence(self.seed % 2**64, spawn_key=(stream, cycle))
            generator = torch.Generator().manual_seed(int(sequence.generate_state(1, np.uint64)[0]) % 2**63)
            self._orders[stream] = (cycle, torch.randperm(size, generator=generator))
        return int(self._orders[stream][1][offset])


class StreamedPairs(PairedDataset):
    """Pairs of forget samples and samples of a retain stream, whose epoch is the whole run.

    Batches are read in order. Where the stream is one part, every worker of every process reads all of it, and takes
    the samples at the places of its own batches: what is in a step does not depend on how it is split. Where each has
    a part for itself, batches take turns with the parts. The state of a part goes with the batch, which may have been
    read long before it is trained on.

    Args:
        forget_ds: the forget dataset.
        stream: the retain samples.
        alternative_ds: as of `PairedDataset`.
        forget_per_step: as of `PairedDataset`, as the next two.
        retain_per_step: likewise, a multiple of the batches of a step.
        seed: of the order of forget samples; that of the retain samples is the stream's own.
        steps: optimizer steps of the run.
        readers: parts of the stream; see `RetainStream.count_readers`.

    Attributes:
        states: where the stream is, by the numbers of the readers, as of the batches that were trained on.
    """

    def __init__(
        self,
        forget_ds: AnyDataset,
        stream: RetainStream,
        alternative_ds: AnyDataset | None = None,
        *,
        forget_per_step: int,
        retain_per_step: int,
        seed: int,
        steps: int,
        readers: int,
    ):
        super().__init__(
            forget_ds, stream.head, alternative_ds,
            forget_per_step=forget_per_step, retain_per_step=retain_per_step, seed=seed,
        )  # fmt: skip
        self.stream, self.steps, self.readers = stream, steps, readers
        self.states: dict[int, dict[str, Any]] = {}
        self._opened: dict[int, StreamReader] = {}

    def __getitems__(self, positions: Sequence[int]) -> list[Pair]:
        """The pairs of a batch; later than those of all batches before it on the same worker."""
        pairs = super().__getitems__(positions)
        number = self._batch_of([self._share(position) for position in positions]) % self.readers
        return [*pairs[:-1], pairs[-1]._replace(stream=(number, self._opened[number].state()))]

    def numbers(self, first_step: int, last_step: int) -> tuple[list[int], list[int]]:
        """As of `PairedDataset`; samples of a stream have no numbers."""
        return super().numbers(first_step, last_step)[0], []

    def remember(self, states: Iterable[tuple[int, dict[str, Any]]]) -> None:
        """Take in where the stream is after batches; of a reader that all have, what is known of the furthest."""
        for number, state in states:
            if number not in self.states or state["place"] > self.states[number]["place"]:
                self.states[number] = state

    @property
    def skipped(self) -> int:
        """How many samples to forget came along in the stream."""
        return sum(state["skipped"] for state in self.states.values())

    def _read_retain(self, shares: list[range]) -> list[dict]:
        count = shares[-1].stop - shares[0].start
        turn, number = divmod(self._batch_of(shares), self.readers)
        if number not in self._opened:
            self._opened[number] = self.stream.reader(number, self.readers, self.states.get(number))
        return self._opened[number].take(turn * count, (turn + 1) * count)

    @staticmethod
    def _batch_of(shares: list[range]) -> int:
        """The number of a batch, over all processes: all have as many retain samples."""
        return shares[0].start // (shares[-1].stop - shares[0].start)


def _read(dataset: Any, indices: list[int]) -> list[dict]:
    return dataset.__getitems__(indices) if hasattr(dataset, "__getitems__") else [dataset[i] for i in indices]


class PairSampler(Sampler[int]):
    """The positions of one epoch, in order.

    Args:
        length: positions in one epoch.
        current_epoch: gives the number of the epoch, from 0; asked when an epoch begins, as `set_epoch` of a data
            loader does not reach the sampler in a resumed run.
    """

    def __init__(self, length: int, current_epoch: Callable[[], int]):
        self.length, self.current_epoch = length, current_epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        """Positions `epoch * length` to `(epoch + 1) * length - 1`."""
        epoch = self.current_epoch()
        return iter(range(epoch * self.length, (epoch + 1) * self.length))


class PairCollator:
    """Collates pairs into `{"forget": batch, "retain": batch, "index": forget sample numbers [B]}`.

    Of a stream `"stream"` as well, see `Pair`.

    Alternatives follow the forget samples in the same batch, [2 B] samples: both go through one forward pass.
    """

    def __init__(self, collator: Callable[[list], Mapping[str, Any]]):
        self.collator = collator

    def __call__(self, pairs: list[Pair]) -> dict[str, Any]:
        """Collate the forget samples and the retain samples separately with the user's collator."""
        alternatives = [pair.alternative for pair in pairs if pair.alternative is not None]
        batch = {
            "forget": self.collator([pair.forget for pair in pairs] + alternatives),
            "retain": self.collator([sample for pair in pairs for sample in pair.retain]),
            "index": torch.tensor([pair.number for pair in pairs]),
        }
        return batch if pairs[-1].stream is None else batch | {"stream": pairs[-1].stream}
