"""Per-sample gradients one sample at a time: always exact, and the oracle of every faster way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from hf_unlearn.per_sample.factors import Dense, Factors, Recording

Batch: TypeAlias = Mapping[str, Any]
Losses: TypeAlias = Callable[[Batch], Tensor]


def batch_size(batch: Batch) -> int:
    """Samples of a collated batch: the leading size of its first tensor."""
    return next(value.shape[0] for value in batch.values() if isinstance(value, Tensor) and value.dim())


def slice_batch(batch: Batch, start: int, stop: int) -> dict[str, Any]:
    """Samples `start` to `stop` of a batch, with their padding."""
    size = batch_size(batch)
    has_samples = {name: isinstance(v, Tensor) and v.dim() > 0 and v.shape[0] == size for name, v in batch.items()}
    return {name: v[start:stop] if has_samples[name] else v for name, v in batch.items()}


def loop_gradients(losses: Losses, batch: Batch, parameters: Mapping[str, nn.Parameter]) -> Recording:
    """The gradient of every sample's loss, by one backward pass a sample.

    Args:
        losses: gives the per-sample losses [k] of a batch, with gradient.
        batch: k collated samples.
        parameters: name to trainable parameter.
    """
    values: list[Tensor] = []
    gradients: list[list[Tensor]] = []  # a sample, a parameter
    for i in range(batch_size(batch)):
        loss = losses(slice_batch(batch, i, i + 1)).sum()
        grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        values.append(loss.detach())
        pairs = zip(grads, parameters.values(), strict=True)
        gradients.append([torch.zeros_like(p) if g is None else g for g, p in pairs])
    factors: dict[str, list[Factors]] = {
        name: [Dense(torch.stack([sample[j] for sample in gradients]))] for j, name in enumerate(parameters)
    }
    return Recording(torch.stack(values), factors)
