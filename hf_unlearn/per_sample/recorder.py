"""Per-sample gradients of a whole batch from one forward and one backward pass, by hooks on the layers."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from hf_unlearn.per_sample import replay
from hf_unlearn.per_sample.factors import Dense, Factors, Recording, rows_of
from hf_unlearn.per_sample.graph_parameters import Graph, ParameterUse, propagate
from hf_unlearn.per_sample.layers import NotCovered, cross_entropy, leaf, rule_of
from hf_unlearn.per_sample.loop import Batch, Losses, batch_size, check_losses, loop_gradients, slice_batch
from hf_unlearn.per_sample.plan import GradientMismatch, Plan, Way, is_half
from hf_unlearn.per_sample.state import unchanged_state
from hf_unlearn.per_sample.tracing import LayerCall, Trace, run_with_hooks
from hf_unlearn.per_sample.verification import Verified, check_alone, use_of_parameters, verify

logger = logging.getLogger(__name__)


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
    trace = run_with_hooks(plan, losses, batch, candidates)
    if plan.checked:
        check_losses(trace.losses, size)
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
    training = [module.training for module in plan.model.modules()]
    use = use_of_parameters(size, trace.layers, trace.modules, uses, trace.moves, training)
    is_new = plan.checked and use not in verified
    total = trace.losses.sum()
    backprops = torch.autograd.grad(total, edges, retain_graph=is_new, allow_unused=True) if edges else ()
    recording = Recording(trace.losses.detach(), _factors(plan, trace, uses, axes, backprops, size))
    weights = plan.model.parameters() if plan.half_precision else ()
    rounds = any(map(is_half, (*weights, *backprops)))
    if is_new and all(grad is None or grad.isfinite().all() for grad in backprops):
        _check_first_alone(plan, losses, batch, recording, rounds)
        checked = {name: p for name, p in plan.parameters.items() if plan.ways[name] != Way.ALONE}
        has_gradients = verify(trace.losses, recording, checked, rounds)
        verified.add(use, recording.losses, without_gradient=not has_gradients)
    elif is_new and not rounds:
        # Of an overflow in half precision the loss scaler takes care, and the next batch is checked.
        return loop_gradients(losses, batch, plan.parameters)
    _run_alone(plan, losses, batch, recording, rounds)
    return recording


def _candidates(plan: Plan) -> list[nn.Module]:
    """The modules that may have to run again: those chosen, and all that hold a parameter for which none is yet."""
    modules: dict[nn.Module, None] = {}
    for name in plan.by(Way.MODULE, Way.PARENT):
        chosen = plan.targets.get(name)
        modules |= dict.fromkeys(chosen if chosen else [m for chain in plan.ancestors(name) for m in chain])
    return list(modules)


def _sample_axes(
    plan: Plan, losses: Losses, batch: Batch, trace: Trace, candidates: Collection[nn.Module], graph: Graph
) -> dict[int, replay.SampleAxes]:
    """Of the calls of the modules that run again, by the calls' ids, where the samples are; chooses the modules.

    Raises:
        GradientMismatch: for parameters that no module with the whole batch as input has.
    """
    size = batch_size(batch)
    with unchanged_state(plan.model):
        of_first = run_with_hooks(plan, losses, slice_batch(batch, 0, 1), candidates).modules
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
        spans = [call.span for call in trace.modules if call.module in targets]
        fit = targets and all(all(fits[module]) for module in targets) and not graph.used_outside(name, spans)
        if name in used and not fit:
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
                name = names[attribute]
                computed = plan.parametrized.get(name)
                shape = (plan.parameters[name] if computed is None else trace.weights[computed[0]]).shape
                factors[name].append(_smallest(layer_factors, size, shape))
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
    # A look at a weight that is computed may change what it is computed from (spectral normalisation).
    with unchanged_state(call.module) if is_parametrized(call.module) else nullcontext():
        if call.scorer is not None:
            factors = cross_entropy(call.scorer, activations, grad.view(call.shape[:-1]))
        else:
            factors = rule_of(call.module)(call.module, activations, grad.view(call.shape))  # type: ignore[misc]
    return {attribute: factors[attribute] for attribute in names}


def _paths(plan: Plan, module: nn.Module) -> dict[str, str]:
    """Of the parameters for which this module runs again, {path within it: name}."""
    names = {id(plan.parameters[name]): name for name, targets in plan.targets.items() if module in targets}
    return {path: names[id(p)] for path, p in module.named_parameters() if id(p) in names}


def _run_alone(plan: Plan, losses: Losses, batch: Batch, recording: Recording, rounds: bool) -> None:
    """Add the gradients of those parameters for which the whole model runs again, a sample at a time.

    Raises:
        NotCovered: the losses of samples alone are others than in the batch.
    """
    parameters = plan.by(Way.ALONE)
    if not parameters:
        return
    with unchanged_state(plan.model):
        alone = loop_gradients(losses, batch, parameters)
    check_alone(recording.losses, alone.losses, rounds)
    recording.factors.update(alone.factors)


def _check_first_alone(plan: Plan, losses: Losses, batch: Batch, recording: Recording, rounds: bool) -> None:
    """Compare the first sample's loss with what it is alone.

    Raises:
        NotCovered: it is another one.
    """
    try:
        with unchanged_state(plan.model), torch.no_grad():
            alone = losses(slice_batch(batch, 0, 1))
    except Exception as error:  # whatever a model raises that does not take one sample
        logger.warning(
            f"Whether a sample's loss depends on others of its batch is not checked, as the model does not take the "
            f"first one alone: {' '.join(str(error).split())[:100]}"
        )
    else:
        check_alone(recording.losses, alone, rounds)


def _check_bypassed(plan: Plan, graph: Graph, trace: Trace) -> None:
    """Refuse the way by a layer's rule where the losses depend on the parameter beside the layer's calls."""
    spans: dict[str, list[tuple[int, int]]] = {}
    for call in trace.layers:
        for name in plan.layers[call.module].values():
            for source in plan.parametrized[name][1] if name in plan.parametrized else [name]:
                spans.setdefault(source, []).append(call.span)
    used = set(graph.leaves.values()) if plan.checked else plan.parameters.keys()
    bypassed = {name for name in plan.by(Way.LAYER).keys() & used if name not in spans}
    bypassed |= {name for name in plan.by(Way.LAYER).keys() & spans.keys() if graph.used_outside(name, spans[name])}
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
