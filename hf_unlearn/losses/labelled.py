"""A model's predictions at labelled positions alone: for prompts and padding no logits over the vocabulary are formed.

The output layer gets the hidden states of the labelled positions only, each sample's moved together:
`[batch, n, width]`, n the largest number of labels of a sample. What the model does with logits afterwards (a scale, a
softcap) it does with these. A plain linear output layer whose logits are the model's result returns the cross-entropy
instead (`LabelledCrossEntropy`), and the logits of the batch never exist. Whether a model can be run like this is seen
once, by two samples of the first batch beside the model's full logits; one that cannot gives all its logits.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hf_unlearn.losses.cross_entropy import linear_cross_entropy
from hf_unlearn.losses.functional import IGNORED, position_losses

logger = logging.getLogger(__name__)
# How the predictions of a model are taken: its cross-entropies, its logits at labelled positions, or all its logits.
Access: TypeAlias = Literal["losses", "logits", "outputs"]
# By output layer: what was seen to be right.
_access: WeakKeyDictionary[nn.Module, Access] = WeakKeyDictionary()


class LabelledCrossEntropy:
    """A linear output layer's forward that returns the cross-entropy at each position, `[batch, n, 1]`.

    Attributes:
        layer: the layer.
        labels: `[batch, n]`, -100 where there is none.
        hidden: `[batch, n, width]`, of the last call.
        dtype: of its matrix product: that of autocast, where it is on.
        normalizers: `[batch, n, 2]`, see `linear_cross_entropy`; where there is no label infinity, which makes all
            probabilities 0.
        correct: `[batch, n]`, whether the largest logit is the label's; None while gradients are enabled.
        result: what it returned.
    """

    def __init__(self, layer: nn.Linear, labels: Tensor):
        self.layer, self.labels = layer, labels
        self.correct: Tensor | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """The cross-entropies `[batch, n, 1]` of hidden states `[batch, n, width]`."""
        self.hidden, device = hidden, hidden.device.type
        self.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        weight, bias = self.layer.weight.to(self.dtype), self.layer.bias
        labels = self.labels = self.labels.to(hidden.device)
        places = (labels.flatten() != IGNORED).nonzero().flatten()
        losses, normalizers, correct = linear_cross_entropy(
            hidden.flatten(0, 1)[places].to(self.dtype), weight, None if bias is None else bias.to(self.dtype),
            labels.flatten()[places], with_correct=not torch.is_grad_enabled(),
        )  # fmt: skip
        count = labels.numel()
        padding = normalizers.new_full((count, 2), torch.inf)
        self.normalizers = padding.index_copy(0, places, normalizers).view(*labels.shape, 2)
        if not torch.is_grad_enabled():
            self.correct = correct.new_zeros(count).index_copy(0, places, correct).view(labels.shape)
        self.result = losses.new_zeros(count).index_copy(0, places, losses).view(*labels.shape, 1)
        return self.result


@dataclass
class LabelledOutputs:
    """What a model returned, with its predictions at labelled positions; other entries are the model's.

    Attributes:
        outputs: the model's.
        labels: `[batch, n]`, each sample's labels moved together, -100 behind them.
        computed: logits `[batch, n, classes]`, or cross-entropies `[batch, n, 1]` with `scorer`.
        scorer: what made the cross-entropies.
    """

    outputs: Any
    labels: Tensor
    computed: Tensor = field(repr=False)
    scorer: LabelledCrossEntropy | None = None

    @cached_property
    def logits(self) -> Tensor:
        """`[batch, n, classes]`, differentiable."""
        return self.computed if self.scorer is None else self.scorer.layer(self.scorer.hidden)

    @cached_property
    def position_losses(self) -> Tensor:
        """Cross-entropy at each position, `[batch, n]`; 0 where there is no label."""
        return position_losses(self.logits, self.labels) if self.scorer is None else self.computed.squeeze(2)

    @cached_property
    def correct(self) -> Tensor:
        """Whether the largest logit is the label's, `[batch, n]`."""
        if self.scorer is not None and self.scorer.correct is not None:
            return self.scorer.correct
        return self.logits.argmax(-1) == self.labels.to(self.logits.device)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.outputs, name)

    def __getitem__(self, name: str) -> Any:
        return self.logits if name == "logits" else self.outputs[name]


def run_labelled(
    model: Any, inputs: Mapping[str, Any], labels: Tensor, needs_logits: bool, **extra: Any
) -> LabelledOutputs | Any:
    """Run a model for its predictions at labelled positions.

    Args:
        model: with a language-model head; wrapped or not.
        inputs: of its forward; no labels.
        labels: `[batch, positions]`, the label of the prediction at each position, -100 for none.
        needs_logits: whether logits are asked for, rather than losses.
        extra: further arguments of the forward.

    Returns:
        The model's own outputs where it does not give one prediction for each label.
    """
    layer = _output_layer(model)
    access: Access = "outputs" if layer is None else _access_of(layer, model, inputs, labels)
    if access == "losses" and (needs_logits or not _is_plain(layer)):
        access = "logits"
    positions = _labelled_positions(labels)
    outputs, computed, scorer = _run(model, layer, access, inputs, labels, positions, **extra)
    if access == "outputs":
        if computed.shape[:2] != labels.shape:
            return outputs
        computed = _gathered(computed, positions)
    return LabelledOutputs(outputs, labels.gather(1, positions), computed, scorer)


