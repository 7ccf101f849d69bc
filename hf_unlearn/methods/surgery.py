"""Gradient surgery: what all its methods share, and the rank-one ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hf_unlearn.methods.ascent import GradAscent, GradDiff
from hf_unlearn.methods.base import Method, RunInfo
from hf_unlearn.methods.nabla_tau import NablaTau
from hf_unlearn.targets import ForgetTarget, Objective

FORGETTING_LOSSES = {cls.name: cls for cls in (NablaTau, GradAscent, GradDiff)}


@dataclass(frozen=True)
class Geometry:
    """The inner products of one optimizer step's gradients (of one tensor, or of all together).

    Attributes:
        gram: [n, n] float64, `<g_i, g_j>` of the retain samples' gradients.
        cross: [n] float64, `<g_i, g_f>` with the gradient of the forgetting loss.
        square: `<g_f, g_f>`.
        retain_loss: mean retain loss of the step.
    """

    gram: torch.Tensor
    cross: torch.Tensor
    square: float
    retain_loss: float


@dataclass(frozen=True)
class Combination:
    """The gradient that the optimizer gets: `forget * g_f + sum_i retain_i g_i`, and metrics for the log."""

    forget: float
    retain: torch.Tensor
    log: dict[str, float]


class SurgeryMethod(Method):
    """A method that combines the forget gradient with the retain samples' gradients, by their inner products.

    The forget gradient is that of any forgetting loss, to be descended: `UnlearningArguments(forgetting_loss=)`.
    """

    is_gradient_surgery = True
    lora_by_default = True
    passes, min_steps = NablaTau.passes, NablaTau.min_steps

    def __init__(self, args, info: RunInfo):
        super().__init__(args, info)
        self.forgetting = FORGETTING_LOSSES[args.forgetting_loss](args, info)
        self.converges_at_target = self.forgetting.converges_at_target  # type: ignore[misc]

    def objective(self, target: ForgetTarget, original: torch.Tensor | None) -> Objective:
        """That of the forgetting loss."""
        return self.forgetting.objective(target, original)

    def remeasures_target(self, step: int, max_steps: int, forget_per_step: int) -> bool:
        """When the forgetting loss's is."""
        return self.forgetting.remeasures_target(step, max_steps, forget_per_step)

    @property
    def corrects_step(self) -> bool:
        """Whether the optimizer's step is corrected, rather than its gradient."""
        return False

    def combine(self, geometry: Geometry, retain_weight: float) -> Combination:
        """The update, given the geometry of the step and the weight of the retain gradient in [0, 1]."""
        raise NotImplementedError(f"{type(self).__name__}.combine")


def _mean(geometry: Geometry) -> tuple[float, float]:
    """`<g_r, g_f>` and `<g_r, g_r>` of the mean retain gradient g_r."""
    return float(geometry.cross.mean()), float(geometry.gram.mean())


class PCGrad(SurgeryMethod):
    """`alpha g_r + (1 - alpha) (g_f - min(0, <g_f, g_r>) / |g_r|^2 g_r)` (Yu et al. 2020, arXiv 2001.06782, alg. 1).

    The forget gradient loses its part against the mean retain gradient g_r, where the two conflict. One-sided, as
    gradient rectified unlearning (GRU, Wang et al. 2025) has it: the retain gradient stays whole.
    """

    name = "pcgrad"
    title = "PCGrad"
    paper = "Yu et al. 2020, arXiv 2001.06782"

    def combine(self, geometry: Geometry, retain_weight: float) -> Combination:
        """As the class says."""
        dot, square = _mean(geometry)
        removed = min(0.0, dot) / square if square else 0.0
        share = retain_weight - (1 - retain_weight) * removed
        retain = torch.full_like(geometry.cross, share / len(geometry.cross))
        return Combination(1 - retain_weight, retain, {"conflict": float(dot < 0)})


class GDRGMA(SurgeryMethod):
    """`(1 - l) g_r' + l g_f'`, `l = 1 / (1 + exp(gamma (L_r - eps)))` (Lin et al. 2024, GDR-GMA, ACM Multimedia).

    Where the two conflict, g_r' and g_f' are each projected off the other (direction rectification); the magnitude
    follows the retain loss: forgetting waits while L_r is above eps = 0.02 (gamma = 100). Left out: the paper's memory
    of earlier forget gradients of the last layer. `retain_weight` has no effect.
    """

    name = "gdr_gma"
    title = "GDR-GMA"
    paper = "Lin et al. 2024, ACM Multimedia"
    GAMMA, EPSILON = 100.0, 0.02

    def combine(self, geometry: Geometry, retain_weight: float) -> Combination:
        """As the class says."""
        dot, square = _mean(geometry)
        weight = float(torch.sigmoid(torch.tensor(-self.GAMMA * (geometry.retain_loss - self.EPSILON))))
        conflict = dot < 0 and square > 0 and geometry.square > 0
        forget = weight - ((1 - weight) * dot / geometry.square if conflict else 0.0)
        retain = 1 - weight - (weight * dot / square if conflict else 0.0)
        shares = torch.full_like(geometry.cross, retain / len(geometry.cross))
        return Combination(forget, shares, {"conflict": float(conflict), "forget_weight": weight})


class NGDiff(SurgeryMethod):
    """`g_r / |g_r| + g_f / |g_f|` (Bu et al. 2024, arXiv 2410.22086, normalised gradient difference).

    The paper's automatic learning rate is left out; the learning rate is the trainer's. `retain_weight` has no effect.
    """

    name = "ngdiff"
    title = "NGDiff"
    paper = "Bu et al. 2024, arXiv 2410.22086"

    def combine(self, geometry: Geometry, retain_weight: float) -> Combination:
        """As the class says."""
        _, square = _mean(geometry)
        forget = geometry.square**-0.5 if geometry.square else 0.0
        retain = square**-0.5 if square else 0.0
        return Combination(forget, torch.full_like(geometry.cross, retain / len(geometry.cross)), {})
