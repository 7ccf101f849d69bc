"""How the trainer keeps pace: learning rate and end of a run, by the losses of its steps."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from typing_extensions import override

from hf_unlearn.trainer.loss_step import LossStep
from hf_unlearn.trainer.pace import FIRST, Pace
from hf_unlearn.trainer.resuming import ResumingMixin


class PacingMixin(ResumingMixin):
    """A `Trainer` whose run ends when it is there, at a rate that follows it."""

    step: LossStep

    @override
    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """As `Trainer`'s; by default the rate follows the run."""
        if self.lr_scheduler is None and self.args.has_default_schedule:
            first = FIRST if self.args.calibrates_learning_rate else 1.0

            def rate(step: int) -> float:
                return first if self.pace is None else self.pace.rate(step)

            self.lr_scheduler = LambdaLR(cast(torch.optim.Optimizer, optimizer or self.optimizer), rate)
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    @property
    def _pace(self) -> Pace:
        assert self.pace is not None  # a run has begun
        return self.pace

    def _observe_step(self) -> None:
        """Take in the losses of a step, once its gradient is whole; all processes call it."""
        observation = self.step.observation()
        self._pace.observe(self.state.global_step, observation)
        self.step.remember(observation)

    @override
    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.unlearning_state.pace = self._pace.state_dict()
        super()._save_checkpoint(model, trial)

    def _make_pace(self, max_steps: int) -> Pace:
        state = self.unlearning_state
        target, before = state.target, state.metrics_before
        per_step = self._pairs.forget_per_step
        # A method that says how long it takes was published so; who says how many steps wants these steps.
        is_open = self.args.has_default_steps and self.method.default_steps(per_step) is None
        stops = is_open if self.method.converges_at_target else True
        pace = Pace(
            target=target,
            need=None if target.value is None else target.value - before["forget_loss"],
            retain_before=state.retain_before,
            begins_with_original=state.begins_with_original,
            first_losses=state.original_losses.clone(),
            forget_per_step=per_step,
            max_steps=max_steps,
            converges=self.method.converges_at_target,
            calibrates=self.args.calibrates_learning_rate,
            factor=FIRST if self.args.calibrates_learning_rate else 1.0,
            stops=stops if self.args.stop_at_target is None else self.args.stop_at_target,
        )
        if state.pace:
            pace.load_state_dict(state.pace)
        return pace
