"""Inner products and weighted sums of per-sample gradients, without the matrix of all of them.

Samples of a few columns at a time are formed from the factors, multiplied, and let go. Over several processes every one
gets the rows of all samples for its share of the columns, so nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from hf_unlearn.per_sample.factors import Dense, Later, Outer, Recording

# Numbers formed at once: small beside activations, large enough for fast matrix products.
BLOCK = 2**22
# Columns multiplied at once in float32: the shorter, the less rounding adds up.
PIECE = 2**13
Gradient = Mapping[str, Tensor]


def processes() -> int:
    """Processes that take the step together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def add_up(tensor: Tensor) -> Tensor:
    """The sum over processes, in place."""
    if processes() > 1:
        dist.all_reduce(tensor)
    return tensor


def gram(
    recordings: Sequence[Recording], gradient: Gradient, per_tensor: bool, precise: bool = True
) -> dict[str, tuple[Tensor, Tensor]]:
    """`K_ij = <g_i, g_j>` and `c_i = <g_i, g>`, over the samples of all processes (those of the first one first).

    Args:
        recordings: one for every batch.
        gradient: name to g, of the parameter's shape; the same on every process.
        per_tensor: one K and c for every tensor, under its name; otherwise one for all together, under "".
        precise: multiply in float64. Otherwise tensors kept as factors (large weights) are multiplied in their own
            precision, a few thousand columns at a time, and added up in float64: in float32 the error is about 5e-8
            of the norms, good for vectors that are far from dependent (see `far_from_dependent`).

    Returns:
        Name to K [n, n] and c [n], float64.
    """
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name, g in gradient.items():
        factors = [f for recording in recordings for f in recording.factors[name]]
        only = factors[0] if processes() == len(factors) == len(recordings) == 1 else None
        if isinstance(only, Outer) and only.short:
            shares = [(only.gram(), only.cross(g.view(only.shape)))]
        else:
            dtype = torch.float64 if precise or all(isinstance(f, Dense) for f in factors) else g.dtype
            shares = [
                ((rows @ rows.T).double(), (rows @ part).double())
                for block in _blocks(recordings, name, g, dtype)
                for rows, part in zip(*(side.split(PIECE, -1) for side in block), strict=True)
            ]
        for k, c in shares:
            key = name if per_tensor else ""
            found[key] = (found[key][0] + k, found[key][1] + c) if key in found else (k, c)
    return {key: (add_up(k), add_up(c)) for key, (k, c) in found.items()}


def cross(recordings: Sequence[Recording], gradient: Gradient) -> Tensor:
    """`c_i = <g_i, g>` [n] alone, float64, over all tensors."""
    blocks = (block for name, g in gradient.items() for block in _blocks(recordings, name, g, torch.float64))
    return add_up(torch.stack([rows @ part for rows, part in blocks]).sum(0))


def combine(recordings: Sequence[Recording], weights: Mapping[str, Tensor], like: Gradient) -> dict[str, Tensor]:
    """`sum_i w_i g_i` over the samples of all processes.

    Args:
        recordings: as for `gram`.
        weights: parameter name to w [n], of all samples.
        like: parameter name to a tensor of its shape, type and device.
    """
    own = {name: split(w, recordings) for name, w in weights.items()}
    return {name: add_up(total) for name, total in weighted_sum(recordings, own, like).items()}


def weighted_sum(
    recordings: Sequence[Recording], weights: Mapping[str, Sequence[Tensor]], like: Gradient
) -> dict[str, Tensor]:
    """As `combine`, over the samples of this process alone, with the weights of each recording's samples."""
    found = {}
    for name, parameter in like.items():
        shares = zip(recordings, weights[name], strict=True)
        parts = [f.combine(own) for recording, own in shares for f in recording.factors[name]]
        found[name] = (sum(parts[1:], parts[0]) if parts else torch.zeros_like(parameter)).view_as(parameter)
    return found


def split(weights: Tensor, recordings: Sequence[Recording]) -> Sequence[Tensor]:
    """Of metrics [n] of all samples, those of each of this process's recordings."""
    own = weights.view(processes(), -1)[dist.get_rank() if processes() > 1 else 0]
    return own.split([len(recording.losses) for recording in recordings])


def _blocks(
    recordings: Sequence[Recording], name: str, g: Tensor, dtype: torch.dtype
) -> Iterator[tuple[Tensor, Tensor]]:
    """Samples [n, columns] of all samples and the same columns of a gradient, this process's share of them."""
    leading = len(g) if g.dim() else 1
    flat = g.reshape(leading, -1)
    kept = [[f.make() if isinstance(f, Later) else f for f in recording.factors[name]] for recording in recordings]
    sizes = [len(recording.losses) for recording in recordings]
    step = max(1, BLOCK // (sum(sizes) * flat.shape[1]))
    for start in range(0, leading, step):
        stop = min(start + step, leading)
        rows = [sum((f.rows(start, stop) for f in factors[1:]), factors[0].rows(start, stop)) if factors
                else flat.new_zeros(size, (stop - start) * flat.shape[1])
                for factors, size in zip(kept, sizes, strict=True)]  # fmt: skip
        everyone = rows[0] if len(rows) == 1 else torch.cat(rows)
        yield _exchange(everyone.to(dtype), flat[start:stop].flatten().to(dtype))


def _exchange(rows: Tensor, part: Tensor) -> tuple[Tensor, Tensor]:
    """From own samples and all columns to all samples and own columns."""
    count = processes()
    if count == 1:
        return rows, part
    padding = -rows.shape[1] % count
    rows, part = (torch.nn.functional.pad(values, (0, padding)) for values in (rows, part))
    out = rows.unflatten(1, (count, -1)).transpose(0, 1).contiguous()
    everyone = torch.empty_like(out)
    dist.all_to_all_single(everyone, out)
    return everyone.flatten(0, 1), part.view(count, -1)[dist.get_rank()]
