"""Per-sample gradients of one layer, from its activations and backprops: one rule a layer type."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.func import functional_call, vjp, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized
from transformers.pytorch_utils import Conv1D

from hf_unlearn.losses.labelled import LabelledCrossEntropy
from hf_unlearn.per_sample.factors import CrossEntropyLayer, Dense, Factors, Lazy, Outer, Scatter
from hf_unlearn.per_sample.state import unchanged_state

Rule = Callable[[Any, Tensor, Tensor], dict[str, Factors]]
RULES: dict[type[nn.Module], Rule] = {}


class NotCovered(Exception):
    """No rule gives the exact per-sample gradients; the message names the modules."""


def rule(*types: type[nn.Module]) -> Callable[[Rule], Rule]:
    """Register a function as the rule of exactly these module types (a subclass may compute something else).

    A rule takes the module, its activations (its input [k, ...]) and backprops (the gradient of its output [k, ...]),
    and returns the factors of the gradient of each of its own parameters, by attribute. The module must treat the
    samples on the leading axis independently.
    """

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(types, function))
        return function

    return register


def plain_class(module: nn.Module) -> type[Any]:
    """The class of a module; FSDP2 gives modules classes of their own, children of theirs.

    Examples:
        >>> plain_class(nn.Linear(2, 2)).__name__
        'Linear'
    """
    return next(base for base in type(module).__mro__ if not issubclass(base, FSDPModule))


def rule_of(module: nn.Module) -> Rule | None:
    """The rule of a module: that of its type, or `leaf` for a small module without children that has none."""
    # Weight normalisation swaps a module's class for a child of it, with the weight computed on the way.
    kind = type(module).__base__ if is_parametrized(module) else plain_class(module)
    if kind in RULES:
        return RULES[kind]
    if isinstance(module, nn.Embedding) and hasattr(module, "embed_scale"):
        return scaled_embedding
    has_vectors_only = all(p.dim() <= 1 for p in module.parameters(recurse=False))
    return leaf if has_vectors_only and not list(module.children()) else None


@rule(nn.Linear)
def linear(module: nn.Linear, activations: Tensor, backprops: Tensor) -> dict[str, Factors]:
    """`y = x W^T + b`, x [k, ..., in], W [out, in]."""
    activations, backprops = _as_sequence(activations), _as_sequence(backprops)  # shape: [k, t, in], [k, t, out]
    dtype = module.weight.dtype
    weight = Outer(backprops[:, None], activations[:, None], dtype)
    return {"weight": weight, "bias": Dense(backprops.to(dtype).sum(1))}


@rule(Conv1D)
def conv1d_of_gpt2(module: Conv1D, activations: Tensor, backprops: Tensor) -> dict[str, Factors]:
    """`y = x W + b`, x [k, ..., in], W [in, out]: a linear layer with its weight transposed."""
    activations, backprops = _as_sequence(activations), _as_sequence(backprops)  # shape: [k, t, in], [k, t, out]
    dtype = module.weight.dtype
    weight = Outer(activations[:, None], backprops[:, None], dtype)
    return {"weight": weight, "bias": Dense(backprops.to(dtype).sum(1))}


@rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def convolution(
    module: nn.Conv1d | nn.Conv2d | nn.Conv3d, activations: Tensor, backprops: Tensor
) -> dict[str, Factors]:
    """A linear layer on patches: x [k, in, ...], W [out, in / groups, ...]."""
    dtype, groups = module.weight.dtype, module.groups
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode

    def weight() -> Factors:
        # What the layer itself pads with, also where its padding is "same".
        padded = F.pad(activations.to(dtype), module._reversed_padding_repeated_twice, mode)
        return kernel_factors(padded, backprops, module.kernel_size, module.dilation, module.stride, groups, dtype)

    return {
        "weight": Lazy(weight, len(activations), activations.numel() + backprops.numel()),
        "bias": Dense(backprops.to(dtype).flatten(2).sum(2)),
    }


def kernel_factors(
    padded: Tensor,
    backprops: Tensor,
    kernel: Sequence[int],
    dilation: Sequence[int],
    stride: Sequence[int],
    groups: int,
    dtype: torch.dtype,
) -> Outer:
    """Of a convolution's weight, from its padded input [k, in, ...] and the gradient of its output [k, out, ...]."""
    columns = _patches(padded, kernel, dilation, stride)
    columns = columns.unflatten(2, (groups, -1)).transpose(1, 2)  # shape: [k, groups, t, in / groups * kernel]
    rows = backprops.flatten(2).unflatten(1, (groups, -1)).mT  # shape: [k, groups, t, out / groups]
    return Outer(rows, columns, dtype)


def _patches(x: Tensor, kernel: Sequence[int], dilation: Sequence[int], stride: Sequence[int]) -> Tensor:
    """What each output of a convolution sees of its input [k, in, ...]: [k, t, in * kernel]."""
    axes = len(kernel)
    for axis, (size, distance, step) in enumerate(zip(kernel, dilation, stride, strict=True), 2):
        x = x.unfold(axis, (size - 1) * distance + 1, step)[..., ::distance]
    x = x.permute(0, *range(2, 2 + axes), 1, *range(2 + axes, 2 + 2 * axes))  # shape: [k, places.., in, kernel..]
    return x.flatten(1 + axes).flatten(1, axes)


