"""Per-sample gradients of parameters that no layer's batch passes through: class tokens, tables, scales.

Such a parameter, or a tensor made from it alone (a slice, a row of a table, a permutation), meets the batch in some
operation: it is added to embeddings, expanded, multiplied into a block, added to attention scores. The autograd graph
shows where. The gradient of that operation's output still has the batch axis, and from there every sample's share is
propagated to the parameter on its own.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from hf_unlearn.per_sample.experts import GroupedProduct
from hf_unlearn.per_sample.factors import Dense, Factors, rows_of
from hf_unlearn.per_sample.operations import BatchOperation, batch_operation, signed
from hf_unlearn.per_sample.plan import GradientMismatch

# Operations whose output has no batch axis when their inputs have none.
BATCH_FREE = {
    "View", "UnsafeView", "ReshapeAlias", "Permute", "Transpose", "T", "Unsqueeze", "Squeeze", "Slice", "Select",
    "Clone", "ToCopy", "Alias", "Index", "Embedding", "Neg", "Exp", "Sigmoid", "Cat",
}  # fmt: skip
# Operations that may broadcast an operand over the batch.
BROADCASTING = {"Expand", "Add", "Sub", "Mul", "Div", "Where"}
# Operations whose result comes from parameters alone where their operands do.
COMBINING = {"Add", "Sub", "Mul", "Div", "Cat"}


@dataclass(frozen=True)
class ParameterUse:
    """One place where a tensor made from a parameter meets the batch.

    Attributes:
        name: of the parameter.
        operation: in which they meet.
        edge: the place of the result in the graph, whose gradient `factors` takes.
        source: the place of the tensor in the graph.
        shape: of the tensor.
        result: shape of the result.
        path: the operations between the parameter and this one.
    """

    name: str
    operation: BatchOperation
    edge: GradientEdge
    source: GradientEdge
    shape: torch.Size
    result: torch.Size
    path: tuple[str, ...]

    def factors(self, backprops: Tensor, parameter: nn.Parameter, size: int) -> Factors:
        """The per-sample gradients with respect to the parameter, from the gradient of the operation's result."""
        factors = self.operation.factors(backprops.to(parameter.dtype), self.shape, size)
        if hasattr(self.source.node, "variable"):  # the tensor is the parameter itself
            return factors
        return propagate(self.source, self.shape, factors, parameter)


def propagate(source: Tensor | GradientEdge, shape: torch.Size, factors: Factors, parameter: nn.Parameter) -> Factors:
    """From gradients with respect to a tensor [*shape] that is made from a parameter to those of the parameter."""
    grads = factors.row_gradients(0, rows_of(shape)).view(-1, *shape)
    return Dense(torch.stack([torch.autograd.grad(source, parameter, g, retain_graph=True)[0] for g in grads]))


