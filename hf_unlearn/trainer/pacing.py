"""How the trainer keeps pace: learning rate and end of a run, by the losses of its steps."""

from __future__ import annotations

import logging
from typing import Any, cast

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from typing_extensions import override

from hf_unlearn.losses.head import TOKEN_KINDS
from hf_unlearn.trainer.loss_step import LossStep
from hf_unlearn.trainer.pace import FIRST, LITTLE, LITTLE_OF_TOKENS, LOWEST, Pace
from hf_unlearn.trainer.resuming import ResumingMixin

logger = logging.getLogger(__name__)


class PacingMixin(ResumingMixin):
    """A `Trainer` whose run ends when it is there, at a rate that follows it."""

    step: LossStep
    _follows_pace = False

    @override
    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """As `Trainer`'s; by default the rate follows the run."""
        if self.lr_scheduler is None and self.args.has_default_schedule:
            self._follows_pace = True

            def rate(step: int) -> float:
                return 1.0 if self.pace is None else self.pace.rate(step)  # the run's first step waits for a pace

            self.lr_scheduler = LambdaLR(cast(torch.optim.Optimizer, optimizer or self.optimizer), rate)
            self._created_lr_scheduler = True
        if self.is_deepspeed_enabled:
            zero: Any = getattr(optimizer or self.optimizer, "optimizer", None)  # within accelerate's wrapper
            if zero is not None and not hasattr(zero, "defaults"):  # which falling rates are read from
                zero.defaults = zero.optimizer.defaults
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

    def _set_rate(self) -> None:
        """Of the next step, where the schedule was asked for it before the pace knew."""
        scheduler: Any = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)  # accelerate's wrapper has one
        if self._follows_pace:
            for group, rate in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True):
                group["lr"] = rate * self._pace.rate(self.state.global_step)
            scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]  # what is logged

    @property
    def highest_rate(self) -> float:
        """The learning rate that the run goes on at, once it has warmed up."""
        assert self.args.learning_rate is not None  # the method's own, by now
        return self.args.learning_rate * self._pace.factor

    def begin_again(self) -> bool:
        """Go on at a lower learning rate, after a divergence and with good weights; False where that is not to be."""
        if not self._follows_pace or not self._pace.begin_again(self.state.global_step):
            return False
        assert self.optimizer is not None
        self.optimizer.state.clear()  # moments of what went wrong
        self._set_rate()
        return True

    def _make_pace(self, max_steps: int) -> Pace:
        state = self.unlearning_state
        target, before = state.target, state.metrics_before
        per_step = self._pairs.forget_per_step
        need = None if target.value is None else target.value - before["forget_loss"]
        calibrates = self.args.calibrates_learning_rate
        little = LITTLE_OF_TOKENS if self.head.kind in TOKEN_KINDS else LITTLE
        # What a reset took has to come back at a rate of its own.
        chooses = self.args.chooses_learning_rate and state.retain_after_reset is None
        has_little = chooses and need is not None and need <= little
        if has_little:
            logger.warning(
                f"forget_ds: the model's loss on it is {before['forget_loss']:.3g}, the target {target.value:.3g}: "
                "there is little to forget, and steps are small"
            )
        # A method that says how long it takes was published so; who says how many steps wants these steps. Depth takes
        # its steps, but where there is little to forget.
        is_open = self.args.has_default_steps and self.method.default_steps(per_step) is None
        is_open = is_open and (has_little or not self.args.is_deep)
        stops = is_open if self.method.converges_at_target else True
        pace = Pace(
            target=target,
            need=need,
            retain_before=state.retain_before,
            begins_with_original=state.begins_with_original and state.retain_after_reset is None,
            first_losses=state.original_losses.clone(),
            forget_per_step=per_step,
            max_steps=max_steps,
            converges=self.method.converges_at_target,
            calibrates=calibrates,
            factor=LOWEST if has_little else FIRST if calibrates else 1.0,
            stops=stops if self.args.stop_at_target is None else self.args.stop_at_target,
        )
        if state.pace:
            pace.load_state_dict(state.pace)
        return pace
