"""Per-sample gradients of parameters that no rule covers: the module that uses them runs again, a sample at a time.

Experts, recurrent layers, fused attention projections, convolutions called as functions: what such a module does with
its parameters is its own affair, as long as it takes the whole batch in and treats the samples independently. Its
inputs, and the gradients of its outputs, are those of the batched pass; each sample's share of them goes through the
module on its own. Which axis is the batch is seen by running the model on the first sample alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.func import functional_call
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from hf_unlearn.per_sample.factors import Dense
from hf_unlearn.per_sample.graph_parameters import gradient_edge
from hf_unlearn.per_sample.loop import gradients_of
from hf_unlearn.per_sample.plan import GradientMismatch
from hf_unlearn.per_sample.state import unchanged_state


@dataclass
class ModuleCall:
    """One call of a module.

    Attributes:
        module: that was called.
        inputs: all positional and keyword arguments, flattened.
        spec: how they were nested.
        versions: of the inputs' storage, by which writes into them are noticed.
        output_shapes: of the output's tensors; None for anything else in it.
        edges: the places in the graph of those that require a gradient, by their number; one a place.
        autocast: to which dtype operations were cast, or None.
        span: the first place of the call in the order of operations, and the first after it.
    """

    module: nn.Module
    inputs: list[Any]
    spec: TreeSpec
    versions: list[int | None]
    output_shapes: list[torch.Size | None]
    edges: dict[int, GradientEdge]
    autocast: torch.dtype | None
    span: tuple[int, int]

    @property
    def shapes(self) -> tuple[torch.Size | None, ...]:
        """Of all tensors that go in and come out."""
        return (*(x.shape if isinstance(x, Tensor) else None for x in self.inputs), *self.output_shapes)

    def written_to(self) -> bool:
        """Whether an input has been written to since."""
        pairs = zip(self.inputs, self.versions, strict=True)
        return any(isinstance(x, Tensor) and x._version != version for x, version in pairs)


def module_hook(calls: list[ModuleCall]) -> Callable[..., None]:
    """What keeps a module's call, as `hf_unlearn.per_sample.tracing` calls it after the module."""

    def keep(module: nn.Module, args: tuple, kwargs: dict, output: Any, span: tuple[int, int]) -> None:
        inputs, spec = tree_flatten((args, kwargs))
        inputs = [x.detach() if isinstance(x, Tensor) else x for x in inputs]
        outputs, _ = tree_flatten(output)
        edges: dict[int, GradientEdge] = {}
        for i, x in enumerate(outputs):
            if isinstance(x, Tensor) and x.requires_grad and gradient_edge(x) not in edges.values():
                edges[i] = gradient_edge(x)
        device = next((x.device.type for x in inputs if isinstance(x, Tensor)), "cpu")
        calls.append(
            ModuleCall(
                module,
                inputs,
                spec,
                [x._version if isinstance(x, Tensor) else None for x in inputs],
                [x.shape if isinstance(x, Tensor) else None for x in outputs],
                edges,
                torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None,
                span,
            )
        )

    return keep


@dataclass
class SampleAxes:
    """Where the samples are in a module's inputs and outputs.

    Attributes:
        inputs: of each input the axis of the samples, or None where it is the same for all of them.
        outputs: the same of each output.
        first: the inputs for the first sample alone: of anything but tensors (sizes), every sample takes these.
    """

    inputs: list[int | None]
    outputs: list[int | None]
    first: list[Any]


def sample_axes(call: ModuleCall, of_first: ModuleCall, size: int) -> SampleAxes | None:
    """Where the samples are, by what the same call has with the first sample alone; None where that does not say."""
    if call.spec != of_first.spec or len(call.output_shapes) != len(of_first.output_shapes):
        return None
    shapes = [_axis(x, y, size) for x, y in zip(call.shapes, of_first.shapes, strict=True)]
    count = len(call.inputs)
    if -1 in shapes or not call.edges or any(shapes[count + i] is None for i in call.edges):
        return None
    return SampleAxes(shapes[:count], shapes[count:], of_first.inputs)


def _axis(shape: torch.Size | None, of_first: torch.Size | None, size: int) -> int | None:
    """The one axis that is `size` times as long for all samples; None where none is, -1 where it is not so simple."""
    if shape is None or of_first is None or len(shape) != len(of_first):
        return None if shape == of_first else -1
    longer = [i for i, (n, m) in enumerate(zip(shape, of_first, strict=True)) if n != m]
    if not longer:
        return None
    return longer[0] if len(longer) == 1 and shape[longer[0]] == size * of_first[longer[0]] else -1


def replay(
    call: ModuleCall, axes: SampleAxes, grads: Sequence[Tensor | None], names: dict[str, str], size: int
) -> dict[str, Dense]:
    """The per-sample gradients of some of a module's parameters, from one of its calls.

    Args:
        call: of the module.
        axes: where the samples are.
        grads: the gradients of the outputs at `call.edges`; None counts as zero.
        names: the parameters' paths within the module, and their names in the model.
        size: samples in the batch.

    Raises:
        GradientMismatch: an input has been written to, or the module cannot be run for a sample alone.
    """
    if call.written_to():
        raise GradientMismatch(names.values(), "the model writes into its module's input")
    own = {path: p.detach().requires_grad_(p.requires_grad) for path, p in call.module.named_parameters()}
    by_name: dict[str, list[Tensor]] = {name: [] for name in names.values()}
    for i in range(size):
        inputs = [
            _share(x, axis, i, size) if isinstance(x, Tensor) else first
            for x, axis, first in zip(call.inputs, axes.inputs, axes.first, strict=True)
        ]
        args, kwargs = tree_unflatten(inputs, call.spec)
        state = {**own, **{path: buffer.clone() for path, buffer in call.module.named_buffers()}}
        device, cast = next(iter(own.values())).device.type, call.autocast
        with torch.enable_grad(), torch.autocast(device, cast, enabled=cast is not None), unchanged_state(call.module):
            outputs, _ = tree_flatten(functional_call(call.module, state, args, kwargs))
        used = [
            (outputs[j], _share(grad.view(call.output_shapes[j] or ()), axes.outputs[j], i, size).to(outputs[j].dtype))
            for j, grad in zip(call.edges, grads, strict=True)
            if grad is not None and outputs[j].requires_grad
        ]
        wanted = [own[path] for path in names]
        found = [torch.zeros_like(p) for p in wanted]
        if used:
            ends, their_grads = zip(*used, strict=True)
            found = gradients_of(ends, wanted, their_grads)
        for name, grad in zip(names.values(), found, strict=True):
            by_name[name].append(grad)
    return {name: Dense(torch.stack(samples)) for name, samples in by_name.items()}


def _share(values: Tensor, axis: int | None, i: int, size: int) -> Tensor:
    """Sample i's part of a tensor."""
    if axis is None:
        return values
    length = values.shape[axis] // size
    return values.narrow(axis, i * length, length)
