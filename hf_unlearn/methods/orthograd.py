"""OrthoGrad, the forget gradient projected off the span of the per-sample retain gradients, and its one-sided form."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from hf_unlearn.methods import bibliography
from hf_unlearn.methods.surgery import Combination, Geometry, SurgeryMethod
from hf_unlearn.per_sample.projection import cone_coefficients, span_coefficients


class OrthoGrad(SurgeryMethod):
    """`alpha * mean_i g_i + (1 - alpha) * (g_f - Q Q^T g_f)` (Shamsian et al. 2025, arXiv 2503.02312, eq. 4).

    g_i: the gradients of the retain samples of the step; Q: an orthonormal basis of their span; g_f: the gradient of
    the forgetting loss, to be descended (the paper ascends the forget loss, which is `forgetting_loss="grad_ascent"`);
    alpha: the retain weight. To first order, the forgetting part of the step changes no retain sample's loss. The
    optimizer turns the gradient it is given, though; with `projection="update"` the gradients are mixed unprojected,
    and the optimizer's step is corrected: the smallest change after which no retain sample's loss rises.

    By default the forgetting loss is that of ∇τ, which converges at the target, and the weights are those of a LoRA
    adapter. The log has the effective rank, the surviving share of g_f, and its largest cosine with a retain gradient.
    """

    name = "orthograd"
    title = "OrthoGrad"
    paper = "Shamsian et al. 2025, arXiv 2503.02312"
    bibtex = bibliography.SHAMSIAN_2025

    @property
    @override
    def corrects_step(self) -> bool:
        """With `projection="update"`."""
        return self.settings.projection == "update"

    @override
    def combine(self, geometry: Geometry, retain_weight: float) -> Combination:
        count = len(geometry.cross)
        if self.corrects_step:
            return Combination(1 - retain_weight, torch.full_like(geometry.cross, retain_weight / count), {})
        coefficients, rank = span_coefficients(geometry.gram, geometry.cross)  # shape: [n]
        retain = retain_weight / count - (1 - retain_weight) * coefficients
        log = {"effective_rank": float(rank), **_projection_metrics(geometry, coefficients)}
        return Combination(1 - retain_weight, retain, log)


class ConeGrad(SurgeryMethod):
    """As OrthoGrad, but only what raises a retain sample's loss is removed from the forget gradient (proposed here).

    `alpha * mean_i g_i + (1 - alpha) * (g_f + sum_i lambda_i g_i)`, `lambda >= 0` the smallest change after which
    `<-g_f, g_i> <= 0` for all i: forgetting may go on where it happens to help retain samples.
    """

    name = "conegrad"
    title = "ConeGrad"
    paper = "proposed here, after Shamsian et al. 2025, arXiv 2503.02312"
    bibtex = bibliography.SHAMSIAN_2025

    @override
    def combine(self, geometry: Geometry, retain_weight: float) -> Combination:
        coefficients = -cone_coefficients(geometry.gram, -geometry.cross)  # shape: [n]
        retain = retain_weight / len(coefficients) - (1 - retain_weight) * coefficients
        active = float((coefficients != 0).sum())
        log = {"active_samples": active, **_projection_metrics(geometry, coefficients)}
        return Combination(1 - retain_weight, retain, log)


def _projection_metrics(geometry: Geometry, coefficients: Tensor) -> dict[str, float]:
    """Of `g_f - sum_i coefficients_i g_i`: its share of g_f's norm, and how far a step against it climbs along a g_i.

    Args:
        geometry: of the step.
        coefficients: [n].
    """
    slopes = geometry.cross - geometry.gram @ coefficients  # shape: [n]
    square = float(geometry.square - coefficients @ (geometry.cross + slopes))
    norms = geometry.gram.diagonal().clamp_min(0).sqrt()
    length = max(square, 0.0) ** 0.5
    # A step against this part raises the losses along which it descends.
    cosines = -slopes / (norms * length).clamp_min(1e-30)
    share = length / geometry.square**0.5 if geometry.square else 0.0
    return {"surviving_share": share, "largest_cosine": float(cosines.max()) if length else 0.0}