@rule(nn.Embedding)
def embedding(module: nn.Embedding, activations: Tensor, backprops: Tensor) -> dict[str, Factors]:
    """A table: ids [k, ...], W [size, dim]. The row of `padding_idx` has no gradient."""
    if module.scale_grad_by_freq:
        raise NotCovered("an embedding with scale_grad_by_freq: the gradient of a sample depends on the others")
    ids = activations.reshape(len(activations), -1)  # shape: [k, t]
    if module.padding_idx is not None:
        ids = ids.masked_fill(ids == module.padding_idx, -1)
    grads = backprops.reshape(*ids.shape, backprops.shape[-1])  # shape: [k, t, dim]
    return {"weight": Scatter(ids, grads, module.num_embeddings, module.weight.dtype)}


def scaled_embedding(module: Any, activations: Tensor, backprops: Tensor) -> dict[str, Factors]:
    """`scale * W[ids]`: the word embeddings of Gemma, BART and others."""
    return embedding(module, activations, backprops * module.embed_scale)


@rule(nn.LayerNorm)
def layer_norm(module: nn.LayerNorm, activations: Tensor, backprops: Tensor) -> dict[str, Factors]:
    """`y = norm(x) * w + b`, over the last dimensions."""
    normalized = F.layer_norm(activations, module.normalized_shape, eps=module.eps)
    return _affine(normalized.to(backprops), backprops, module.weight.dtype, last=len(module.normalized_shape))


@rule(nn.GroupNorm)
def group_norm(module: nn.GroupNorm, activations: Tensor, backprops: Tensor) -> dict[str, Factors]:
    """`y = norm(x) * w + b`, w over the channels, x [k, channels, ...]."""
    normalized = F.group_norm(activations, module.num_groups, eps=module.eps)
    return _affine(normalized.movedim(1, -1).to(backprops), backprops.movedim(1, -1), module.weight.dtype)


@rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def batch_norm(module: _BatchNorm, activations: Tensor, backprops: Tensor) -> dict[str, Factors]:
    """`y = (x - mean) / std * w + b` with the running statistics."""
    normalized = F.batch_norm(activations, module.running_mean, module.running_var, eps=module.eps)
    return _affine(normalized.movedim(1, -1).to(backprops), backprops.movedim(1, -1), module.weight.dtype)


def cross_entropy(scorer: LabelledCrossEntropy, activations: Tensor, grads: Tensor) -> dict[str, Factors]:
    """A linear layer that has returned the cross-entropies of its outputs; `grads` [k, t] are their gradients."""
    layer, dtype = scorer.layer, scorer.dtype
    bias = None if layer.bias is None else layer.bias.detach()
    weight = CrossEntropyLayer(
        activations, grads, scorer.labels, scorer.normalizers, layer.weight.detach(), bias, dtype
    )  # fmt: skip
    factors: dict[str, Factors] = {"weight": weight}
    if bias is not None:
        factors["bias"] = Dense(torch.cat([weight.backprops(*block).sum(1) for block in weight.blocks()], 1))
    return factors


def leaf(module: nn.Module, activations: Tensor, backprops: Tensor) -> dict[str, Factors]:
    """Any module without children whose parameters are vectors: its own backward pass, a sample at a time, by vmap.

    RMSNorm under its many class names, layer scale, and the like.
    """
    parameters = {name: _whole(p.detach()) for name, p in module.named_parameters(recurse=False)}
    module = _without_hooks(module)

    def gradients(x: Tensor, g: Tensor) -> dict[str, Tensor]:
        output, backward, *_ = vjp(lambda values: functional_call(module, values, (x[None],)), parameters)
        return backward(g[None].to(output.dtype))[0]

    with unchanged_state(module):
        return {name: Dense(g) for name, g in vmap(gradients)(activations, backprops).items()}


def _whole(tensor: Tensor) -> Tensor:
    """A tensor that FSDP2 has spread, on every process: all of them come here with the same layer."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _without_hooks(module: nn.Module) -> nn.Module:
    """The module, or of FSDP2's one that shares all with it and gathers no weights when it is called."""
    if not isinstance(module, FSDPModule):
        return module
    bare = object.__new__(plain_class(module))
    bare.__dict__ = {**vars(module), "_forward_pre_hooks": OrderedDict(), "_forward_hooks": OrderedDict()}
    return bare


def _as_sequence(values: Tensor) -> Tensor:
    """[k, ..., n] as [k, t, n]."""
    return values.reshape(values.shape[0], -1, values.shape[-1])


def _affine(normalized: Tensor, backprops: Tensor, dtype: torch.dtype, last: int = 1) -> dict[str, Factors]:
    """Of a scale and a shift over the `last` last dimensions, from what they were applied to."""
    between = list(range(1, backprops.dim() - last))
    grads = {"weight": normalized.to(dtype) * backprops.to(dtype), "bias": backprops.to(dtype)}
    return {name: Dense(values.sum(between) if between else values) for name, values in grads.items()}
