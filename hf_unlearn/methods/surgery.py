"""Gradient surgery: what all its methods share, and the methods that use the mean retain gradient alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from hf_unlearn.methods import bibliography
from hf_unlearn.methods.ascent import GradAscent, GradDiff
from hf_unlearn.methods.base import SHORT_MEMORY, Method, MethodSettings, RunInfo
from hf_unlearn.methods.hyperparameters import NoHyperparameters, hyperparameter
from hf_unlearn.methods.nabla_tau import NablaTau
from hf_unlearn.targets import ForgetTarget, Objective

# None of them has hyper-parameters of its own: `method_kwargs` are those of the surgery method.
FORGETTING_LOSSES: dict[str, type[Method]] = {cls.name: cls for cls in (NablaTau, GradAscent, GradDiff)}


@dataclass(frozen=True)
class Geometry:
    """The inner products of one optimizer step's gradients (of one tensor, or of all together).

    Attributes:
        gram: [n, n] float64, the Gramian `<g_i, g_j>` of the retain samples' gradients.
        cross: [n] float64, `<g_i, g_f>` with the gradient of the forgetting loss.
        square: `<g_f, g_f>`.
        retain_loss: mean retain loss of the step.
    """

    gram: Tensor
    cross: Tensor
    square: float
    retain_loss: float


@dataclass(frozen=True)
class Combination:
    """The gradient that the optimizer gets: `forget * g_f + sum_i retain_i g_i`.

    Attributes:
        forget: factor of the forget gradient.
        retain: [n] float64, factors of the retain samples' gradients.
        log: metrics for the log.
    """

    forget: float
    retain: Tensor
    log: dict[str, float]


class SurgeryMethod(Method):
    """A method that combines the forget gradient with the retain samples' gradients, by their inner products.

    The forget gradient is that of any forgetting loss, to be descended: `UnlearningArguments(forgetting_loss=)`.

    Attributes:
        forgetting: the method whose objective is the forgetting loss.
        needs_every_gradient: whether the gradients are combined themselves (`combine_gradients`), a tensor at a time.
    """

    is_gradient_surgery = True
    needs_every_gradient: ClassVar[bool] = False
    lora_by_default = True
    default_arguments = SHORT_MEMORY

    def __init__(self, settings: MethodSettings, info: RunInfo, hyperparameters: object | None = None):
        super().__init__(settings, info, hyperparameters)
        self.forgetting = FORGETTING_LOSSES[settings.forgetting_loss](settings, info, NoHyperparameters())
        self.converges_at_target = self.forgetting.converges_at_target  # type: ignore[misc]

    @override
    def objective(self, target: ForgetTarget, original: Tensor | None) -> Objective:
        """That of the forgetting loss."""
        return self.forgetting.objective(target, original)

    @override
    def remeasures_target(self, step: int, max_steps: int, forget_per_step: int) -> bool:
        """When that of the forgetting loss is."""
        return self.forgetting.remeasures_target(step, max_steps, forget_per_step)

    @property
    def corrects_step(self) -> bool:
        """Whether the optimizer's step is corrected, rather than its gradient."""
        return False

    def combine(self, geometry: Geometry, retain_weight: float) -> Combination:
        """The gradient that the optimizer gets.

        Args:
            geometry: the inner products of the step's gradients.
            retain_weight: weight of the retain gradient in [0, 1].
        """
        raise NotImplementedError(f"{type(self).__name__}.combine")

    def combine_gradients(
        self, name: str, retain: Tensor, forget: Tensor, retain_weight: float
    ) -> tuple[Tensor, dict[str, float]]:
        """One tensor's gradient that the optimizer gets, and metrics for the log; with `needs_every_gradient`.

        Args:
            name: of the tensor.
            retain: gradients [k, numel] of all retain samples of the step, in their order.
            forget: gradient of the forgetting loss, of the tensor's shape.
            retain_weight: weight of the retain gradient in [0, 1].
        """
        raise NotImplementedError(f"{type(self).__name__}.combine_gradients")


def _mean_retain_products(geometry: Geometry) -> tuple[float, float]:
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
    bibtex = bibliography.YU_2020

    @override
    def combine(self, geometry: Geometry, retain_weight: float) -> Combination:
        dot, square = _mean_retain_products(geometry)
        removed = min(0.0, dot) / square if square else 0.0
        share = retain_weight - (1 - retain_weight) * removed
        retain = torch.full_like(geometry.cross, share / len(geometry.cross))
        return Combination(1 - retain_weight, retain, {"conflict": float(dot < 0)})


@dataclass(frozen=True)
class GDRGMAHyperparameters:
    """Of the magnitude adjustment of `GDRGMA`."""

    gamma: float = hyperparameter(100.0, "gamma, steepness of the weight's fall with the retain loss", above=0)
    epsilon: float = hyperparameter(0.02, "epsilon, retain loss at which both gradients weigh one half")


class GDRGMA(SurgeryMethod):
    """`(1 - l) g_r' + l g_f'`, `l = 1 / (1 + exp(gamma (L_r - eps)))` (Lin et al. 2024, GDR-GMA, ACM Multimedia).

    Where the two conflict, g_r' and g_f' are each projected off the other (direction rectification); the magnitude
    follows the retain loss: forgetting waits while L_r is above eps = 0.02 (gamma = 100). Left out: the paper's memory
    of earlier forget gradients of the last layer. `retain_weight` has no effect.
    """

    name = "gdr_gma"
    title = "GDR-GMA"
    paper = "Lin et al. 2024, ACM Multimedia"
    bibtex = bibliography.LIN_2024
    hyperparameters = GDRGMAHyperparameters
    hp: GDRGMAHyperparameters

    @override
    def combine(self, geometry: Geometry, retain_weight: float) -> Combination:
        dot, square = _mean_retain_products(geometry)
        weight = float(torch.sigmoid(torch.tensor(-self.hp.gamma * (geometry.retain_loss - self.hp.epsilon))))
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
    bibtex = bibliography.BU_2024

    @override
    def combine(self, geometry: Geometry, retain_weight: float) -> Combination:
        _, square = _mean_retain_products(geometry)
        forget = geometry.square**-0.5 if geometry.square else 0.0
        retain = square**-0.5 if square else 0.0
        return Combination(forget, torch.full_like(geometry.cross, retain / len(geometry.cross)), {})
