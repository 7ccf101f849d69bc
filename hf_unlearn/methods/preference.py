"""Negative preference: forget samples as the answers that preference optimisation turns away from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from hf_unlearn.losses import Head
from hf_unlearn.losses.functional import IGNORED
from hf_unlearn.losses.head import Batch
from hf_unlearn.methods import bibliography
from hf_unlearn.methods.base import CalibrationPass, SequenceMethod
from hf_unlearn.methods.hyperparameters import hyperparameter
from hf_unlearn.targets import ForgetTarget, Objective


class NegativePreference(Objective):
    """`mean_i (2 / beta) log(1 + (pi_i / ref_i)^beta)`, pi_i and ref_i the probabilities of whole label sequences.

    Args:
        beta: inverse temperature.
        original: mean token losses [samples of the forget dataset] under the original model: `-log ref_i` over the
            length.
    """

    def __init__(self, beta: float, original: Tensor):
        self.beta, self.original = beta, original

    @override
    def scores(self, outputs: Any, batch: Batch, head: Head, index: Tensor) -> tuple[Tensor, Tensor]:
        losses = head.losses(outputs, batch)
        _, labels = head.position_losses(outputs, batch)
        lengths = (labels != IGNORED).sum(dim=1).to(losses)
        log_ratios = lengths * (self.original[index.cpu()].to(losses) - losses)
        return 2 / self.beta * F.softplus(self.beta * log_ratios), losses.detach()


class SimpleNegativePreference(Objective):
    """`mean_i -(2 / beta) log sigmoid(beta l_i - gamma)`, l_i the mean token loss of sample i.

    Args:
        beta: inverse temperature.
        gamma: margin.
    """

    def __init__(self, beta: float, gamma: float):
        self.beta, self.gamma = beta, gamma

    @override
    def combine(self, scores: Tensor) -> Tensor:
        return -2 / self.beta * F.logsigmoid(self.beta * scores - self.gamma).mean()


class PreferAlternative(Objective):
    """`mean_i -(2 / beta) log sigmoid(beta (log a_i / a_ref_i - log pi_i / ref_i))`.

    a_i: probability of the label sequence of sample i's alternative, pi_i: of the forget sample's own. The batch holds
    the forget samples, and after them their alternatives.

    Args:
        beta: inverse temperature.
        original: mean token losses [samples of the forget dataset] under the original model.
        alternative: the same of the alternatives.
    """

    def __init__(self, beta: float, original: Tensor, alternative: Tensor):
        self.beta, self.original, self.alternative = beta, original, alternative

    @override
    def scores(self, outputs: Any, batch: Batch, head: Head, index: Tensor) -> tuple[Tensor, Tensor]:
        losses = head.losses(outputs, batch)
        _, labels = head.position_losses(outputs, batch)
        lengths = (labels != IGNORED).sum(dim=1).to(losses)
        original_losses = torch.cat([self.original[index.cpu()], self.alternative[index.cpu()]]).to(losses)
        forget_ratios, alternative_ratios = (lengths * (original_losses - losses)).chunk(2)
        scores = -2 / self.beta * F.logsigmoid(self.beta * (alternative_ratios - forget_ratios))
        return scores, losses[: len(index)].detach()


@dataclass(frozen=True)
class NPOHyperparameters:
    """Of `NPO`."""

    beta: float = hyperparameter(0.1, "beta, inverse temperature", above=0)


class NPO(SequenceMethod):
    """Descend `(2 / beta) log(1 + (pi / ref)^beta)` and `L_r` (Zhang et al. 2024, arXiv 2404.05868), beta 0.1.

    pi / ref: the probability of a forget sample's label tokens under the model, over that under the original. The
    latter is measured once, before the first step, and kept in checkpoints: no second model is needed. It is ascent
    whose gradient fades where a sample is already unlikely; it has no target of its own, so training is stopped at the
    forgetting target.
    """

    name = "npo"
    title = "NPO"
    paper = "Zhang et al. 2024, arXiv 2404.05868"
    bibtex = bibliography.ZHANG_2024
    needs_original_losses = True
    hyperparameters = NPOHyperparameters
    hp: NPOHyperparameters

    @override
    def objective(self, target: ForgetTarget, original: Tensor | None) -> Objective:
        """The negative preference; the target only says when to stop."""
        assert original is not None
        return NegativePreference(self.hp.beta, original)


@dataclass(frozen=True)
class IdkDPOHyperparameters:
    """Of `IdkDPO`."""

    beta: float = hyperparameter(0.1, "beta, inverse temperature", above=0)


class IdkDPO(SequenceMethod):
    """DPO towards "I don't know": descend `-(2 / beta) log sigmoid(beta (log a / a_ref - log pi / ref))` and `L_r`.

    Maini et al. 2024 (TOFU, arXiv 2401.06121), after Rafailov et al. 2023 (arXiv 2305.18290), beta 0.1. pi: the
    probability of a forget sample's label tokens, a: of those of the same sample with another answer, given as
    `alternative_ds`. The losses of both under the original are measured once, before the first step, and kept in
    checkpoints: no second model is needed. It has no target of its own, so training is stopped at the forgetting
    target.
    """

    name = "idk_dpo"
    title = "IDK (DPO)"
    paper = "Maini et al. 2024, arXiv 2401.06121"
    bibtex = bibliography.MAINI_2024
    needs_alternative_ds = True
    needs_original_losses = True
    hyperparameters = IdkDPOHyperparameters
    hp: IdkDPOHyperparameters

    @override
    def on_train_begin(self, calibration: CalibrationPass) -> None:
        """Measure the alternatives."""
        self.alternative = calibration.losses("alternative")

    @override
    def state_dict(self) -> dict[str, Any]:
        """The original's losses of the alternatives."""
        return {"alternative": self.alternative}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.alternative = state["alternative"]

    @override
    def objective(self, target: ForgetTarget, original: Tensor | None) -> Objective:
        """The preference; the target only says when to stop."""
        assert original is not None
        return PreferAlternative(self.hp.beta, original, self.alternative)


@dataclass(frozen=True)
class SimNPOHyperparameters:
    """Of `SimNPO`."""

    beta: float = hyperparameter(2.5, "beta, inverse temperature; the authors have 4.5 for TOFU's forget10", above=0)
    gamma: float = hyperparameter(0.0, "gamma, margin that the mean token loss has to exceed", at_least=0)


class SimNPO(SequenceMethod):
    """Descend `-(2 / beta) log sigmoid(-beta / |y| log pi - gamma)` and `L_r` (Fan et al. 2024, arXiv 2410.07163).

    NPO without the original model, its log-probabilities divided by the number of label tokens. beta 2.5 and gamma 0
    are the authors' for TOFU's forget05 (their repository and model card; 4.5 for forget10). Their weights of the two
    losses differ between repository and card; here they are those of every method for sequences.
    """

    name = "simnpo"
    title = "SimNPO"
    paper = "Fan et al. 2024, arXiv 2410.07163"
    bibtex = bibliography.FAN_2024_SIMNPO
    hyperparameters = SimNPOHyperparameters
    hp: SimNPOHyperparameters

    @override
    def objective(self, target: ForgetTarget, original: Tensor | None) -> Objective:
        """The negative preference; the target only says when to stop."""
        return SimpleNegativePreference(self.hp.beta, self.hp.gamma)
