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
from hf_unlearn.per_sample.gram import (
    Formed,
    Gradient,
    Products,
    combine,
    cross,
    gram,
    num_processes,
    split_by_recording,
    sum_over_processes,
    weighted_sum,
)
from hf_unlearn.per_sample.loop import Batch, batch_size, slice_batch
from hf_unlearn.per_sample.projection import far_from_dependent

logger = logging.getLogger(__name__)


class Basis:
    """The recordings of the samples so far, or their batches, to record them again whenever they are needed.

    Args:
        per_sample: gives the gradients.
        cache: `"keep"` the recordings; `"recompute"`: record every pair of chunks anew, in the memory of two;
            `"auto"`: keep, unless that would fill more than half of the free memory.

    Attributes:
        recordings: one a chunk, in the order of `add`; losses alone with `"recompute"`.
    """

    def __init__(self, per_sample: PerSampleGradients, cache: str = "auto"):
        self.per_sample, self.cache = per_sample, cache
        self.recordings: list[Recording] = []
        self._chunks: list[Batch] = []
        self._formed = Formed()

    def add(self, batch: Batch, chunk_size: int, batches: int) -> Tensor:
        """Record a batch of a step.

        Args:
            batch: collated samples.
            chunk_size: samples that are recorded at once.
            batches: number of batches of the step.

        Returns:
            The losses of the batch.
        """
        size, losses = batch_size(batch), []
        for start in range(0, size, chunk_size):
            chunk = slice_batch(batch, start, start + chunk_size)
            recording = self.per_sample(chunk)
            losses.append(recording.losses)
            if self.cache == "auto":
                self.cache = self._choose_cache(recording, -(-size // chunk_size) * batches)
            if self.cache == "recompute":
                self._chunks.append(chunk)
                recording = Recording(recording.losses, {})
            self.recordings.append(recording)
        return torch.cat(losses)

    def clear(self) -> None:
        """Drop the samples of the step."""
        self.recordings, self._chunks, self._formed = [], [], Formed()

    @property
    def losses(self) -> Tensor:
        """Of this process's samples."""
        return torch.cat([recording.losses for recording in self.recordings])

    def gram(self, gradient: Gradient, per_tensor: bool) -> Products:
        """As `hf_unlearn.per_sample.gram.gram`, in float32 where that is precise enough.

        Every step decides anew, so that a resumed run decides as the uninterrupted one does.
        """
        # No more than the recordings themselves take.
        self._formed = Formed(sum(recording.stored_numel for recording in self.recordings))
        products = self._gram(gradient, per_tensor, precise=False)
        if all(not gramian.isfinite().all() or far_from_dependent(gramian) for gramian, _ in products.values()):
            return products
        return self._gram(gradient, per_tensor, precise=True)

    def cross(self, gradient: Gradient) -> Tensor:
        """As `hf_unlearn.per_sample.gram.cross`."""
        if not self._chunks:
            return cross(self.recordings, gradient)
        slopes = [cross([self._record_again(chunk)], gradient).view(num_processes(), -1) for chunk in self._chunks]
        return torch.cat(slopes, 1).flatten()

    def combine(self, weights: Mapping[str, Tensor], like: Gradient) -> dict[str, Tensor]:
        """As `hf_unlearn.per_sample.gram.combine`."""
        if not self._chunks:
            return combine(self.recordings, weights, like)
        totals = {name: torch.zeros_like(g) for name, g in like.items()}
        local = {name: split_by_recording(w, self.recordings) for name, w in weights.items()}
        for i, chunk in enumerate(self._chunks):
            chunk_weights = {name: w[i : i + 1] for name, w in local.items()}
            sums = weighted_sum([self._record_again(chunk)], chunk_weights, like)
            totals = {name: total + sums[name] for name, total in totals.items()}
        return {name: sum_over_processes(total) for name, total in totals.items()}

    def add_combination(self, weights: Mapping[str, Tensor], totals: Gradient) -> None:
        """Add `combine` to totals, in place and a tensor at a time: there is no second copy of all gradients."""
        if self._chunks:
            for name, term in self.combine(weights, totals).items():
                totals[name].add_(term)
            return
        for name, total in totals.items():
            if name in self._formed.blocks:
                total.add_(self._formed.combine(name, weights[name]).view_as(total))
            else:
                total.add_(combine(self.recordings, {name: weights[name]}, {name: total})[name])

    def _gram(self, gradient: Gradient, per_tensor: bool, precise: bool) -> Products:
        if not self._chunks:
            return gram(self.recordings, gradient, per_tensor, precise, self._formed)
        sizes = [len(recording.losses) for recording in self.recordings]
        n = num_processes() * sum(sizes)
        # Of each chunk, where its samples of all processes stand among the n samples of the step.
        places = torch.arange(n).view(num_processes(), -1).split(sizes, 1)
        products: Products = {}
        for i, chunk in enumerate(self._chunks):
            first = self._record_again(chunk)
            for j in range(i, len(self._chunks)):
                pair = [first] if i == j else [first, self._record_again(self._chunks[j])]
                index = (places[i] if i == j else torch.cat([places[i], places[j]], 1)).flatten()
                for name, (gramian, slopes) in gram(pair, gradient, per_tensor, precise).items():
                    whole = products.setdefault(name, (gramian.new_zeros(n, n), slopes.new_zeros(n)))
                    whole[0][index[:, None], index], whole[1][index] = gramian, slopes
        return products

    def _record_again(self, chunk: Batch) -> Recording:
        with torch.enable_grad():
            return self.per_sample(chunk)

    def _choose_cache(self, recording: Recording, chunks: int) -> str:
        """`"keep"` or `"recompute"`, the same on every process, from the memory of the first recording."""
        device = recording.losses.device
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
        too_large = torch.tensor(float(recording.bytes * chunks > free / 2), device=device)
        if num_processes() > 1:
            dist.all_reduce(too_large, dist.ReduceOp.MAX)
        if not too_large:
            return "keep"
        logger.warning(
            f"The recorded gradients of the {chunks} chunks of retain samples of a step would take "
            f"{recording.bytes * chunks / 2**30:.1f} GiB; they are recomputed instead: "
            f"{chunks * (chunks + 1) // 2} times for the inner products and once more each for the update"
        )
        return "recompute"
