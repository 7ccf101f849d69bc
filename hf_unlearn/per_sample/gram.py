"""Inner products and weighted sums of per-sample gradients, without the matrix of all of them.

The gradients of a few rows of a weight at a time are formed from the factors, multiplied, and freed. Over several
processes each gets the gradients of all samples for its share of the columns, so nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from hf_unlearn.per_sample.factors import Dense, Outer, Recording, rows_of, summed_row_gradients

# Numbers formed at once: small beside activations, large enough for fast matrix products.
BLOCK = 2**22
# Columns multiplied at once in float32: the fewer, the less rounding adds up.
COLUMNS = 2**13
Gradient: TypeAlias = Mapping[str, Tensor]
Products: TypeAlias = dict[str, tuple[Tensor, Tensor]]


def num_processes() -> int:
    """Processes that take the step together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum over processes, in place."""
    if num_processes() > 1:
        dist.all_reduce(tensor)
    return tensor


class Formed:
    """Gradients that were formed for inner products, kept for the weighted sum, which would form them again.

    Attributes:
        numel: how many numbers may still be kept.
        blocks: by parameter its gradients, [n, columns] each, one after the other.
    """

    def __init__(self, numel: int = 0):
        self.numel = numel
        self.blocks: dict[str, list[Tensor]] = {}

    def wants(self, name: str, numel: int) -> bool:
        """Whether there is room for a parameter's gradients; takes it if so."""
        if name in self.blocks or numel > self.numel:
            return False
        self.numel -= numel
        self.blocks[name] = []
        return True

    def combine(self, name: str, weights: Tensor) -> Tensor:
        """`sum_i w_i g_i` of a parameter that is kept, flattened."""
        return torch.cat([weights.to(block) @ block for block in self.blocks[name]])


def gram(
    recordings: Sequence[Recording],
    gradient: Gradient,
    per_tensor: bool,
    precise: bool = True,
    formed: Formed | None = None,
) -> Products:
    """`K_ij = <g_i, g_j>` and `c_i = <g_i, g>`, over the samples of all processes (those of the first process first).

    Args:
        recordings: one for every batch.
        gradient: name to g, of the parameter's shape; the same on every process.
        per_tensor: one K and c for every tensor, under its name; otherwise one for all together, under "".
        precise: multiply in float64. Otherwise tensors stored as factors (large weights) are multiplied in their own
            precision, a few thousand columns at a time, and summed in float64: in float32 the error is about 5e-8
            of the norms, which is enough for vectors that are far from dependent (see `far_from_dependent`).
        formed: keeps gradients that are formed on the way, on one process.

    Returns:
        Name to K [n, n] and c [n], float64.
    """
    products: Products = {}
    for name, g in gradient.items():
        for k, c in _partial_products(recordings, name, g, precise, formed):
            key = name if per_tensor else ""
            products[key] = (products[key][0] + k, products[key][1] + c) if key in products else (k, c)
    return {key: (sum_over_processes(k), sum_over_processes(c)) for key, (k, c) in products.items()}


def _partial_products(
    recordings: Sequence[Recording], name: str, g: Tensor, precise: bool, formed: Formed | None
) -> list[tuple[Tensor, Tensor]]:
    """Parts of one tensor's K and c on this process, which add up to them."""
    factors = [f for recording in recordings for f in recording.factors[name]]
    single = factors[0] if num_processes() == len(factors) == len(recordings) == 1 else None
    if isinstance(single, Outer) and single.favours_factors:
        return [(single.gram(), single.cross(g.view(single.shape)))]
    is_dense = all(isinstance(f, Dense) for f in factors)
    dtype = torch.float64 if precise or is_dense else g.dtype
    samples = sum(len(recording.losses) for recording in recordings)
    is_kept = formed is not None and not is_dense and num_processes() == 1 and formed.wants(name, samples * g.numel())
    kept = formed.blocks[name] if formed is not None and is_kept else None
    return [
        ((grads @ grads.T).double(), (grads @ columns).double())
        for block in _blocks(recordings, name, g, dtype, kept)
        for grads, columns in zip(*(values.split(COLUMNS, -1) for values in block), strict=True)
    ]


def cross(recordings: Sequence[Recording], gradient: Gradient) -> Tensor:
    """`c_i = <g_i, g>` [n] alone, float64, over all tensors."""
    blocks = (block for name, g in gradient.items() for block in _blocks(recordings, name, g, torch.float64))
    return sum_over_processes(torch.stack([grads @ columns for grads, columns in blocks]).sum(0))


def combine(recordings: Sequence[Recording], weights: Mapping[str, Tensor], like: Gradient) -> dict[str, Tensor]:
    """`sum_i w_i g_i` over the samples of all processes.

    Args:
        recordings: as for `gram`.
        weights: parameter name to w [n], of all samples.
        like: parameter name to a tensor of its shape, type and device.
    """
    local = {name: split_by_recording(w, recordings) for name, w in weights.items()}
    return {name: sum_over_processes(total) for name, total in weighted_sum(recordings, local, like).items()}


def weighted_sum(
    recordings: Sequence[Recording], weights: Mapping[str, Sequence[Tensor]], like: Gradient
) -> dict[str, Tensor]:
    """As `combine`, over the samples of this process alone, with the weights of each recording's samples."""
    sums = {}
    for name, parameter in like.items():
        pairs = zip(recordings, weights[name], strict=True)
        terms = (f.combine(local) for recording, local in pairs for f in recording.factors[name])
        total = next(terms, None)
        if total is None:
            total = torch.zeros_like(parameter)
        for term in terms:
            total.add_(term)
        sums[name] = total.view_as(parameter)
    return sums


def split_by_recording(weights: Tensor, recordings: Sequence[Recording]) -> Sequence[Tensor]:
    """Of weights [n] of all samples, those of each of this process's recordings."""
    local = weights.view(num_processes(), -1)[dist.get_rank() if num_processes() > 1 else 0]
    return local.split([len(recording.losses) for recording in recordings])


def _blocks(
    recordings: Sequence[Recording], name: str, g: Tensor, dtype: torch.dtype, kept: list[Tensor] | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Gradients [n, columns] of all samples, and the same columns of g; of this process's share of the columns."""
    rows = rows_of(g.shape)
    flat = g.reshape(rows, -1)  # shape: [p, q]
    factors_by_recording = [recording.formed(name) for recording in recordings]
    sizes = [len(recording.losses) for recording in recordings]
    step = max(1, BLOCK // (sum(sizes) * flat.shape[1]))
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        grads = [
            summed_row_gradients(factors, start, stop)
            if factors
            else flat.new_zeros(size, (stop - start) * flat.shape[1])
            for factors, size in zip(factors_by_recording, sizes, strict=True)
        ]  # shape: [k, (stop - start) * q], one a recording
        local = grads[0] if len(grads) == 1 else torch.cat(grads)
        if kept is not None:
            kept.append(local)
        yield _exchange(local.to(dtype), flat[start:stop].flatten().to(dtype))


def _exchange(grads: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """From this process's samples and all columns to all samples and this process's columns.

    Args:
        grads: [local samples, columns].
        g: [columns].

    Returns:
        [n, columns / processes] and [columns / processes], padded with zeros.
    """
    count = num_processes()
    if count == 1:
        return grads, g
    padding = -grads.shape[1] % count
    grads, g = (torch.nn.functional.pad(values, (0, padding)) for values in (grads, g))
    sent = grads.unflatten(1, (count, -1)).transpose(0, 1).contiguous()  # shape: [processes, samples, columns]
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent)
    return received.flatten(0, 1), g.view(count, -1)[dist.get_rank()]
