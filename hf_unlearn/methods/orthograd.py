"""OrthoGrad: the forget gradient, projected off the span of the per-sample retain gradients."""

from __future__ import annotations

import torch

from hf_unlearn.methods.ascent import GradAscent, GradDiff
from hf_unlearn.methods.base import Setting, SurgeryMethod
from hf_unlearn.methods.nabla_tau import NablaTau
from hf_unlearn.per_sample.projection import project
from hf_unlearn.targets import ForgetTarget

FORGETTING_LOSSES = {cls.name: cls for cls in (NablaTau, GradAscent, GradDiff)}


class OrthoGrad(SurgeryMethod):
    """`alpha * mean_i g_i + (1 - alpha) * (g_f - Q Q^T g_f)` (Shamsian et al. 2025, arXiv 2503.02312, eq. 4).

    g_i: the gradients of the retain samples of the step; Q: an orthonormal basis of their span; g_f: the gradient of
    the forgetting loss, to be descended (the paper ascends the forget loss, which is `forgetting_loss="grad_ascent"`);
    alpha: the retain weight. To first order, the forgetting part of the step leaves every retain sample's loss alone.

    By default the forgetting loss is ∇τ's, which ends by itself, and the weights are those of a LoRA adapter.
    """

    name = "orthograd"
    title = "OrthoGrad"
    paper = "Shamsian et al. 2025, arXiv 2503.02312"
    adapters = True

    def __init__(self, args, setting: Setting):
        super().__init__(args, setting)
        self.forgetting = FORGETTING_LOSSES[args.forgetting_loss](args, setting)
        self.bounded = self.forgetting.bounded  # type: ignore[misc]

    def objective(self, target: ForgetTarget) -> ForgetTarget:
        """That of the forgetting loss."""
        return self.forgetting.objective(target)

    def update(
        self, forget: dict[str, torch.Tensor], retain: dict[str, torch.Tensor], retain_weight: float
    ) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        """The paper's update; logs the surviving share of the forget gradient and the effective rank of the basis."""
        projection = project(forget, retain, self.args.projection_scope)
        update = {
            name: retain_weight * retain[name].mean(0).view_as(g) + (1 - retain_weight) * g
            for name, g in projection.gradient.items()
        }
        return update, {"surviving_share": projection.surviving, "effective_rank": projection.rank}
