"""Per-sample gradients one sample at a time: always right, and the oracle that every faster way is held to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

Batch = Mapping[str, Any]
Losses = Callable[[Batch], torch.Tensor]
Rows = dict[str, torch.Tensor]


def batch_size(batch: Batch) -> int:
    """Rows of a collated batch: the leading size of its first tensor."""
    return next(value.shape[0] for value in batch.values() if isinstance(value, torch.Tensor) and value.dim())


def single(batch: Batch, row: int) -> dict[str, Any]:
    """The batch of row `row` alone, its padding kept."""
    size = batch_size(batch)
    whole = {name: isinstance(v, torch.Tensor) and v.dim() > 0 and v.shape[0] == size for name, v in batch.items()}
    return {name: v[row : row + 1] if whole[name] else v for name, v in batch.items()}


def loop_gradients(losses: Losses, batch: Batch, parameters: Mapping[str, nn.Parameter]) -> tuple[torch.Tensor, Rows]:
    """The gradient of every sample's loss, by one backward pass a sample.

    Args:
        losses: gives the per-sample losses [k] of a batch, with gradient.
        batch: k collated rows.
        parameters: name to trainable parameter.

    Returns:
        The detached losses [k], and per parameter the flattened gradients [k, numel] (zeros where none flows).
    """
    values, rows = [], []
    for i in range(batch_size(batch)):
        loss = losses(single(batch, i)).sum()
        grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        values.append(loss.detach())
        rows.append([torch.zeros_like(p) if g is None else g for g, p in zip(grads, parameters.values(), strict=True)])
    stacked = {name: torch.stack([row[j].flatten() for row in rows]) for j, name in enumerate(parameters)}
    return torch.stack(values), stacked
