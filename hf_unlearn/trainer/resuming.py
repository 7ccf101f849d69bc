"""How a run goes on from a checkpoint: from the newest complete one, with the settings and samples that it had."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from accelerate.utils import broadcast_object_list, gather_object
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput
from typing_extensions import override

from hf_unlearn.hub.release_files import RECORD_FILE
from hf_unlearn.methods import Method
from hf_unlearn.trainer.arguments import UnlearningArguments
from hf_unlearn.trainer.best_model import BestModelMixin
from hf_unlearn.trainer.checkpointing import UnlearningState
from hf_unlearn.trainer.identity import name_differences, run_identity
from hf_unlearn.trainer.manifest import (
    MANIFEST,
    MODEL_ONLY,
    checkpoints,
    find_damage,
    is_finished,
    is_unlearning,
    remove_older,
    write_manifest,
)
from hf_unlearn.trainer.output_folder import (
    goes_on_in,
    latest_folder,
    next_folder,
    refuse_original_folder,
    used_by_another_run,
)

logger = logging.getLogger(__name__)
T = TypeVar("T")


class ResumingMixin(BestModelMixin):
    """A `Trainer` whose checkpoints are complete or do not count, and are resumed by the run that wrote them alone.

    Args:
        **kwargs: as in `Trainer`.
    """

    args: UnlearningArguments
    method: Method

    def __init__(self, **kwargs: Any):
        optimizer = kwargs["optimizers"][0]
        self._optimizer_name = None if optimizer is None else type(optimizer).__name__
        self._owns_output_dir = False
        super().__init__(**kwargs)

    # ---- nobody else's files ----

    def _claim_output_dir(self, resume_from_checkpoint: str | bool | None) -> None:
        """Before the first run: no other run's files are in `output_dir`, unless it goes on from them.

        Where nobody has named the folder, the next free one is taken, or to resume the last one.

        Raises:
            ValueError: there are such files in a folder that was named.
        """
        if self._owns_output_dir:
            return
        folder, is_default = Path(str(self.args.output_dir)), self.args.has_default_output_dir
        latest = latest_folder(folder) if is_default else folder
        goes_on = goes_on_in(latest, resume_from_checkpoint)
        if is_default:
            chosen = str(self._agree(lambda: latest if goes_on else next_folder(folder)))
            if chosen != str(folder) and not goes_on and self.is_world_process_zero():
                logger.warning(f"{folder} has the files of another run: this one writes to {chosen}")
            self.args.output_dir = chosen
        elif not goes_on and (error := self._agree(lambda: used_by_another_run(folder))) is not None:
            raise error
        self._owns_output_dir = True

    @override
    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """See `CheckpointingMixin.save_model`; refused in the folder of the original model."""
        folder = Path(output_dir or str(self.args.output_dir))
        if not self._saves_checkpoint:
            refuse_original_folder(folder, self.model)
            if self.args.should_save:
                # Without its record a folder is no release: it gets one last, when all of it is written.
                (folder / RECORD_FILE).unlink(missing_ok=True)
        super().save_model(output_dir, _internal_call)

    # ---- a checkpoint is complete once it has its manifest ----

    @override
    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self.unlearning_state.cost, self.unlearning_state.method = self.cost.totals(), self.method.state_dict()
        self.unlearning_state.stream = self._stream_states()
        if self.args.should_save:
            # Of a checkpoint that is written anew, as after a kill.
            (folder / MANIFEST).unlink(missing_ok=True)
            if not self.unlearning_state.identity:
                self.unlearning_state.identity = self._identity()
            # First: by it a checkpoint is known as one of an unlearning run, however early the process is killed.
            folder.mkdir(parents=True, exist_ok=True)
            self.unlearning_state.save(str(folder))
        # Older checkpoints go when this one is complete, not before.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()  # every process writes files of its own
        if self.args.should_save:
            write_manifest(folder)
            if limit is not None and limit > 0:
                best = self.state.best_model_checkpoint
                remove_older(folder.parent, limit, {folder} if best is None else {folder, Path(best)})
        self.accelerator.wait_for_everyone()

    @override
    def _load_best_model(self) -> None:
        folder = Path(str(self.state.best_model_checkpoint))
        damage = self._agree(lambda: find_damage(folder))
        if damage is not None and damage != MODEL_ONLY:
            raise ValueError(
                f"load_best_model_at_end: {str(folder)!r} {damage}; restore it, or load another checkpoint"
            )
        super()._load_best_model()

    # ---- which checkpoint ----

    def _resolve_checkpoint(self, resume_from_checkpoint: str | bool | None) -> str | None:
        """The checkpoint that `train` resumes from, the same one on all processes; None to start from the beginning.

        Raises:
            ValueError: there is none, it is not complete, or it is of another run.
        """
        self._claim_output_dir(resume_from_checkpoint)
        if not resume_from_checkpoint:
            return None
        if resume_from_checkpoint is True:
            folder = self._newest_complete(Path(str(self.args.output_dir)))
        else:
            folder = Path(resume_from_checkpoint)
            if (damage := self._agree(lambda: find_damage(folder))) is not None:
                raise ValueError(
                    f"resume_from_checkpoint: {str(folder)!r} {damage}; resume_from_checkpoint=True takes the newest "
                    "checkpoint that is complete"
                )
        if folder is not None and (difference := self._agree(lambda: self._difference(folder))) is not None:
            raise ValueError(f"{difference}; resume with the same, or start anew in another output_dir")
        return None if folder is None else str(folder)

    def _newest_complete(self, output_dir: Path) -> Path | None:
        """The newest complete checkpoint; None where no checkpoint was written to its end."""
        folders = broadcast_object_list([checkpoints(output_dir)])[0]
        if not folders:
            raise ValueError(
                f"resume_from_checkpoint: there is no checkpoint in {str(output_dir)!r}; leave it out to start from "
                "the beginning"
            )
        skipped: list[str] = []
        for folder in folders:
            damage = self._agree(lambda folder=folder: find_damage(folder))  # type: ignore[misc]
            if damage is None:
                break
            skipped.append(f"{folder.name} {damage}")
        else:
            folder = None
        reasons = "; ".join(skipped)
        if folder is None and (error := self._agree(lambda: _by_others(output_dir, folders))) is not None:
            raise error
        if folder is None and self._agree(lambda: any(map(is_finished, folders)) or None):
            raise ValueError(
                f"resume_from_checkpoint: no checkpoint in {str(output_dir)!r} is complete ({reasons}); restore one, "
                "or start anew in another output_dir"
            )
        if skipped and self.is_world_process_zero():
            start = "starting from the beginning" if folder is None else f"resuming from {folder.name}"
            logger.warning(f"Skipped in {output_dir}, {start}: {reasons}")
        return folder

    def _agree(self, find: Callable[[], T | None]) -> T | None:
        """What `find` gives on the first process that writes checkpoints and finds something; None where none does."""
        found = gather_object([find() if self.args.should_save else None])
        return next((value for value in found if value is not None), None)

    # ---- the same run ----

    def _difference(self, folder: Path) -> str | None:
        """In what this run differs from the one that wrote a checkpoint; None where it is the same."""
        state = UnlearningState.load(str(folder))
        if difference := name_differences(state.identity, self._identity()):
            return difference
        # The adapter is all that the checkpoint has; other methods and all weights need no check here.
        if self.added_adapter and state.original_hash != self._hash_original_weights():
            return "model: has other weights than the original model of the run in the checkpoint"
        return None

    def _identity(self) -> dict[str, Any]:
        optimizer = self.optimizer_cls_and_kwargs
        name = self._optimizer_name if optimizer is None else f"{optimizer[0].__name__} {optimizer[1]}"
        collator = self.data_collator
        # Which part of a stream is where follows from how many there are.
        stream = {} if self.retain_stream is None else {"parts of retain_ds": self._stream_readers}
        return run_identity(
            self.args, self.model,
            {
                "forget_ds": self.forget_ds, "retain_ds": self.retain_ds, "unseen_ds": self.unseen_ds,
                "alternative_ds": self.alternative_ds,
            },
            request=self.request, method_kwargs=asdict(self.args.hyperparameters), optimizers=name,
            data_collator=getattr(collator, "__qualname__", type(collator).__qualname__), **stream,
        )  # fmt: skip

    # ---- a run that has ended stays so ----

    @override
    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.unlearning_state.ended or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    @override
    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """See `Trainer.train`; a run that has ended takes no further step, which is said."""
        steps = None
        if resume_from_checkpoint is not None:
            steps = TrainerState.load_from_json(os.path.join(resume_from_checkpoint, TRAINER_STATE_NAME)).global_step
        output = super().train(resume_from_checkpoint, *args, **kwargs)
        if output.global_step == steps and self.is_world_process_zero():
            logger.warning(f"The run had ended at step {steps}: no further step was taken")
        return output


def _by_others(output_dir: Path, folders: list[Path]) -> ValueError | None:
    """The error for checkpoints that another program wrote; an empty one is what a kill leaves."""
    others = any(not is_unlearning(path) and any(path.glob("*")) for path in folders)
    return used_by_another_run(output_dir) if others else None
