"""Per-sample gradients one sample at a time: always right, and the oracle that every faster way is held to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from hf_unlearn.per_sample.factors import Dense, Factors, Recording

Batch = Mapping[str, Any]
Losses = Callable[[Batch], torch.Tensor]


def batch_size(batch: Batch) -> int:
    """Samples of a collated batch: the leading size of its first tensor."""
    return next(value.shape[0] for value in batch.values() if isinstance(value, torch.Tensor) and value.dim())


def part(batch: Batch, start: int, stop: int) -> dict[str, Any]:
    """Samples `start` to `stop` of a batch, their padding kept."""
    size = batch_size(batch)
    whole = {name: isinstance(v, torch.Tensor) and v.dim() > 0 and v.shape[0] == size for name, v in batch.items()}
    return {name: v[start:stop] if whole[name] else v for name, v in batch.items()}


def loop_gradients(losses: Losses, batch: Batch, parameters: Mapping[str, nn.Parameter]) -> Recording:
    """The gradient of every sample's loss, by one backward pass a sample.

    Args:
        losses: gives the per-sample losses [k] of a batch, with gradient.
        batch: k collated rows.
        parameters: name to trainable parameter.
    """
    values, rows = [], []
    for i in range(batch_size(batch)):
        loss = losses(part(batch, i, i + 1)).sum()
        grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        values.append(loss.detach())
        rows.append([torch.zeros_like(p) if g is None else g for g, p in zip(grads, parameters.values(), strict=True)])
    factors: dict[str, list[Factors]] = {
        name: [Dense(torch.stack([row[j] for row in rows]))] for j, name in enumerate(parameters)
    }
    return Recording(torch.stack(values), factors)
