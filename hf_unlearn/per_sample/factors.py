"""Per-sample gradients of one tensor in the smallest exact form, and the operations on them.

A weight's gradient for one sample is a sum of outer products of the layer's activations and backprops. Everything that
gradient surgery needs (inner products, the gradients of some rows, a weighted sum over samples) follows from these
factors; the k x d matrix of all gradients need not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from hf_unlearn.losses.cross_entropy import CHUNK, residuals


class Factors(Protocol):
    """Gradients of k samples with respect to one tensor of shape [p, ...], q = numel / p."""

    @property
    def samples(self) -> int:
        """k."""

    @property
    def stored_numel(self) -> int:
        """How many numbers are stored."""

    def row_gradients(self, start: int, stop: int) -> Tensor:
        """The gradients of the tensor's rows `start` to `stop`: [k, (stop - start) * q]."""

    def combine(self, weights: Tensor) -> Tensor:
        """The sum over samples with these weights [k], flattened: [numel]."""

    def grouped(self, samples: int) -> Factors:
        """The same with every `k / samples` neighbours summed: one sample may take several leading entries."""


@dataclass(frozen=True)
class Dense:
    """The gradients themselves.

    Attributes:
        values: [k, p, ...]; [k] of a tensor without axes.
    """

    values: Tensor

    @property
    def samples(self) -> int:
        return len(self.values)

    @property
    def stored_numel(self) -> int:
        return self.values.numel()

    def row_gradients(self, start: int, stop: int) -> Tensor:
        values = self.values if self.values.dim() > 1 else self.values[:, None]
        return values[:, start:stop].flatten(1)

    def combine(self, weights: Tensor) -> Tensor:
        return weights.to(self.values) @ self.values.reshape(len(self.values), -1)

    def grouped(self, samples: int) -> Dense:
        return Dense(self.values.unflatten(0, (samples, -1)).sum(1))


@dataclass(frozen=True)
class Outer:
    """Sums of outer products: `sum_t row_factors[t] column_factors[t]^T`, for each of g groups, stacked.

    Of a linear layer `y = x W^T`, the row factors are the backprops and the column factors the activations; of one
    with its weight transposed, the other way round.

    Attributes:
        row_factors: [k, g, t, p / g].
        column_factors: [k, g, t, q].
        dtype: of the result; the factors may be in half precision.
    """

    row_factors: Tensor
    column_factors: Tensor
    dtype: torch.dtype

    @property
    def samples(self) -> int:
        return len(self.row_factors)

    @property
    def stored_numel(self) -> int:
        return self.row_factors.numel() + self.column_factors.numel()

    def row_gradients(self, start: int, stop: int) -> Tensor:
        rows, columns = self.row_factors.to(self.dtype), self.column_factors.to(self.dtype)
        if rows.shape[1] > 1:
            return (rows.mT @ columns).flatten(1, 2)[:, start:stop].flatten(1)
        return (rows[:, 0, :, start:stop].mT @ columns[:, 0]).flatten(1)  # shape: [k, (stop - start) * q]

    def combine(self, weights: Tensor) -> Tensor:
        rows, columns = self.row_factors.to(self.dtype), self.column_factors.to(self.dtype)
        weights = weights.to(rows)[:, None, None, None]  # shape: [k, 1, 1, 1]
        # The smaller factor is multiplied with the weights; the sum over samples and positions is one matrix product.
        if rows.numel() <= columns.numel():
            rows = rows * weights
        else:
            columns = columns * weights
        rows, columns = (factor.transpose(0, 1).flatten(1, 2) for factor in (rows, columns))  # shape: [g, k * t, ...]
        return (rows.mT @ columns).flatten()

    def grouped(self, samples: int) -> Outer:
        rows, columns = (
            factor.unflatten(0, (samples, -1)).transpose(1, 2).flatten(2, 3)
            for factor in (self.row_factors, self.column_factors)
        )
        return Outer(rows, columns, self.dtype)

    def gram(self) -> Tensor:
        """Inner products [k, k] from those of the factors, in float64; for one group."""
        rows, columns = (factor[:, 0].double() for factor in (self.row_factors, self.column_factors))
        samples, positions = rows.shape[:2]
        row_products = rows.flatten(0, 1) @ rows.flatten(0, 1).T  # shape: [k * t, k * t]
        column_products = columns.flatten(0, 1) @ columns.flatten(0, 1).T  # shape: [k * t, k * t]
        products = row_products * column_products
        return products.view(samples, positions, samples, positions).sum((1, 3))

    def cross(self, gradient: Tensor) -> Tensor:
        """Inner products [k] with a gradient [p, q], in float64; for one group."""
        rows, columns = (factor[:, 0].double() for factor in (self.row_factors, self.column_factors))
        return ((columns @ gradient.double().T) * rows).sum((1, 2))

    @property
    def shape(self) -> tuple[int, int]:
        """[p, q], of the tensor."""
        return self.row_factors.shape[1] * self.row_factors.shape[3], self.column_factors.shape[3]

    @property
    def favours_factors(self) -> bool:
        """Whether inner products by way of the factors are cheaper than forming the gradients."""
        _, groups, positions, p = self.row_factors.shape
        q = self.column_factors.shape[-1]
        return groups == 1 and self.samples * positions * positions * (p + q) < (positions + self.samples) * p * q


