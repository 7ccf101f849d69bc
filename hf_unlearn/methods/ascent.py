"""The plain baselines: fine-tuning on the retain dataset, gradient ascent, gradient difference."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from hf_unlearn.methods import bibliography
from hf_unlearn.methods.base import Method
from hf_unlearn.targets import Ascent, ForgetTarget, Objective


class Finetune(Method):
    """Descend the retain loss `L_r` and hope that the rest fades."""

    name = "finetune"
    title = "fine-tune"
    paper = "-"
    converges_at_target = True
    raises_forget_loss = False
    learning_rate = 1e-3

    @override
    def retain_weight(self, progress: float, step: int = 0) -> float:
        """1: the forget dataset is not used."""
        return 1.0


class GradAscent(Method):
    """Descend `-L_f`: gradient ascent on the forget dataset, nothing else (Golatkar et al. 2020, arXiv 1911.04933)."""

    name = "grad_ascent"
    title = "gradient ascent"
    paper = "Golatkar et al. 2020, arXiv 1911.04933"
    bibtex = bibliography.GOLATKAR_2020
    learning_rate = 3e-5

    @override
    def objective(self, target: ForgetTarget, original: Tensor | None) -> Objective:
        """Minus the forget loss; the target only says when to stop."""
        return Ascent()

    @override
    def retain_weight(self, progress: float, step: int = 0) -> float:
        """0: the retain dataset is not used."""
        return 0.0


class GradDiff(Method):
    """Descend `alpha L_r - (1 - alpha) L_f`, alpha the retain weight (Liu et al. 2022, arXiv 2203.12817).

    The source writes `L_r - gamma L_f`, the same up to scale with `gamma = (1 - alpha) / alpha`; alpha is 0.9.
    """

    name = "grad_diff"
    title = "gradient difference"
    paper = "Liu et al. 2022, arXiv 2203.12817"
    bibtex = bibliography.LIU_2022
    learning_rate = 3e-5
    default_retain_weight = 0.9

    @override
    def objective(self, target: ForgetTarget, original: Tensor | None) -> Objective:
        """Minus the forget loss; the target only says when to stop."""
        return Ascent()


class NegGradPlus(GradDiff):
    """Descend `beta L_r - (1 - beta) L_f`, beta the retain weight, 0.95 (Kurmanji et al. 2023, arXiv 2302.09880).

    Gradient difference with the paper's weight; for large datasets the paper has 0.9999.
    """

    name = "neggrad_plus"
    title = "NegGrad+"
    paper = "Kurmanji et al. 2023, arXiv 2302.09880"
    bibtex = bibliography.KURMANJI_2023
    default_retain_weight = 0.95
