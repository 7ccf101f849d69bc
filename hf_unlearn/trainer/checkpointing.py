"""What `UnlearningTrainer` saves and loads: merged models, adapters, checkpoints."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import transformers
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import override

from hf_unlearn.hub.release_files import ADAPTER_CONFIG
from hf_unlearn.models.adapters import merged
from hf_unlearn.models.loading import load_whole
from hf_unlearn.models.sharding import from_state
from hf_unlearn.targets import ForgetTarget, restore_target
from hf_unlearn.trainer.evaluation import EvaluationMixin
from hf_unlearn.trainer.manifest import STATE_FILE

logger = logging.getLogger(__name__)


@dataclass
class UnlearningState:
    """What a resumed run needs beside `Trainer`'s own checkpoint.

    Attributes:
        target: the forgetting target.
        original_losses: losses [forget samples] of the original model; NaN where they were not measured.
        latest_scores: [forget samples] or [forget samples, 8], see `hf_unlearn.trainer.loss_step.LossStep`.
        score_ages: [forget samples], likewise.
        metrics_before: metrics of the original model.
        original_hash: hash of the original weights; None where they are sharded.
        retain_before: losses of the retain samples measured before the first step.
        begins_with_original: whether the run is the first of this model.
        retain_after_reset: the mean retain loss after the weights went back; None where they did not.
        pace: `hf_unlearn.trainer.pace.Pace.state_dict`; empty before the first checkpoint.
        hyperparameters: the method's, by name, as the run has them.
        method: `Method.state_dict`, as it was when the checkpoint was written.
        identity: settings and samples, see `hf_unlearn.trainer.identity`; empty before the first checkpoint.
        ended: whether the run has ended before its last step, as at its target.
        stream: where a retain stream is, by the number of the reader; see `hf_unlearn.data.pairing.StreamedPairs`.
        cost: what the run has cost so far, see `hf_unlearn.trainer.cost.CostCounter.totals`.
    """

    target: ForgetTarget
    original_losses: Tensor
    latest_scores: Tensor
    score_ages: Tensor
    metrics_before: dict[str, float]
    retain_before: Tensor
    begins_with_original: bool = True
    original_hash: str | None = None
    retain_after_reset: float | None = None
    pace: Mapping[str, Any] = field(default_factory=dict)
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    method: Mapping[str, Any] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict)
    ended: bool = False
    stream: Mapping[int, dict[str, Any]] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)

    def save(self, folder: str) -> None:
        """Write it to a checkpoint folder."""
        state = {**vars(self), "target": self.target.state()}
        torch.save(state, os.path.join(folder, STATE_FILE))

    @classmethod
    def load(cls, folder: str) -> UnlearningState:
        """Read it from a checkpoint folder."""
        state = torch.load(os.path.join(folder, STATE_FILE), weights_only=True)
        return cls(**{**state, "target": restore_target(state["target"])})


class CheckpointingMixin(EvaluationMixin):
    """A `Trainer` whose saved model has forgotten, and whose checkpoints hold what a resumed run needs.

    Args:
        added_adapter: whether the trainer added the adapter that it trains.
        **kwargs: as in `Trainer`.
    """

    def __init__(self, *, added_adapter: bool, **kwargs: Any):
        self.added_adapter = added_adapter
        self._unlearning_state: UnlearningState | None = None
        self._saves_checkpoint = False
        super().__init__(**kwargs)

    @property
    def unlearning_state(self) -> UnlearningState:
        """What is known since the run began: target, losses and metrics of the original model.

        Raises:
            RuntimeError: before `train()`.
        """
        if self._unlearning_state is None:
            raise RuntimeError("unlearning_state: there is none before train()")
        return self._unlearning_state

    @property
    def target(self) -> ForgetTarget | None:
        """The forgetting target; None before `train()`."""
        return None if self._unlearning_state is None else self._unlearning_state.target

    @override
    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save a plain merged model of the class that came in; an adapter that the user trained, as an adapter.

        An adapter that we added beside the old weights has forgotten nothing: whoever removes it has the data back.
        Checkpoints keep it, to resume from; `save_adapter` saves it alone.
        """
        output_dir = output_dir or str(self.args.output_dir)
        if self._saves_checkpoint:
            super().save_model(output_dir, _internal_call=True)
        elif not (self.added_adapter or self._is_sharded):
            super().save_model(output_dir, _internal_call)
        else:
            self._save_whole(output_dir)
            if self.args.push_to_hub and not _internal_call:
                self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_whole(self, output_dir: str) -> None:
        """Save what is trained as one process has it: the adapter merged, weights of all processes put together."""
        if self.added_adapter and os.path.isfile(os.path.join(output_dir, ADAPTER_CONFIG)):
            raise ValueError(
                f"output_dir: {str(output_dir)!r} has an adapter ({ADAPTER_CONFIG}), which would be added to the "
                "merged model again; use another folder, or remove it"
            )
        # All processes gather; of sharded weights `Trainer` would write the base and the adapter apart, and names that
        # the model has while it trains.
        state = self.accelerator.get_state_dict(self.model_wrapped) if self._is_sharded else None
        if self.args.should_save:
            model: Any = self.model
            whole: Any = model if state is None else from_state(model, state)
            self.model = self._merged(whole) if self.added_adapter else whole
            try:
                self._save(output_dir)
            finally:
                self.model = model

    def _merged(self, adapted: PeftModel) -> PreTrainedModel:
        return merged(adapted)

    def save_adapter(self, output_dir: str) -> None:
        """Save the adapter alone. The base model beside it still holds the forgotten data.

        Raises:
            ValueError: there is no adapter, or the folder has a model, which would be loaded with the adapter on top.
        """
        if not isinstance(self.model, PeftModel):
            raise ValueError("save_adapter: all weights were trained, there is no adapter; use save_model")
        if self.added_adapter and os.path.isfile(os.path.join(output_dir, "config.json")):
            raise ValueError(
                f"save_adapter: {str(output_dir)!r} has a model (config.json), to which the adapter would be "
                "added again; use another folder"
            )
        if self.added_adapter:
            logger.warning("The adapter alone has forgotten nothing: the base model still holds the data without it")
        if self.args.should_save:
            self.model.save_pretrained(output_dir)

    @override
    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._saves_checkpoint = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._saves_checkpoint = False

    @override
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self._holds_whole_model(resume_from_checkpoint):
            load_weights(cast(PreTrainedModel, self.model), resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    @override
    def _load_best_model(self) -> None:
        checkpoint = self.state.best_model_checkpoint
        if checkpoint is not None and self._holds_whole_model(checkpoint):
            load_weights(cast(PreTrainedModel, self.model), checkpoint)
        else:
            super()._load_best_model()

    def _holds_whole_model(self, checkpoint: str) -> bool:
        """Whether a checkpoint is a model as `save_pretrained` writes it, rather than an adapter or shards."""
        is_plain = isinstance(self.model, transformers.PreTrainedModel) and not self._is_sharded
        return is_plain and os.path.isfile(os.path.join(checkpoint, "config.json"))


def load_weights(model: PreTrainedModel, checkpoint: str) -> None:
    """Load a checkpoint's weights into a model, strictly.

    Not by `Trainer`'s own `load_state_dict(..., strict=False)`: some architectures are saved under other names than
    their modules have, and would keep their initial weights (transformers #43701).

    Raises:
        ValueError: the checkpoint lacks weights of the model.
    """
    model.load_state_dict(load_whole(type(model), checkpoint, dtype=model.dtype).state_dict(), strict=True)
