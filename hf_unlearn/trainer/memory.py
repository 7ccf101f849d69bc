"""The peak memory of a step, predicted from one traced forward pass before the first one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from typing import Any, TypeAlias

import psutil
import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_unlearn.data.randomness import unchanged_randomness
from hf_unlearn.losses.cross_entropy import CHUNK
from hf_unlearn.losses.labelled import LabelledOutputs
from hf_unlearn.per_sample.loop import Batch, batch_size, slice_batch
from hf_unlearn.per_sample.state import unchanged_state

logger = logging.getLogger(__name__)
Run: TypeAlias = Callable[[Batch], tuple[Any, Tensor]]
# Tensors of a weight's size that an optimizer keeps; two, as AdamW, where nothing is said.
OPTIMIZER_STATES = {"SGD": 0, "Adafactor": 0, "RMSprop": 1, "Adagrad": 1, "Lion": 1}
# Gradients of the widest activations that are there at once: of an MLP's product and its two factors.
WORKING = 3
# What lowers a term of the formula.
ADVICE = {
    "weights": "a base in 4 or 8 bits, or bfloat16, takes less",
    "optimizer": "LoRA (peft_config) trains fewer weights",
    "copies": "LoRA (peft_config) trains fewer weights",
    "gradients": "LoRA (peft_config) trains fewer weights",
    "activations": "a smaller per_device_train_batch_size with more gradient_accumulation_steps, or "
    "activation checkpointing, lowers them",
    "factors": "LoRA (peft_config), fewer retain samples a step or gram_cache='recompute' lower them",
    "gramian": "LoRA (peft_config) or fewer retain samples a step lower it",
    "logits": "labels on fewer positions lower them",
}


@dataclass(frozen=True)
class Footprint:
    """What a forward pass of some samples leaves in memory until its backward pass, in bytes.

    Attributes:
        saved: tensors that autograd saved, without weights.
        again: with activation checkpointing, those of the one layer that runs again in the backward pass.
        widest: the largest of all these.
        backprops: outputs of layers that train; their gradients take as much.
        factors: activations and backprops of layers that train, or their gradients where those are smaller.
        formed: gradients of the samples by layers of which the factors are kept.
        logits: all, in float32; of a language model at labelled positions.
        chunked: of these, logits of which no more than a chunk is there at once.
    """

    saved: float
    again: float
    widest: float
    backprops: float
    factors: float
    formed: float
    logits: float
    chunked: float

    @property
    def logits_at_once(self) -> float:
        """The logits that are in memory together, and the copy that a loss makes of them where it gets them whole."""
        return min(self.chunked, 4.0 * CHUNK) + 2 * (self.logits - self.chunked)


@dataclass(frozen=True)
class Surgery:
    """What gradient surgery keeps of a step.

    Attributes:
        chunks: recordings of retain samples that are kept until the step ends.
        samples: retain samples, over all processes.
        geometries: Gramians: one, or one for every tensor.
    """

    chunks: int
    samples: int
    geometries: int


@dataclass(frozen=True)
class MemoryPrediction:
    """The largest of a step's phases, in bytes a term.

    Attributes:
        weights: parameters and buffers.
        optimizer: its states.
        copies: what training weights are kept for beside: original weights for the audit and good ones for the guard
            (both in the memory of the CPU), a frozen original model.
        gradients: of the weights that train; with gradient surgery also the step, and the weights around it.
        activations: of the samples that are run at once, and the gradients of the widest.
        factors: of per-sample gradients.
        gramian: inner products, and gradients that are formed for them.
        logits: that are there at once.
    """

    weights: float = 0.0
    optimizer: float = 0.0
    copies: float = 0.0
    gradients: float = 0.0
    activations: float = 0.0
    factors: float = 0.0
    gramian: float = 0.0
    logits: float = 0.0

    @property
    def total(self) -> float:
        """The sum of the terms."""
        return sum(astuple(self))

    @property
    def largest(self) -> str:
        """The name of the largest term."""
        return max(vars(self), key=lambda name: vars(self)[name])

    @property
    def sentence(self) -> str:
        """All in one line, for the log."""
        terms = ", ".join(f"{name} {_size(value)}" for name, value in vars(self).items() if value >= 2**19)
        return f"A step takes about {_size(self.total)}: {terms}. Most is {self.largest}: {ADVICE[self.largest]}"


def footprint(model: nn.Module, run: Run, batch: Batch, samples: int) -> Footprint:
    """What a forward pass of so many samples leaves in memory, from passes of one and of two of them.

    Args:
        model: that `run` runs, in the mode that it trains in.
        run: gives a batch's outputs and scores, with their graph.
        batch: collated samples, padded as they will be.
        samples: how many are run at once.
    """
    with unchanged_state(model), unchanged_randomness(), torch.enable_grad():
        one = _traced(model, run, _first(batch, 1))
        if batch_size(batch) == 1:
            return Footprint(*(samples * value for value in astuple(one)))
        two = _traced(model, run, _first(batch, 2))
    return Footprint(*(a + (samples - 1) * (b - a) for a, b in zip(astuple(one), astuple(two), strict=True)))


def predict(
    model: nn.Module,
    optimizer: Any,
    forget: Footprint,
    retain: Footprint,
    *,
    copies: int,
    surgery: Surgery | None = None,
) -> MemoryPrediction:
    """The largest phase of a step: the forget pass, the retain pass, the geometry, the optimizer's step.

    With T bytes of weights that train and L of the largest of their tensors, s states of the optimizer, c copies, A of
    what autograd saves of the samples that are run at once, B of the backprops of the layers that train, F of the
    factors of all k retain samples, a phase takes weights + (s + c + 1) T and

        a pass, of any method                    L + A + the larger of logits and work
        a pass that records gradients            F + L + A + the larger of logits and work + B
        the geometry, of methods that combine    F + formed + 3 T + 4 L + 8 k^2

    The work is the gradients of the widest activations, and with checkpointing the activations of one layer; 3 T are
    the step, and the weights on either side of it, of which a log of its angle to the retain gradients is made, 4 L a
    tensor of it in float64 and its squares; formed are gradients of samples, as many numbers as F has at most.

    Args:
        model: whose weights are there.
        optimizer: of the run.
        forget: of the forget samples of a batch.
        retain: of the retain samples that are run at once.
        copies: kept of the weights that train.
        surgery: of a method that combines gradients of samples.
    """
    trained = sum(_bytes(p) for p in model.parameters() if p.requires_grad)
    states = OPTIMIZER_STATES.get(type(getattr(optimizer, "optimizer", optimizer)).__name__, 2)
    base = MemoryPrediction(
        weights=float(sum(_storages(model).values())),
        optimizer=states * trained, copies=copies * trained, gradients=trained,
    )  # fmt: skip
    largest = max((_bytes(p) for p in model.parameters() if p.requires_grad), default=0.0)
    passes = [_pass(base, largest, footprint) for footprint in (forget, retain)]
    if surgery is None:
        return max(passes, key=lambda phase: phase.total)
    kept = surgery.chunks * retain.factors
    recording = _pass(base, largest, retain, records=True)
    recording = replace(recording, factors=recording.factors + kept - retain.factors)
    inner = surgery.geometries * 8.0 * surgery.samples**2 + 4 * largest
    formed = min(surgery.chunks * retain.formed, kept)
    geometry = replace(base, gradients=4 * trained, factors=kept, gramian=inner + formed)
    return max((passes[0], recording, geometry), key=lambda phase: phase.total)


def _pass(base: MemoryPrediction, largest: float, footprint: Footprint, records: bool = False) -> MemoryPrediction:
    """The backward pass of some samples: logits are gone when the gradients of activations come."""
    work, backprops = footprint.again + WORKING * footprint.widest, footprint.backprops if records else 0.0
    phase = replace(base, gradients=base.gradients + largest, activations=footprint.saved)
    if footprint.logits_at_once >= work + backprops:
        return replace(phase, logits=footprint.logits_at_once)
    return replace(phase, activations=footprint.saved + work, factors=backprops)


def warn_of_memory(prediction: MemoryPrediction, device: torch.device) -> None:
    """Say so in one warning where a device has less memory than a step will take; weights and copies are there."""
    is_cuda = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if is_cuda else psutil.virtual_memory().available
    needed = prediction.total - prediction.weights - prediction.copies
    if needed > free:
        logger.warning(
            f"A step takes about {_size(needed)} beside weights and their copies, and {device.type} has {_size(free)} "
            f"free. Most is {prediction.largest}: {ADVICE[prediction.largest]}"
        )


def _traced(model: nn.Module, run: Run, batch: Batch) -> Footprint:
    """The terms of one batch, with all logits."""
    weights, calls, checkpointed = _storages(model), _Calls(), _Checkpointed()
    with calls.watch(model), checkpointed.watch(model), _saved_tensors(weights) as saved:
        outputs, scores = run(batch)
    again: dict[int, float] = {}
    if checkpointed.again is not None:
        with _saved_tensors(weights) as again:
            checkpointed.again()
    del scores
    factors, formed = calls.factors(batch_size(batch))
    widest = max((*saved.values(), *again.values()), default=0.0)
    return Footprint(
        sum(saved.values()), sum(again.values()), widest, calls.outputs, factors, formed, *_logits(outputs)
    )  # fmt: skip


def _first(batch: Batch, samples: int) -> Batch:
    """The first samples of a batch, in memory of their own."""
    return {
        name: value.clone() if isinstance(value, Tensor) else value
        for name, value in slice_batch(batch, 0, samples).items()
    }


def _storages(model: nn.Module) -> dict[int, int]:
    """The memory of a model's tensors, by address: of those of quantisation libraries also what they are made of."""
    found = {}
    tensors: list[Any] = [*model.parameters(), *model.buffers()]
    while tensors:
        tensor = tensors.pop()
        state = getattr(tensor, "quant_state", None)  # bitsandbytes keeps its scales beside the weight
        tensors += [value for value in vars(state).values() if isinstance(value, Tensor)] if state is not None else []
        if hasattr(tensor, "__tensor_flatten__") and type(tensor) is not Tensor:
            tensors += [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
        else:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return found


@contextmanager
def _saved_tensors(weights: Mapping[int, int]) -> Iterator[dict[int, float]]:
    """The sizes of the tensors that autograd saves meanwhile, by address; weights left out."""
    sizes: dict[int, float] = {}

    def keep(tensor: Tensor) -> Tensor:
        if type(tensor) not in (Tensor, nn.Parameter):
            return tensor.detach()
        # A sparse tensor, as some adapters make, has no memory but that of its parts.
        is_sparse = tensor.layout == torch.sparse_coo
        for part in (tensor._indices(), tensor._values()) if is_sparse else (tensor,):
            storage = part.untyped_storage()
            if storage.data_ptr() not in weights:
                sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # an output that its own operation held would never be freed

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield sizes


class _Calls:
    """The sizes of what layers with weights that train take in and give out."""

    def __init__(self) -> None:
        self.layers: list[tuple[int, float, float, float]] = []

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        """Look at all calls meanwhile."""
        handles = [
            module.register_forward_hook(self._keep)
            for module in model.modules()
            if any(p.requires_grad for p in module.parameters(recurse=False))
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _keep(self, module: nn.Module, args: tuple, output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            weights = sum(_bytes(p) for p in module.parameters(recurse=False) if p.requires_grad)
            self.layers.append((args[0].data_ptr(), _bytes(args[0]), _bytes(output), weights))

    @property
    def outputs(self) -> float:
        """All outputs."""
        return sum(output for _, _, output, _ in self.layers)

    def factors(self, samples: int) -> tuple[float, float]:
        """Of what is kept of these samples: activations and backprops, or gradients; and the former's gradients."""
        kept, formed, seen = 0.0, 0.0, set()
        for address, taken, given, weights in self.layers:
            gradients = samples * weights
            if taken + given < gradients:
                kept += given + (taken if address not in seen else 0.0)
                formed += gradients
                seen.add(address)
            else:
                kept += gradients
        return kept, formed


class _Checkpointed:
    """The first layer that activation checkpointing runs again in the backward pass."""

    def __init__(self) -> None:
        self.again: Callable[[], Any] | None = None

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        """Keep what the layer is called with."""
        layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer) and m.gradient_checkpointing]
        if not (layers and layers[0].training):
            yield
            return
        handle = layers[0].register_forward_pre_hook(self._keep, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _keep(self, layer: nn.Module, args: tuple, kwargs: dict) -> None:
        def again() -> Any:
            layer.training = False  # which is what has it checkpointed
            try:
                return layer(*args, **kwargs)
            finally:
                layer.training = True

        args = tuple(arg.detach().requires_grad_() if _is_activation(arg) else arg for arg in args)
        kwargs = {k: v.detach().requires_grad_() if _is_activation(v) else v for k, v in kwargs.items()}
        self.again = again


def _is_activation(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.requires_grad


def _logits(outputs: Any) -> tuple[float, float]:
    """The bytes of all logits in float32, and those of them that are formed in chunks."""
    if isinstance(outputs, LabelledOutputs) and outputs.scorer is not None:
        size = 4.0 * outputs.labels.numel() * outputs.scorer.layer.weight.shape[0]
        return size, size
    logits = outputs.computed if isinstance(outputs, LabelledOutputs) else getattr(outputs, "logits", None)
    return (4.0 * logits.numel() if isinstance(logits, Tensor) else 0.0), 0.0


def _bytes(tensor: Tensor) -> float:
    return float(tensor.numel() * tensor.element_size())


def _size(value: float) -> str:
    return f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"
