"""Ctrl-C ends a run with a checkpoint after the current step."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from typing_extensions import override

# Launchers forward a Ctrl-C to processes that the terminal has sent it to: signals within a second count as one.
SAME_SIGNAL_SECONDS = 1.0


class Interruption(TrainerCallback):
    """On Ctrl-C, saves a checkpoint after the current step and raises KeyboardInterrupt; a second one raises at once.

    Several processes all stop after the same step.
    """

    def __init__(self) -> None:
        self._requested_at: float | None = None
        self._previous_handler: Any = None

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._previous_handler = signal.signal(signal.SIGINT, self._request_stop)

    @override
    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.restore()

    @override
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        requested = torch.tensor(float(self._requested_at is not None))
        if args.world_size > 1:
            requested = requested.to(args.device)
            torch.distributed.all_reduce(requested, torch.distributed.ReduceOp.MAX)
        if requested and state.global_step < state.max_steps:
            self._requested_at = self._requested_at or time.monotonic()
            control.should_save = True

    @override
    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._requested_at is not None:
            self.restore()
            folder = os.path.join(str(args.output_dir), f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
            raise KeyboardInterrupt(f"interrupted after step {state.global_step}; --resume continues from {folder}")

    def restore(self) -> None:
        """Restore the handler of Ctrl-C from before the run."""
        if self._previous_handler is not None:
            signal.signal(signal.SIGINT, self._previous_handler)
            self._previous_handler = None

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._requested_at is not None and now - self._requested_at > SAME_SIGNAL_SECONDS:
            self.restore()
            raise KeyboardInterrupt("interrupted; no checkpoint was written")
        self._requested_at = self._requested_at or now
