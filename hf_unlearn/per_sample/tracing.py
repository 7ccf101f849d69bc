"""What hooks see in one forward pass: the calls of layers, and of modules that are run again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.utils.hooks import RemovableHandle

from hf_unlearn.losses.labelled import LabelledCrossEntropy
from hf_unlearn.per_sample import replay
from hf_unlearn.per_sample.graph_parameters import gradient_edge
from hf_unlearn.per_sample.loop import Batch, Losses, batch_size
from hf_unlearn.per_sample.moves import Moves
from hf_unlearn.per_sample.plan import Plan


@dataclass
class LayerCall:
    """One use of a layer.

    Attributes:
        module: the layer.
        activations: its first input; None where that is no tensor.
        is_only_input: whether the layer had no other input.
        version: of the activations' storage, by which writes into it are noticed.
        shape: of the output.
        edge: the place of the output in the graph.
        place: of the operation that made the activations, in the order of all.
        span: the first place of the call, and the first after it.
        scorer: of an output layer that has returned cross-entropies, what computed them.
    """

    module: nn.Module
    activations: Tensor | None
    is_only_input: bool
    version: int
    shape: torch.Size
    edge: GradientEdge
    place: int
    span: tuple[int, int]
    scorer: LabelledCrossEntropy | None = None

    @property
    def shapes(self) -> tuple[torch.Size | None, ...]:
        """Of the input and the output."""
        return None if self.activations is None else self.activations.shape, self.shape


@dataclass
class Trace:
    """What the hooks saw in one forward pass.

    Attributes:
        losses: of the samples [k], with their graph.
        moves: operations, and what they took.
        layers: the calls of layers with a rule.
        modules: the calls of modules that are run again.
        weights: those that parametrizations computed.
    """

    losses: Tensor
    moves: Moves
    layers: list[LayerCall] = field(default_factory=list)
    modules: list[replay.ModuleCall] = field(default_factory=list)
    weights: dict[nn.Module, Tensor] = field(default_factory=dict)


def run_with_hooks(plan: Plan, losses: Losses, batch: Batch, candidates: Collection[nn.Module]) -> Trace:
    """The losses of a batch, and what hooks saw of the plan's layers and of these modules on the way."""
    trace = Trace(torch.empty(0), Moves(batch_size(batch)))
    handles = _watch(plan.layers, _layer_hook(trace.layers))
    handles += [m.register_forward_hook(_weight_hook(trace.weights)) for m, _ in plan.parametrized.values()]
    if candidates:
        handles += _watch(candidates, replay.module_hook(trace.modules))
    try:
        with trace.moves:
            trace.losses = losses(batch)
        return trace
    finally:
        for handle in handles:
            handle.remove()


def _watch(modules: Iterable[nn.Module], keep: Callable[..., None]) -> list[RemovableHandle]:
    """Hooks that give every call of these modules to `keep`, with its span in the order of operations."""
    starts: list[int] = []

    def before(module: nn.Module, args: tuple) -> None:
        starts.append(torch.autograd._get_sequence_nr())

    def after(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        keep(module, args, kwargs, output, (starts.pop(), torch.autograd._get_sequence_nr()))

    handles = []
    for module in modules:
        handles.append(module.register_forward_pre_hook(before))
        # Before the user's own hooks, which may change the output.
        handles.append(module.register_forward_hook(after, with_kwargs=True, prepend=True))
    return handles


def _layer_hook(calls: list[LayerCall]) -> Callable[..., None]:
    """What keeps a layer's call, as `_watch` calls it after the layer."""

    def keep(module: nn.Module, args: tuple, kwargs: dict, output: Any, span: tuple[int, int]) -> None:
        if isinstance(output, Tensor) and output.requires_grad:
            first = args[0] if args else next(iter(kwargs.values()), None)
            activations = first if isinstance(first, Tensor) else None
            scorer = vars(module).get("forward")
            calls.append(
                LayerCall(
                    module,
                    None if activations is None else activations.detach(),
                    len(args) + len(kwargs) == 1,
                    0 if activations is None else activations._version,
                    output.shape,
                    gradient_edge(output),
                    _place(activations),
                    span,
                    scorer if isinstance(scorer, LabelledCrossEntropy) else None,
                )
            )

    return keep


def _place(activations: Tensor | None) -> int:
    made_by = None if activations is None else activations.grad_fn
    return torch.autograd._get_sequence_nr() if made_by is None else made_by._sequence_nr()


def _weight_hook(weights: dict[nn.Module, Tensor]) -> Callable[..., None]:
    """A forward hook that keeps the weight that a parametrization computed."""

    def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
        weights[module] = output

    return hook