@dataclass(frozen=True)
class Graph:
    """The autograd graph of a batch's losses.

    Attributes:
        consumers: every node with the operations that consume its outputs, and which of their inputs that is.
        leaves: the nodes of the parameters, with their names.
    """

    consumers: dict[Node, list[tuple[Node, int]]]
    leaves: dict[Node, str]

    @classmethod
    def of(cls, values: Tensor, parameters: Mapping[str, Tensor]) -> Graph:
        """Of anything computed from parameters, given by name."""
        names = {id(p): name for name, p in parameters.items()}
        consumers: dict[Node, list[tuple[Node, int]]] = {} if values.grad_fn is None else {values.grad_fn: []}
        leaves, queue = {}, list(consumers)
        while queue:
            node = queue.pop()
            for slot, (producer, _) in enumerate(node.next_functions):
                if producer is None:
                    continue
                if producer not in consumers:
                    consumers[producer] = []
                    queue.append(producer)
                    variable = getattr(producer, "variable", None)
                    if variable is not None and id(variable) in names:
                        leaves[producer] = names[id(variable)]
                consumers[producer].append((node, slot))
        return cls(consumers, leaves)

    def used_outside(self, name: str, spans: Sequence[tuple[int, int]]) -> bool:
        """Whether a parameter is used beside the calls of its layers.

        Args:
            name: of the parameter.
            spans: of these calls, first and last place in the order of operations.
        """
        queue = [leaf for leaf, of_leaf in self.leaves.items() if of_leaf == name]
        while queue:
            for node, _ in self.consumers[queue.pop()]:
                if _kind(node) == "ToCopy":  # autocast keeps what it has cast for the next use
                    queue.append(node)
                elif not any(start <= node._sequence_nr() < stop for start, stop in spans):
                    return True
        return False

    def find_uses(
        self, parameters: Mapping[str, nn.Parameter], size: int, tables: Container[str]
    ) -> list[ParameterUse]:
        """Where each of these parameters meets a batch of `size`; no use of one that the losses do not depend on.

        Args:
            parameters: name to parameter.
            size: samples in the batch.
            tables: names of parameters that are looked up by positions, not by the samples' ids.

        Raises:
            GradientMismatch: when one is used in another way.
        """
        uses: list[ParameterUse] = []
        failures: dict[str, str] = {}
        batch_free = self._batch_free()
        for leaf, name in self.leaves.items():
            if name not in parameters:
                continue
            queue: list[tuple[Node, int, tuple[str, ...]]] = [(leaf, 0, ())]
            seen: set[tuple[Node, int]] = set()  # a place is reached by several paths, and has one gradient
            while queue:
                node, output, path = queue.pop()
                for consumer, slot in self.consumers[node]:
                    if consumer.next_functions[slot][1] != output or (consumer, slot) in seen:
                        continue
                    seen.add((consumer, slot))
                    kind, shape = _kind(consumer), _shape(node, output)
                    operation = None
                    if consumer not in batch_free:
                        result = _shape(consumer, 0)
                        operation = batch_operation(consumer, kind, slot, shape, result, size, name in tables)
                    if operation is not None:
                        edge, source = GradientEdge(consumer, 0), GradientEdge(node, output)
                        if isinstance(operation, GroupedProduct) and _is_matrix_transpose(node):
                            operation, source = operation.transposed(), GradientEdge(leaf, 0)
                        uses.append(ParameterUse(name, operation, edge, source, shape, _shape(consumer, 0), path))
                    elif kind in BATCH_FREE | BROADCASTING:
                        queue.append((consumer, 0, (*path, kind)))
                    else:
                        failures[name] = f"used by {kind}"
        if failures:
            raise GradientMismatch(failures, ", ".join(dict.fromkeys(failures.values())))
        return uses

    def _batch_free(self) -> set[Node]:
        """The operations that combine tensors made from parameters alone (row and column positions)."""
        found = {node for node in self.consumers if hasattr(node, "variable")}
        kinds = COMBINING | BATCH_FREE - {"Index", "Embedding"}
        # Producers come before what consumes them.
        for node in sorted(self.consumers.keys() - found, key=lambda node: node._sequence_nr()):
            if _kind(node) in kinds and all(producer in found for producer, _ in node.next_functions):
                found.add(node)
        return found


def _is_matrix_transpose(node: Any) -> bool:
    """Whether an operation swaps the last two axes of a parameter that has three."""
    axes = {-2, -1}, {1, 2}
    return (
        _kind(node) == "Transpose"
        and hasattr(node.next_functions[0][0], "variable")
        and {signed(node._saved_dim0), signed(node._saved_dim1)} in axes
    )


def _kind(node: Node) -> str:
    # A function of the user's may have the name of an operation.
    return "" if isinstance(node, BackwardCFunction) else node.name().split("Backward")[0]


def _shape(node: Any, output: int) -> torch.Size:
    return node.variable.shape if hasattr(node, "variable") else torch.Size(node._input_metadata[output].shape)


def reachable_parameters(values: Tensor, parameters: Mapping[str, Tensor]) -> set[str]:
    """Names of the parameters that `values` depend on, by their autograd graph.

    Args:
        values: anything computed from parameters.
        parameters: name to parameter.

    Examples:
        >>> weights = {name: torch.nn.Parameter(torch.ones(2)) for name in "abc"}
        >>> sorted(reachable_parameters(weights["a"] * 2 + weights["c"], weights))
        ['a', 'c']
    """
    return set(Graph.of(values, parameters).leaves.values())


def gradient_edge(output: Tensor) -> GradientEdge:
    """The place of an output in the graph.

    A linear layer's output is often a view of what it computed. A model that then writes into it (padding set to zero)
    reroutes the view's gradient, but not the base's.
    """
    base = output._base
    is_whole = base is not None and base.numel() == output.numel() and base.is_contiguous() and output.is_contiguous()
    return get_gradient_edge(base if is_whole and base is not None else output)