def _run(
    model: Any,
    layer: Any,
    access: Access,
    inputs: Mapping[str, Any],
    labels: Tensor,
    positions: Tensor,
    **extra: Any,
) -> tuple[Any, Tensor, LabelledCrossEntropy | None]:
    """The outputs of a model, its logits or cross-entropies, and what made the latter."""
    if access == "outputs":
        outputs = model(**inputs, **extra)
        return outputs, outputs.logits, None
    scorer = LabelledCrossEntropy(layer, labels.gather(1, positions)) if access == "losses" else None
    with _at_positions(layer, positions, labels.shape, scorer):
        outputs = model(**inputs, **extra)
    return outputs, outputs.logits, scorer


@contextmanager
def _at_positions(
    layer: nn.Module, positions: Tensor, shape: torch.Size, scorer: LabelledCrossEntropy | None
) -> Iterator[None]:
    """While it lasts, an output layer sees these positions [batch, n] alone, and `scorer` stands for its forward."""

    def gather(module: nn.Module, args: tuple) -> tuple | None:
        return (_gathered(args[0], positions), *args[1:]) if args and args[0].shape[:2] == shape else None

    handle = layer.register_forward_pre_hook(gather)
    if scorer is not None:
        layer.forward = scorer
    try:
        yield
    finally:
        handle.remove()
        if scorer is not None:
            del layer.forward


def _gathered(values: Tensor, positions: Tensor) -> Tensor:
    """Of values [batch, positions, width] those at positions [batch, n]: [batch, n, width]."""
    return values.gather(1, positions.to(values.device)[..., None].expand(-1, -1, values.shape[-1]))


def _labelled_positions(labels: Tensor) -> Tensor:
    """Where each sample's labels are, in order, and then some other positions: [batch, n], n at least 1."""
    labelled = labels != IGNORED
    most = max(1, int(labelled.sum(1).max()))
    return (~labelled).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]


def _output_layer(model: Any) -> nn.Module | None:
    """The output layer of the model inside its wrappers; None where hooks on it do not reach the forward pass."""
    while not hasattr(model, "get_output_embeddings") or hasattr(model, "get_base_model"):
        if isinstance(model, nn.DataParallel) or hasattr(model, "_orig_mod"):
            return None
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif isinstance(model, nn.Module):
            model = getattr(model, "module", None)
        else:
            model = getattr(model, "model", None)  # the frozen original
        if model is None:
            return None
    return None if hasattr(model, "_orig_mod") else model.get_output_embeddings()


def _is_plain(layer: Any) -> bool:
    """Whether a layer is an ordinary linear one: whole, on its device, and computed by nobody else."""
    return (
        type(layer) is nn.Linear
        and "forward" not in vars(layer)
        and type(layer.weight.data) is Tensor  # not sharded, not quantised
        and not hasattr(layer.weight, "ds_id")
    )


def _access_of(layer: nn.Module, model: Any, inputs: Mapping[str, Any], labels: Tensor) -> Access:
    """How the predictions of this model may be taken; seen once for each output layer."""
    if layer not in _access:
        access = _verified_access(layer, model, inputs, labels)
        _access[layer] = access
        name = type(layer).__name__
        if access == "outputs":
            logger.info(f"All logits are computed: the model's output layer ({name}) does not run on some positions")
        elif access == "logits":
            logger.info(f"Logits of labelled positions are kept for the batch: they are not those of a linear {name}")
    return _access[layer]


@torch.no_grad()
def _verified_access(layer: nn.Module, model: Any, inputs: Mapping[str, Any], labels: Tensor) -> Access:
    """By two samples, labelled at every other position, beside the model's full logits."""
    size = len(labels)
    if all(len(v) == size for v in inputs.values() if isinstance(v, Tensor) and v.dim()):
        inputs = {n: v[:2] if isinstance(v, Tensor) and v.dim() else v for n, v in inputs.items()}
        labels = labels[:2]
    modules = model if isinstance(model, nn.Module) else model.model
    modes = {module: module.training for module in modules.modules()}
    modules.eval()
    try:
        full = model(**inputs).logits
        if full.shape[:2] != labels.shape:
            return "outputs"
        places = torch.arange(labels.numel(), device=labels.device).view(labels.shape)
        labels = torch.where((places + places // labels.shape[1]) % 2 == 0, places % full.shape[-1], IGNORED)
        positions = _labelled_positions(labels)
        kept = labels.gather(1, positions)
        expected = position_losses(_gathered(full, positions), kept)
        for access in ("losses", "logits") if _is_plain(layer) else ("logits",):
            if _agrees(access, layer, model, inputs, labels, positions, expected):
                return access
        return "outputs"
    finally:
        for module, mode in modes.items():
            module.training = mode


def _agrees(
    access: Access, layer: nn.Module, model: Any, inputs: Mapping[str, Any], labels: Tensor, positions: Tensor,
    expected: Tensor,
) -> bool:  # fmt: skip
    try:
        _, computed, scorer = _run(model, layer, access, inputs, labels, positions)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return False  # the model looks at the shape of its logits
    # Losses that the model has changed, as it changes logits, are not losses any more.
    if computed.shape[:2] != positions.shape or (scorer is not None and computed is not scorer.result):
        return False
    kept = labels.gather(1, positions)
    losses = position_losses(computed, kept) if scorer is None else computed.squeeze(2)
    half = any(p.dtype in (torch.float16, torch.bfloat16) for p in (layer.weight, computed)) or (
        torch.is_autocast_enabled(computed.device.type)
    )
    tolerance = 5e-2 if half else 1e-4
    return torch.allclose(losses.to(expected), expected, rtol=tolerance, atol=tolerance)
