"""Per-sample gradients of a whole batch from one forward and one backward pass, by hooks on the layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.utils.parametrize import is_parametrized

from hf_unlearn.losses.labelled import LabelledCrossEntropy
from hf_unlearn.per_sample.factors import Dense, Factors, Recording
from hf_unlearn.per_sample.graph_parameters import ParameterUse, find_uses, propagate
from hf_unlearn.per_sample.layers import NotCovered, cross_entropy, leaf, rule_of
from hf_unlearn.per_sample.loop import Batch, Losses, batch_size

HALF_PRECISION = (torch.float16, torch.bfloat16)


class GradientMismatch(NotCovered):
    """The layers of `names` run without the batch, or their gradients failed the check of the first batch."""

    def __init__(self, names: list[str]):
        super().__init__(f"{', '.join(names)} (its layer does not treat the samples independently, or is bypassed)")
        self.names = names


@dataclass
class LayerCall:
    """One use of a layer.

    Attributes:
        module: the layer.
        activations: its first input.
        is_only_input: whether the layer had no other input.
        version: of the activations' storage, by which writes into it are noticed.
        shape: of the output.
        edge: the place of the output in the graph.
        scorer: of an output layer that has returned cross-entropies, what computed them.
    """

    module: nn.Module
    activations: Tensor
    is_only_input: bool
    version: int
    shape: torch.Size
    edge: GradientEdge
    scorer: LabelledCrossEntropy | None = None


@dataclass
class Plan:
    """Which parameter's gradients come from where.

    Attributes:
        parameters: name to trainable parameter.
        layers: modules with a rule: module to {attribute: parameter name}.
        graph_parameters: names of the parameters whose uses are looked up in the graph.
        position_tables: those of them that are looked up by position, whatever the samples hold.
        parametrized: name of a weight that is computed from parameters (weight normalisation) to the module that
            computes it, and the names of those parameters.
        verified: the ways of use for which the gradients were checked.
        checked: whether they can be: not where the forward pass uses other tensors than the parameters (FSDP2).
        half_precision: whether the model has weights in half precision, frozen ones counted: its backward pass rounds.
    """

    parameters: dict[str, nn.Parameter]
    layers: dict[nn.Module, dict[str, str]] = field(default_factory=dict)
    graph_parameters: set[str] = field(default_factory=set)
    position_tables: set[str] = field(default_factory=set)
    parametrized: dict[str, tuple[nn.Module, list[str]]] = field(default_factory=dict)
    verified: set[frozenset] = field(default_factory=set)
    checked: bool = True
    half_precision: bool = False

    def reassign(self, names: list[str]) -> bool:
        """Choose the next way to the gradients of these parameters; False where there is none left.

        A layer that runs without the batch can look as if it had it: with as many positions as samples.
        """
        if not self.graph_parameters.issuperset(names):
            self.graph_parameters.update(names)
            return True
        if not self.position_tables.issuperset(names):
            self.position_tables.update(names)
            return True
        return False

    @classmethod
    def from_model(cls, model: nn.Module, parameters: dict[str, nn.Parameter], checked: bool = True) -> Plan:
        """By the modules that hold the parameters."""
        names, plan = {id(p): name for name, p in parameters.items()}, cls(parameters, checked=checked)
        plan.half_precision = any(p.dtype in HALF_PRECISION for p in model.parameters())
        for path, module in model.named_modules():
            held = {a: names[id(p)] for a, p in module._parameters.items() if p is not None and id(p) in names}
            if is_parametrized(module):
                for attribute, parametrization in module.parametrizations.items():
                    held[attribute] = f"{path}.{attribute}"
                    sources = [names[id(p)] for p in parametrization.parameters() if id(p) in names]
                    plan.parametrized[held[attribute]] = parametrization, sources
            if held and rule_of(module) is not None:
                plan.layers[module] = held
            else:
                plan.graph_parameters.update(held.values())
        plan.graph_parameters -= {name for held in plan.layers.values() for name in held.values()}
        plan.graph_parameters -= {name for _, sources in plan.parametrized.values() for name in sources}
        return plan


def record(plan: Plan, losses: Losses, batch: Batch) -> Recording:
    """The gradient of every sample's loss, by one ordinary batched forward and backward pass.

    Hooks on every layer with trainable parameters keep its activations and the place of its output in the graph; the
    backward pass then goes to those outputs only, and no weight gradient of the batch is ever formed. Exact for models
    that treat the samples of a batch independently (BatchNorm in eval mode) and keep the batch on the leading axis,
    alone or as its outer part (windows of an image). The first batch, and every one in which parameters are used in
    other ways than before, is checked against the gradient of a randomly weighted sum of its losses.

    Args:
        plan: of the model that `losses` runs; a parameter whose layer is not called is added to `graph_parameters`.
        losses: gives the per-sample losses [k] of a batch, with gradient.
        batch: k collated samples.

    Raises:
        NotCovered: when a parameter is used in a way that no rule covers.
        GradientMismatch: when a layer runs without the batch, or the check fails; see `Plan.reassign`.
    """
    size = batch_size(batch)
    values, calls, computed_weights = _run_with_hooks(plan, losses, batch)
    _find_bypassed(plan, calls)
    calls = [call for call in calls if not plan.graph_parameters.issuperset(plan.layers[call.module].values())]
    graph_parameters = {name: plan.parameters[name] for name in plan.graph_parameters}
    uses = find_uses(values, graph_parameters, size, plan.position_tables) if graph_parameters else []
    edges = [call.edge for call in calls] + [use.edge for use in uses]
    ways = frozenset((use.name, type(use.operation)) for use in uses) | frozenset(call.module for call in calls)
    verify = plan.checked and ways not in plan.verified
    if plan.graph_parameters and not plan.checked:
        raise NotCovered(f"{', '.join(sorted(plan.graph_parameters))} (sharded, and used outside its layer)")
    backprops = torch.autograd.grad(values.sum(), edges, retain_graph=verify, allow_unused=True) if edges else ()

    recording = Recording(values.detach(), _factors(plan, calls, uses, backprops, computed_weights, size))
    # An overflow in half precision cannot be checked: the loss scaler handles it, and the next batch is checked.
    if verify and all(grad is None or grad.isfinite().all() for grad in backprops):
        half = plan.half_precision or any(grad is not None and grad.dtype in HALF_PRECISION for grad in backprops)
        _verify(values, recording, plan.parameters, half)
        plan.verified.add(ways)
    return recording


def _run_with_hooks(
    plan: Plan, losses: Losses, batch: Batch
) -> tuple[Tensor, list[LayerCall], dict[nn.Module, Tensor]]:
    """The losses [k], the calls of the plan's layers, and the weights that parametrizations computed."""
    calls: list[LayerCall] = []
    computed_weights: dict[nn.Module, Tensor] = {}
    handles = [module.register_forward_hook(_call_hook(calls), with_kwargs=True) for module in plan.layers]
    handles += [m.register_forward_hook(_weight_hook(computed_weights)) for m, _ in plan.parametrized.values()]
    try:
        return losses(batch), calls, computed_weights
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _factors(
    plan: Plan,
    calls: list[LayerCall],
    uses: list[ParameterUse],
    backprops: Sequence[Tensor],
    computed_weights: Mapping[nn.Module, Tensor],
    size: int,
) -> dict[str, list[Factors]]:
    """Name to the factors of the parameter's per-sample gradients, one for every use."""
    factors: dict[str, list[Factors]] = {name: [] for name in [*plan.parameters, *plan.parametrized]}
    for call, grad in zip(calls, backprops[: len(calls)], strict=True):
        if grad is None:
            continue
        names = {a: name for a, name in plan.layers[call.module].items() if name not in plan.graph_parameters}
        _check_batch_axis(call, list(names.values()), size)
        if call.scorer is not None:
            layer_factors = cross_entropy(call.scorer, call.activations, grad.view(call.shape[:-1]))
        else:
            rule = rule_of(call.module)
            layer_factors = rule(call.module, call.activations, grad.view(call.shape))  # type: ignore[misc]
        for attribute, name in names.items():
            shape = getattr(call.module, attribute).shape
            factors[name].append(_smallest(layer_factors[attribute], size, shape))
    for use, grad in zip(uses, backprops[len(calls) :], strict=True):
        if grad is not None:
            parameter = plan.parameters[use.name]
            factors[use.name].append(_smallest(use.factors(grad, parameter, size), size, parameter.shape))
    for name, (parametrization, sources) in plan.parametrized.items():
        for weight_factors in factors.pop(name):
            weight = computed_weights[parametrization]
            for source in sources:
                factors[source].append(propagate(weight, weight.shape, weight_factors, plan.parameters[source]))
    return factors


