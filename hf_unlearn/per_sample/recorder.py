"""Per-sample gradients of a whole batch from one forward and one backward pass, by hooks on the layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.utils.parametrize import is_parametrized

from hf_unlearn.per_sample.bare import Use, through, uses_of
from hf_unlearn.per_sample.factors import Dense, Factors, Recording
from hf_unlearn.per_sample.layers import NotCovered, leaf, rule_of
from hf_unlearn.per_sample.loop import Batch, Losses, batch_size

HALF = (torch.float16, torch.bfloat16)


class Mismatch(NotCovered):
    """The layers of `names` run without the batch, or their gradients failed the check of the first batch."""

    def __init__(self, names: list[str]):
        super().__init__(f"{', '.join(names)} (its layer does not treat the samples independently, or is bypassed)")
        self.names = names


@dataclass
class Call:
    """One use of a layer: its input (alone, or with others), its output's shape and place in the graph."""

    module: nn.Module
    inputs: Tensor
    alone: bool
    version: int
    shape: torch.Size
    edge: GradientEdge


@dataclass
class Plan:
    """Which parameter's gradients come from where.

    Attributes:
        parameters: name to trainable parameter.
        layers: modules with a rule: module to {attribute: parameter name}.
        bare: names of the parameters whose uses are looked up in the graph.
        tables: those of them that are looked up by position, whatever the samples hold.
        made: name of a weight that is made from parameters (weight normalisation) to the module that makes it, and
            the names of those parameters.
        verified: the ways of use for which the gradients were checked.
        checked: whether they can be: not where the forward pass uses other tensors than the parameters (FSDP2).
        half: whether the model has weights in half precision, frozen ones counted: its backward pass rounds.
    """

    parameters: dict[str, nn.Parameter]
    layers: dict[nn.Module, dict[str, str]] = field(default_factory=dict)
    bare: set[str] = field(default_factory=set)
    tables: set[str] = field(default_factory=set)
    made: dict[str, tuple[nn.Module, list[str]]] = field(default_factory=dict)
    verified: set[frozenset] = field(default_factory=set)
    checked: bool = True
    half: bool = False

    def reconsider(self, names: list[str]) -> bool:
        """Another way to the gradients of these parameters, where there is one left.

        What runs without the batch can look as if it had it: as many positions as samples.
        """
        if not self.bare.issuperset(names):
            self.bare.update(names)
            return True
        if not self.tables.issuperset(names):
            self.tables.update(names)
            return True
        return False

    @classmethod
    def of(cls, model: nn.Module, parameters: dict[str, nn.Parameter], checked: bool = True) -> Plan:
        """By the modules that the parameters hang on."""
        names, plan = {id(p): name for name, p in parameters.items()}, cls(parameters, checked=checked)
        plan.half = any(p.dtype in HALF for p in model.parameters())
        for path, module in model.named_modules():
            held = {a: names[id(p)] for a, p in module._parameters.items() if p is not None and id(p) in names}
            if is_parametrized(module):
                for attribute, maker in module.parametrizations.items():
                    held[attribute] = f"{path}.{attribute}"
                    sources = [names[id(p)] for p in maker.parameters() if id(p) in names]
                    plan.made[held[attribute]] = maker, sources
            if held and rule_of(module) is not None:
                plan.layers[module] = held
            else:
                plan.bare.update(held.values())
        plan.bare -= {name for held in plan.layers.values() for name in held.values()}
        plan.bare -= {name for _, sources in plan.made.values() for name in sources}
        return plan


def record(plan: Plan, losses: Losses, batch: Batch) -> Recording:
    """The gradient of every sample's loss, by one ordinary batched forward and backward pass.

    Every layer that holds trainable parameters lets its input and the place of its output in the graph be seen; the
    backward pass then goes to those outputs only, and no weight gradient of the batch is ever formed. Right for models
    that treat the samples of a batch independently (BatchNorm in eval mode) and keep the batch on the leading axis,
    alone or as its outer part (windows of an image). The first batch, and every one in which parameters are used in
    other ways than before, is checked against the gradient of a randomly weighted sum of its losses.

    Args:
        plan: of the model that `losses` runs; a parameter whose layer is not called moves to `bare`.
        losses: gives the per-sample losses [k] of a batch, with gradient.
        batch: k collated rows.

    Raises:
        NotCovered: when a parameter is used in a way that no rule covers.
        Mismatch: when a layer runs without the batch, or the check fails; see `Plan.reconsider`.
    """
    size = batch_size(batch)
    calls: list[Call] = []
    made: dict[nn.Module, Tensor] = {}
    handles = [module.register_forward_hook(_listen(calls), with_kwargs=True) for module in plan.layers]
    handles += [maker.register_forward_hook(_listen_to_maker(made)) for maker, _ in plan.made.values()]
    try:
        values = losses(batch)
    finally:
        for handle in handles:
            handle.remove()
    _find_bypassed(plan, calls)
    calls = [call for call in calls if not plan.bare.issuperset(plan.layers[call.module].values())]
    bare = {name: plan.parameters[name] for name in plan.bare}
    uses = uses_of(values, bare, size, plan.tables) if bare else []
    edges = [call.edge for call in calls] + [use.edge for use in uses]
    ways = frozenset((use.name, type(use.way)) for use in uses) | frozenset(call.module for call in calls)
    verify = plan.checked and ways not in plan.verified
    if plan.bare and not plan.checked:
        raise NotCovered(f"{', '.join(sorted(plan.bare))} (sharded, and used outside its layer)")
    grads = torch.autograd.grad(values.sum(), edges, retain_graph=verify, allow_unused=True) if edges else ()

    recording = Recording(values.detach(), _factors(plan, calls, uses, grads, made, size))
    # What has overflowed in half precision cannot be checked: the loss scaler will see it, and the next batch is.
    if verify and all(grad is None or grad.isfinite().all() for grad in grads):
        half = plan.half or any(grad is not None and grad.dtype in HALF for grad in grads)
        _verify(values, recording, plan.parameters, half)
        plan.verified.add(ways)
    return recording


