"""Negative preference: forget samples as the answers that preference optimisation turns away from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from hf_unlearn.losses import Head
from hf_unlearn.losses.functional import IGNORED
from hf_unlearn.methods.base import CalibrationPass, SequenceMethod
from hf_unlearn.targets import ForgetTarget, Objective


class NegativePreference(Objective):
    """`mean_i (2 / beta) log(1 + (pi_i / ref_i)^beta)`, pi_i and ref_i the probabilities of whole label sequences.

    Args:
        beta: inverse temperature.
        original: mean token loss [samples of the forget dataset] under the original model: `-log ref_i` over the length.
    """

    def __init__(self, beta: float, original: torch.Tensor):
        self.beta, self.original = beta, original

    def scores(
        self, outputs: Any, batch: Mapping[str, Any], head: Head, index: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As the class says."""
        losses = head.losses(outputs, batch)
        _, labels = head.decisions(outputs, batch)
        lengths = (labels != IGNORED).sum(dim=1).to(losses)
        log_ratio = lengths * (self.original[index.cpu()].to(losses) - losses)
        return 2 / self.beta * F.softplus(self.beta * log_ratio), losses.detach()


class SimpleNegativePreference(Objective):
    """`mean_i -(2 / beta) log sigmoid(beta l_i - gamma)`, l_i the mean token loss of sample i."""

    def __init__(self, beta: float, gamma: float):
        self.beta, self.gamma = beta, gamma

    def combine(self, scores: torch.Tensor) -> torch.Tensor:
        """As the class says, from the losses."""
        return -2 / self.beta * F.logsigmoid(self.beta * scores - self.gamma).mean()


class PreferAlternative(Objective):
    """`mean_i -(2 / beta) log sigmoid(beta (log a_i / a_ref_i - log pi_i / ref_i))`.

    a_i: probability of the label sequence of sample i's alternative, pi_i: of the forget sample's own. The batch holds the
    forget samples, and after them their alternatives.

    Args:
        beta: inverse temperature.
        original: mean token loss [samples of the forget dataset] under the original model.
        alternative: the same of the alternatives.
    """

    def __init__(self, beta: float, original: torch.Tensor, alternative: torch.Tensor):
        self.beta, self.original, self.alternative = beta, original, alternative

    def scores(
        self, outputs: Any, batch: Mapping[str, Any], head: Head, index: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As the class says."""
        losses = head.losses(outputs, batch)
        _, labels = head.decisions(outputs, batch)
        lengths = (labels != IGNORED).sum(dim=1).to(losses)
        reference = torch.cat([self.original[index.cpu()], self.alternative[index.cpu()]]).to(losses)
        own, instead = (lengths * (reference - losses)).chunk(2)
        return -2 / self.beta * F.logsigmoid(self.beta * (instead - own)), losses[: len(index)].detach()


class NPO(SequenceMethod):
    """Descend `(2 / beta) log(1 + (pi / ref)^beta)` and `L_r` (Zhang et al. 2024, arXiv 2404.05868), beta 0.1.

    pi / ref: the probability of a forget sample's label tokens under the model, over that under the original. The latter
    is measured once, before the first step, and kept in checkpoints: no second model is needed. It is ascent whose
    gradient fades where a sample is already unlikely; it knows no target, so training stops there.
    """

    name = "npo"
    title = "NPO"
    paper = "Zhang et al. 2024, arXiv 2404.05868"
    BETA: ClassVar[float] = 0.1

    def objective(self, target: ForgetTarget, original: torch.Tensor | None) -> Objective:
        """The negative preference; the target only says when to stop."""
        assert original is not None
        return NegativePreference(self.BETA, original)


class IdkDPO(SequenceMethod):
    """DPO towards "I don't know": descend `-(2 / beta) log sigmoid(beta (log a / a_ref - log pi / ref))` and `L_r`.

    Maini et al. 2024 (TOFU, arXiv 2401.06121), after Rafailov et al. 2023 (arXiv 2305.18290), beta 0.1. pi: the
    probability of a forget sample's label tokens, a: of those of the same sample with another answer, which come as
    `alternative_ds`. What the original says of both is measured once, before the first step, and kept in checkpoints:
    no second model is needed. It knows no target, so training stops there.
    """

    name = "idk_dpo"
    title = "IDK (DPO)"
    paper = "Maini et al. 2024, arXiv 2401.06121"
    needs_alternative_ds = True
    BETA: ClassVar[float] = 0.1

    def on_train_begin(self, calibration: CalibrationPass) -> None:
        """Measure the alternatives."""
        self.alternative = calibration.losses("alternative")

    def state_dict(self) -> dict[str, Any]:
        """What the original said of the alternatives."""
        return {"alternative": self.alternative}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The same."""
        self.alternative = state["alternative"]

    def objective(self, target: ForgetTarget, original: torch.Tensor | None) -> Objective:
        """The preference; the target only says when to stop."""
        assert original is not None
        return PreferAlternative(self.BETA, original, self.alternative)


class SimNPO(SequenceMethod):
    """Descend `-(2 / beta) log sigmoid(-beta / |y| log pi - gamma)` and `L_r` (Fan et al. 2024, arXiv 2410.07163).

    NPO without a reference, its log-probabilities divided by the number of label tokens. beta 2.5 and gamma 0 are the
    authors' for TOFU's forget05 (their repository and model card; 4.5 for forget10). Their weights of the two losses
    differ between repository and card; ours are those of every method for sequences.
    """

    name = "simnpo"
    title = "SimNPO"
    paper = "Fan et al. 2024, arXiv 2410.07163"
    BETA: ClassVar[float] = 2.5
    GAMMA: ClassVar[float] = 0.0

    def objective(self, target: ForgetTarget, original: torch.Tensor | None) -> Objective:
        """The negative preference; the target only says when to stop."""
        return SimpleNegativePreference(self.BETA, self.GAMMA)
