"""Per-sample gradients of a whole batch from one forward and one backward pass, by hooks on the layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from hf_unlearn.losses.labelled import LabelledCrossEntropy
from hf_unlearn.per_sample import replay
from hf_unlearn.per_sample.factors import Dense, Factors, Recording, rows_of
from hf_unlearn.per_sample.graph_parameters import Graph, ParameterUse, gradient_edge, propagate
from hf_unlearn.per_sample.layers import NotCovered, cross_entropy, leaf, rule_of
from hf_unlearn.per_sample.loop import Batch, Losses, batch_size, loop_gradients, slice_batch
from hf_unlearn.per_sample.moves import Moves
from hf_unlearn.per_sample.plan import GradientMismatch, Plan, Way
from hf_unlearn.per_sample.verification import Verified, use_of_parameters, verify


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
        scorer: of an output layer that has returned cross-entropies, what computed them.
    """

    module: nn.Module
    activations: Tensor | None
    is_only_input: bool
    version: int
    shape: torch.Size
    edge: GradientEdge
    place: int
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
        moves: which rows were taken.
        layers: the calls of layers with a rule.
        modules: the calls of modules that are run again.
        weights: those that parametrizations computed.
    """

    losses: Tensor
    moves: Moves
    layers: list[LayerCall] = field(default_factory=list)
    modules: list[replay.ModuleCall] = field(default_factory=list)
    weights: dict[nn.Module, Tensor] = field(default_factory=dict)


def record(plan: Plan, losses: Losses, batch: Batch, verified: Verified) -> Recording:
    """The gradient of every sample's loss, by one ordinary batched forward and backward pass.

    Hooks on every layer with trainable parameters keep its activations and the place of its output in the graph; the
    backward pass then goes to those outputs only, and no weight gradient of the batch is ever formed. Exact for models
    that treat the samples of a batch independently (BatchNorm in eval mode). Parameters that no rule covers go their
    own way (see `Way`), the others do not. Whenever parameters are used in a way that is new, by sizes, shapes or
    operations, the gradients are checked against that of a randomly weighted sum of the losses.

    Args:
        plan: of the model that `losses` runs.
        losses: gives the per-sample losses [k] of a batch, with gradient.
        batch: k collated samples.
        verified: the uses that need no check; those that pass one are added.

    Raises:
        NotCovered: when the samples of a batch are mixed.
        GradientMismatch: when parameters cannot go the way that is planned, or fail the check; see `Plan.reassign`.
    """
    size = batch_size(batch)
    candidates = _candidates(plan)
    trace = _run_with_hooks(plan, losses, batch, candidates)
    graph = Graph.of(trace.losses, plan.parameters)
    _check_bypassed(plan, graph, trace)
    axes = _sample_axes(plan, losses, batch, trace, candidates, graph) if candidates else {}
    trace.layers = [call for call in trace.layers if plan.attributes(call.module)]
    trace.modules = [call for call in trace.modules if id(call) in axes]
    looked_up = plan.by(Way.GRAPH, Way.TABLE)
    if looked_up and not plan.checked:
        raise NotCovered(f"{', '.join(sorted(looked_up))} (sharded, and used outside its layer)")
    uses = graph.find_uses(looked_up, size, plan.by(Way.TABLE)) if looked_up else []

    edges = [call.edge for call in trace.layers] + [use.edge for use in uses]
    edges += [edge for call in trace.modules for edge in call.edges.values()]
    use = use_of_parameters(size, trace.layers, trace.modules, uses, graph, trace.moves, batch)
    is_new = plan.checked and use not in verified
    total = trace.losses.sum()
    backprops = torch.autograd.grad(total, edges, retain_graph=is_new, allow_unused=True) if edges else ()
    recording = Recording(trace.losses.detach(), _factors(plan, trace, uses, axes, backprops, size))
    # An overflow in half precision cannot be checked: the loss scaler handles it, and the next batch is checked.
    if is_new and all(grad is None or grad.isfinite().all() for grad in backprops):
        weights = plan.model.parameters() if plan.half_precision else ()
        rounds = any(t is not None and t.is_floating_point() and t.itemsize < 4 for t in (*weights, *backprops))
        checked = {name: p for name, p in plan.parameters.items() if plan.ways[name] != Way.ALONE}
        verify(trace.losses, recording, checked, rounds)
        verified.add(use)
    _run_alone(plan, losses, batch, recording)
    return recording


def _run_with_hooks(plan: Plan, losses: Losses, batch: Batch, candidates: Iterable[nn.Module]) -> Trace:
    trace = Trace(torch.empty(0), Moves(batch_size(batch)))
    handles = [module.register_forward_hook(_call_hook(trace.layers), with_kwargs=True) for module in plan.layers]
    handles += [m.register_forward_hook(_weight_hook(trace.weights)) for m, _ in plan.parametrized.values()]
    handles += [m.register_forward_hook(replay.call_hook(trace.modules), with_kwargs=True) for m in candidates]
    try:
        with trace.moves:
            trace.losses = losses(batch)
        return trace
    finally:
        for handle in handles:
            handle.remove()


def _candidates(plan: Plan) -> list[nn.Module]:
    """The modules that may have to run again: those chosen, and all that hold a parameter for which none is yet."""
    modules: dict[nn.Module, None] = {}
    for name in plan.by(Way.MODULE, Way.PARENT):
        chosen = plan.targets.get(name)
        modules |= dict.fromkeys(chosen if chosen else [m for chain in plan.ancestors(name) for m in chain])
    return list(modules)


def _sample_axes(
    plan: Plan, losses: Losses, batch: Batch, trace: Trace, candidates: Iterable[nn.Module], graph: Graph
) -> dict[int, replay.SampleAxes]:
    """Of the calls of the modules that run again, by the calls' ids, where the samples are; chooses the modules.

    Raises:
        GradientMismatch: for parameters that no module with the whole batch as input has.
    """
    size = batch_size(batch)
    of_first = _run_with_hooks(plan, losses, slice_batch(batch, 0, 1), candidates).modules
    axes: dict[int, replay.SampleAxes | None] = {}
    for module in candidates:
        calls, alone = ([c for c in found if c.module is module] for found in (trace.modules, of_first))
        for i, call in enumerate(calls):
            axes[id(call)] = replay.sample_axes(call, alone[i], size) if len(calls) == len(alone) else None
    fits = {m: [axes[id(c)] is not None for c in trace.modules if c.module is m] for m in candidates}
    used, without = set(graph.leaves.values()), []
    for name in plan.by(Way.MODULE, Way.PARENT):
        targets = plan.targets.get(name) or _targets(plan, name, fits)
        plan.targets[name] = targets
        if name in used and not (targets and all(all(fits[module]) for module in targets)):
            without.append(name)
    if without:
        raise GradientMismatch(without, "no module of one sample at a time has it")
    chosen = {module for targets in plan.targets.values() for module in targets}
    return {id(c): found for c in trace.modules if c.module in chosen and (found := axes[id(c)]) is not None}


def _targets(plan: Plan, name: str, fits: Mapping[nn.Module, list[bool]]) -> list[nn.Module]:
    """Of each module that holds a parameter, the smallest around it that can run again, or the one after that."""
    targets: list[nn.Module] = []
    for chain in plan.ancestors(name):
        usable = [module for module in chain if fits[module] and all(fits[module])]
        targets += usable[plan.ways[name] - Way.MODULE :][:1]
    # A module within another one runs with it.
    return [m for m in dict.fromkeys(targets) if not any(m in other.modules() for other in targets if other is not m)]


@torch.no_grad()
def _factors(
    plan: Plan,
    trace: Trace,
    uses: list[ParameterUse],
    axes: Mapping[int, replay.SampleAxes],
    backprops: Sequence[Tensor | None],
    size: int,
) -> dict[str, list[Factors]]:
    """Name to the factors of the parameter's per-sample gradients, one for every use."""
    factors: dict[str, list[Factors]] = {name: [] for name in [*plan.parameters, *plan.parametrized]}
    failures = Failures()
    of_layers, rest = backprops[: len(trace.layers)], backprops[len(trace.layers) :]
    of_uses, of_modules = rest[: len(uses)], iter(rest[len(uses) :])
    for call, grad in zip(trace.layers, of_layers, strict=True):
        if grad is None:
            continue
        names = plan.attributes(call.module)
        with failures.of(names.values()):
            for attribute, layer_factors in _layer_factors(call, grad, size, names).items():
                shape = getattr(call.module, attribute).shape
                factors[names[attribute]].append(_smallest(layer_factors, size, shape))
    for use, grad in zip(uses, of_uses, strict=True):
        if grad is None:
            continue
        parameter = plan.parameters[use.name]
        with failures.of([use.name]):
            factors[use.name].append(_smallest(use.factors(grad, parameter, size), size, parameter.shape))
    for module_call in trace.modules:
        grads = [next(of_modules) for _ in module_call.edges]
        paths = _paths(plan, module_call.module)
        with failures.of(paths.values()):
            found = replay.replay(module_call, axes[id(module_call)], grads, paths, size)
            for name, dense in found.items():
                factors[name].append(dense)
    for name, (parametrization, sources) in plan.parametrized.items():
        for weight_factors in factors.pop(name):
            weight = trace.weights[parametrization]
            for source in sources:
                factors[source].append(propagate(weight, weight.shape, weight_factors, plan.parameters[source]))
    failures.raise_all()
    return factors