@torch.no_grad()
def _factors(
    plan: Plan,
    calls: list[Call],
    uses: list[Use],
    grads: Sequence[Tensor],
    made: Mapping[nn.Module, Tensor],
    size: int,
) -> dict[str, list[Factors]]:
    factors: dict[str, list[Factors]] = {name: [] for name in [*plan.parameters, *plan.made]}
    for call, grad in zip(calls, grads[: len(calls)], strict=True):
        if grad is None:
            continue
        names = {a: name for a, name in plan.layers[call.module].items() if name not in plan.bare}
        _has_batch(call, list(names.values()), size)
        found = rule_of(call.module)(call.module, call.inputs, grad.view(call.shape))  # type: ignore[misc]
        for attribute, name in names.items():
            factors[name].append(_smallest(found[attribute], size, getattr(call.module, attribute).shape))
    for use, grad in zip(uses, grads[len(calls) :], strict=True):
        if grad is not None:
            parameter = plan.parameters[use.name]
            factors[use.name].append(_smallest(use.factors(grad, parameter, size), size, parameter.shape))
    for name, (maker, sources) in plan.made.items():
        for each in factors.pop(name):
            for source in sources:
                factors[source].append(through(made[maker], made[maker].shape, each, plan.parameters[source]))
    return factors


def _listen(calls: list[Call]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if isinstance(output, Tensor) and output.requires_grad:
            inputs = args[0] if args else next(iter(kwargs.values()))
            # A linear layer's output is often a view of what it computed. A model that then writes into it (padding
            # set to zero) reroutes the view's gradient, but not the base's.
            base, origin = output._base, output
            if base is not None and base.numel() == output.numel() and base.is_contiguous() and output.is_contiguous():
                origin = base
            alone, edge = len(args) + len(kwargs) == 1, get_gradient_edge(origin)
            calls.append(Call(module, inputs.detach(), alone, inputs._version, output.shape, edge))

    return hook


def _listen_to_maker(made: dict[nn.Module, Tensor]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
        made[module] = output

    return hook


def _find_bypassed(plan: Plan, calls: list[Call]) -> None:
    """Parameters of layers that are not called, but used, are looked up in the graph."""
    called = {name for call in calls for name in plan.layers[call.module].values()}
    made = {source for name, (_, sources) in plan.made.items() if name in called for source in sources}
    plan.bare.update(plan.parameters.keys() - called - made)


def _has_batch(call: Call, names: list[str], size: int) -> None:
    """Position tables, say, are called without the batch."""
    if call.shape[0] % size or call.inputs.shape[0] != call.shape[0]:
        raise Mismatch(names)
    if rule_of(call.module) is leaf and not call.alone:
        raise Mismatch(names)
    if call.inputs._version != call.version:
        raise NotCovered(f"{', '.join(names)} (the model writes into its layer's input)")


def _smallest(factors: Factors, size: int, shape: torch.Size) -> Factors:
    """Factors or rows, whichever is smaller: adapters, biases and norms end up as rows, large weights do not."""
    if factors.samples != size:
        factors = factors.grouped(size)
    if isinstance(factors, Dense) or factors.numbers < size * shape.numel():
        return factors
    return Dense(factors.rows(0, shape[0]).view(size, *shape))


@torch.no_grad()
def _verify(values: Tensor, recording: Recording, parameters: Mapping[str, nn.Parameter], half: bool) -> None:
    # Random weights, so that rows given to the wrong sample are seen as well as rows that are missing.
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(len(values), generator=generator).to(values) + 0.5
    grads = torch.autograd.grad(values, list(parameters.values()), weights, allow_unused=True)
    scale = max((float(g.norm()) for g in grads if g is not None), default=0.0)
    tolerance = 1e-6 if values.dtype == torch.float64 else 5e-2 if half else 1e-3
    wrong = []
    for (name, p), grad in zip(parameters.items(), grads, strict=True):
        expected = torch.zeros_like(p) if grad is None else grad
        found = sum((f.combine(weights) for f in recording.factors[name]), torch.zeros(p.numel()).to(p))
        if float((found - expected.flatten()).norm()) > tolerance * max(float(expected.norm()), 1e-3 * scale):
            wrong.append(name)
    if wrong:
        raise Mismatch(wrong)
