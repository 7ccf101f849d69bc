"""Which checkpoint of a run is the best: the one nearest to its target, not the one that has forgotten least."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from transformers import EarlyStoppingCallback
from transformers.trainer_utils import EvalLoopOutput, SaveStrategy, TrainOutput
from typing_extensions import override

from hf_unlearn.targets import TargetKind
from hf_unlearn.trainer.hub import HubMixin

logger = logging.getLogger(__name__)
TARGET_DISTANCE = "target_distance"
# By the ends of their names: metrics that are lowest, and highest, where nothing was forgotten.
LOWEST_BEFORE, HIGHEST_BEFORE = ("loss", "wer"), ("accuracy", "auc")


class BestModelMixin(HubMixin):
    """A `Trainer` whose evaluations say how far the model is from the target of forgetting."""

    target_kind: TargetKind

    @override
    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """See `EvaluationMixin.evaluation_loop`; adds `target_distance`, once there is a target."""
        output = super().evaluation_loop(*args, **kwargs)
        metrics, prefix = output.metrics or {}, kwargs.get("metric_key_prefix", "eval")
        if self._unlearning_state is None or f"{prefix}_forget_loss" not in metrics:
            return output
        target, before = self._unlearning_state.target.value, self._unlearning_state.metrics_before
        if target is None:
            return output
        distance = target_distance(metrics[f"{prefix}_forget_loss"], target, metrics[f"{prefix}_retain_loss"], before)
        return output._replace(metrics={**metrics, f"{prefix}_{TARGET_DISTANCE}": distance})

    @override
    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """See `Trainer.train`; warns where the best model would be the one that has forgotten least.

        Raises:
            ValueError: the best model is the one nearest to the target, and there is no target.
        """
        metric = (self.args.metric_for_best_model or "").removeprefix("eval_")
        stops_early = any(isinstance(callback, EarlyStoppingCallback) for callback in self.callback_handler.callbacks)
        is_used = self.args.load_best_model_at_end or self.args.save_strategy == SaveStrategy.BEST or stops_early
        if is_used and metric == TARGET_DISTANCE and self.target_kind == "none":
            raise ValueError(
                f"metric_for_best_model: {metric!r} needs a target, and there is none; give unseen_ds, or name another"
            )
        if is_used and is_best_before(metric, bool(self.args.greater_is_better)) and self.is_world_process_zero():
            logger.warning(
                f"metric_for_best_model: {metric!r} is best where least is forgotten; {TARGET_DISTANCE!r} is best at "
                "the target, and counts what the retain dataset loses"
            )
        return super().train(*args, **kwargs)


def target_distance(forget_loss: float, target_loss: float, retain_loss: float, before: Mapping[str, float]) -> float:
    """How far a model is from its target, and what it has cost: 0 is best; in nats.

    The distance of the mean forget loss to the mean of the target losses, on either side, plus the rise of the retain
    loss over that of the original model.

    Args:
        forget_loss: mean loss of the forget dataset.
        target_loss: mean loss that it should end with.
        retain_loss: mean loss of the retain dataset.
        before: metrics of the original model.

    Examples:
        >>> before = {"retain_loss": 0.5}
        >>> target_distance(1.5, 2.0, 0.75, before), target_distance(2.5, 2.0, 0.25, before)
        (0.75, 0.5)
    """
    return abs(forget_loss - target_loss) + max(0.0, retain_loss - before["retain_loss"])


def is_best_before(metric: str, greater_is_better: bool) -> bool:
    """Whether a metric is at its best where nothing has been forgotten.

    Args:
        metric: its name, without `eval_`.
        greater_is_better: which side is the better one.

    Examples:
        >>> is_best_before("loss", False), is_best_before("forget_accuracy", True), is_best_before("gap", False)
        (True, True, False)
        >>> is_best_before("forget_loss", True)
        False
    """
    return metric.endswith(HIGHEST_BEFORE if greater_is_better else LOWEST_BEFORE)
