"""Targets that are distributions: of losses, and of the margins of a class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from hf_unlearn.losses import Head
from hf_unlearn.losses.functional import at_least_float32, divergences
from hf_unlearn.targets.objectives import ForgetTarget, Statistics, TargetKind

DRAWS = 50
# Of samples of other classes, that a number takes which brings a forgotten class back (`one_offset` of the audit).
TAKEN_WITH = 0.3


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

    kind: ClassVar[TargetKind] = "masked_class"

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
        """As `is_reached`, by the margins of every forgotten class, and with what one number would bring back.

        Half of the margins have to be within the lower nine tenths of the target, and a number, added to the class's
        logit, that brings nine tenths of its samples back has to take three tenths of the others with it.
        """
        margins, targets = scores[:, 1:].double(), self.losses
        is_unlikely = margins.quantile(0.5, dim=0) <= targets.quantile(0.9, dim=0)
        is_foreign = margins.quantile(0.1, dim=0) <= targets.quantile(1 - TAKEN_WITH, dim=0)
        return bool((is_unlikely & is_foreign).all())

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


class MaskedLabelTarget(MaskedClassTarget):
    """The mean over labels of `KL(p_il || model)` where l is kept, of `d_il^2 / (4 s_l^2)` where it is forgotten.

    `MaskedClassTarget` for heads that decide on every label by itself (proposed here). The margin of a label is its
    own logit, against 0, where it is predicted. To a model that was never trained on samples with the label, they are
    samples without it: the margins are matched to those of retain samples, d and s as there. p_il: the original
    model's probability that sample i has the label l. The mean over labels is that of the head's own loss.

    Args:
        logits: the original model's logits on the forget dataset [samples, labels].
        classes: the forgotten labels.
        other_logits: the original model's logits on samples without them [samples, labels].
        other_losses: its losses on these [samples].
    """

    kind = "masked_label"

    def __init__(self, logits: Tensor, classes: Sequence[int], other_logits: Tensor, other_losses: Tensor):
        self.classes = [int(c) for c in classes]
        DistributionTarget.__init__(self, self._margins(other_logits))
        # -log p of the label takes the place of -log (1 - p), which differ by the logit.
        per_label = self._margins(other_logits).double() / other_logits.shape[1]
        self.class_losses = (other_losses.double()[:, None] - per_label).flatten()
        self.original_logits = logits.float().cpu()

    @override
    def _margins(self, logits: Tensor) -> Tensor:
        return logits[:, self.classes]

    @override
    def scores(self, outputs: Any, batch: Mapping[str, Any], head: Head, index: Tensor) -> tuple[Tensor, Tensor]:
        """The divergence summed over kept labels beside the margins, [n, 1 + forgotten labels]; the losses [n]."""
        logits = at_least_float32(outputs["logits"])
        original = self.original_logits[index.cpu()].to(logits)
        probs = original.sigmoid()
        divergences_by_label = F.binary_cross_entropy_with_logits(logits, probs, reduction="none")
        divergences_by_label = divergences_by_label - F.binary_cross_entropy_with_logits(
            original, probs, reduction="none"
        )
        forgotten = torch.tensor(self.classes, device=logits.device)
        divergence = divergences_by_label.index_fill(1, forgotten, 0.0).sum(1)
        return torch.cat((divergence[:, None], self._margins(logits)), dim=1), head.losses(outputs, batch).detach()

    @override
    def combine(self, scores: Tensor, others: Tensor | None = None) -> Tensor:
        """Mean divergence plus a quarter of the squared distances of the margins, over the number of labels."""
        return super().combine(scores, others) / self.original_logits.shape[1]

    @override
    def measured(self, statistics: Statistics) -> Tensor:
        """The margins [n, forgotten labels]."""
        assert statistics.label_logits is not None  # or there would be no such target
        return self._margins(statistics.label_logits)
