"""The forgetting target: which losses the forget dataset should end with, for which request.

A model that never saw the forget dataset has some loss on every sample of it: the target losses. A target is an
objective that is lowest when the forget losses reach them. Like every objective it scores each sample (`scores`) and
combines the scores of a whole optimizer step, over all accumulated batches and all processes, into one number to
minimise (`combine`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, cast, get_args

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from hf_unlearn.data.types import RequestKind
from hf_unlearn.data.validation import check_disjoint_classes
from hf_unlearn.losses import Head
from hf_unlearn.losses.functional import at_least_float32, divergences
from hf_unlearn.losses.head import TOKEN_KINDS

ForgetTargetName: TypeAlias = Literal["auto", "distribution", "masked_class", "mean", "none"]
FORGET_TARGETS: tuple[ForgetTargetName, ...] = get_args(ForgetTargetName)
# A `ForgetTargetName`, None for "auto", a target mean loss, losses [m], or token-loss profiles [m, 8].
ForgetTargetSetting: TypeAlias = float | str | list[float] | list[list[float]] | None
TargetKind: TypeAlias = Literal["distribution", "masked_class", "mean", "none"]
Hinge: TypeAlias = Literal["squared", "linear", "two_sided"]
DRAWS = 50


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


class DistributionTarget(ForgetTarget):
    """Quantile matching, `mean_i |q_i - l_(i)|`: sorted forget losses of a step against quantiles of unseen losses.

    This is the one-dimensional Wasserstein-1 distance between the forget losses of the step and the sample of unseen
    losses. It raises the loss of samples that are remembered too well and lowers that of over-forgotten ones, and is
    zero when the two loss distributions agree. It does not control what an attack could see beyond the loss.

    For samples of many tokens, a model that has learned half of the tokens and finds the others very unlikely can have
    the same mean loss as one that finds all of them unlikely. There the distance is `mean_ij |q_ij - l_(i)j|`
    (proposed here): l_ij is the mean of the j-th eighth of the sorted token losses of sample i, and each eighth has
    its own quantiles q_ij. Unseen samples should be about as long as forget samples: the highest eighth of four tokens
    is one of four.

    Args:
        losses: losses of samples that the model was never trained on, in any order: [m], or token-loss profiles
            [m, 8], see `hf_unlearn.losses.Head.token_loss_profiles`.
    """

    kind: ClassVar[TargetKind] = "distribution"
    whole_step = True

    def __init__(self, losses: Tensor):
        self.losses = torch.as_tensor(losses, dtype=torch.float64).sort(dim=0).values

    @override
    def scores(self, outputs: Any, batch: Mapping[str, Any], head: Head, index: Tensor) -> tuple[Tensor, Tensor]:
        """Each sample's loss [n], or its token-loss profile [n, 8] if the target has profiles; and its loss [n]."""
        if self.losses.ndim == 1:
            return super().scores(outputs, batch, head, index)
        profiles = head.token_loss_profiles(outputs, batch)
        assert profiles is not None  # `resolve_kind` has checked the head
        return profiles, profiles.mean(dim=1).detach()

    @property
    @override
    def value(self) -> float:
        """Mean of the unseen losses."""
        return float(self.losses.mean())

    def quantiles(self, count: int, like: Tensor) -> Tensor:
        """The `count` mid-point quantiles (0.5 / count, 1.5 / count, ...) of the unseen losses, ascending.

        Shape [count], or [count, 8] for profiles. By Hazen's rule: the quantiles of `count` losses are these losses.
        """
        levels = (np.arange(count) + 0.5) / count
        return torch.from_numpy(np.quantile(self.losses.numpy(), levels, axis=0, method="hazen")).to(like)

    @override
    def is_met(self, scores: Tensor) -> bool:
        """Whether scores are no further from the target losses than as many others of these are on average.

        Nor may their mean be lower by more than half of its standard error: coming from below, a run would otherwise
        end as soon as chance allows. The target losses are a sample, too: of two samples the squares add up.
        """
        scores = scores.double()
        means, targets = (x.flatten(1).mean(1) for x in (scores[:, None], self.losses[:, None]))
        error = (means.var() / len(means) + targets.var() / len(targets)) ** 0.5
        is_below = bool(means.mean() < targets.mean() - error / 2)
        return not is_below and float(self._distance(scores)) <= self._chance(len(scores))

    def _chance(self, count: int) -> float:
        """The mean distance of `count` losses that are a sample of what the target losses are a sample of."""
        if count not in (known := vars(self).setdefault("_chances", {})):
            draws = torch.randint(len(self.losses), (DRAWS, count), generator=torch.Generator().manual_seed(0))
            of_draws = torch.stack([self._distance(self.losses[draw]) for draw in draws])
            known[count] = float(of_draws.mean()) * (1 + count / len(self.losses)) ** 0.5
        return known[count]

    def distances(self, scores: Tensor, others: Tensor | None = None) -> Tensor:
        """How far each score is from its quantile of the target losses; shape of `scores`.

        Args:
            scores: of the samples of a step, [n] or [n, m].
            others: the latest scores known of other forget samples, [k] or [k, m]: a sample's rank is that among all
                of them, so that a few samples a step, which are few by chance of one kind, are not taken for the
                whole forget dataset.
        """
        known = scores.detach() if others is None else torch.cat([scores.detach(), others.to(scores)])
        ranks = known.argsort(dim=0).argsort(dim=0)[: len(scores)]
        return scores - self.quantiles(len(known), scores).gather(0, ranks)

    @override
    def combine(self, scores: Tensor, others: Tensor | None = None) -> Tensor:
        """Mean distance of the scores to their quantiles; see `distances`."""
        return self._distance(scores, others)

    def _distance(self, scores: Tensor, others: Tensor | None = None) -> Tensor:
        return self.distances(scores, others).abs().mean()

    def matched(self, scores: Tensor) -> Tensor:
        """The part of the scores that is matched to target losses."""
        return scores

    @override
    def measured(self, statistics: Statistics) -> Tensor:
        """The losses [n], or token-loss profiles [n, 8] if the target has profiles."""
        profiles = statistics.token_loss_profiles if self.losses.ndim > 1 else None
        return statistics.losses if profiles is None else profiles


