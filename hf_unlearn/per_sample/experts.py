"""Per-sample gradients of experts: the weights of all of them are one tensor, and each takes the tokens routed to it.

A grouped matrix product multiplies the tokens, sorted by expert, with one matrix an expert. Which sample a token is
from, the autograd graph shows: somewhere before the product the samples' tokens have been looked up in that order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import Node


@dataclass(frozen=True)
class GroupedOuter:
    """Sums of outer products of rows, for each sample and each matrix of a stack.

    Attributes:
        rows: [n, p], the left sides of the products.
        columns: [n, q], the right ones.
        places: [n], integer, the matrix that a row adds to, ascending.
        sample_of_row: [n], integer.
        size: matrices of the stack.
        samples: k.
    """

    rows: Tensor
    columns: Tensor
    places: Tensor
    sample_of_row: Tensor
    size: int
    samples: int

    @property
    def stored_numel(self) -> int:
        """As of all factors."""
        return self.rows.numel() + self.columns.numel()

    def row_gradients(self, start: int, stop: int) -> Tensor:
        """The gradients of the matrices `start` to `stop`: [k, (stop - start) * p * q]."""
        first, last = torch.searchsorted(self.places, torch.tensor([start, stop], device=self.places.device)).tolist()
        groups = self.sample_of_row[first:last] * (stop - start) + self.places[first:last] - start
        order = groups.argsort()
        rows, columns = self.rows[first:last][order], self.columns[first:last][order]
        products = _products(rows, columns, groups, self.samples * (stop - start))
        return products.reshape(self.samples, -1)

    def combine(self, weights: Tensor) -> Tensor:
        """The sum over samples with these weights [k], flattened: [size * p * q]."""
        weights = weights.to(self.rows)[self.sample_of_row, None]  # shape: [n, 1]
        rows, columns = self.rows, self.columns
        if rows.numel() <= columns.numel():
            rows = rows * weights
        else:
            columns = columns * weights
        return _products(rows, columns, self.places, self.size).flatten()

    def grouped(self, samples: int) -> GroupedOuter:
        """The same with every `k / samples` neighbours summed."""
        sample_of_row = self.sample_of_row * samples // self.samples
        return GroupedOuter(self.rows, self.columns, self.places, sample_of_row, self.size, samples)


def _products(rows: Tensor, columns: Tensor, groups: Tensor, size: int) -> Tensor:
    """The sums of `rows^T columns` over each of `size` groups, by which both are sorted: [size, p, q]."""
    ends = torch.bincount(groups, minlength=size).cumsum(0).to(torch.int32)
    return F.grouped_mm(rows.T, columns, offs=ends)


@dataclass(frozen=True)
class GroupedProduct:
    """Matrices [experts, in, out], each multiplied with the rows of activations [n, in] that are routed to it.

    Attributes:
        activations: sorted by expert.
        ends: of the experts' rows, [experts].
        sample_of_row: [n].
        is_transposed: whether the parameter has the matrices transposed, [experts, out, in].
    """

    activations: Tensor
    ends: Tensor
    sample_of_row: Tensor
    is_transposed: bool = False

    def transposed(self) -> GroupedProduct:
        """The same product, of a parameter that has the matrices transposed."""
        return replace(self, is_transposed=True)

    def factors(self, backprops: Tensor, shape: torch.Size, size: int) -> GroupedOuter:
        """As `hf_unlearn.per_sample.operations.Broadcast.factors`, of the parameter itself."""
        count = int(self.ends[-1])  # rows after the last expert's take no part
        counts = self.ends.diff(prepend=self.ends.new_zeros(1))
        places = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        rows, columns = self.activations[:count].to(backprops.dtype), backprops[:count]
        if self.is_transposed:
            rows, columns = columns, rows
        return GroupedOuter(rows, columns, places, self.sample_of_row[:count], len(counts), size)


def grouped_product(node: Any, size: int) -> GroupedProduct | None:
    """A grouped matrix product of the graph; None where it is not seen which samples its rows are from.

    Args:
        node: of the product.
        size: samples in the batch.
    """
    activations, ends = node._saved_self.detach(), node._saved_offs
    if ends is None or activations.dim() != 2:
        return None
    taken = _looked_up(node.next_functions[0][0], len(activations))
    if taken is None:
        return None
    numbers, count = taken
    if count % size:
        return None
    return GroupedProduct(activations, ends, numbers * size // count)


def _looked_up(node: Any, count: int) -> tuple[Tensor, int] | None:
    """Of the last look-up of `count` rows before a node: their numbers, and how many there were to choose from."""
    seen: set[Node] = set()
    queue = [node]
    while queue:
        node = queue.pop(0)
        if node is None or node in seen:
            continue
        seen.add(node)
        # Biases of experts are looked up as well, by the number of the expert.
        if node.name().startswith("IndexBackward") and not hasattr(node.next_functions[0][0], "variable"):
            numbers = node._saved_indices[0]
            if numbers is not None and numbers.shape == (count,):
                return numbers, node._saved_self_sym_sizes[0]
        queue += [producer for producer, _ in node.next_functions]
    return None
