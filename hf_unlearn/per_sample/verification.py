"""Whether parameters are used in a way that is new, and the check of per-sample gradients when they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hf_unlearn.per_sample.factors import Dense, Recording
from hf_unlearn.per_sample.graph_parameters import ParameterUse
from hf_unlearn.per_sample.layers import NotCovered
from hf_unlearn.per_sample.loop import Batch, gradients_of, slice_batch
from hf_unlearn.per_sample.moves import Moves
from hf_unlearn.per_sample.plan import GradientMismatch, is_half

# In float32 and float64, of the norm of a tensor's gradient.
TOLERANCES = {torch.float64: 1e-5}
TOLERANCE = 1e-3
# Where every layer has the samples alone on its leading axis, checks at this many lengths count for all others.
SHAPES_CHECKED = 4
# A difference counts from this many times what rounding alone makes of the same gradient. Right gradients of 30
# architectures in bfloat16 and autocast differ by up to 3.3 times as much (short tensors), most of them by 1 to 2.
ROUNDING_ERRORS = 4.0
# Of a number in half precision (bfloat16), in float32 (as GPUs multiply, TF32), and in float64, where parts of a model
# compute in float32.
ROUNDING, ROUNDING_IN_FLOAT32, ROUNDING_IN_FLOAT64 = 2**-8, 5e-4, 1e-6


class Call(Protocol):
    """A use of a module, with its shapes."""

    module: nn.Module

    @property
    def shapes(self) -> tuple[torch.Size | None, ...]:
        """Of what goes in and comes out."""


class PlacedCall(Call, Protocol):
    """A use of a layer, with the place of its activations in the order of operations."""

    place: int


@dataclass
class Verified:
    """The uses of parameters for which gradients were checked.

    Attributes:
        checks: how often the exact uses (all shapes) were, by what they have in common but for lengths.
    """

    checks: dict[int, dict[int, int]] = field(default_factory=dict)

    def __contains__(self, use: Use) -> bool:
        known = self.checks.get(use.kind, {})
        enough = sum(count >= SHAPES_CHECKED for count in known.values())
        return known.get(use.exact, 0) >= SHAPES_CHECKED or (not use.may_be_packed and enough >= SHAPES_CHECKED)

    def add(self, use: Use, losses: Tensor, without_gradient: bool) -> None:
        """Of a check that has passed.

        Equal samples say nothing of a check: exchanged gradients of theirs make the same sum. Losses that are equal
        and not 0 are taken for those of equal samples, and the next batch is checked as well.

        Args:
            use: that was checked.
            losses: of the samples [k].
            without_gradient: whether a parameter had no gradient (a gate at zero, a fresh adapter), which says nothing
                of it: the next batches are checked as well, four times at most.
        """
        unequal = losses[losses != 0]
        if len(unequal.unique()) < len(unequal):
            return
        known = self.checks.setdefault(use.kind, {})
        known[use.exact] = known.get(use.exact, 0) + 1 if without_gradient else SHAPES_CHECKED


@dataclass(frozen=True)
class Use:
    """What a check of gradients holds for.

    Attributes:
        exact: all sizes, shapes and operations, and which rows are taken.
        kind: the same with no more of a shape than how its axes compare with the number of samples.
        may_be_packed: whether samples stand behind each other on an axis.
    """

    exact: int
    kind: int
    may_be_packed: bool


def use_of_parameters(
    size: int,
    layers: Sequence[PlacedCall],
    modules: Sequence[Call],
    uses: Sequence[ParameterUse],
    moves: Moves,
    training: Sequence[bool],
) -> Use:
    """How the parameters are used in one batch.

    Args:
        size: samples in the batch.
        layers: calls of layers with a rule.
        modules: calls of modules that run again.
        uses: of parameters that are looked up in the graph.
        moves: noted in the forward pass.
        training: of each module whether it is in training mode.
    """
    calls = [(id(call.module), call.shapes) for call in (*layers, *modules)]
    met = [(use.name, type(use.operation), use.path, (use.shape, use.result)) for use in uses]
    leading = {shape[0] for call in layers for shape in call.shapes if shape} | {use.result[0] for use in uses}
    places = [call.place for call in layers] + [use.edge.node._sequence_nr() for use in uses]
    operations, rows, parts = moves.until(max(places, default=-1))
    common = size, operations, rows, tuple(training)

    def compared(shapes: Sequence[torch.Size | None]) -> tuple:
        return tuple(None if s is None else tuple((n == size, n % size == 0, n == 1) for n in s) for s in shapes)

    kinds = (*((i, compared(s)) for i, s in calls), *((*place, compared(s)) for *place, s in met))
    return Use(hash((common, parts, tuple(calls), tuple(met))), hash((common, kinds)), leading != {size})


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """A model whose weights in half precision are in float32 meanwhile; they come back as they were."""
    half = {tensor: tensor.data for tensor in (*model.parameters(), *model.buffers()) if is_half(tensor)}
    try:
        for tensor, values in half.items():
            tensor.data = values.float()
        yield
    finally:
        for tensor, values in half.items():
            tensor.data = values


def two_samples_in_float32(batch: Batch) -> dict[str, Any]:
    """The first two samples of a batch, without half precision."""
    return {name: v.float() if is_half(v) else v for name, v in slice_batch(batch, 0, 2).items()}


def check_alone(values: Tensor, alone: Tensor, rounds: bool) -> None:
    """Compare losses of samples in their batch with those of the same samples alone.

    Args:
        values: in the batch [k].
        alone: of the first samples [n], n <= k.
        rounds: whether the forward pass is in half precision somewhere.

    Raises:
        NotCovered: they differ by more than rounding does.
    """
    share = ROUNDING if rounds else ROUNDING_IN_FLOAT64 if values.dtype == torch.float64 else ROUNDING_IN_FLOAT32
    spread = values.std() if len(values) > 1 else values.new_zeros(())
    allowed = share * (10 * spread + values[: len(alone)].abs())
    # Losses that are not finite say nothing.
    if bool(((values[: len(alone)] - alone).abs() > allowed).any()):
        raise NotCovered("the model as a whole (the loss of a sample depends on others of the batch)")


@torch.no_grad()
def verify(values: Tensor, recording: Recording, parameters: Mapping[str, nn.Parameter], rounds: bool) -> bool:
    """Compare a weighted sum of the per-sample gradients with the gradient of the weighted sum of the losses.

    In half precision, the gradient of the losses is formed a second time, in two parts: how far their sum is from the
    whole says how much rounding does, tensor by tensor; and so does the size of the samples' gradients, which may
    cancel.

    Args:
        values: the losses, with their graph.
        recording: of the batch.
        parameters: name to parameter, those that are checked.
        rounds: whether the backward pass is in half precision somewhere.

    Returns:
        Whether all of them have a gradient.

    Raises:
        GradientMismatch: where they differ by more than rounding.
    """
    # Random weights, so that gradients given to the wrong sample are noticed as well as missing ones.
    generator = torch.Generator().manual_seed(0)
    weights, part = (torch.rand(2, len(values), generator=generator) + 0.5).to(values)
    tensors = list(parameters.values())
    expected = gradients_of(values, tensors, weights, retain_graph=rounds)
    noise = [0.0] * len(tensors)
    if rounds:
        first = gradients_of(values, tensors, part, retain_graph=True)
        second = gradients_of(values, tensors, weights - part)
        parts = zip(first, second, expected, strict=True)
        noise = [float((a.float() + b.float() - whole.float()).norm()) for a, b, whole in parts]
    scale = max((float(grad.norm()) for grad in expected), default=0.0)
    tolerance = TOLERANCES.get(values.dtype, TOLERANCE)
    mismatches = []
    for (name, p), grad, rounding in zip(parameters.items(), expected, noise, strict=True):
        factors = recording.factors[name]
        found = sum((f.combine(weights) for f in factors), torch.zeros(p.numel()).to(p))
        size = float(grad.norm())
        if rounds and factors and all(isinstance(f, Dense) for f in factors):
            rounding = max(rounding, ROUNDING * float(sum(f.values.float() for f in factors).norm()))  # type: ignore
        allowed = max(tolerance * max(size, 1e-3 * scale), ROUNDING_ERRORS * rounding)
        if not float((found - grad.flatten()).norm()) <= allowed:
            mismatches.append(name)
    if mismatches:
        raise GradientMismatch(mismatches, "its layer does not treat the samples independently, or is bypassed")
    return all(bool(grad.any()) for name, grad in zip(parameters, expected, strict=True) if recording.factors[name])
