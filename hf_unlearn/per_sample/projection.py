"""Projections of gradients on spans and cones, from inner products alone: small matrices, no model."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor


def span_coefficients(gram: Tensor, cross: Tensor, rtol: float = 1e-10) -> tuple[Tensor, int]:
    """Coefficients of the orthogonal projection on the span of k vectors: `lambda = K^+ c`.

    The vectors are normalised first: well-learned samples have small gradients, and would fall below the cut-off.

    Args:
        gram: [k, k] float64, `K_ij = <g_i, g_j>`.
        cross: [k] float64, `c_i = <g_i, g>`.
        rtol: eigenvalues of the normalised Gramian below `rtol` times the largest count as zero. In float32 the
            squared rounding error of a normalised vector is about 1e-14.

    Returns:
        `lambda` [k] with `Proj g = sum_i lambda_i g_i`, and the effective rank.

    Examples:
        >>> gram, cross = torch.tensor([[4.0]]).double(), torch.tensor([6.0]).double()
        >>> span_coefficients(gram, cross)  # g = (3, 4) on the span of (2, 0)
        (tensor([1.5000], dtype=torch.float64), 1)
    """
    inverse_norms, eigenvalues, eigenvectors = _normalised(gram, rtol)
    coordinates = (eigenvectors.T @ (inverse_norms * cross)) / eigenvalues  # shape: [rank]
    return inverse_norms * (eigenvectors @ coordinates), len(eigenvalues)


def cone_coefficients(gram: Tensor, slopes: Tensor, rtol: float = 1e-10) -> Tensor:
    """The smallest change of a step after which it climbs along none of k vectors.

    `d - sum_i lambda_i g_i` with `lambda >= 0` is the point nearest to d where no `<d, g_i>` is positive: with g_i the
    gradients of k losses, none of the losses rises to first order. Solved in its dual, as non-negative least squares.

    Args:
        gram: [k, k] float64, `K_ij = <g_i, g_j>`.
        slopes: [k] float64, `<d, g_i>`.
        rtol: as for `span_coefficients`.

    Returns:
        `lambda` [k], none negative.
    """
    inverse_norms, eigenvalues, eigenvectors = _normalised(gram, rtol)
    if not len(eigenvalues):
        return torch.zeros_like(slopes)
    root = eigenvalues.sqrt()
    matrix = root[:, None] * eigenvectors.T  # shape: [rank, k]
    vector = (eigenvectors.T @ (inverse_norms * slopes)) / root  # shape: [rank]
    coefficients, _ = nnls(matrix.cpu().numpy(), vector.cpu().numpy(), maxiter=30 * len(slopes))
    return inverse_norms * torch.from_numpy(np.asarray(coefficients)).to(gram)


def far_from_dependent(gram: Tensor) -> bool:
    """Whether coefficients from this Gramian tolerate a relative error of 1e-7 in its entries.

    Args:
        gram: [k, k] float64, `K_ij = <g_i, g_j>`.

    Returns:
        True when no unit vector is within a tenth of the span of the others, so that solving enlarges errors at most
        a hundredfold. Zero vectors, which no projection sees, are left out.
    """
    squares = gram.diagonal()
    nonzero = gram[squares > 0][:, squares > 0]
    scale = nonzero.diagonal().rsqrt()
    return len(nonzero) == 0 or float(torch.linalg.eigvalsh(scale[:, None] * nonzero * scale[None])[0]) > 1e-2


def _normalised(gram: Tensor, rtol: float) -> tuple[Tensor, Tensor, Tensor]:
    """Inverse norms [k], and the eigenvalues [r] and eigenvectors [k, r] of the Gramian of the unit vectors."""
    norms = gram.diagonal().clamp_min(0).sqrt()
    # All-zero gradients have no direction: an absolute threshold keeps them out of the basis.
    inverse_norms = torch.where(norms > 1e-30, 1 / norms, 0.0)
    eigenvalues, eigenvectors = torch.linalg.eigh(inverse_norms[:, None] * gram * inverse_norms[None])
    nonzero = eigenvalues > rtol * eigenvalues[-1].clamp_min(1e-30)
    return inverse_norms, eigenvalues[nonzero], eigenvectors[:, nonzero]
