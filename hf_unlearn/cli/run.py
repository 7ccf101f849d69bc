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

from hf_unlearn.cli import before_work
from hf_unlearn.cli.datasets import LoadedData, load_datasets, print_cache_folders
from hf_unlearn.cli.endings import exit_code, location
from hf_unlearn.cli.interruption import Interruption
from hf_unlearn.cli.queue import run_queue
from hf_unlearn.cli.settings import GENERAL_DS, DataSettings, check_at_least, parse, setting
from hf_unlearn.hub.record_schema import read_record
from hf_unlearn.hub.upload import push_folder
from hf_unlearn.methods import METHODS
from hf_unlearn.models.adapters import lora_config, wants_adapter
from hf_unlearn.models.loading import load_model
from hf_unlearn.models.precision import DType, train_in_float32
from hf_unlearn.trainer.arguments import UnlearningArguments
from hf_unlearn.trainer.manifest import checkpoints
from hf_unlearn.trainer.outcome import Outcome
from hf_unlearn.trainer.output_folder import goes_on_in, latest_folder, refuse_original_folder, used_by_another_run
from hf_unlearn.trainer.trainer import UnlearningTrainer
from hf_unlearn.training import quiet


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
    requests: str | None = setting(None, "File of requests, a JSON object a line, which are done one after the other.")
    batch_requests: int = setting(1, "With --requests: how many of the same kind a run may forget together.")
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
        if settings.requests is not None:
            _check_queue(settings, args)
        else:
            settings.require("model", "dataset", "forget")
            _check_output_dir(settings, args)
    if settings.requests is not None:
        return run_queue(settings, args, settings.requests, settings.batch_requests, after, unlearn)

    def load(model: PreTrainedModel) -> LoadedData:
        with args.main_process_first(desc="preparing the samples"):
            return load_datasets(settings, model, args.request, args.seed)

    trainer, data = unlearn(settings, args, load, after, settings.resume or args.resume_from_checkpoint)
    trainer.save_release()
    assert trainer.outcome is not None
    level = None if trainer.audit_report is None else trainer.audit_report.verdict["level"]
    code = exit_code(trainer.outcome.ending, level)
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


def _check_queue(settings: RunSettings, args: UnlearningArguments) -> None:
    """Refuse what does not go together with a file of requests."""
    settings.require("model", "dataset")
    check_at_least(1, settings, "batch_requests")
    refuse_original_folder(str(args.output_dir), str(settings.model))
    given = {
        "forget": settings.forget, "resume": settings.resume, "push_to_hub": args.push_to_hub,
        "resume_from_checkpoint": args.resume_from_checkpoint,
    }  # fmt: skip
    advice = {
        "forget": "every request has its own", "push_to_hub": "push the last folder, once all are done",
        "resume": "the same command goes on by itself", "resume_from_checkpoint": "the same command goes on by itself",
    }  # fmt: skip
    for name, value in given.items():
        if value:
            raise ValueError(f"{name}: does not go together with requests; {advice[name]}")
    if args.world_size > 1:
        raise ValueError(f"requests: got {args.world_size} processes; a queue runs on one")


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


def _check_output_dir(settings: RunSettings, args: UnlearningArguments) -> None:
    """Refuse, before anything is loaded, a folder with nothing to resume from, another run's or the original's."""
    folder = Path(str(args.output_dir))
    refuse_original_folder(folder, str(settings.model))
    if settings.resume and not checkpoints(latest_folder(folder) if args.has_default_output_dir else folder):
        raise ValueError(f"resume: there is no checkpoint in {args.output_dir!r}; give the run's folder")
    goes_on = goes_on_in(folder, settings.resume or args.resume_from_checkpoint)
    if not goes_on and not args.has_default_output_dir and (used := used_by_another_run(folder)) is not None:
        raise used


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
    print(location(outcome.ending, level, folder))
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