def _call_hook(calls: list[LayerCall]) -> Callable[..., None]:
    """A forward hook that keeps the layer's call."""

    def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if isinstance(output, Tensor) and output.requires_grad:
            activations = args[0] if args else next(iter(kwargs.values()))
            # A linear layer's output is often a view of what it computed. A model that then writes into it (padding
            # set to zero) reroutes the view's gradient, but not the base's.
            base, origin = output._base, output
            if base is not None and base.numel() == output.numel() and base.is_contiguous() and output.is_contiguous():
                origin = base
            is_only_input, edge = len(args) + len(kwargs) == 1, get_gradient_edge(origin)
            version = activations._version
            scorer = vars(module).get("forward")
            calls.append(
                LayerCall(
                    module, activations.detach(), is_only_input, version, output.shape, edge,
                    scorer if isinstance(scorer, LabelledCrossEntropy) else None,
                )
            )  # fmt: skip

    return hook


def _weight_hook(computed_weights: dict[nn.Module, Tensor]) -> Callable[..., None]:
    """A forward hook that keeps the weight that a parametrization computed."""

    def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
        computed_weights[module] = output

    return hook


def _find_bypassed(plan: Plan, calls: list[LayerCall]) -> None:
    """Look up parameters in the graph whose layers are not called."""
    called = {name for call in calls for name in plan.layers[call.module].values()}
    sources = {source for name, (_, names) in plan.parametrized.items() if name in called for source in names}
    plan.graph_parameters.update(plan.parameters.keys() - called - sources)