@dataclass(frozen=True)
class Scatter:
    """Gradients of a table: sample i adds `grads[i, t]` to row `ids[i, t]`.

    Attributes:
        ids: [k, t], integer; -1 adds nothing.
        grads: [k, t, q].
        size: rows of the table.
        dtype: of the result.
    """

    ids: Tensor
    grads: Tensor
    size: int
    dtype: torch.dtype

    @property
    def samples(self) -> int:
        return len(self.ids)

    @property
    def stored_numel(self) -> int:
        return self.grads.numel()

    def row_gradients(self, start: int, stop: int) -> Tensor:
        inside = (self.ids >= start) & (self.ids < stop)  # shape: [k, t]
        sample, _ = inside.nonzero(as_tuple=True)
        total = self.grads.new_zeros(self.samples, stop - start, self.grads.shape[-1], dtype=self.dtype)
        places = (sample, self.ids[inside] - start)
        return total.index_put_(places, self.grads[inside].to(self.dtype), accumulate=True).flatten(1)

    def combine(self, weights: Tensor) -> Tensor:
        used = self.ids >= 0  # shape: [k, t]
        grads = self.grads.to(self.dtype) * weights.to(device=self.grads.device, dtype=self.dtype)[:, None, None]
        total = grads.new_zeros(self.size, grads.shape[-1])
        return total.index_add_(0, self.ids[used], grads[used]).flatten()

    def grouped(self, samples: int) -> Scatter:
        ids = self.ids.unflatten(0, (samples, -1)).flatten(1, 2)
        return Scatter(ids, self.grads.unflatten(0, (samples, -1)).flatten(1, 2), self.size, self.dtype)


