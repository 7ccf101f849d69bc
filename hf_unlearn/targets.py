"""The forgetting target: which losses the forget dataset should end with, for which request.

A model that never saw the forget dataset has some loss on every sample of it. A target pulls the forget losses there, and
lets go by itself. As any objective it scores every sample of the forget dataset (`scores`) and turns the scores of a whole
optimizer step, over every accumulated batch and every process, into one number to descend (`combine`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from hf_unlearn.data.validation import check_disjoint_classes
from hf_unlearn.losses import Head
from hf_unlearn.losses.functional import divergences
from hf_unlearn.losses.head import SEVERAL

FORGET_TARGETS = ("auto", "distribution", "masked_class", "mean", "none")
HINGES = ("squared", "linear")


class Objective:
    """What is descended on a set: the mean loss, as it stands; a target; or a method's own loss.

    Attributes:
        whole_step: `combine` is no plain mean, so it needs the step's scores at once; for the forget dataset alone.
        hidden_states: the model is asked for its hidden states.
    """

    whole_step: ClassVar[bool] = False
    hidden_states: ClassVar[bool] = False

    def scores(
        self, outputs: Any, batch: Mapping[str, Any], head: Head, index: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Score [n] or scores [n, m] of every sample, and its loss [n] for the log.

        `index` [n]: the samples' numbers in the forget dataset; empty for retain samples, which have none.

        Both at once, because a loss over a large vocabulary should not be computed twice.
        """
        losses = head.losses(outputs, batch)
        return losses, losses.detach()

    def combine(self, scores: torch.Tensor) -> torch.Tensor:
        """The number to descend, from the scores of all the set's samples of an optimizer step."""
        return scores.mean()


class ForgetTarget(Objective):
    """Where the forget losses should end."""

    kind: ClassVar[str]

    @property
    def value(self) -> float | None:
        """The mean loss that the forget dataset should end with, where it is known; logged as the target line."""
        return None

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to go on with the same target."""
        return {"kind": self.kind, **vars(self)}


class Ascent(ForgetTarget):
    """No target: `-mean_i l_i` (Golatkar et al. 2020, gradient ascent). It never ends by itself."""

    kind = "none"

    def combine(self, scores: torch.Tensor) -> torch.Tensor:
        """Minus the mean loss."""
        return -scores.mean()


class MeanTarget(ForgetTarget):
    """`relu(tau - mean_i l_i)^2` (Trippa et al. 2024, arXiv 2403.14339, eq. 3); `hinge="linear"`: without the square.

    The mean is that of the whole optimizer step: the hinge of a mean is not the mean of the hinges.
    """

    kind = "mean"
    whole_step = True

    def __init__(self, tau: float, hinge: str = "squared"):
        self.tau, self.hinge = float(tau), hinge

    @property
    def value(self) -> float:
        """tau."""
        return self.tau

    def combine(self, scores: torch.Tensor) -> torch.Tensor:
        """The hinge below tau; zero, with zero gradient, above it."""
        below = torch.relu(self.tau - scores.mean())
        return below.square() if self.hinge == "squared" else below


class DistributionTarget(ForgetTarget):
    """`mean_i |q_i - l_(i)|`: the forget losses of a step, sorted, are matched to the same quantiles of unseen losses.

    This is the one-dimensional Wasserstein-1 distance between the step's forget losses and the sample of unseen
    losses. It ascends where a sample is remembered too well and descends where it is over-forgotten. It equals zero when
    the two loss distributions agree; it says nothing about what an attack could see beyond the loss.

    A sample of many tokens has a loss for each, and a model that knows half of them and finds the others absurd can have
    the mean of one that finds all of them unlikely. There the distance is `mean_ij |q_ij - l_(i)j|` (ours): l_ij is
    the mean loss of the j-th eighth of sample i's tokens, in ascending order, and each eighth has quantiles of its own.
    Unseen samples should be about as long as forget samples: the highest eighth of four tokens is one of four.

    Args:
        losses: of samples that the model was never trained on, in any order: [m], or profiles [m, 8], see
            `hf_unlearn.losses.Head.token_loss_profiles`.
    """

    kind = "distribution"
    whole_step = True

    def __init__(self, losses: torch.Tensor):
        self.losses = torch.as_tensor(losses, dtype=torch.float64).sort(dim=0).values

    def scores(
        self, outputs: Any, batch: Mapping[str, Any], head: Head, index: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Each sample's loss [n], or its profile [n, 8] where the target has profiles; and its loss [n]."""
        if self.losses.ndim == 1:
            return super().scores(outputs, batch, head, index)
        profiles = head.token_loss_profiles(outputs, batch)
        assert profiles is not None  # `resolve_kind` has looked at the head
        return profiles, profiles.mean(dim=1).detach()

    @property
    def value(self) -> float:
        """Mean of the unseen losses."""
        return float(self.losses.mean())

    def quantiles(self, count: int, like: torch.Tensor) -> torch.Tensor:
        """The `count` mid-point quantiles (0.5 / count, 1.5 / count, ...) of the unseen losses, ascending.

        Of profiles: of each eighth. By Hazen's rule, with which the quantiles of `count` losses are these losses.
        """
        levels = (np.arange(count) + 0.5) / count
        return torch.from_numpy(np.quantile(self.losses.numpy(), levels, axis=0, method="hazen")).to(like)

    def combine(self, scores: torch.Tensor) -> torch.Tensor:
        """Mean distance of the sorted scores to the quantiles."""
        return (self.quantiles(len(scores), scores) - scores.sort(dim=0).values).abs().mean()


