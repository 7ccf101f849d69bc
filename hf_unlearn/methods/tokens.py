"""Forgetting token by token: what is descended differs between the tokens of a sample.

A sample's score is the mean over its own label tokens, and samples weigh the same, as in the rest of the library.
Public code (open-unlearning) takes the mean over all tokens of a batch, so that a sample's weight depends on its
neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from hf_unlearn.losses import Head
from hf_unlearn.losses.functional import IGNORED, at_least_float32, labelled_mean
from hf_unlearn.losses.head import Batch
from hf_unlearn.methods import bibliography
from hf_unlearn.methods.base import SequenceMethod
from hf_unlearn.methods.hyperparameters import hyperparameter
from hf_unlearn.targets import ForgetTarget, Objective


class WeightedAscent(Objective):
    """`-mean_t w_t l_t`, `w_t = p_t^saturation (1 - p_t)^importance`, p_t the label token's probability, held fixed.

    Args:
        saturation: exponent; the larger, the sooner a token that is already unlikely is left alone.
        importance: exponent; the larger, the less a token that is nearly certain counts.
    """

    def __init__(self, saturation: float, importance: float = 0.0):
        self.saturation, self.importance = saturation, importance

    @override
    def scores(self, outputs: Any, batch: Batch, head: Head, index: Tensor) -> tuple[Tensor, Tensor]:
        losses, labels = head.position_losses(outputs, batch)  # shape: [n, tokens]
        probs = (-losses.detach()).exp()
        # 1 - p without the cancellation near p = 1.
        weights = probs**self.saturation * (-torch.expm1(-losses.detach())) ** self.importance
        return labelled_mean(-weights * losses, labels), labelled_mean(losses.detach(), labels)


class CrossEntropyWithoutLabel(Objective):
    """`-mean_t sum_v q_tv log p_tv`, q_t the model's own prediction without the label token, held fixed."""

    logits = True

    @override
    def scores(self, outputs: Any, batch: Batch, head: Head, index: Tensor) -> tuple[Tensor, Tensor]:
        logits, labels = head.decisions(outputs, batch)  # shape: [n, tokens, vocabulary], [n, tokens]
        labels = labels.to(logits.device)
        logits = at_least_float32(logits)
        labelled = labels != IGNORED
        classes = labels.where(labelled, 0)[..., None]
        goal = logits.detach().scatter(-1, classes, -torch.inf).softmax(-1)
        log_probs = logits.log_softmax(-1)
        scores = -(goal * log_probs).sum(-1) * labelled
        losses = -log_probs.detach().gather(-1, classes).squeeze(-1) * labelled
        return labelled_mean(scores, labels), labelled_mean(losses, labels)


@dataclass(frozen=True)
class WGAHyperparameters:
    """Of `WGA`."""

    alpha: float = hyperparameter(1.0, "alpha, exponent of a token's probability (open-unlearning: beta)", at_least=0)


class WGA(SequenceMethod):
    """Descend `mean_t p_t^alpha log p_t` and `L_r`, the weights held fixed (Wang et al. 2025, arXiv 2502.19301).

    Weighted gradient ascent; p_t: probability of a label token. alpha 1 is open-unlearning's default (its beta).
    """

    name = "wga"
    title = "WGA"
    paper = "Wang et al. 2025, arXiv 2502.19301"
    bibtex = bibliography.WANG_2025
    hyperparameters = WGAHyperparameters
    hp: WGAHyperparameters

    @override
    def objective(self, target: ForgetTarget, original: Tensor | None) -> Objective:
        """Weighted ascent; the target only says when to stop."""
        return WeightedAscent(self.hp.alpha)


@dataclass(frozen=True)
class SatImpHyperparameters:
    """Of `SatImp`."""

    beta1: float = hyperparameter(5.0, "beta1, exponent of the saturation p_t", at_least=0)
    beta2: float = hyperparameter(1.0, "beta2, exponent of the importance 1 - p_t", at_least=0)


class SatImp(SequenceMethod):
    """Descend `mean_t p_t^beta1 (1 - p_t)^beta2 log p_t` and `L_r`, the weights held fixed (Yang et al. 2025).

    arXiv 2505.11953: saturation and importance. beta1 5 and beta2 1 are what the authors give for TOFU in
    open-unlearning. The weights of the two losses are those of every method for sequences: code and configuration
    of open-unlearning disagree on which loss its factor of ten multiplies.
    """

    name = "satimp"
    title = "SatImp"
    paper = "Yang et al. 2025, arXiv 2505.11953"
    bibtex = bibliography.YANG_2025_SATIMP
    hyperparameters = SatImpHyperparameters
    hp: SatImpHyperparameters

    @override
    def objective(self, target: ForgetTarget, original: Tensor | None) -> Objective:
        """Weighted ascent; the target only says when to stop."""
        return WeightedAscent(self.hp.beta1, self.hp.beta2)


class CEU(SequenceMethod):
    """Descend the cross-entropy to the model's own prediction without the label token (Yang 2025, arXiv 2503.01224).

    The label's logit in the fixed prediction is minus infinity: the label's probability goes to all other tokens, in
    proportion. The paper needs no retain samples; here `L_r` is weighed as in every method (`retain_weight=0` is the
    paper's form). Left out: sparing the first answer token, which the paper does for TOFU; set its label to -100.
    """

    name = "ceu"
    title = "CE-U"
    paper = "Yang 2025, arXiv 2503.01224"
    bibtex = bibliography.YANG_2025_CEU

    @override
    def objective(self, target: ForgetTarget, original: Tensor | None) -> Objective:
        """The prediction without the label; the target only says when to stop."""
        return CrossEntropyWithoutLabel()
