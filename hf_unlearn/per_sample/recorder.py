"""Per-sample gradients of a whole batch from one forward and one backward pass, by hooks on the layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.utils.parametrize import is_parametrized

from hf_unlearn.per_sample.bare import uses_of
from hf_unlearn.per_sample.factors import Dense, Factors, Recording
from hf_unlearn.per_sample.layers import NotCovered, rule_of
from hf_unlearn.per_sample.loop import Batch, Losses, batch_size


class Mismatch(NotCovered):
    """The check of the first batch failed for `names`."""

    def __init__(self, names: list[str]):
        super().__init__(f"{', '.join(names)} (its layer does not treat the samples independently, or is bypassed)")
        self.names = names


@dataclass
class Call:
    """One use of a layer: its input, the shape of its output, and the output's place in the graph."""

    module: nn.Module
    inputs: Tensor
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
    """

    parameters: dict[str, nn.Parameter]
    layers: dict[nn.Module, dict[str, str]] = field(default_factory=dict)
    bare: set[str] = field(default_factory=set)
    tables: set[str] = field(default_factory=set)
    made: dict[str, tuple[nn.Module, list[str]]] = field(default_factory=dict)

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
    def of(cls, model: nn.Module, parameters: dict[str, nn.Parameter]) -> Plan:
        """By the modules that the parameters hang on."""
        names, plan = {id(p): name for name, p in parameters.items()}, cls(parameters)
        for path, module in model.named_modules():
            held = {a: names[id(p)] for a, p in module._parameters.items() if p is not None and id(p) in names}
            if is_parametrized(module):
                for attribute, maker in module.parametrizations.items():  # type: ignore[union-attr, operator]
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


def record(plan: Plan, losses: Losses, batch: Batch, verify: bool = False) -> Recording:
    """The gradient of every sample's loss, by one ordinary batched forward and backward pass.

    Every layer that holds trainable parameters lets its input and the place of its output in the graph be seen; the
    backward pass then goes to those outputs only, and no weight gradient of the batch is ever formed. Right for models
    that treat the samples of a batch independently (BatchNorm in eval mode) and keep the batch on the leading axis,
    alone or as its outer part (windows of an image).

    Args:
        plan: of the model that `losses` runs; a parameter whose layer is called without the batch moves to `bare`.
        losses: gives the per-sample losses [k] of a batch, with gradient.
        batch: k collated rows.
        verify: also form the gradient of a randomly weighted sum of the losses, and compare.

    Raises:
        NotCovered: when a parameter is used in a way that no rule covers.
        Mismatch: when the check of `verify` fails.
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
    _find_bare(plan, calls, size)
    bare = {name: plan.parameters[name] for name in plan.bare}
    uses = uses_of(values, bare, size, plan.tables) if bare else []
    calls = [call for call in calls if not plan.bare.issuperset(plan.layers[call.module].values())]
    edges = [call.edge for call in calls] + [use.edge for _, use in uses]
    grads = torch.autograd.grad(values.sum(), edges, retain_graph=verify, allow_unused=True) if edges else ()

    factors: dict[str, list[Factors]] = {name: [] for name in [*plan.parameters, *plan.made]}
    for call, grad in zip(calls, grads, strict=False):
        if grad is None:
            continue
        found = rule_of(call.module)(call.module, _unchanged(call, plan), grad.view(call.shape))  # type: ignore[misc]
        for attribute, name in plan.layers[call.module].items():
            if name not in plan.bare:
                factors[name].append(_smallest(found[attribute], size, getattr(call.module, attribute)))
    for (name, use), grad in zip(uses, grads[len(calls) :], strict=True):
        if grad is not None:
            factors[name].append(use.factors(grad, plan.parameters[name], size))
    for name, (maker, sources) in plan.made.items():
        for made_factors in factors.pop(name):
            rows = made_factors.rows(0, len(made[maker])).view(size, *made[maker].shape)
            for source in sources:
                p = plan.parameters[source]
                shares = [torch.autograd.grad(made[maker], p, row, retain_graph=True)[0] for row in rows]
                factors[source].append(Dense(torch.stack(shares)))
    recording = Recording(values.detach(), factors)
    if verify:
        _verify(values, recording, plan.parameters)
    return recording


def _listen(calls: list[Call]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
        if output.requires_grad:
            inputs = args[0] if args else next(iter(kwargs.values()))
            # A linear layer's output is often a view of what it computed. A model that then writes into it (padding
            # set to zero) reroutes the view's gradient, but not the base's.
            base = output._base
            same = base is not None and base.numel() == output.numel() and base.is_contiguous() and output.is_contiguous()
            origin = base if same else output
            calls.append(Call(module, inputs.detach(), inputs._version, output.shape, get_gradient_edge(origin)))

    return hook


def _listen_to_maker(made: dict[nn.Module, Tensor]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
        made[module] = output

    return hook


def _find_bare(plan: Plan, calls: list[Call], size: int) -> None:
    """Parameters whose layer runs without the batch (position tables), or is bypassed, are looked up in the graph."""
    called = set()
    for call in calls:
        called.update(plan.layers[call.module].values())
        if call.shape[0] % size or call.inputs.shape[0] != call.shape[0]:
            plan.bare.update(plan.layers[call.module].values())
    made = {source for name, (_, sources) in plan.made.items() if name in called for source in sources}
    plan.bare.update(plan.parameters.keys() - called - made)


def _unchanged(call: Call, plan: Plan) -> Tensor:
    if call.inputs._version != call.version:
        names = ", ".join(plan.layers[call.module].values())
        raise NotCovered(f"{names} (the model writes into its layer's input)")
    return call.inputs


def _smallest(factors: Factors, size: int, parameter: nn.Parameter) -> Factors:
    """Factors or rows, whichever takes less memory: adapters, biases and norms end up as rows, large weights do not."""
    if factors.samples != size:
        factors = factors.grouped(size)
    if isinstance(factors, Dense) or factors.numbers < size * parameter.numel():
        return factors
    return Dense(factors.rows(0, len(parameter)).view(size, *parameter.shape))


def _verify(values: Tensor, recording: Recording, parameters: Mapping[str, nn.Parameter]) -> None:
    # Random weights, so that rows given to the wrong sample are seen as well as rows that are missing.
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(len(values), generator=generator).to(values) + 0.5
    grads = torch.autograd.grad((weights * values).sum(), list(parameters.values()), allow_unused=True)
    scale = max((float(g.norm()) for g in grads if g is not None), default=0.0)
    tolerance = 1e-6 if values.dtype == torch.float64 else 1e-3
    wrong = []
    for (name, p), grad in zip(parameters.items(), grads, strict=True):
        expected = torch.zeros_like(p) if grad is None else grad
        found = sum((f.combine(weights) for f in recording.factors[name]), torch.zeros(p.numel()).to(p))
        if float((found - expected.flatten()).norm()) > tolerance * max(float(expected.norm()), 1e-3 * scale):
            wrong.append(name)
    if wrong:
        raise Mismatch(wrong)
