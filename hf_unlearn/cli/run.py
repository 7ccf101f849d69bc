"""`hf-unlearn run`: unlearning with one method."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from peft import PeftConfig
from transformers import PreTrainedModel
from transformers.trainer_utils import get_last_checkpoint

from hf_unlearn.cli import UsageError
from hf_unlearn.cli.datasets import cache_folders, load_datasets
from hf_unlearn.cli.interruption import Interruption
from hf_unlearn.cli.settings import DataSettings, parse, setting
from hf_unlearn.hub.upload import push_folder
from hf_unlearn.models.adapters import lora_config
from hf_unlearn.models.loading import load_model
from hf_unlearn.trainer.arguments import UnlearningArguments
from hf_unlearn.trainer.trainer import UnlearningTrainer
from hf_unlearn.training import quiet


@dataclass
class RunSettings(DataSettings):
    """The settings of `run`, in addition to those of `UnlearningArguments`."""

    peft_config: str = setting(
        "auto", "auto (as the method prefers), none, lora, or the folder of an adapter's config."
    )
    resume: bool = setting(False, "Continue from the last checkpoint in output_dir.")


def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    # Pinned memory is for accelerators; without one, torch warns of it.
    defaults = {"output_dir": "unlearned", "dataloader_pin_memory": torch.accelerator.is_available()}
    parsed = parse("run", [RunSettings, UnlearningArguments], argv, **defaults)
    if parsed is None:
        return 0
    settings, args = parsed
    settings.require("model", "dataset", "forget")
    checkpoint = _last_checkpoint(args.output_dir) if settings.resume else args.resume_from_checkpoint
    quiet()
    model = load_model(settings.model)
    with args.main_process_first(desc="preparing the samples"):
        data = load_datasets(settings, model, args.request, args.seed)
    interruption = Interruption()
    trainer = UnlearningTrainer(
        model,
        data.forget_ds,
        data.retain_ds,
        args,
        unseen_ds=data.unseen_ds,
        processing_class=data.processor,
        peft_config=_peft_config(settings.peft_config, model),
        callbacks=[interruption],
    )
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        interruption.restore()
    trainer.save_release()
    if trainer.is_world_process_zero():
        for folder in cache_folders(data):
            print(f"The cache of datasets holds the samples, too; delete it once they are to be gone: {folder}")
        _report_and_push(trainer)
    return 0


def _last_checkpoint(output_dir: str) -> str:
    checkpoint = get_last_checkpoint(output_dir) if os.path.isdir(output_dir) else None
    if checkpoint is None:
        raise UsageError(f"--resume: there is no checkpoint in {output_dir!r}")
    return checkpoint


def _report_and_push(trainer: UnlearningTrainer) -> None:
    """Print the verdict, where the model is and which files still hold the data; push the model if asked to."""
    args, folder = trainer.args, Path(str(trainer.args.output_dir))
    if trainer.audit_report is not None:
        print(f"{trainer.audit_report.verdict['sentence']} More in {folder / 'audit.html'}")
    print(f"The unlearned model is in {folder}")
    if checkpoints := sorted(path.name for path in folder.glob("checkpoint-*")):
        print(f"These in {folder} still hold the data, and are never pushed; delete them: {', '.join(checkpoints)}")
    if args.push_to_hub:
        commit = push_folder(
            folder, str(trainer.hub_model_id), token=args.hub_token, revision=args.hub_revision,
            private=args.hub_private_repo is not False,
        )  # fmt: skip
        print(f"Pushed to {commit.commit_url}")


def _peft_config(name: str, model: PreTrainedModel) -> PeftConfig | Literal["auto"] | None:
    if name == "auto":
        return "auto"
    if name == "none":
        return None
    return lora_config(model) if name == "lora" else PeftConfig.from_pretrained(name)
