"""A plain training run: a model from scratch, with one progress bar, and without what nobody can act on."""

from __future__ import annotations

import logging
import time
import warnings
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from hf_unlearn.data.collator import default_collator


def train_from_scratch(
    model: PreTrainedModel,
    samples: Any,
    *,
    seed: int = 0,
    output_dir: str = "unlearned",
    description: str | None = None,
    line: int = 0,
    data_collator: Any = None,
    **settings: Any,
) -> float:
    """Train a model in place with a plain `transformers.Trainer`; returns the seconds it took.

    `settings` are those of `TrainingArguments`.
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
    trainer = Trainer(model, args, train_dataset=samples, data_collator=data_collator or default_collator(model))
    trainer.pop_callback(PrinterCallback)
    if description:
        trainer.add_callback(Bar(description, line))
    trainer.train()
    return time.perf_counter() - started


class Bar(TrainerCallback):
    """One named progress bar for one training."""

    def __init__(self, description: str, line: int = 0):
        self.description, self.line = description, line

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show it."""
        self.bar = tqdm(total=state.max_steps, desc=self.description, unit="step", position=self.line)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One step on."""
        self.bar.update()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave it as it is."""
        self.bar.close()


def quiet() -> None:
    """Hide what a user of the demo can do nothing about: PEFT asks transformers for attributes by their old names."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)
