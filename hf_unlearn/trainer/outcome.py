"""How a run ended: whether at its target, how far from it, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import Tensor

from hf_unlearn.report.numbers import show
from hf_unlearn.targets import DistributionTarget, ForgetTarget
from hf_unlearn.trainer.cost import RunCost

Ending: TypeAlias = Literal["reached", "short", "past", "no target", "diverged", "no steps"]
# A class is forgotten when at most this share of its samples is still recognised.
CLASS_ACCURACY = 0.01


@dataclass(frozen=True)
class Outcome:
    """How a run ended, in its own numbers. Whether the model has forgotten is for an audit to say.

    Attributes:
        ending: `"reached"`, `"short"` or `"past"` (of the target), `"no target"`, `"diverged"` (the last good weights
            were put back), or `"no steps"` (the model is as it was).
        steps: optimizer steps done.
        before: the original model's metrics.
        after: the metrics at the end of the run.
        target_loss: the mean loss that the forget dataset should end with; None where there is no target.
        by_accuracy: whether the target is an accuracy of at most 1 % on a forgotten class.
        reason: why the run was stopped, where it diverged.
        cost: sample passes and seconds, beside those of retraining where they are known.
    """

    ending: Ending
    steps: int
    before: Mapping[str, float]
    after: Mapping[str, float]
    target_loss: float | None = None
    by_accuracy: bool = False
    reason: str | None = None
    cost: RunCost | None = None

    @property
    def sentence(self) -> str:
        """One line: the ending, how far it is from the target, and what it cost."""
        leads = {
            "reached": f"Target reached after {self.steps} steps",
            "short": f"Short of the target after {self.steps} steps",
            "past": f"Past the target after {self.steps} steps",
            "no target": f"No target (unseen_ds sets one), stopped after {self.steps} steps",
            "diverged": f"Diverged, as {self.reason}; the last good weights were put back",
            "no steps": "No step was taken, the model is as it was",
        }
        parts = [self._distance(), *(self._change(dataset) for dataset in ("retain", "unseen", "general"))]
        parts += [] if self.cost is None else [f"cost {self.cost.sentence}"]
        return f"{leads[self.ending]}: {'; '.join(part for part in parts if part)}"

    def metrics(self) -> dict[str, float]:
        """What `train()` adds to the metrics of the model: 1.0 for yes, 0.0 for no; losses in nats."""
        metrics = {f"{name}_before": value for name, value in self.before.items() if name in self.after}
        metrics["diverged"] = float(self.ending == "diverged")
        if self.target_loss is not None or self.by_accuracy:
            metrics["target_reached"] = float(self.ending == "reached")
        if self.target_loss is not None:
            metrics["target_loss"] = self.target_loss
            metrics["forget_loss_above_target"] = self.after["forget_loss"] - self.target_loss
        return metrics if self.cost is None else metrics | self.cost.metrics()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the unlearning record."""
        return {"ending": self.ending, "sentence": self.sentence, **self.metrics()}

    def _distance(self) -> str:
        """The forget loss, and for a class the accuracy, beside the target."""
        loss, target = self.after["forget_loss"], self.target_loss
        parts = [self._change("forget")]
        if self.by_accuracy:
            parts.append(f"at most {show(CLASS_ACCURACY, 'accuracy')} of the class was the target")
        elif target is not None:
            side = "above" if loss >= target else "below"
            parts.append(f"{show(abs(loss - target), 'loss')} {side} the target loss of {show(target, 'loss')}")
        return ", ".join(parts)

    def _change(self, dataset: str) -> str:
        """Loss and accuracy (or word error rate) of a dataset before and after."""
        changes = []
        for measure, words in (("loss", "loss"), ("accuracy", "accuracy"), ("wer", "word error rate")):
            name = f"{dataset}_{measure}"
            if name in self.before and name in self.after:
                changes.append(f"{words} {show(self.before[name], measure)} to {show(self.after[name], measure)}")
        return f"{dataset} {', '.join(changes)}" if changes else ""


def outcome_of(
    *,
    target: ForgetTarget,
    request: str,
    steps: int,
    is_iterative: bool,
    before: Mapping[str, float],
    after: Mapping[str, float],
    forget_losses: Tensor,
    reason: str | None,
    cost: RunCost | None = None,
) -> Outcome:
    """How a run ended.

    A class is forgotten at an accuracy of 1 %, as the run is stopped by. A loss is at its target when it differs by no
    more than the samples' own noise: 1.96 standard errors of the difference.

    Args:
        target: of the run.
        request: `"samples"`, `"class"` or `"group"`.
        steps: optimizer steps done.
        is_iterative: whether the method takes steps.
        before: the original model's metrics.
        after: metrics at the end of the run.
        forget_losses: losses [n] of the forget samples at the end of the run.
        reason: why the guard stopped the run; None where it did not.
        cost: of the run.
    """
    by_accuracy = request == "class" and "forget_accuracy" in after
    ending: Ending
    if reason is not None:
        ending = "diverged"
    elif is_iterative and not steps:
        ending = "no steps"
    elif by_accuracy:
        ending = "reached" if after["forget_accuracy"] <= CLASS_ACCURACY else "short"
    elif target.value is None:
        ending = "no target"
    elif abs(distance := after["forget_loss"] - target.value) <= 1.96 * _standard_error(forget_losses, target):
        ending = "reached"
    else:
        ending = "short" if distance < 0 else "past"
    return Outcome(ending, steps, before, after, target.value, by_accuracy, reason, cost)


def _standard_error(forget_losses: Tensor, target: ForgetTarget) -> float:
    """Of the difference of the mean forget loss and the mean of the target losses, where these are a sample."""
    samples = [forget_losses.double()]
    if isinstance(target, DistributionTarget):
        samples.append(target.losses.reshape(len(target.losses), -1).mean(dim=1))
    return sum(float(losses.var()) / len(losses) for losses in samples if len(losses) > 1) ** 0.5
