"""The trainer's own callback."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from hf_unlearn.trainer.surgery_step import SurgeryStep


class Conductor(TrainerCallback):
    """Calls the trainer at the moments that only callbacks see."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure, and set the target."""
        self.trainer.begin()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell the sampler, which loaders that resume do not reach."""
        self.trainer.pair_sampler.epoch = int(state.epoch + 1e-6)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remember the weights, where the step is to be looked at."""
        if isinstance(self.trainer.step, SurgeryStep):
            # The log that shows this step's figures is written once its number is counted.
            self.trainer.step.before_update(watch=(state.global_step + 1) % state.logging_steps == 0)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Correct the step."""
        if isinstance(self.trainer.step, SurgeryStep):
            self.trainer.step.after_update()
        self.trainer.method.after_update(self.trainer.trainable())
