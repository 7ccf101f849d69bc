"""Per-sample gradients of parameters that no layer's batch passes through: class tokens, position tables, layer scales.

Such a parameter, or something made from it alone (a slice, a row of a table, a permutation), is broadcast over the
batch by some operation: added to embeddings, expanded, multiplied into a block, added to attention scores. The autograd
graph shows where. The gradient of that operation's output still has the batch axis, and from there every sample's share
goes down to the parameter on its own.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node

from hf_unlearn.per_sample.factors import Dense, Factors, Scatter
from hf_unlearn.per_sample.layers import NotCovered

# Operations that keep a tensor free of the batch, when what goes in is free of it.
CLIMBED = {
    "View", "UnsafeView", "ReshapeAlias", "Permute", "Transpose", "T", "Unsqueeze", "Squeeze", "Slice", "Select", "Clone",
    "ToCopy", "Alias", "Index", "Embedding", "Neg", "Exp", "Sigmoid", "Cat",
}  # fmt: skip
# Operations that may broadcast it over the batch.
BROADCAST = {"Expand", "Add", "Sub", "Mul", "Div", "Where"}


@dataclass(frozen=True)
class Broadcast:
    """One place where a tensor made from a parameter is broadcast over the batch.

    Attributes:
        edge: the place of the operation's output, whose gradient `factors` wants.
        factor: what that gradient is multiplied with on the way to the operand; a tensor or a number.
        source: the place of the operand in the graph.
        shape: of the operand.
    """

    edge: GradientEdge
    factor: Any
    source: GradientEdge
    shape: torch.Size

    def factors(self, grad: Tensor, parameter: nn.Parameter, size: int) -> Factors:
        """Every sample's gradient, from the gradient of the operation's output."""
        grad = (grad * self.factor).unflatten(0, (size, -1)).sum(1)
        padded = (1,) * (grad.dim() - len(self.shape)) + tuple(self.shape)
        over = [d for d in range(1, grad.dim()) if padded[d] == 1 and grad.shape[d] > 1]
        grad = (grad.sum(over, keepdim=True) if over else grad).reshape(size, *self.shape)
        if not self.source.node.name().endswith("AccumulateGrad"):
            grad = torch.stack([torch.autograd.grad(self.source, parameter, g, retain_graph=True)[0] for g in grad])
        return Dense(grad.to(parameter.dtype))


@dataclass(frozen=True)
class Lookup:
    """One place where rows of a parameter are looked up, by other ids in every sample.

    Attributes:
        edge: the place of the result.
        ids: [size, ...].
        ignored: an id whose row has no gradient, or -1.
    """

    edge: GradientEdge
    ids: Tensor
    ignored: int

    def factors(self, grad: Tensor, parameter: nn.Parameter, size: int) -> Factors:
        """Every sample's gradient, from the gradient of the result."""
        ids = self.ids.reshape(size, -1)
        grads = grad.reshape(*ids.shape, -1)
        return Scatter(ids.masked_fill(ids == self.ignored, -1), grads, len(parameter), parameter.dtype)


Use = Broadcast | Lookup


def uses_of(
    values: Tensor, parameters: Mapping[str, nn.Parameter], size: int, tables: Container[str]
) -> list[tuple[str, Use]]:
    """Where each of these parameters meets a batch of `size`; none for one that `values` do not need.

    Args:
        values: the losses, with their graph.
        parameters: name to parameter.
        size: samples in the batch.
        tables: names of parameters that are looked up by positions, not by what the samples hold.

    Raises:
        NotCovered: when one is used in another way.
    """
    found: list[tuple[str, Use]] = []
    consumers, leaves = _graph(values.grad_fn, {id(p): name for name, p in parameters.items()})
    for leaf, name in leaves.items():
        ahead: list[tuple[Node, int]] = [(leaf, 0)]
        while ahead:
            node, output = ahead.pop()
            for consumer, slot in consumers[node]:
                if consumer.next_functions[slot][1] != output:
                    continue
                operation = consumer.name().split("Backward")[0]
                shape, result = _shape(node, output), _shape(consumer, 0)
                batched = len(result) > 0 and result[0] % size == 0
                if operation in BROADCAST and batched and (len(shape) < len(result) or shape[0] == 1 != result[0]):
                    factor = _factor(consumer, operation, slot, name)
                    found.append((name, Broadcast(GradientEdge(consumer, 0), factor, GradientEdge(node, output), shape)))
                elif node is leaf and name not in tables and (lookup := _lookup(consumer, operation, size)):
                    found.append((name, lookup))
                elif operation in CLIMBED | BROADCAST:
                    ahead.append((consumer, 0))
                else:
                    raise NotCovered(f"{name} (used by {operation})")
    return found


def _lookup(node: Any, operation: str, size: int) -> Lookup | None:
    """`weight[ids]` or an embedding called as a function, with ids that have the batch axis."""
    if operation == "Embedding" and not node._saved_scale_grad_by_freq:
        ids, ignored = node._saved_indices, node._saved_padding_idx
    elif operation == "Index" and len(node._saved_indices) == 1:
        ids, ignored = node._saved_indices[0], -1
    else:
        return None
    # Unsigned in the graph: -1 comes back as 2^64 - 1.
    ignored = ignored if 0 <= ignored < 2**63 else -1
    return Lookup(GradientEdge(node, 0), ids, ignored) if ids.dim() > 1 and ids.shape[0] % size == 0 else None


def _shape(node: Any, output: int) -> torch.Size:
    return node.variable.shape if hasattr(node, "variable") else torch.Size(node._input_metadata[output].shape)


def _graph(root: Node | None, names: Mapping[int, str]) -> tuple[dict[Node, list[tuple[Node, int]]], dict[Node, str]]:
    """Every node with the operations that consume its outputs, and the leaves that are the named parameters."""
    consumers: dict[Node, list[tuple[Node, int]]] = {root: []} if root is not None else {}
    leaves, ahead = {}, list(consumers)
    while ahead:
        node = ahead.pop()
        for slot, (below, _) in enumerate(node.next_functions):
            if below is None:
                continue
            if below not in consumers:
                consumers[below] = []
                ahead.append(below)
                variable = getattr(below, "variable", None)
                if variable is not None and id(variable) in names:
                    leaves[below] = names[id(variable)]
            consumers[below].append((node, slot))
    return consumers, leaves


def _factor(node: Any, operation: str, slot: int, name: str) -> Any:
    """The derivative of an operation of `BROADCAST` by one operand, before the sum over what it broadcasts."""
    if operation in ("Add", "Sub"):
        return 1 if slot == 0 else node._saved_alpha * (1 if operation == "Add" else -1)
    if operation == "Mul":
        return (node._saved_other if slot == 0 else node._saved_self).detach()
    if operation == "Div":
        if slot == 1:
            raise NotCovered(f"{name} (divides by it)")
        return 1 / node._saved_other.detach()
    if operation == "Where":
        return node._saved_condition if slot == 0 else ~node._saved_condition
    return 1
