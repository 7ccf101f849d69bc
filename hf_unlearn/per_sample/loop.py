"""Per-sample gradients one sample at a time: always exact, and the oracle of every faster way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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


def gradients_of(
    outputs: Tensor | Sequence[Tensor],
    parameters: Sequence[Tensor],
    weights: Tensor | Sequence[Tensor] | None = None,
    retain_graph: bool = False,
) -> list[Tensor]:
    """The gradients of (weighted) outputs, dense; zeros for a parameter that they do not depend on."""
    grads = torch.autograd.grad(outputs, parameters, weights, retain_graph=retain_graph, allow_unused=True)
    pairs = zip(grads, parameters, strict=True)
    return [torch.zeros_like(p) if g is None else g.to_dense() if g.is_sparse else g for g, p in pairs]


@contextmanager
def contiguous_gradients(model: nn.Module) -> Iterator[None]:
    """Keep torch from a wrong gradient of BatchNorm2d and BatchNorm3d in eval mode, for one sample.

    With a contiguous input [1, channels, ...] and a gradient of the output that lies in memory channels last, as
    `output.flatten(2).mT` makes it (LeViT), the gradients of weight and bias are wrong (torch 2.13 on CPUs). Where the
    output's gradient is made contiguous, they are right.
    """

    def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
        if output.requires_grad and len(output) == 1:
            output.register_hook(lambda grad: grad.contiguous())

    layers = (m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm3d))
    handles = [module.register_forward_hook(hook) for module in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
        values.append(loss.detach())
        gradients.append(gradients_of(loss, list(parameters.values())))
    factors: dict[str, list[Factors]] = {
        name: [Dense(torch.stack([sample[j] for sample in gradients]))] for j, name in enumerate(parameters)
    }
    return Recording(torch.stack(values), factors)