def _check_batch_axis(call: LayerCall, names: list[str], size: int) -> None:
    """Refuse calls without the batch on the leading axis: position tables, for example."""
    if call.shape[0] % size or call.activations.shape[0] != call.shape[0]:
        raise GradientMismatch(names)
    if rule_of(call.module) is leaf and not call.is_only_input:
        raise GradientMismatch(names)
    if call.activations._version != call.version:
        raise NotCovered(f"{', '.join(names)} (the model writes into its layer's input)")


def _smallest(factors: Factors, size: int, shape: torch.Size) -> Factors:
    """Factors or dense gradients, whichever are smaller: dense for adapters, biases and norms, not large weights."""
    if factors.samples != size:
        factors = factors.grouped(size)
    if isinstance(factors, Dense) or factors.stored_numel < size * shape.numel():
        return factors
    return Dense(factors.row_gradients(0, shape[0]).view(size, *shape))


@torch.no_grad()
def _verify(values: Tensor, recording: Recording, parameters: Mapping[str, nn.Parameter], half: bool) -> None:
    """Compare a weighted sum of the per-sample gradients with the gradient of the weighted sum of the losses.

    Raises:
        GradientMismatch: where they differ.
    """
    # Random weights, so that gradients given to the wrong sample are noticed as well as missing ones.
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(len(values), generator=generator).to(values) + 0.5
    grads = torch.autograd.grad(values, list(parameters.values()), weights, allow_unused=True)
    scale = max((float(g.norm()) for g in grads if g is not None), default=0.0)
    tolerance = 1e-6 if values.dtype == torch.float64 else 5e-2 if half else 1e-3
    mismatches = []
    for (name, p), grad in zip(parameters.items(), grads, strict=True):
        expected = torch.zeros_like(p) if grad is None else grad
        actual = sum((f.combine(weights) for f in recording.factors[name]), torch.zeros(p.numel()).to(p))
        if float((actual - expected.flatten()).norm()) > tolerance * max(float(expected.norm()), 1e-3 * scale):
            mismatches.append(name)
    if mismatches:
        raise GradientMismatch(mismatches)
