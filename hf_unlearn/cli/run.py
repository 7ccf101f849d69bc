"""`hf-unlearn run`: unlearning with one method."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from peft import PeftConfig
from transformers import PreTrainedModel

from hf_unlearn.cli import NOT_FORGOTTEN, before_work
from hf_unlearn.cli.datasets import LoadedData, load_datasets, print_cache_folders
from hf_unlearn.cli.interruption import Interruption
from hf_unlearn.cli.settings import GENERAL_DS, DataSettings, parse, setting
from hf_unlearn.hub.record_schema import read_record
from hf_unlearn.hub.upload import push_folder
from hf_unlearn.methods import METHODS
from hf_unlearn.models.adapters import lora_config, wants_adapter
from hf_unlearn.models.loading import load_model
from hf_unlearn.models.precision import DType, train_in_float32
from hf_unlearn.models.quantization import check_not_quantized
from hf_unlearn.trainer.arguments import UnlearningArguments
from hf_unlearn.trainer.manifest import checkpoints
from hf_unlearn.trainer.outcome import Outcome
from hf_unlearn.trainer.output_folder import goes_on_in, latest_folder, refuse_original_folder, used_by_another_run
from hf_unlearn.trainer.trainer import UnlearningTrainer
from hf_unlearn.training import quiet

FAILED_ENDINGS = {"diverged": "the run diverged", "no steps": "the run took no step"}


@dataclass
class RunSettings(DataSettings):
    """The settings of `run`, in addition to those of `UnlearningArguments`."""

    peft_config: str = setting(
        "auto", "auto (as the method prefers), none, lora, or the folder of an adapter's config."
    )
    dtype: DType = setting(  # noqa: RUF009
        "auto", "dtype of the weights; auto: float32 where all train, else as they were saved."
    )
    general_ds: str | None = setting(None, GENERAL_DS)
    base_model: str | None = setting(None, "What the model was fine-tuned from: a name, a folder, or auto.")
    after: str | None = setting(
        None, "Record (unlearning.json) of the request before; without --model its folder has the model."
    )
    resume: bool = setting(False, "Continue from the newest complete checkpoint in output_dir.")


SETTINGS = (RunSettings, UnlearningArguments)
Load: TypeAlias = Callable[[PreTrainedModel], LoadedData]


def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    # Pinned memory is for accelerators; without one, torch warns of it.
    parsed = parse("run", SETTINGS, argv, dataloader_pin_memory=torch.accelerator.is_available())
    if parsed is None:
        return 0
    settings, args = parsed
    with before_work():
        after = _read_after(settings)
        settings.require("model", "dataset", "forget")
        _check_output_dir(settings, args)

    def load(model: PreTrainedModel) -> LoadedData:
        with args.main_process_first(desc="preparing the samples"):
            return load_datasets(settings, model, args.request, args.seed)

    trainer, data = unlearn(settings, args, load, after, settings.resume or args.resume_from_checkpoint)
    trainer.save_release()
    assert trainer.outcome is not None
    level = None if trainer.audit_report is None else trainer.audit_report.verdict["level"]
    code = exit_code(trainer.outcome, level)
    if trainer.is_world_process_zero():
        print_cache_folders(data)
        _report_and_push(trainer, trainer.outcome, level, is_pushed=args.push_to_hub and code == 0)
    return code


def unlearn(
    settings: RunSettings,
    args: UnlearningArguments,
    load: Load,
    after: Mapping[str, Any] | None,
    resume: str | bool | None,
) -> tuple[UnlearningTrainer, LoadedData]:
    """Load a model and unlearn.

    Args:
        settings: of the command, the name of the model among them.
        args: of the trainer.
        load: makes the datasets, ready for the model.
        after: the record of the request before, where there was one.
        resume: as `UnlearningTrainer.train` takes it.

    Returns:
        The trainer, at the end of its run, and the datasets.
    """
    with before_work():
        quiet()
        model = load_model(str(settings.model), settings.dtype)
        check_not_quantized(model, "model", "cannot be trained, nor take a merged adapter")
        peft_config = _peft_config(settings.peft_config, model)
        if settings.dtype == "auto" and not wants_adapter(model, peft_config, METHODS[args.method].lora_by_default):
            train_in_float32(model, str(settings.model))
        data = load(model)
        interruption = Interruption()
        trainer = UnlearningTrainer(
            model,
            data.forget_ds,
            data.retain_ds,
            args,
            unseen_ds=data.unseen_ds,
            general_ds=settings.general_ds,
            base_model=settings.base_model,
            after=after,
            processing_class=data.processor,
            peft_config=peft_config,
            callbacks=[interruption],
        )
    try:
        trainer.train(resume_from_checkpoint=resume)
    finally:
        interruption.restore()
    return trainer, data


def _read_after(settings: RunSettings) -> Mapping[str, Any] | None:
    """The record of the request before; its folder is the model's where no model is named."""
    if settings.after is None:
        return None
    if not os.path.isfile(settings.after):
        raise ValueError(f"after: there is no file {settings.after!r}; give the unlearning.json of the request before")
    record = read_record(settings.after)
    if record["weights"]["kind"] == "adapter":
        raise ValueError(
            f"after: {settings.after!r} is the record of an adapter; go on in Python, with continue_with or after="
        )
    settings.model = settings.model or str(Path(settings.after).parent)
    return record


