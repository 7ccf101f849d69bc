"""In which operation a tensor made from a parameter alone meets the batch, and what its gradients are there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_unlearn.per_sample.experts import GroupedProduct, grouped_product
from hf_unlearn.per_sample.factors import Dense, Factors, Outer, Scatter
from hf_unlearn.per_sample.layers import kernel_factors


@dataclass(frozen=True)
class Broadcast:
    """An operand that is broadcast over the batch; the gradient of the result is multiplied with `factor`."""

    factor: Any

    def factors(self, backprops: Tensor, shape: torch.Size, size: int) -> Factors:
        """The per-sample gradients with respect to the operand.

        Args:
            backprops: gradient of the operation's result.
            shape: of the operand.
            size: samples in the batch.
        """
        grads = (backprops * self.factor).unflatten(0, (size, -1)).sum(1)  # shape: [k, ...]
        padded = (1,) * (grads.dim() - len(shape)) + tuple(shape)
        broadcast = [d for d in range(1, grads.dim()) if padded[d] == 1 and grads.shape[d] > 1]
        return Dense((grads.sum(broadcast, keepdim=True) if broadcast else grads).reshape(size, *shape))


@dataclass(frozen=True)
class Lookup:
    """A table whose rows are looked up by the samples' ids [size, ...]; the row of `ignored` has no gradient."""

    ids: Tensor
    ignored: int

    def factors(self, backprops: Tensor, shape: torch.Size, size: int) -> Factors:
        """As `Broadcast.factors`."""
        ids = self.ids.reshape(size, -1)
        grads = backprops.reshape(*ids.shape, -1)
        return Scatter(ids.masked_fill(ids == self.ignored, -1), grads, shape[0], backprops.dtype)


@dataclass(frozen=True)
class MatrixProduct:
    """A matrix [in, out] that the samples' activations [size * t, in] are multiplied with."""

    activations: Tensor

    def factors(self, backprops: Tensor, shape: torch.Size, size: int) -> Factors:
        """As `Broadcast.factors`."""
        activations, grads = (v.unflatten(0, (size, -1)).unsqueeze(1) for v in (self.activations, backprops))
        return Outer(activations, grads, backprops.dtype)  # shape: [k, 1, t, in], [k, 1, t, out]


@dataclass(frozen=True)
class Convolution:
    """A kernel [out, in / groups, ...] that slides over the samples' activations [size, in, ...]."""

    activations: Tensor
    node: Any

    def factors(self, backprops: Tensor, shape: torch.Size, size: int) -> Factors:
        """As `Broadcast.factors`."""
        node = self.node
        sides = [width for padding in reversed(node._saved_padding) for width in (padding, padding)]
        padded = F.pad(self.activations.to(backprops.dtype), sides)
        dilation, stride, groups = node._saved_dilation, node._saved_stride, node._saved_groups
        return kernel_factors(padded, backprops, shape[2:], dilation, stride, groups, backprops.dtype)


@dataclass(frozen=True)
class Shift:
    """A bias [out] of a convolution, whose result is [size, out, ...]."""

    def factors(self, backprops: Tensor, shape: torch.Size, size: int) -> Factors:
        """As `Broadcast.factors`."""
        return Dense(backprops.flatten(2).sum(2))


BatchOperation: TypeAlias = Broadcast | Lookup | MatrixProduct | GroupedProduct | Convolution | Shift


def batch_operation(
    node: Any, kind: str, slot: int, shape: torch.Size, result: torch.Size, size: int, is_table: bool
) -> BatchOperation | None:
    """How an operand meets the batch in this operation; None when it does not, or not in a known way.

    Args:
        node: of the operation in the graph.
        kind: its name.
        slot: number of the operand among its inputs.
        shape: of the operand.
        result: shape of the result.
        size: samples in the batch.
        is_table: whether the operand is looked up by positions.
    """
    if not result or result[0] % size:
        return None
    if kind in ("Mm", "Addmm") and slot == (1 if kind == "Mm" else 2):
        return MatrixProduct(node._saved_self if kind == "Mm" else node._saved_mat1)
    if kind == "GroupedMm" and slot == 1:
        return grouped_product(node, size)
    if kind == "Convolution" and not node._saved_transposed and slot > 0:
        return Convolution(node._saved_input.detach(), node) if slot == 1 else Shift()
    if kind in ("Embedding", "Index") and not is_table:
        return _lookup(node, kind, size, shape[0])
    if len(shape) == len(result) and (shape[0] != 1 or result[0] == 1):
        return None
    if kind in ("Expand", "Add", "Addmm"):
        return Broadcast(node._saved_alpha if kind == "Add" and slot == 1 else 1)
    if kind == "Sub":
        return Broadcast(1 if slot == 0 else -node._saved_alpha)
    if kind == "Mul":
        return Broadcast((node._saved_other if slot == 0 else node._saved_self).detach())
    if kind == "Div":
        other = node._saved_other.detach()
        return Broadcast(1 / other if slot == 0 else -node._saved_self.detach() / other.square())
    if kind == "Where":
        return Broadcast(node._saved_condition if slot == 0 else ~node._saved_condition)
    return None


def signed(number: int) -> int:
    """Of an integer that the graph has without a sign: -1 comes back as 2^64 - 1."""
    return number if number < 2**63 else number - 2**64


def _lookup(node: Any, kind: str, size: int, rows: int) -> Lookup | None:
    """`weight[ids]` or an embedding called as a function, with ids that have the batch axis."""
    if kind == "Embedding" and not node._saved_scale_grad_by_freq:
        ids, ignored = node._saved_indices, node._saved_padding_idx
    elif kind == "Index" and len(node._saved_indices) == 1:
        ids, ignored = node._saved_indices[0], -1
        ids = torch.where(ids < 0, ids + rows, ids)  # counted from the end
    else:
        return None
    ignored = max(signed(ignored), -1)
    return Lookup(ids, ignored) if ids.dim() > 1 and ids.shape[0] % size == 0 else None
