"""OrthoGrad, the forget gradient projected off the span of the per-sample retain gradients, and its one-sided form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from hf_unlearn.methods import bibliography
from hf_unlearn.methods.base import CalibrationPass, MethodSettings, Parameters, RunInfo
from hf_unlearn.methods.surgery import Combination, Geometry, SurgeryMethod
from hf_unlearn.per_sample.projection import cone_coefficients, span_coefficients

# Adam's, as torch has them.
BETAS, EPSILON = (0.9, 0.999), 1e-8


class OrthoGrad(SurgeryMethod):
    """`alpha * mean_i g_i + (1 - alpha) * (g_f - Q Q^T g_f)` (Shamsian et al. 2025, arXiv 2503.02312, eq. 4).

    g_i: the gradients of the retain samples of the step; Q: an orthonormal basis of their span; g_f: the gradient of
    the forgetting loss, to be descended (the paper ascends the forget loss, which is `forgetting_loss="grad_ascent"`);
    alpha: the retain weight. To first order, the forgetting part of the step changes no retain sample's loss. The
    optimizer turns the gradient it is given, though; with `projection="update"` the gradients are mixed unprojected,
    and the optimizer's step is corrected: the smallest change after which no retain sample's loss rises.

    By default the forgetting loss is that of ∇τ, which converges at the target, and the weights are those of a LoRA
    adapter. The log has the effective rank, the surviving share of g_f, and its largest cosine with a retain gradient.
    The only public code that is likely the authors' own does something else: `orthograd_adam`.
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


class OrthoGradAdam(SurgeryMethod):
    """`alpha * mean_i d_i + (1 - alpha) * (d_f - Q Q^T d_f)` for each tensor, with Adam directions d.

    The form of the only public code that is likely of OrthoGrad's authors (github.com/danielkhen/dp_unlearning,
    `orthograd.py`), where the paper (Shamsian et al. 2025, arXiv 2503.02312) has gradients: alpha 0.5, and plain SGD
    steps at a constant rate, nothing clipped. d_f: the direction `m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)` of
    Adam (0.9, 0.999, 1e-8) for the gradient of the forgetting loss, which is ascent. d_i: the same for the gradient of
    retain sample i, with moments of their own that take in one sample after the other: t counts samples. All moments
    go on from step to step. Q: from the QR decomposition of the d_i of one tensor. A tensor with no more entries than
    a step has retain samples is left no forgetting.

    It forms the gradients of all retain samples, a tensor at a time. `projection` and `projection_scope` have no
    effect. Eval mode: that code leaves it to its caller.
    """

    name = "orthograd_adam"
    title = "OrthoGrad (Adam directions)"
    paper = OrthoGrad.paper
    bibtex = OrthoGrad.bibtex
    needs_every_gradient = True
    default_arguments: ClassVar[Mapping[str, Any]] = {
        "forgetting_loss": "grad_ascent", "projection_scope": "tensor", "optim": "sgd", "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
    }  # fmt: skip

    def __init__(self, settings: MethodSettings, info: RunInfo, hyperparameters: object | None = None):
        super().__init__(settings, info, hyperparameters)
        self.moments: dict[str, Tensor] = {}
        self._next_moments: dict[str, Tensor] = {}

    @classmethod
    @override
    def check_weights(cls, *, adapter: bool, sharded: bool) -> None:
        if sharded:
            raise ValueError(
                f"method: {cls.name} forms the gradient of every retain sample, which is not supported for weights "
                "spread over processes (FSDP); use orthograd"
            )

    @override
    def retain_weight(self, progress: float, step: int = 0) -> float:
        """alpha, 0.5 with and without a target."""
        return self.default_retain_weight if self.settings.retain_weight is None else self.settings.retain_weight

    @override
    def on_train_begin(self, calibration: CalibrationPass) -> None:
        """Begin without moments."""
        self.moments = {}

    @override
    def combine_gradients(
        self, name: str, retain: Tensor, forget: Tensor, retain_weight: float
    ) -> tuple[Tensor, dict[str, float]]:
        direction = self._directions(f"forget {name}", forget.flatten()[None])[0]  # shape: [numel]
        directions = self._directions(f"retain {name}", retain)  # shape: [k, numel]
        basis, _ = torch.linalg.qr(directions.T)  # shape: [numel, min(k, numel)]
        rest = direction - basis @ (basis.T @ direction)
        update = retain_weight * directions.mean(0) + (1 - retain_weight) * rest
        return update.view_as(forget), {"surviving_share": float(rest.norm() / direction.norm().clamp_min(1e-30))}

    def _directions(self, key: str, gradients: Tensor) -> Tensor:
        """The Adam directions [n, numel] of gradients [n, numel] that come one after the other."""
        zeros = gradients.new_zeros(2, gradients.shape[1])
        mean, square = self.moments.get(key, zeros).to(gradients).clone()
        count, directions = int(self.moments.get(f"{key} count", torch.zeros(()))), []
        for gradient in gradients:
            count += 1
            mean.lerp_(gradient, 1 - BETAS[0])
            square.lerp_(gradient.square(), 1 - BETAS[1])
            corrected = square / (1 - BETAS[1] ** count)
            directions.append(mean / (1 - BETAS[0] ** count) / (corrected.sqrt() + EPSILON))
        self._next_moments |= {key: torch.stack([mean, square]), f"{key} count": torch.tensor(count)}
        return torch.stack(directions)

    @override
    def on_pre_optimizer_step(self, parameters: Parameters, progress: float, scale: float) -> dict[str, float]:
        """Take over the moments of the step, unless it has overflowed: a loss scaler skips it then."""
        if all(p.grad is None or p.grad.isfinite().all() for p in parameters.values()):
            self.moments |= self._next_moments
        self._next_moments = {}
        return {}

    @override
    def state_dict(self) -> dict[str, Any]:
        """The moments."""
        return {"moments": self.moments}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.moments = dict(state["moments"])


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