def exit_code(outcome: Outcome, level: str | None) -> int:
    """0, or 3 where the run or its audit says that the model is not one that has forgotten.

    Args:
        outcome: of the run.
        level: of the audit's verdict; None where there was no audit.
    """
    failed = outcome.ending in FAILED_ENDINGS or level not in (None, "consistent", "unclear")
    return NOT_FORGOTTEN if failed else 0


def _check_output_dir(settings: RunSettings, args: UnlearningArguments) -> None:
    """Refuse, before anything is loaded, a folder with nothing to resume from, another run's or the original's."""
    folder = Path(str(args.output_dir))
    refuse_original_folder(folder, str(settings.model))
    if settings.resume and not checkpoints(latest_folder(folder) if args.has_default_output_dir else folder):
        raise ValueError(f"resume: there is no checkpoint in {args.output_dir!r}; give the run's folder")
    goes_on = goes_on_in(folder, settings.resume or args.resume_from_checkpoint)
    if not goes_on and not args.has_default_output_dir and (used := used_by_another_run(folder)) is not None:
        raise used


def location(outcome: Outcome, level: str | None, folder: Path) -> str:
    """Where the model is, and what can be said of it: by the run's outcome, then by the level of the verdict."""
    if outcome.ending in FAILED_ENDINGS:
        return f"The model in {folder} is not one that has forgotten: {FAILED_ENDINGS[outcome.ending]}"
    sentences = {
        "consistent": f"The model that has forgotten is in {folder}",
        "remembers": f"The model in {folder} still remembers",
        "hidden": f"The model in {folder} hides the data and still holds it",
        "over-forgotten": f"The model in {folder} is over-forgotten: its losses give the forget samples away",
        "damaged": f"The model in {folder} is damaged",
        "unclear": f"Warning: the audit cannot tell whether the model in {folder} has forgotten",
        None: f"Warning: without --unseen_dataset there was no audit, nobody knows whether the model in {folder} has "
        "forgotten",
    }  # fmt: skip
    return sentences[level]


def _report_and_push(trainer: UnlearningTrainer, outcome: Outcome, level: str | None, is_pushed: bool) -> None:
    """Print how the run ended, the verdict, where the model is and what still holds the data; push if asked to."""
    args, folder = trainer.args, Path(str(trainer.args.output_dir))
    if left := [path.name for path in reversed(checkpoints(folder))]:
        print(f"These in {folder} still hold the data, and are never pushed; delete them: {', '.join(left)}")
    if args.push_to_hub and not is_pushed:
        print(f"Not pushed, as this is no model that has forgotten; hf-unlearn push {folder} sends it all the same")
    if is_pushed:
        commit = push_folder(
            folder, str(trainer.hub_model_id), token=args.hub_token, revision=args.hub_revision,
            private=args.hub_private_repo is not False,
        )  # fmt: skip
        print(f"Pushed to {commit.commit_url}")
    if trainer.audit_report is not None:
        print(f"{trainer.audit_report.verdict['sentence']} More in {folder / 'audit.html'}")
    print(location(outcome, level, folder))
    print(outcome.sentence)


def _peft_config(name: str, model: PreTrainedModel) -> PeftConfig | Literal["auto"] | None:
    if name == "auto":
        return "auto"
    if name == "none":
        return None
    if name == "lora":
        return lora_config(model)
    try:
        return PeftConfig.from_pretrained(name)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"peft_config: {name!r} does not load ({str(error).splitlines()[0]}); use auto, none, lora, or a folder "
            "with an adapter_config.json"
        ) from error
