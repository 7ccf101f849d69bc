"""Per-sample gradients of one tensor, kept in the smallest exact form, and what is asked of them.

A weight's gradient for one sample is a sum of outer products of what went into the layer and what came back to its
output. All that gradient surgery needs (inner products, rows, a weighted sum over samples) can be had from these
factors; the k x d matrix of all gradients need not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn


class Factors(Protocol):
    """Gradients of k samples with respect to one tensor of shape [p, ...], q = numel / p."""

    @property
    def samples(self) -> int:
        """k."""

    @property
    def numbers(self) -> int:
        """How many numbers are kept."""

    def rows(self, start: int, stop: int) -> Tensor:
        """The gradients' entries `start` to `stop` of the leading dimension: [k, (stop - start) * q]."""

    def combine(self, weights: Tensor) -> Tensor:
        """The sum over samples with these weights [k], flattened: [numel]."""

    def grouped(self, samples: int) -> Factors:
        """The same with every `k / samples` neighbours added up: one sample may stand on several leading entries."""


@dataclass(frozen=True)
class Dense:
    """The gradients themselves, [k, p, ...]."""

    values: Tensor

    @property
    def samples(self) -> int:
        return len(self.values)

    @property
    def numbers(self) -> int:
        return self.values.numel()

    def rows(self, start: int, stop: int) -> Tensor:
        return self.values[:, start:stop].flatten(1)

    def combine(self, weights: Tensor) -> Tensor:
        return weights.to(self.values) @ self.values.flatten(1)

    def grouped(self, samples: int) -> Dense:
        return Dense(self.values.unflatten(0, (samples, -1)).sum(1))


@dataclass(frozen=True)
class Outer:
    """Sums of outer products: `sum_t left[t] right[t]^T`, for each of g groups, stacked.

    Attributes:
        left: [k, g, t, p / g]; the gradients of the outputs.
        right: [k, g, t, q]; the inputs.
        dtype: of the result; the factors may be in half precision.
    """

    left: Tensor
    right: Tensor
    dtype: torch.dtype

    @property
    def samples(self) -> int:
        return len(self.left)

    @property
    def numbers(self) -> int:
        return self.left.numel() + self.right.numel()

    def rows(self, start: int, stop: int) -> Tensor:
        left, right = self.left.to(self.dtype), self.right.to(self.dtype)
        if left.shape[1] > 1:
            return (left.mT @ right).flatten(1, 2)[:, start:stop].flatten(1)
        return (left[:, 0, :, start:stop].mT @ right[:, 0]).flatten(1)

    def combine(self, weights: Tensor) -> Tensor:
        left, right = self.left.to(self.dtype), self.right.to(self.dtype)
        weights = weights.to(left)[:, None, None, None]
        # The smaller factor takes the weights; the sum over samples and positions is one matrix product.
        left, right = (left * weights, right) if left.numel() <= right.numel() else (left, right * weights)
        left, right = (side.transpose(0, 1).flatten(1, 2) for side in (left, right))
        return (left.mT @ right).flatten()

    def grouped(self, samples: int) -> Outer:
        left, right = (
            side.unflatten(0, (samples, -1)).transpose(1, 2).flatten(2, 3) for side in (self.left, self.right)
        )
        return Outer(left, right, self.dtype)

    def gram(self) -> Tensor:
        """Inner products [k, k] from those of the factors, in float64; for one group."""
        left, right = (side[:, 0].double() for side in (self.left, self.right))
        size, steps = left.shape[:2]
        products = (left.flatten(0, 1) @ left.flatten(0, 1).T) * (right.flatten(0, 1) @ right.flatten(0, 1).T)
        return products.view(size, steps, size, steps).sum((1, 3))

    def cross(self, gradient: Tensor) -> Tensor:
        """Inner products [k] with a gradient [p, q], in float64; for one group."""
        left, right = (side[:, 0].double() for side in (self.left, self.right))
        return ((right @ gradient.double().T) * left).sum((1, 2))

    @property
    def shape(self) -> tuple[int, int]:
        """[p, q], of the tensor."""
        return self.left.shape[1] * self.left.shape[3], self.right.shape[3]

    @property
    def short(self) -> bool:
        """Whether inner products by way of the factors are cheaper than forming the gradients."""
        _, groups, steps, p = self.left.shape
        q = self.right.shape[-1]
        return groups == 1 and self.samples * steps * steps * (p + q) < (steps + self.samples) * p * q


@dataclass(frozen=True)
class Scatter:
    """Samples of a table: sample i adds `grads[i, t]` to row `ids[i, t]`.

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
    def numbers(self) -> int:
        return self.grads.numel()

    def rows(self, start: int, stop: int) -> Tensor:
        inside = (self.ids >= start) & (self.ids < stop)
        sample, _ = inside.nonzero(as_tuple=True)
        found = self.grads.new_zeros(self.samples, stop - start, self.grads.shape[-1], dtype=self.dtype)
        places = (sample, self.ids[inside] - start)
        return found.index_put_(places, self.grads[inside].to(self.dtype), accumulate=True).flatten(1)

    def combine(self, weights: Tensor) -> Tensor:
        used = self.ids >= 0
        grads = self.grads.to(self.dtype) * weights.to(device=self.grads.device, dtype=self.dtype)[:, None, None]
        found = grads.new_zeros(self.size, grads.shape[-1])
        return found.index_add_(0, self.ids[used], grads[used]).flatten()

    def grouped(self, samples: int) -> Scatter:
        ids = self.ids.unflatten(0, (samples, -1)).flatten(1, 2)
        return Scatter(ids, self.grads.unflatten(0, (samples, -1)).flatten(1, 2), self.size, self.dtype)


@dataclass(frozen=True)
class Later:
    """Factors that are cheaper to make again than to keep: the patches of a convolution are many times its input.

    Attributes:
        make: forms the factors.
        samples: k.
        numbers: how many numbers `make` holds on to.
    """

    make: Callable[[], Factors]
    samples: int
    numbers: int

    def rows(self, start: int, stop: int) -> Tensor:
        return self.make().rows(start, stop)

    def combine(self, weights: Tensor) -> Tensor:
        return self.make().combine(weights)

    def grouped(self, samples: int) -> Later:
        return Later(lambda: self.make().grouped(samples), samples, self.numbers)


@dataclass
class Recording:
    """What one batch leaves behind.

    Attributes:
        losses: [k], detached.
        factors: name to the factors of the parameter's per-sample gradients, one for every use; they add up.
    """

    losses: Tensor
    factors: dict[str, list[Factors]]

    @property
    def bytes(self) -> int:
        """How much memory the factors hold, about."""
        return sum(4 * f.numbers for factors in self.factors.values() for f in factors)

    def rows(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Per parameter the flattened gradients [k, numel]: the matrix that `factors` makes needless."""
        found = {}
        for name, p in parameters.items():
            total = torch.zeros(len(self.losses), p.numel(), dtype=p.dtype, device=p.device)
            found[name] = sum((f.rows(0, len(p) if p.dim() else 1) for f in self.factors[name]), total)
        return found
