"""Objectives score each sample, and combine the scores of a step; a target is one; the targets that are means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import torch
from torch import Tensor
from typing_extensions import override

from hf_unlearn.losses import Head

TargetKind: TypeAlias = Literal["distribution", "masked_class", "masked_label", "mean", "none"]
Hinge: TypeAlias = Literal["squared", "linear", "two_sided"]


class Statistics(Protocol):
    """The per-sample statistics that a target needs, as `hf_unlearn.auditing.statistics` collects them."""

    @property
    def losses(self) -> Tensor:
        """The losses [n]."""

    @property
    def labels(self) -> Tensor | None:
        """The class labels [n], if a sample has one label."""

    @property
    def log_probs(self) -> Tensor | None:
        """The log-probabilities [n, classes], if a sample has one label."""

    @property
    def label_logits(self) -> Tensor | None:
        """The logits [n, labels], if a sample has several labels."""

    @property
    def token_loss_profiles(self) -> Tensor | None:
        """The token-loss profiles [n, 8], if the head scores a sample on many tokens."""


class Objective:
    """An objective on the forget or the retain dataset: by default the mean loss; a target; or a method's own loss.

    Attributes:
        whole_step: whether `combine` is more than a mean and needs all scores of the step at once; only for the
            forget dataset.
        hidden_states: whether the model has to return its hidden states.
        teacher_passes: forward passes of another model that the scores of a sample take.
        logits: whether `scores` asks for logits; of a language model they are otherwise computed a second time.
    """

    whole_step: ClassVar[bool] = False
    hidden_states: ClassVar[bool] = False
    teacher_passes: ClassVar[int] = 0
    logits: ClassVar[bool] = False

    def scores(self, outputs: Any, batch: Mapping[str, Any], head: Head, index: Tensor) -> tuple[Tensor, Tensor]:
        """The score [n] or scores [n, m] of every sample, and its loss [n] for the log.

        `index` [n] holds the numbers of the samples in the forget dataset; it is empty for retain samples.

        Both are returned together, so that a loss over a large vocabulary is computed once.
        """
        losses = head.losses(outputs, batch)
        return losses, losses.detach()

    def combine(self, scores: Tensor) -> Tensor:
        """The value to minimise, from the scores [n] or [n, m] of all samples of an optimizer step."""
        return scores.mean()


class ForgetTarget(Objective):
    """The losses that the forget dataset should end with."""

    kind: ClassVar[TargetKind]

    @property
    def value(self) -> float | None:
        """The mean loss that the forget dataset should end with, if known; logged as the target."""
        return None

    def is_reached(self, losses: Tensor) -> bool:
        """Whether forget losses [n] have risen to the target: their mean to that of the target losses."""
        return self.value is not None and float(losses.mean()) >= self.value

    def is_met(self, scores: Tensor) -> bool:
        """Whether the scores [n] or [n, m] of forget samples are as near to the target as chance would have them."""
        return self.is_reached(scores)

    def measured(self, statistics: Statistics) -> Tensor:
        """The scores [n] or [n, m] that are matched to the target's, of samples that were measured."""
        return statistics.losses

    def state(self) -> dict[str, Any]:
        """The state that a resumed run restores the target from."""
        return {"kind": self.kind, **{name: v for name, v in vars(self).items() if not name.startswith("_")}}


class Ascent(ForgetTarget):
    """No target: `-mean_i l_i` (Golatkar et al. 2020, gradient ascent). It has no minimum."""

    kind = "none"

    @override
    def combine(self, scores: Tensor) -> Tensor:
        return -scores.mean()


class MeanTarget(ForgetTarget):
    """`relu(tau - mean_i l_i)^2` (Trippa et al. 2024, arXiv 2403.14339, eq. 3).

    `hinge="linear"`: without the square; `hinge="two_sided"`: `(tau - mean_i l_i)^2`, which lowers losses above tau,
    as the authors' notebook for text has it (it squares before the relu). The mean is over the whole optimizer step:
    the hinge of a mean is not the mean of hinges.
    """

    kind = "mean"
    whole_step = True

    def __init__(self, tau: float, hinge: Hinge = "squared"):
        self.tau, self.hinge = float(tau), hinge

    @property
    @override
    def value(self) -> float:
        return self.tau

    @override
    def combine(self, scores: Tensor) -> Tensor:
        """The hinge below tau; zero, with zero gradient, above it, unless it is two-sided."""
        distance = self.tau - scores.mean()
        if self.hinge == "two_sided":
            return distance.square()
        below = torch.relu(distance)
        return below.square() if self.hinge == "squared" else below