class MaskedClassTarget(DistributionTarget):
    """`mean_i KL(p_i || model) + mean_i d_i^2 / (4 s^2)`: the original's prediction, without the forgotten classes.

    p_i is the original model's prediction without the forgotten classes, renormalised: an approximation of the
    prediction of a model that was never trained on them. The divergence is flat once a forgotten class has almost no
    probability, and does not determine how little it should have. The second term (proposed here) does. To a model
    that was never trained on a class, its samples are samples of other classes, so their margins, the class's logit
    minus the best logit of a class that is kept, are matched to those of retain samples: d_i is the distance of a
    margin from its quantile of these, and s their standard deviation (1 at least). A margin and its quantile each vary
    by s, so that their difference has the variance `2 s^2`, and d_i^2 / (4 s^2) is its negative log-likelihood up to a
    constant: the term needs no weight. Of several classes it is a sum, each with its own margins. It needs no unseen
    data and no stopping rule.

    Limit: a class that was never trained on and one that was ruled out are not quite the same; retrained models had
    0.83 to 1.06 times these losses on four datasets.

    Args:
        log_probs: the original model's log-probabilities on the forget dataset [samples, classes].
        classes: the forgotten classes.
        other_log_probs: the original model's log-probabilities on samples of other classes [samples, classes].
    """

    kind = "masked_class"

    def __init__(self, log_probs: Tensor, classes: Sequence[int], other_log_probs: Tensor):
        self.classes = [int(c) for c in classes]
        super().__init__(self._margins(other_log_probs))
        self.class_losses = -other_log_probs[:, self.classes].double().flatten()
        masked = log_probs.double().index_fill(1, torch.tensor(self.classes, device=log_probs.device), float("-inf"))
        self.log_probs = torch.log_softmax(masked, dim=1).float().cpu()

    def _margins(self, logits: Tensor) -> Tensor:
        """The margins [n, forgotten classes] of logits or log-probabilities [n, classes]."""
        forgotten = torch.tensor(self.classes, device=logits.device)
        best = logits.index_fill(1, forgotten, float("-inf")).amax(1, keepdim=True)
        return logits[:, self.classes] - best

    @override
    def scores(self, outputs: Any, batch: Mapping[str, Any], head: Head, index: Tensor) -> tuple[Tensor, Tensor]:
        """The divergence of the prediction from p_i beside the margins, [n, 1 + forgotten classes]; the losses [n]."""
        logits = at_least_float32(outputs["logits"])
        divergence = divergences(self.log_probs[index.cpu()], logits)
        return torch.cat((divergence[:, None], self._margins(logits)), dim=1), head.losses(outputs, batch).detach()

    @property
    @override
    def value(self) -> float:
        """Mean loss of samples of other classes, were they labelled with a forgotten one."""
        return float(self.class_losses.mean())

    @override
    def is_reached(self, losses: Tensor) -> bool:
        """Whether half of the forget samples have at least the lowest tenth of the losses of other classes' samples.

        They rise to their mean ever more slowly, and the class is not predicted long before.
        """
        return bool(losses.median() >= self.class_losses.quantile(0.1))

    @override
    def is_met(self, scores: Tensor) -> bool:
        """As `is_reached`, by the margins of every forgotten class: half of them within the lower nine tenths."""
        return bool((scores[:, 1:].median(dim=0).values <= self.losses.quantile(0.9, dim=0).to(scores)).all())

    @override
    def combine(self, scores: Tensor, others: Tensor | None = None) -> Tensor:
        """Mean divergence plus a quarter of the squared distances of the margins, in standard deviations."""
        deviations = self.losses.std(dim=0, correction=0).clamp_min(1.0)
        distances = self.distances(scores[:, 1:], others) / deviations.to(scores)
        return scores[:, 0].mean() + distances.square().sum(dim=1).mean() / 4

    @override
    def matched(self, scores: Tensor) -> Tensor:
        """The margins [n, forgotten classes] of scores."""
        return scores[:, 1:]

    @override
    def measured(self, statistics: Statistics) -> Tensor:
        """The margins [n, forgotten classes]."""
        assert statistics.log_probs is not None  # or there would be no such target
        return self._margins(statistics.log_probs)