class MaskedClassTarget(DistributionTarget):
    """`mean_i KL(p_i || model) + mean_i (q_i - l_(i))^2 / 20`: what else it could be, and how unlikely the class is.

    p_i is the original model's prediction without the forgotten classes, renormalised: what a model that never met a
    class would say is close to what the original says about everything else. The divergence is flat once the class
    has next to no probability, and does not say how little it should have. The second part does (ours): to a model
    that never met the class, its samples are samples of other classes, so their sorted losses are matched to the quantiles q_i
    of `-log p(c | x)` on retain samples x. Squared and small: it pulls where the losses are far off and lets go near
    by, where the plain distance of `DistributionTarget` cost unseen accuracy. No unseen data, no stopping rule.

    Its limit: that a class was never met and that it was ruled out are not quite the same; retrained models were at
    0.83 to 1.06 times these losses on four data sets.

    Args:
        log_probs: the original model's log-probabilities [samples of the forget dataset, classes].
        classes: the forgotten classes.
        others: the original model's log-probabilities of samples of other classes [samples, classes].
    """

    kind = "masked_class"

    def __init__(self, log_probs: torch.Tensor, classes: Sequence[int], others: torch.Tensor):
        self.classes = [int(c) for c in classes]
        super().__init__(-others[:, self.classes].flatten())
        masked = log_probs.double().index_fill(1, torch.tensor(self.classes, device=log_probs.device), float("-inf"))
        self.log_probs = torch.log_softmax(masked, dim=1).float().cpu()

    def scores(
        self, outputs: Any, batch: Mapping[str, Any], head: Head, index: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The divergence of the model's prediction from each sample's target, and the loss: [n, 2]; the losses [n]."""
        losses = head.losses(outputs, batch)
        found = divergences(self.log_probs[index.cpu()], outputs["logits"])
        return torch.stack((found, losses), dim=1), losses.detach()

    def combine(self, scores: torch.Tensor) -> torch.Tensor:
        """Mean divergence, and the mean squared distance of the sorted losses to the quantiles."""
        found, losses = scores.unbind(1)
        return found.mean() + (self.quantiles(len(losses), losses) - losses.sort().values).square().mean() / 20


def restore_target(state: Mapping[str, Any]) -> ForgetTarget:
    """The target that `ForgetTarget.state` described."""
    kinds = {cls.kind: cls for cls in (Ascent, MeanTarget, DistributionTarget, MaskedClassTarget)}
    cls = kinds[state["kind"]]
    target = cls.__new__(cls)
    vars(target).update({k: v for k, v in state.items() if k != "kind"})
    return target


def resolve_kind(forget_target: Any, *, request: str, head_kind: str, has_unseen: bool) -> str:
    """Which target a request gets: the table of the design.

    Args:
        forget_target: the setting: a name, a number (tau), or a sample of losses or profiles.
        request: `"samples"`, `"class"` or `"group"`.
        head_kind: kind of the model's head (`Head.kind`).
        has_unseen: whether unseen data was given.

    Returns:
        `"masked_class"`, `"distribution"`, `"mean"` or `"none"`.

    Raises:
        ValueError: when a named target is not available for this request, head or data.
    """
    if isinstance(forget_target, list) and isinstance(forget_target[0], list) and head_kind not in SEVERAL:
        raise ValueError(
            f"forget_target: holds loss profiles, but a {head_kind} head scores a sample once; give one loss a sample"
        )
    if not isinstance(forget_target, str):
        return "mean" if isinstance(forget_target, (int, float)) else "distribution"
    if forget_target == "masked_class" and (request != "class" or head_kind != "single_label"):
        raise ValueError(
            'forget_target: "masked_class" needs a request="class" and a single-label classification head, got '
            f"request={request!r} and a {head_kind} head; use another forget_target"
        )
    if forget_target in ("distribution", "mean") and not has_unseen:
        raise ValueError(
            f"forget_target: {forget_target!r} needs unseen_ds, samples the model was never trained on; give them, or a "
            "number or a sample of losses as forget_target"
        )
    if forget_target != "auto":
        return forget_target
    if request == "class" and head_kind == "single_label":
        return "masked_class"
    return "distribution" if has_unseen else "none"


def make_target(kind: str, setting: Any, hinge: str, signals: Mapping[str, Any]) -> ForgetTarget:
    """The target of a resolved kind, from what the original model says about the sets.

    Args:
        kind: as `resolve_kind` gives it.
        setting: the `forget_target` setting: a number or a list of losses or profiles stands for the unseen losses.
        hinge: `"squared"` or `"linear"`, for the mean.
        signals: `"forget"`, `"retain"` and, where given, `"unseen"`: signals of the original model.

    Raises:
        ValueError: when a forgotten class is still in the retain dataset.
    """
    if kind == "none":
        return Ascent()
    if kind == "masked_class":
        if signals["forget"].labels is None:
            raise ValueError('forget_target: "masked_class" needs one integer label a sample, but labels hold several')
        classes = sorted(set(signals["forget"].labels.tolist()))
        check_disjoint_classes(set(classes), set(signals["retain"].labels.tolist()))
        return MaskedClassTarget(signals["forget"].log_probs, classes, signals["retain"].log_probs)
    if kind == "mean":
        return MeanTarget(setting if isinstance(setting, float) else float(signals["unseen"].losses.mean()), hinge)
    if isinstance(setting, list):
        return DistributionTarget(torch.tensor(setting))
    unseen = signals["unseen"]
    return DistributionTarget(unseen.losses if unseen.token_loss_profiles is None else unseen.token_loss_profiles)