def _layer_factors(call: LayerCall, grad: Tensor, size: int, names: Mapping[str, str]) -> dict[str, Factors]:
    """By the rule of a layer, for these of its attributes."""
    activations = _with_batch_axis(call, size)
    if call.scorer is not None:
        factors = cross_entropy(call.scorer, activations, grad.view(call.shape[:-1]))
    else:
        factors = rule_of(call.module)(call.module, activations, grad.view(call.shape))  # type: ignore[misc]
    return {attribute: factors[attribute] for attribute in names}


def _paths(plan: Plan, module: nn.Module) -> dict[str, str]:
    """Of the parameters for which this module runs again, {path within it: name}."""
    names = {id(plan.parameters[name]): name for name, targets in plan.targets.items() if module in targets}
    return {path: names[id(p)] for path, p in module.named_parameters() if id(p) in names}


def _run_alone(plan: Plan, losses: Losses, batch: Batch, recording: Recording) -> None:
    """Add the gradients of those parameters for which the whole model runs again, a sample at a time.

    Raises:
        NotCovered: the losses of samples alone are others than in the batch.
    """
    parameters = plan.by(Way.ALONE)
    if not parameters:
        return
    alone = loop_gradients(losses, batch, parameters)
    tolerance = 5e-2 if plan.half_precision else 1e-3
    if not torch.allclose(alone.losses, recording.losses, rtol=tolerance, atol=tolerance):
        raise NotCovered(f"{', '.join(parameters)} (the loss of a sample depends on others of the batch)")
    recording.factors.update(alone.factors)


