"""Stopping an unbounded method when the forget set has reached its target, or the retain set is being lost."""

from __future__ import annotations

import logging
import math
from typing import Any

from transformers import TrainerCallback

from hf_unlearn.data.splitting import sample_rows
from hf_unlearn.losses.head import SEVERAL

logger = logging.getLogger(__name__)
# Ascent is exponential near the end: check often, on few rows.
CHECK_STEPS = 5
CHECK_ROWS = 256
CHECK_ROWS_OF_TOKENS = 64  # beside batches that are four times smaller, too
# A rise of ln 2 halves the probability that the model gives to what it should keep.
RETAIN_GUARD = math.log(2)
CLASS_ACCURACY = 0.01


class TargetStopping(TrainerCallback):
    """Stops training when, on a fixed sample, the forget loss (a class: accuracy) is at its target.

    A guard stops it too, with a warning, when the loss on a fixed sample of the retain set has risen by over ln 2.

    Args:
        trainer: the trainer that is watched.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        rows = CHECK_ROWS_OF_TOKENS if trainer.head.kind in SEVERAL else CHECK_ROWS
        self.forget = sample_rows(trainer.forget_ds, rows)
        self.retain = sample_rows(trainer.retain_ds, rows)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the retain sample; a resumed run has it in its checkpoint."""
        if self.trainer.retain_before is None:
            self.trainer.retain_before = float(self.trainer.collect(self.retain).losses.mean())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Every few steps: measure, and stop if there."""
        if state.global_step % CHECK_STEPS:
            return
        forget, retain = self.trainer.collect(self.forget), self.trainer.collect(self.retain)
        limit = self.trainer.retain_before + RETAIN_GUARD
        target = self.trainer.target.value
        if self.trainer.request == "class" and not forget.correct.isnan().any():
            reached = float(forget.correct.mean()) <= CLASS_ACCURACY
        else:
            reached = target is not None and float(forget.losses.mean()) >= target
        if reached:
            logger.info(f"Forgetting target reached at step {state.global_step}")
        elif not float(retain.losses.mean()) <= limit:
            logger.warning(f"Stopped at step {state.global_step}: the retain loss has risen by more than ln 2")
        else:
            return
        control.should_training_stop = True
