"""The sum of squared per-sample gradients: the diagonal of the empirical Fisher information, times the samples."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from hf_unlearn.per_sample import PerSampleGradients
from hf_unlearn.per_sample.factors import Recording, rows_of, summed_row_gradients
from hf_unlearn.per_sample.gram import BLOCK
from hf_unlearn.per_sample.loop import Batch


def squared_gradients(gradients: PerSampleGradients, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """`sum_i g_i^2`, entry by entry, over the samples of the batches.

    Of every sample, not of batches: the square of a batch's mean gradient is another quantity, and smaller.

    Args:
        gradients: of the model.
        batches: collated samples; without batches the result is zero.

    Returns:
        Name to a tensor of the parameter's shape, float32 or better.
    """
    totals = _zeros(gradients)
    for batch in batches:
        with torch.enable_grad():
            recording = gradients(batch)
        for name, total in totals.items():
            _add_squares(total, recording, name)
    return totals


def loss_gradient(gradients: PerSampleGradients, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """`sum_i g_i` over the samples of the batches, by ordinary backward passes; shapes as `squared_gradients`."""
    totals = _zeros(gradients)
    for batch in batches:
        with torch.enable_grad():
            grads = gradients.gradient(lambda samples: gradients.losses(samples).sum(), batch)
        for name, total in totals.items():
            total += grads[name]
    return totals


def _zeros(gradients: PerSampleGradients) -> dict[str, Tensor]:
    """Name to zeros of every parameter's shape, float32 or better."""
    parameters = gradients.parameters
    return {name: torch.zeros(p.shape, dtype=_sum_dtype(p), device=p.device) for name, p in parameters.items()}


def _add_squares(total: Tensor, recording: Recording, name: str) -> None:
    """Add the squared gradients of a recording's samples to a parameter's total, some rows at a time."""
    factors = recording.formed(name)
    if not factors:
        return
    rows = rows_of(total.shape)
    flat = total.view(rows, -1)  # shape: [p, q]
    step = max(1, BLOCK // (len(recording.losses) * flat.shape[1]))
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        grads = summed_row_gradients(factors, start, stop)  # shape: [k, (stop - start) * q]
        flat[start:stop] += grads.to(total.dtype).square().sum(0).view(stop - start, -1)


def _sum_dtype(parameter: Tensor) -> torch.dtype:
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32
