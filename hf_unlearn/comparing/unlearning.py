"""What a method makes of a model, within a budget, and what that cost."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback

from hf_unlearn.comparing.task import Task
from hf_unlearn.data.splitting import in_memory
from hf_unlearn.methods import METHODS
from hf_unlearn.trainer.arguments import UnlearningArguments
from hf_unlearn.trainer.trainer import UnlearningTrainer


class Refusal(Exception):
    """A method does not work on this head, these samples or this model, and says so before any step."""


def unlearn(
    model: Any,
    forget: Any,
    retain: Any,
    task: Task,
    target: Mapping[str, Any],
    settings: Mapping[str, Any],
    budget: Mapping[str, float],
) -> tuple[Any, dict[str, Any]]:
    """What a method makes of a model, and what it cost: seconds, steps.

    Raises:
        Refusal: the trainer's one line.
    """
    extra = {name: value for name, value in target.items() if name != "unseen_ds"}
    unseen = in_memory(target["unseen_ds"]) if "unseen_ds" in target else None
    limits = {"max_steps": int(budget["max_steps"])} if "max_steps" in budget else {}
    with TemporaryDirectory() as folder:
        args = UnlearningArguments(
            folder, seed=task.seed, report_to="none", disable_tqdm=True, logging_steps=10**6, save_strategy="no",
            dataloader_pin_memory=torch.cuda.is_available(), **{**limits, **extra, **settings},
        )  # fmt: skip
        alternatives = task.alternatives(forget) if METHODS[args.method].needs_alternative_ds else None
        try:
            trainer = UnlearningTrainer(
                model, forget, retain, args, unseen_ds=unseen, alternative_ds=alternatives,
                processing_class=task.processor,
            )  # fmt: skip
        except ValueError as refusal:
            raise Refusal(str(refusal)) from refusal
        trainer.pop_callback(PrinterCallback)
        if "seconds" in budget:
            trainer.add_callback(TimeBudget(budget["seconds"]))
        with clocks() as taken:
            trainer.train()
    return trainer.model.eval(), {**taken, "steps": trainer.state.global_step}


class TimeBudget(TrainerCallback):
    """Stops a run after so many seconds: with the step that passes them."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at it."""
        if time.perf_counter() - self.started >= self.seconds:
            control.should_training_stop = True


def device() -> str:
    """The name of what the models ran on."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu"


@contextmanager
def clocks() -> Iterator[dict[str, float]]:
    """Wall-clock and processor seconds of what happens inside; the latter do not count what else the machine did."""
    found: dict[str, float] = {}
    started = time.perf_counter(), time.process_time()
    yield found
    found |= {"seconds": time.perf_counter() - started[0], "processor_seconds": time.process_time() - started[1]}
