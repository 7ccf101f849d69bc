"""Per-sample gradients one sample at a time: always exact, and the oracle of every faster way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from hf_unlearn.per_sample.factors import Dense, Factors, Recording

# Functions whose backward pass adds to the gradients of parameters itself, and what to do.
HIDING = {
    "CheckpointFunction": "activation checkpointing needs use_reentrant=False",
    "_ReversibleFunction": "take a model without reversible layers (Reformer has them)",
}
Batch: TypeAlias = Mapping[str, Any]
Losses: TypeAlias = Callable[[Batch], Tensor]


def batch_size(batch: Batch) -> int:
    """Samples of a collated batch: the leading size of its first tensor.

    Raises:
        ValueError: it has no tensor with an axis, or no samples.
    """
    size = next((value.shape[0] for value in batch.values() if isinstance(value, Tensor) and value.dim()), 0)
    if not size:
        raise ValueError(f"batch: found no samples in {sorted(batch)}; give tensors with the samples as first axis")
    return size


def slice_batch(batch: Batch, start: int, stop: int) -> dict[str, Any]:
    """Samples `start` to `stop` of a batch, with their padding; of all that has as many entries as samples."""
    return _sliced(batch, batch_size(batch), start, stop)


def _sliced(values: Any, size: int, start: int, stop: int) -> Any:
    if isinstance(values, Mapping):
        return {name: _sliced(value, size, start, stop) for name, value in values.items()}
    has_samples = (isinstance(values, Tensor) and values.dim() > 0) or isinstance(values, list | tuple)
    return values[start:stop] if has_samples and len(values) == size else values


def check_losses(values: Tensor, size: int) -> None:
    """Refuse anything but one loss a sample, and gradients that autograd does not see.

    Raises:
        ValueError: one line that says what was found.
    """
    if values.shape != (size,):
        raise ValueError(f"losses: found shape {list(values.shape)} for a batch of {size}; give one loss a sample")
    nodes, seen = [values.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for name, remedy in HIDING.items():
            if node.name().startswith(name):
                raise ValueError(f"model: {name} hides the gradients of samples from autograd; {remedy}")
        nodes += [producer for producer, _ in node.next_functions]


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
        loss = losses(slice_batch(batch, i, i + 1))
        if i == 0:
            check_losses(loss, 1)
        values.append(loss.detach().sum())
        gradients.append(gradients_of(loss.sum(), list(parameters.values())))
    factors: dict[str, list[Factors]] = {
        name: [Dense(torch.stack([sample[j] for sample in gradients]))] for j, name in enumerate(parameters)
    }
    return Recording(torch.stack(values), factors)
