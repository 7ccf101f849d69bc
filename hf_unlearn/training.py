"""A plain training run, for original and retrained models, with one progress bar."""

from __future__ import annotations

import logging
import time
import warnings
from typing import Any

import torch
from peft import PeftModel
from tqdm.auto import tqdm
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from typing_extensions import override

from hf_unlearn.data.collator import Collator, default_collator
from hf_unlearn.data.types import AnyDataset
from hf_unlearn.models.head_trainer import HeadTrainer


def train_from_scratch(
    model: PreTrainedModel | PeftModel,
    train_ds: AnyDataset,
    *,
    seed: int = 0,
    output_dir: str = "unlearned",
    description: str | None = None,
    line: int = 0,
    data_collator: Collator | None = None,
    **settings: Any,
) -> float:
    """Train a model in place with a plain `transformers.Trainer` (see `HeadTrainer`); returns the seconds it took.

    Args:
        model: the model.
        train_ds: the samples to train on.
        seed: seed of the order of the samples and of dropout.
        output_dir: nothing is saved there unless `settings` ask for it.
        description: text of the progress bar; none is shown when left out.
        line: line of the progress bar, where several run at once.
        data_collator: default: `default_collator(model)`.
        **settings: further settings of `TrainingArguments`.
    """
    args = TrainingArguments(
        output_dir=output_dir,
        seed=seed,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.accelerator.is_available(),
        **settings,
    )
    started = time.perf_counter()
    trainer = HeadTrainer(
        model,
        args,
        train_dataset=train_ds,
        data_collator=data_collator or default_collator(model),
    )
    trainer.pop_callback(PrinterCallback)
    if description:
        trainer.add_callback(ProgressBar(description, line))
    trainer.train()
    return time.perf_counter() - started


class ProgressBar(TrainerCallback):
    """A progress bar with a description, for one training run.

    Args:
        description: its text.
        line: its line, where several are shown at once.
    """

    def __init__(self, description: str, line: int = 0):
        self.description, self.line = description, line

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.bar = tqdm(total=state.max_steps, desc=self.description, unit="step", position=self.line)

    @override
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.bar.update()

    @override
    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.bar.close()


def quiet() -> None:
    """Hide warnings that a user cannot act on: PEFT reads attributes of transformers by their old names."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)
