"""The geometry of per-sample gradients: Gram matrix, rank, orthogonal projection. Pure tensors, no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

Rows = Mapping[str, torch.Tensor]
Gradient = Mapping[str, torch.Tensor]
SCOPES = ("global", "tensor")


@dataclass(frozen=True)
class Projection:
    """A gradient with its part inside the span of the rows taken out.

    Attributes:
        gradient: name to projected gradient, each of its parameter's shape.
        rank: effective rank of the basis (the mean over tensors when the scope is per tensor).
        surviving: norm of the projected gradient over the norm of the gradient, in [0, 1].
    """

    gradient: dict[str, torch.Tensor]
    rank: float
    surviving: float


def span_coefficients(gram: torch.Tensor, cross: torch.Tensor, rtol: float = 1e-10) -> tuple[torch.Tensor, int]:
    """Coefficients of the orthogonal projection on the span of k vectors: `lambda = K^+ c`.

    The vectors are normalised first: well-learned samples have small gradients, and would fall below the cut-off.

    Args:
        gram: [k, k] float64, `K_ij = <g_i, g_j>`.
        cross: [k] float64, `c_i = <g_i, g>`.
        rtol: eigenvalues of the normalised Gram matrix below `rtol` times the largest count as zero. In float32 the
            squared rounding error of a normalised vector is about 1e-14.

    Returns:
        `lambda` [k] with `Proj g = sum_i lambda_i g_i`, and the effective rank.
    """
    norms = gram.diagonal().clamp_min(0).sqrt()
    # All-zero gradients have no direction: an absolute floor keeps them out of the basis.
    inverse = torch.where(norms > 1e-30, 1 / norms, 0.0)
    values, vectors = torch.linalg.eigh(inverse[:, None] * gram * inverse[None])
    kept = values > rtol * values[-1].clamp_min(1e-30)
    basis = vectors[:, kept]
    coefficients = inverse * (basis @ ((basis.T @ (inverse * cross)) / values[kept]))
    return coefficients, int(kept.sum())


def project(gradient: Gradient, rows: Rows, scope: str = "global") -> Projection:
    """Take the part of a gradient that lies in the span of the rows out of it: `g - Q Q^T g`.

    OrthoGrad (Shamsian et al. 2025, arXiv 2503.02312, section 3), without forming Q: with the Gram matrix in float64,
    `g - sum_i lambda_i g_i` where `lambda = K^+ c`.

    Args:
        gradient: name to gradient, of any shape.
        rows: name to per-sample gradients [k, numel]; duplicates, zeros and k > numel are fine.
        scope: `"global"`, one span over all tensors together, or `"tensor"`, one span for each tensor.

    Examples:
        >>> gradient, rows = {"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([[2.0, 0.0]])}
        >>> project(gradient, rows).gradient["w"].tolist()
        [0.0, 4.0]
    """
    grams, crosses = {}, {}
    for name, row in rows.items():
        precise = row.double()
        grams[name], crosses[name] = precise @ precise.T, precise @ gradient[name].flatten().double()
    if scope == "global":
        whole, rank = span_coefficients(sum(grams.values()), sum(crosses.values()))  # type: ignore[arg-type]
        coefficients, ranks = dict.fromkeys(rows, whole), [rank]
    else:
        solved = {name: span_coefficients(grams[name], crosses[name]) for name in rows}
        coefficients, ranks = {n: c for n, (c, _) in solved.items()}, [r for _, r in solved.values()]
    projected = {
        name: (g.double() - (coefficients[name] @ rows[name].double()).view_as(g)).to(g.dtype)
        for name, g in gradient.items()
    }
    before, after = norm(gradient), norm(projected)
    return Projection(projected, sum(ranks) / len(ranks), after / before if before else 0.0)


def norm(gradient: Gradient) -> float:
    """Euclidean norm over all tensors together."""
    return float(torch.stack([g.double().square().sum() for g in gradient.values()]).sum().sqrt())
