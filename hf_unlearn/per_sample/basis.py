"""All retain samples of one optimizer step, over its batches and processes: their inner products and weighted sums."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from hf_unlearn.per_sample import PerSampleGradients
from hf_unlearn.per_sample.factors import Recording
from hf_unlearn.per_sample.gram import Gradient, add_up, combine, cross, gram, processes, split, weighted_sum
from hf_unlearn.per_sample.loop import Batch, batch_size, part
from hf_unlearn.per_sample.projection import far_from_dependent

logger = logging.getLogger(__name__)
GRAM_CACHES = ("auto", "keep", "recompute")


class Basis:
    """What was recorded of the samples so far, or their batches, to record them again whenever they are needed.

    Args:
        per_sample: gives the gradients.
        cache: `"keep"` what was recorded; `"recompute"`: record every pair of chunks anew, in the memory of two;
            `"auto"`: keep, unless that would fill more than half of the free memory.
    """

    def __init__(self, per_sample: PerSampleGradients, cache: str = "auto"):
        self.per_sample, self.cache = per_sample, cache
        self.recordings: list[Recording] = []
        self._batches: list[Batch] = []

    def add(self, batch: Batch, rows: int, batches: int) -> Tensor:
        """Take in a batch of a step of so many `batches`, `rows` at a time; returns its losses."""
        size, losses = batch_size(batch), []
        for start in range(0, size, rows):
            chunk = part(batch, start, start + rows)
            recording = self.per_sample(chunk)
            losses.append(recording.losses)
            if self.cache == "auto":
                self.cache = self._choice(recording, -(-size // rows) * batches)
            if self.cache == "recompute":
                self._batches.append(chunk)
                recording = Recording(recording.losses, {})
            self.recordings.append(recording)
        return torch.cat(losses)

    def clear(self) -> None:
        """Forget the step."""
        self.recordings, self._batches = [], []

    @property
    def losses(self) -> Tensor:
        """Of this process's samples."""
        return torch.cat([recording.losses for recording in self.recordings])

    def gram(self, gradient: Gradient, per_tensor: bool) -> dict[str, tuple[Tensor, Tensor]]:
        """As `gram`, in float32 where that is good enough; every step decides, as a resumed run must do the same."""
        products = self._gram(gradient, per_tensor, precise=False)
        if all(not inner.isfinite().all() or far_from_dependent(inner) for inner, _ in products.values()):
            return products
        return self._gram(gradient, per_tensor, precise=True)

    def cross(self, gradient: Gradient) -> Tensor:
        """As `cross`."""
        if not self._batches:
            return cross(self.recordings, gradient)
        parts = [cross([self._again(batch)], gradient).view(processes(), -1) for batch in self._batches]
        return torch.cat(parts, 1).flatten()

    def combine(self, weights: Mapping[str, Tensor], like: Gradient) -> dict[str, Tensor]:
        """As `combine`."""
        if not self._batches:
            return combine(self.recordings, weights, like)
        total = {name: torch.zeros_like(g) for name, g in like.items()}
        shares = {name: split(w, self.recordings) for name, w in weights.items()}
        for i, batch in enumerate(self._batches):
            own = weighted_sum([self._again(batch)], {name: s[i : i + 1] for name, s in shares.items()}, like)
            total = {name: t + own[name] for name, t in total.items()}
        return {name: add_up(t) for name, t in total.items()}

    def _gram(self, gradient: Gradient, per_tensor: bool, precise: bool) -> dict[str, tuple[Tensor, Tensor]]:
        if not self._batches:
            return gram(self.recordings, gradient, per_tensor, precise)
        sizes = [len(recording.losses) for recording in self.recordings]
        places = torch.arange(processes() * sum(sizes)).view(processes(), -1).split(sizes, 1)
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for i, batch in enumerate(self._batches):
            first = self._again(batch)
            for j in range(i, len(self._batches)):
                pair = [first] if i == j else [first, self._again(self._batches[j])]
                index = (places[i] if i == j else torch.cat([places[i], places[j]], 1)).flatten()
                for name, (inner, slopes) in gram(pair, gradient, per_tensor, precise).items():
                    n = processes() * sum(sizes)
                    whole = found.setdefault(name, (inner.new_zeros(n, n), slopes.new_zeros(n)))
                    whole[0][index[:, None], index], whole[1][index] = inner, slopes
        return found

    def _again(self, batch: Batch) -> Recording:
        with torch.enable_grad():
            return self.per_sample(batch)

    def _choice(self, recording: Recording, chunks: int) -> str:
        device = recording.losses.device
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
        too_much = torch.tensor(float(recording.bytes * chunks > free / 2), device=device)
        if processes() > 1:
            dist.all_reduce(too_much, dist.ReduceOp.MAX)
        if not too_much:
            return "keep"
        logger.warning(
            f"Keeping what the {chunks} chunks of retain rows of a step leave behind would take "
            f"{recording.bytes * chunks / 2**30:.1f} GiB; they are run again instead: "
            f"{chunks * (chunks + 1) // 2} times for the inner products and once more each for the update"
        )
        return "recompute"
