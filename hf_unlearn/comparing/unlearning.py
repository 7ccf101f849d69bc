"""Unlearning with one method of a comparison, within its budget, and what that takes."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from typing_extensions import override

from hf_unlearn.comparing.task import Task
from hf_unlearn.data.splitting import in_memory
from hf_unlearn.data.types import AnyDataset
from hf_unlearn.methods import METHODS
from hf_unlearn.models.types import Model
from hf_unlearn.trainer.arguments import UnlearningArguments
from hf_unlearn.trainer.trainer import UnlearningTrainer


class Refusal(Exception):
    """A method does not support this head, these samples or this model, and says so before any step."""


def unlearn(
    model: PreTrainedModel,
    forget_ds: AnyDataset,
    retain_ds: AnyDataset,
    task: Task,
    target: Mapping[str, Any],
    settings: Mapping[str, Any],
    budget: Mapping[str, float],
    training_passes: float | None = None,
) -> tuple[Model, dict[str, Any]]:
    """Unlearn with a method.

    Args:
        model: the original model; it is changed in place.
        forget_ds: the forget dataset.
        retain_ds: the retain samples that the method may use.
        task: gives the seed, the processor, alternative answers and what the model was fine-tuned from.
        target: what `Task.target` returns.
        settings: of `UnlearningArguments`, the method among them.
        budget: `max_steps` or `seconds`; empty: the method's default.
        training_passes: passes over `retain_ds` that retraining takes; None where not known.

    Returns:
        The model, and what it took: seconds, steps, `sample_passes` and their share of retraining's; see
        `hf_unlearn.trainer.cost.RunCost.metrics`.

    Raises:
        Refusal: the error of the trainer, one line.
    """
    target_settings = {name: value for name, value in target.items() if name != "unseen_ds"}
    unseen_ds = in_memory(target["unseen_ds"]) if "unseen_ds" in target else None
    limits = {"max_steps": int(budget["max_steps"])} if "max_steps" in budget else {}
    with TemporaryDirectory() as folder:
        args = UnlearningArguments(
            folder, seed=task.seed, report_to="none", disable_tqdm=True, logging_steps=10**6, save_strategy="no",
            dataloader_pin_memory=torch.cuda.is_available(),
            **{"training_passes": training_passes, **limits, **target_settings, **settings},
        )  # fmt: skip
        alternative_ds = task.alternatives(forget_ds) if METHODS[args.method].needs_alternative_ds else None
        try:
            trainer = UnlearningTrainer(
                model, forget_ds, retain_ds, args, unseen_ds=unseen_ds, alternative_ds=alternative_ds,
                processing_class=task.processor, base_model=task.base_model(),
            )  # fmt: skip
        except ValueError as error:
            raise Refusal(str(error)) from error
        trainer.pop_callback(PrinterCallback)
        if "seconds" in budget:
            trainer.add_callback(TimeBudget(budget["seconds"]))
        with measure_time() as durations:
            trainer.train()
    assert trainer.outcome is not None and trainer.outcome.cost is not None
    # The seconds here are those that retraining was timed by.
    return trainer.model.eval(), {**trainer.outcome.cost.metrics(), **durations, "steps": trainer.state.global_step}


class TimeBudget(TrainerCallback):
    """Stops a training run at the end of the step in which its time is up.

    Args:
        seconds: wall-clock time of the run.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.started = time.perf_counter()

    @override
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if time.perf_counter() - self.started >= self.seconds:
            control.should_training_stop = True


def device_name() -> str:
    """The name of the device that the models ran on."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu"


@contextmanager
def measure_time() -> Iterator[dict[str, float]]:
    """Measures the wall-clock and processor `seconds` of a block; the dictionary is filled at its end.

    Processor seconds do not count what other processes on the machine do.
    """
    durations: dict[str, float] = {}
    started = time.perf_counter(), time.process_time()
    yield durations
    durations |= {"seconds": time.perf_counter() - started[0], "processor_seconds": time.process_time() - started[1]}