@dataclass(frozen=True)
class CrossEntropyLayer:
    """Gradients of a linear layer over a large vocabulary, by way of the cross-entropy of its outputs.

    The gradients of the logits are formed again, for some rows of the weight at a time.

    Attributes:
        hidden: [k, t, q], the layer's input.
        grads: [k, t], gradients of the cross-entropies.
        labels: [k, t]; where there is none, `grads` are 0.
        normalizers: [k, t, 2], see `hf_unlearn.losses.cross_entropy`.
        weight: [p, q], unchanged while this is in use.
        bias: [p], or None.
        compute_dtype: of the layer's matrix product.
    """

    hidden: Tensor
    grads: Tensor
    labels: Tensor
    normalizers: Tensor
    weight: Tensor
    bias: Tensor | None
    compute_dtype: torch.dtype

    @property
    def samples(self) -> int:
        return len(self.hidden)

    @property
    def stored_numel(self) -> int:
        return self.hidden.numel()

    def backprops(self, start: int, stop: int) -> Tensor:
        """The gradients of the logits of the classes `start` to `stop`: [k, t, stop - start]."""
        weight = self.weight[start:stop].to(self.compute_dtype)
        bias = None if self.bias is None else self.bias[start:stop].to(self.compute_dtype)
        hidden = self.hidden.flatten(0, 1).to(self.compute_dtype)
        values = residuals(hidden, weight, bias, self.labels.flatten(), self.normalizers.flatten(0, 1), start)
        return values.mul_(self.grads.flatten()[:, None]).to(self.weight.dtype).view(*self.labels.shape, -1)

    def row_gradients(self, start: int, stop: int) -> Tensor:
        return (self.backprops(start, stop).mT @ self.hidden.to(self.weight.dtype)).flatten(1)

    def combine(self, weights: Tensor) -> Tensor:
        columns = self.hidden.to(self.weight.dtype)
        columns = (columns * weights.to(columns)[:, None, None]).flatten(0, 1)  # shape: [k * t, q]
        total = self.weight.new_empty(self.weight.shape)
        for start, stop in self.blocks():
            total[start:stop] = self.backprops(start, stop).flatten(0, 1).T @ columns
        return total.flatten()

    def blocks(self) -> Iterator[tuple[int, int]]:
        """First and last row of the parts in which all backprops are formed."""
        step = max(1, CHUNK // max(1, self.labels.numel()))
        return ((start, min(start + step, len(self.weight))) for start in range(0, len(self.weight), step))

    def grouped(self, samples: int) -> CrossEntropyLayer:
        hidden, grads, labels, normalizers = (
            values.unflatten(0, (samples, -1)).flatten(1, 2)
            for values in (self.hidden, self.grads, self.labels, self.normalizers)
        )
        return replace(self, hidden=hidden, grads=grads, labels=labels, normalizers=normalizers)


@dataclass(frozen=True)
class Lazy:
    """Factors that are cheaper to form again than to store: the patches of a convolution are many times its input.

    Attributes:
        form: forms the factors.
        samples: k.
        stored_numel: how many numbers `form` keeps in memory.
    """

    form: Callable[[], Factors]
    samples: int
    stored_numel: int

    def row_gradients(self, start: int, stop: int) -> Tensor:
        return self.form().row_gradients(start, stop)

    def combine(self, weights: Tensor) -> Tensor:
        return self.form().combine(weights)

    def grouped(self, samples: int) -> Lazy:
        return Lazy(lambda: self.form().grouped(samples), samples, self.stored_numel)


@dataclass
class Recording:
    """The losses of one batch, and its per-sample gradients as factors.

    Attributes:
        losses: [k], detached.
        factors: name to the factors of the parameter's per-sample gradients, one for every use; they add up.
    """

    losses: Tensor
    factors: dict[str, list[Factors]]

    @property
    def stored_numel(self) -> int:
        """How many numbers the factors take."""
        return sum(f.stored_numel for factors in self.factors.values() for f in factors)

    @property
    def bytes(self) -> int:
        """How much memory the factors take, about."""
        return 4 * self.stored_numel

    def formed(self, name: str) -> list[Factors]:
        """The factors of one parameter, lazy ones formed: for several passes over them."""
        return [f.form() if isinstance(f, Lazy) else f for f in self.factors[name]]

    def gradients(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Per parameter the flattened per-sample gradients [k, numel], which `factors` represent in less memory."""
        gradients_by_name = {}
        for name, p in parameters.items():
            zeros = torch.zeros(len(self.losses), p.numel(), dtype=p.dtype, device=p.device)
            gradients_by_name[name] = sum((f.row_gradients(0, rows_of(p.shape)) for f in self.factors[name]), zeros)
        return gradients_by_name


def rows_of(shape: torch.Size) -> int:
    """p of a tensor of shape [p, ...]; one without axes has one row."""
    return shape[0] if shape else 1


def summed_row_gradients(factors: list[Factors], start: int, stop: int) -> Tensor:
    """The gradients [k, (stop - start) * q] of a tensor's rows, over all its uses (at least one)."""
    return sum((f.row_gradients(start, stop) for f in factors[1:]), factors[0].row_gradients(start, stop))
