"""Per-sample gradients of one layer, from its input and the gradient of its output: one rule per layer type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn.utils.parametrize import is_parametrized
from transformers.pytorch_utils import Conv1D

from hf_unlearn.per_sample.factors import Dense, Factors, Later, Outer, Scatter

Rule = Callable[[Any, Tensor, Tensor], dict[str, Factors]]
RULES: dict[type[nn.Module], Rule] = {}


class NotCovered(Exception):
    """No rule gives the exact per-sample gradients; the message names the modules."""


def rule(*types: type[nn.Module]) -> Callable[[Rule], Rule]:
    """Register a function as the rule of exactly these module types (a subclass may compute something else).

    A rule takes the module, its input [k, ...] and the gradient of its output [k, ...], and returns the factors of the
    gradient of each of its own parameters, by attribute. Samples on the leading axis must be treated independently.
    """

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(types, function))
        return function

    return register


def rule_of(module: nn.Module) -> Rule | None:
    """The rule of a module: that of its type, or `leaf` for a small module without children that has none."""
    # Weight normalisation swaps a module's class for a child of it, with the weight computed on the way.
    kind = type(module).__base__ if is_parametrized(module) else type(module)
    if kind in RULES:
        return RULES[kind]
    if isinstance(module, nn.Embedding) and hasattr(module, "embed_scale"):
        return scaled_embedding
    vectors = all(p.dim() <= 1 for p in module.parameters(recurse=False))
    return leaf if vectors and not list(module.children()) else None


@rule(nn.Linear)
def linear(module: nn.Linear, inputs: Tensor, grads: Tensor) -> dict[str, Factors]:
    """`y = x W^T + b`, x [k, ..., in], W [out, in]."""
    inputs, grads = _sequence(inputs), _sequence(grads)
    dtype = module.weight.dtype
    return {"weight": Outer(grads[:, None], inputs[:, None], dtype), "bias": Dense(grads.to(dtype).sum(1))}


@rule(Conv1D)
def conv1d_of_gpt2(module: Conv1D, inputs: Tensor, grads: Tensor) -> dict[str, Factors]:
    """`y = x W + b`, x [k, ..., in], W [in, out]: a linear layer with its weight transposed."""
    inputs, grads = _sequence(inputs), _sequence(grads)
    dtype = module.weight.dtype
    return {"weight": Outer(inputs[:, None], grads[:, None], dtype), "bias": Dense(grads.to(dtype).sum(1))}


@rule(nn.Conv1d, nn.Conv2d)
def convolution(module: nn.Conv1d | nn.Conv2d, inputs: Tensor, grads: Tensor) -> dict[str, Factors]:
    """A linear layer on patches: x [k, in, ...], W [out, in / groups, ...], any stride and dilation."""
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        raise NotCovered(f"a convolution with padding {module.padding!r} and padding_mode {module.padding_mode!r}")
    kernel, dilation, stride, padding = module.kernel_size, module.dilation, module.stride, module.padding
    flat = isinstance(module, nn.Conv1d)
    if flat:
        kernel, dilation, stride, padding = (1, *kernel), (1, *dilation), (1, *stride), (0, *padding)
    dtype, groups = module.weight.dtype, module.groups

    def weight() -> Factors:
        patches = F.unfold((inputs.unsqueeze(2) if flat else inputs).to(dtype), kernel, dilation, padding, stride)
        return Outer(grads.flatten(2).unflatten(1, (groups, -1)).mT, patches.unflatten(1, (groups, -1)).mT, dtype)

    return {
        "weight": Later(weight, len(inputs), inputs.numel() + grads.numel()),
        "bias": Dense(grads.to(dtype).flatten(2).sum(2)),
    }


@rule(nn.Embedding)
def embedding(module: nn.Embedding, inputs: Tensor, grads: Tensor) -> dict[str, Factors]:
    """A table: ids [k, ...], W [size, dim]. The row of `padding_idx` has no gradient."""
    if module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
        raise NotCovered("an embedding with max_norm, scale_grad_by_freq or sparse")
    ids = inputs.flatten(1)
    if module.padding_idx is not None:
        ids = ids.masked_fill(ids == module.padding_idx, -1)
    grads = grads.reshape(*ids.shape, grads.shape[-1])
    return {"weight": Scatter(ids, grads, module.num_embeddings, module.weight.dtype)}


def scaled_embedding(module: Any, inputs: Tensor, grads: Tensor) -> dict[str, Factors]:
    """`scale * W[ids]`: the word embeddings of Gemma, BART and others."""
    return embedding(module, inputs, grads * module.embed_scale)


@rule(nn.LayerNorm)
def layer_norm(module: nn.LayerNorm, inputs: Tensor, grads: Tensor) -> dict[str, Factors]:
    """`y = norm(x) * w + b`, over the last dimensions."""
    normal = F.layer_norm(inputs, module.normalized_shape, eps=module.eps)
    return _affine(normal.to(grads), grads, module.weight.dtype, last=len(module.normalized_shape))


@rule(nn.GroupNorm)
def group_norm(module: nn.GroupNorm, inputs: Tensor, grads: Tensor) -> dict[str, Factors]:
    """`y = norm(x) * w + b`, w over the channels, x [k, channels, ...]."""
    normal = F.group_norm(inputs, module.num_groups, eps=module.eps)
    return _affine(normal.movedim(1, -1).to(grads), grads.movedim(1, -1), module.weight.dtype)


@rule(nn.BatchNorm1d, nn.BatchNorm2d)
def batch_norm(module: nn.BatchNorm1d | nn.BatchNorm2d, inputs: Tensor, grads: Tensor) -> dict[str, Factors]:
    """`y = (x - mean) / std * w + b` with the running metrics: eval mode only, or the samples would mix."""
    if module.training or module.running_mean is None:
        raise NotCovered("batch normalisation over the batch itself (it mixes samples; put it in eval mode)")
    normal = F.batch_norm(inputs, module.running_mean, module.running_var, eps=module.eps)
    return _affine(normal.movedim(1, -1).to(grads), grads.movedim(1, -1), module.weight.dtype)


def leaf(module: nn.Module, inputs: Tensor, grads: Tensor) -> dict[str, Factors]:
    """Any module without children whose parameters are vectors: its own backward pass, a sample at a time, by vmap.

    RMSNorm under its many class names, layer scale, and whatever comes next.
    """
    parameters = {name: p.detach() for name, p in module.named_parameters(recurse=False)}

    def gradients(x: Tensor, g: Tensor) -> dict[str, Tensor]:
        output, backward, *_ = vjp(lambda values: functional_call(module, values, (x[None],)), parameters)
        return backward(g[None].to(output.dtype))[0]

    return {name: Dense(g) for name, g in vmap(gradients)(inputs, grads).items()}


def _sequence(values: Tensor) -> Tensor:
    """[k, ..., n] as [k, t, n]."""
    return values.reshape(values.shape[0], -1, values.shape[-1])


def _affine(normal: Tensor, grads: Tensor, dtype: torch.dtype, last: int = 1) -> dict[str, Factors]:
    """Of a scale and a shift over the `last` last dimensions, from what they were applied to."""
    between = list(range(1, grads.dim() - last))
    found = {"weight": normal.to(dtype) * grads.to(dtype), "bias": grads.to(dtype)}
    return {name: Dense(values.sum(between) if between else values) for name, values in found.items()}