def _call_hook(calls: list[LayerCall]) -> Callable[..., None]:
    """A forward hook that keeps the layer's call."""

    def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
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
                    scorer if isinstance(scorer, LabelledCrossEntropy) else None,
                )
            )

    return hook


def _place(activations: Tensor | None) -> int:
    made_by = None if activations is None else activations.grad_fn
    return torch.autograd._get_sequence_nr() if made_by is None else made_by._sequence_nr()


def _weight_hook(weights: dict[nn.Module, Tensor]) -> Callable[..., None]:
    """A forward hook that keeps the weight that a parametrization computed."""

    def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
        weights[module] = output

    return hook


def _check_bypassed(plan: Plan, graph: Graph, trace: Trace) -> None:
    """Refuse the way by a layer's rule where the losses depend on the parameter and the layer was not called."""
    called = {name for call in trace.layers for name in plan.layers[call.module].values()}
    called |= {source for name, (_, sources) in plan.parametrized.items() if name in called for source in sources}
    used = set(graph.leaves.values()) if plan.checked else plan.parameters.keys()
    bypassed = (plan.by(Way.LAYER).keys() & used) - called
    if bypassed:
        raise GradientMismatch(sorted(bypassed), "its layer is bypassed")


def _with_batch_axis(call: LayerCall, size: int) -> Tensor:
    """The activations of a call that has the batch on the leading axis, alone or as its outer part.

    Raises:
        NotCovered: it has not (position tables); a module without a rule of its own has other inputs, too; or the
            model has written into the activations since.
    """
    x = call.activations
    if x is None or not call.shape or call.shape[0] % size or x.dim() == 0 or x.shape[0] != call.shape[0]:
        raise NotCovered("its layer does not have the samples on the leading axis")
    if rule_of(call.module) is leaf and not call.is_only_input:
        raise NotCovered("its module has several inputs")
    if x._version != call.version:
        raise NotCovered("the model writes into its layer's input")
    return x


def _smallest(factors: Factors, size: int, shape: torch.Size) -> Factors:
    """Factors or dense gradients, whichever are smaller: dense for adapters, biases and norms, not large weights."""
    if factors.samples != size:
        factors = factors.grouped(size)
    if isinstance(factors, Dense) or factors.stored_numel < size * shape.numel():
        return factors
    return Dense(factors.row_gradients(0, rows_of(shape)).view(size, *shape))


class Failures:
    """The parameters whose rule does not work out, collected: all of them take their next way at once."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.reason = ""

    @contextmanager
    def of(self, names: Iterable[str]) -> Iterator[None]:
        """Keep what is raised while the gradients of these parameters are formed."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a rule that runs the user's module raises whatever that does
            self.names += names
            self.reason = " ".join(str(error).split())[:100]

    def raise_all(self) -> None:
        """Raise one error for all of them."""
        if self.names:
            raise GradientMismatch(dict.fromkeys(self.names), self.reason)
