"""Which parameter's per-sample gradients come from where."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from hf_unlearn.per_sample.layers import NotCovered, rule_of


def is_half(value: object) -> bool:
    """Whether something is a tensor of numbers in half precision."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.itemsize < 4


class Way(IntEnum):
    """The ways to the per-sample gradients of a parameter, in the order in which they are tried."""

    # By the rule of the layer that holds it.
    LAYER = 0
    # From where it meets the batch in the autograd graph.
    GRAPH = 1
    # The same, of a table that is looked up by position, whatever the samples hold.
    TABLE = 2
    # By the smallest module that has it and the whole batch as input, run again for one sample after the other.
    MODULE = 3
    # By the next larger module.
    PARENT = 4
    # By the whole model, run again for one sample after the other.
    ALONE = 5


class GradientMismatch(NotCovered):
    """The parameters of `names` cannot go the way that was planned for them, or failed the check on it.

    Attributes:
        names: of parameters, or of weights that parametrizations compute.
        reason: why, in a few words.
    """

    def __init__(self, names: Iterable[str], reason: str):
        self.names, self.reason = list(names), reason
        super().__init__(f"{', '.join(self.names)} ({reason})")


@dataclass
class Plan:
    """Which parameter's gradients come from where.

    Attributes:
        model: whose parameters these are.
        parameters: name to trainable parameter.
        layers: modules with a rule: module to {attribute: parameter name}.
        ways: name to how its gradients are found; weights that parametrizations compute have theirs.
        reasons: why a parameter left its first way.
        parametrized: name of a weight that is computed from parameters (weight normalisation) to the module that
            computes it, and the names of those parameters.
        targets: of parameters whose module is run again: these modules.
        checked: whether gradients can be: not where the forward pass uses other tensors than the parameters (FSDP2).
        half_precision: whether the model has weights in half precision, frozen ones counted: its backward pass rounds.
    """

    model: nn.Module
    parameters: dict[str, nn.Parameter]
    layers: dict[nn.Module, dict[str, str]] = field(default_factory=dict)
    ways: dict[str, Way] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    parametrized: dict[str, tuple[nn.Module, list[str]]] = field(default_factory=dict)
    targets: dict[str, list[nn.Module]] = field(default_factory=dict)
    checked: bool = True
    half_precision: bool = False

    def by(self, *ways: Way) -> dict[str, nn.Parameter]:
        """The parameters that go one of these ways, by name."""
        return {name: p for name, p in self.parameters.items() if self.ways[name] in ways}

    def reassign(self, names: Iterable[str], reason: str) -> None:
        """Choose the next way for these parameters.

        Raises:
            GradientMismatch: there is none left for one of them.
        """
        for name in self._parameters_behind(names):
            if self.ways[name] == Way.ALONE:
                raise GradientMismatch([name], reason)
            self.ways[name] = Way(self.ways[name] + 1)
            self.reasons.setdefault(name, reason)
            self.targets.pop(name, None)

    def _parameters_behind(self, names: Iterable[str]) -> list[str]:
        """These names, with the parameters that a weight is computed from in its place: they have no other rule."""
        found = set(names)
        for computed, (_, sources) in list(self.parametrized.items()):
            if computed in found or found.intersection(sources):
                del self.parametrized[computed]
                self.ways.update(dict.fromkeys(sources, Way.TABLE))
                found = (found - {computed}) | set(sources)
        return sorted(found)

    def attributes(self, module: nn.Module) -> dict[str, str]:
        """Of a layer, {attribute: name} of the parameters that go by its rule."""
        held = self.layers[module]
        computed = self.parametrized
        return {a: name for a, name in held.items() if name in computed or self.ways.get(name) == Way.LAYER}

    def ancestors(self, name: str) -> list[list[nn.Module]]:
        """For every module that holds a parameter, that module and those around it, without the model itself."""
        modules = dict(self.model.named_modules(remove_duplicate=False))
        chains = []
        for path, module in modules.items():
            if path and any(p is self.parameters[name] for p in module._parameters.values()):
                parts = path.split(".")
                chains.append([modules[".".join(parts[:end])] for end in range(len(parts), 0, -1)])
        return chains

    @classmethod
    def from_model(cls, model: nn.Module, parameters: dict[str, nn.Parameter], checked: bool = True) -> Plan:
        """By the modules that hold the parameters."""
        names, plan = {id(p): name for name, p in parameters.items()}, cls(model, parameters, checked=checked)
        plan.half_precision = any(map(is_half, model.parameters()))
        plan.ways = dict.fromkeys(parameters, Way.GRAPH)
        for path, module in model.named_modules():
            held = {a: names[id(p)] for a, p in module._parameters.items() if p is not None and id(p) in names}
            if is_parametrized(module):
                for attribute, parametrization in module.parametrizations.items():
                    computed = f"{path}.{attribute}"
                    sources = [names[id(p)] for p in parametrization.parameters() if id(p) in names]
                    if sources and rule_of(module) is not None:
                        held[attribute] = computed
                        plan.parametrized[computed] = parametrization, sources
                        plan.ways.update(dict.fromkeys(sources, Way.LAYER))
            if held and rule_of(module) is not None:
                plan.layers[module] = held
                plan.ways.update({name: Way.LAYER for name in held.values() if name in parameters})
        return plan
