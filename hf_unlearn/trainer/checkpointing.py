"""What `UnlearningTrainer` writes and reads: merged models, adapters, checkpoints."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from peft import PeftModel, get_peft_model

from hf_unlearn.methods import Method
from hf_unlearn.models.adapters import merged
from hf_unlearn.targets import ForgetTarget
from hf_unlearn.trainer.evaluation import EvaluationMixin

logger = logging.getLogger(__name__)
STATE_FILE = "unlearning_state.pt"


class CheckpointingMixin(EvaluationMixin):
    """A `Trainer` whose saved model has forgotten, and whose checkpoints hold what a resumed run needs."""

    added_adapter: bool
    method: Method
    metrics_before: dict[str, float]
    target: ForgetTarget | None
    original_losses: torch.Tensor
    weights_before: str | None = None
    retain_before: float | None = None
    _checkpointing: bool

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save a plain merged model of the class that came in; an adapter that the user trained, as an adapter.

        An adapter that we added beside the old weights has forgotten nothing: whoever drops it has the data back.
        Checkpoints keep it, to resume from; `save_adapter` saves it alone.
        """
        output_dir = output_dir or str(self.args.output_dir)
        if self._checkpointing:
            super().save_model(output_dir, _internal_call=True)
            if self.args.should_save and self.target is not None:
                state = {
                    "target": self.target.state(),
                    "original_losses": self.original_losses,
                    "metrics_before": self.metrics_before,
                    "retain_before": self.retain_before,
                    "method": self.method.state_dict(),
                    "weights_before": self.weights_before,
                }
                torch.save(state, os.path.join(output_dir, STATE_FILE))
            return
        trained, sharded = self.model, self.is_deepspeed_enabled or self.is_fsdp_enabled
        if not self.added_adapter:
            super().save_model(output_dir, _internal_call)
            return
        # Of sharded weights `Trainer` would write the old ones and the adapter beside them. All processes gather.
        whole = unsharded(trained, self.accelerator.get_state_dict(self.model_wrapped)) if sharded else trained
        if self.args.should_save:
            self.model = merged(whole)
            try:
                self._save(output_dir)
            finally:
                self.model = trained
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def save_adapter(self, output_dir: str) -> None:
        """Save the adapter alone. The base model beside it still holds the forgotten data."""
        if not isinstance(self.model, PeftModel):
            raise ValueError("save_adapter: all weights were trained, there is no adapter; use save_model")
        if self.added_adapter:
            logger.warning("The adapter alone has forgotten nothing: the base model still holds the data without it")
        if self.args.should_save:
            self.model.save_pretrained(output_dir)

    @torch.no_grad()
    def _check_original(self) -> None:
        """Refuse a resumed run whose original model is not the model that the run began with.

        Raises:
            ValueError: it has other losses on the first forget samples than the checkpoint says.
        """
        if self.method.original_model is None:
            return
        batch = next(iter(self._calibration_pass().batches("forget")), None)
        if batch is None:
            return  # fewer forget samples than processes
        with self.compute_loss_context_manager():
            found = self.head.losses(self.method.original_model(**self.head.inputs(batch)), batch).cpu()
        own = self.original_losses[self.accelerator.process_index :: self.accelerator.num_processes][: len(found)]
        if not torch.allclose(found.double(), own.double(), rtol=1e-2, atol=1e-2):
            raise ValueError(
                f"model: is not the one that the run in the checkpoint began with, which {self.method.name} compares "
                "with; give the trainer the original model, train(resume_from_checkpoint=...) loads the weights"
            )

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._checkpointing = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._checkpointing = False

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self._loads_plain(resume_from_checkpoint):
            load_weights(self.model, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if best is not None and self._loads_plain(best):
            load_weights(self.model, best)
        else:
            super()._load_best_model()

    def _loads_plain(self, checkpoint: str) -> bool:
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        plain = isinstance(self.model, transformers.PreTrainedModel) and not sharded
        return plain and os.path.isfile(os.path.join(checkpoint, "config.json"))


def unsharded(model: PeftModel, state: Mapping[str, torch.Tensor] | None) -> PeftModel:
    """A copy of an adapted model whose weights are spread over processes; `model` where there is no state to load."""
    if not state:
        return model
    base = model.get_base_model()
    copy = get_peft_model(type(base)(base.config), model.active_peft_config)
    copy.load_state_dict(state, strict=True)
    return copy.to(base.dtype)


def load_weights(model: Any, checkpoint: str) -> None:
    """Load a checkpoint's weights into a model, strictly.

    Not by `Trainer`'s own `load_state_dict(..., strict=False)`: some architectures are saved under other names than
    their modules have, and would keep their initial weights (transformers #43701).
    """
    state = type(model).from_pretrained(checkpoint, dtype=model.dtype).state_dict()
    model.load_state_dict(state, strict=True)
