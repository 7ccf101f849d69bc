"""Whose folder `output_dir` is: a run writes neither over another run's files nor over the original model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers.trainer import TRAINING_ARGS_NAME

from hf_unlearn.hub.release_files import RECORD_FILE, is_release_file
from hf_unlearn.models.types import Model, inner_model
from hf_unlearn.trainer.manifest import checkpoints


def refuse_original_folder(folder: str | Path, model: Model | str) -> None:
    """Refuse to write into the folder that the original model was loaded from, or has it among its checkpoints.

    Args:
        folder: where a run is going to write.
        model: the model, or its name.

    Raises:
        ValueError: it is that folder.
    """
    names = [model] if isinstance(model, str) else _names(model)
    written = [path for path in (Path(folder), *checkpoints(Path(folder))) if path.is_dir()]
    if any(os.path.isdir(name) and os.path.samefile(name, path) for name in names for path in written):
        raise ValueError(
            f"output_dir: {str(folder)!r} is the folder of the original model, which would be overwritten; use another"
        )


def _names(model: Model) -> list[str]:
    base: Any = inner_model(model)
    configs = model.peft_config.values() if isinstance(model, PeftModel) else []
    names = [getattr(base.config, "_name_or_path", None), *(config.base_model_name_or_path for config in configs)]
    return [str(name) for name in names if name]


def files_of_runs(folder: Path) -> list[str]:
    """The files in a folder that a run would write over: checkpoints, and what a release has."""
    names = os.listdir(folder) if folder.is_dir() else []
    others = sorted(name for name in names if is_release_file(name) or name in (RECORD_FILE, TRAINING_ARGS_NAME))
    return [path.name for path in reversed(checkpoints(folder))] + others


def used_by_another_run(folder: Path) -> ValueError | None:
    """The error for a folder that has files which a run would write over; None where it has none."""
    files = files_of_runs(folder)
    if not files:
        return None
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return ValueError(
        f"output_dir: {str(folder)!r} has {files[0]}{more}, which this run would overwrite; resume the run that wrote "
        "it, use another folder, or remove it"
    )


def goes_on_in(folder: Path, resume_from_checkpoint: str | bool | None) -> bool:
    """Whether a run goes on from a checkpoint in the folder that it writes to, rather than from none or elsewhere."""
    if isinstance(resume_from_checkpoint, str | os.PathLike):
        return Path(resume_from_checkpoint).resolve().parent == folder.resolve()
    return bool(resume_from_checkpoint)


def next_folder(folder: Path) -> Path:
    """The folder itself if no run has written to it, else the first of `folder-2`, `folder-3`, ... that is free."""
    free, number = folder, 1
    while files_of_runs(free):
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def latest_folder(folder: Path) -> Path:
    """The last of `folder`, `folder-2`, ... that a run has written to; the first if none has."""
    latest, number = folder, 1
    while files_of_runs(folder.with_name(f"{folder.name}-{number + 1}")):
        number += 1
        latest = folder.with_name(f"{folder.name}-{number}")
    return latest