def restore_target(state: Mapping[str, Any]) -> ForgetTarget:
    """The target with the state that `ForgetTarget.state` returned."""
    kinds = {cls.kind: cls for cls in (Ascent, MeanTarget, DistributionTarget, MaskedClassTarget)}
    cls = kinds[state["kind"]]
    target = cls.__new__(cls)
    vars(target).update({k: v for k, v in state.items() if k != "kind"})
    return target


def resolve_kind(
    forget_target: ForgetTargetSetting, *, request: RequestKind, head_kind: str, has_unseen: bool
) -> TargetKind:
    """The kind of target for a request.

    Args:
        forget_target: the setting: a name, a number (tau), or a sample of losses or token-loss profiles.
        request: `"samples"`, `"class"` or `"group"`.
        head_kind: kind of the model's head (`Head.kind`).
        has_unseen: whether unseen data was given.

    Returns:
        `"masked_class"`, `"distribution"`, `"mean"` or `"none"`.

    Raises:
        ValueError: when a named target is not available for this request, head or data.
    """
    if isinstance(forget_target, list) and isinstance(forget_target[0], list) and head_kind not in TOKEN_KINDS:
        raise ValueError(
            f"forget_target: holds loss profiles, but a {head_kind} head scores a sample once; give one loss a sample"
        )
    forget_target = "auto" if forget_target is None else forget_target
    if not isinstance(forget_target, str):
        return "mean" if isinstance(forget_target, (int, float)) else "distribution"
    if forget_target == "masked_class" and (request != "class" or head_kind != "single_label"):
        raise ValueError(
            'forget_target: "masked_class" needs a request="class" and a single-label classification head, got '
            f"request={request!r} and a {head_kind} head; use another forget_target"
        )
    if forget_target in ("distribution", "mean") and not has_unseen:
        raise ValueError(
            f"forget_target: {forget_target!r} needs unseen_ds, samples the model was never trained on; give them, or "
            "a number or a sample of losses as forget_target"
        )
    if forget_target != "auto":
        return cast(TargetKind, forget_target)
    if request == "class" and head_kind == "single_label":
        return "masked_class"
    return "distribution" if has_unseen else "none"


def make_target(
    kind: TargetKind, setting: ForgetTargetSetting, hinge: Hinge, statistics: Mapping[str, Statistics]
) -> ForgetTarget:
    """The target of a resolved kind, from the original model's statistics of the datasets.

    Args:
        kind: as returned by `resolve_kind`.
        setting: the `forget_target` setting: a number or a list of losses or profiles replaces the unseen losses.
        hinge: `"squared"`, `"linear"` or `"two_sided"`, for `kind="mean"`.
        statistics: the original model's statistics of the `"forget"`, `"retain"` and, if given, `"unseen"` dataset.

    Raises:
        ValueError: the retain dataset still has samples of a forgotten class, or samples have several labels.
    """
    if kind == "none":
        return Ascent()
    if kind == "masked_class":
        return _masked_class_target(statistics["forget"], statistics["retain"])
    if kind == "mean":
        return MeanTarget(setting if isinstance(setting, float) else float(statistics["unseen"].losses.mean()), hinge)
    if isinstance(setting, list):
        return DistributionTarget(torch.tensor(setting))
    unseen = statistics["unseen"]
    return DistributionTarget(unseen.losses if unseen.token_loss_profiles is None else unseen.token_loss_profiles)


def _masked_class_target(forget: Statistics, retain: Statistics) -> MaskedClassTarget:
    if forget.labels is None or retain.labels is None or forget.log_probs is None or retain.log_probs is None:
        raise ValueError('forget_target: "masked_class" needs one integer label a sample, but labels hold several')
    classes = sorted(set(forget.labels.tolist()))
    check_disjoint_classes(set(classes), set(retain.labels.tolist()))
    return MaskedClassTarget(forget.log_probs, classes, retain.log_probs)
