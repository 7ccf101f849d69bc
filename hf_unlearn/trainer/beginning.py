"""Where a run begins: what is measured of the original model, and how far its weights go back."""

from __future__ import annotations

import logging
from dataclasses import asdict

import torch
from peft import PeftConfig
from transformers import PreTrainedModel

from hf_unlearn.auditing.statistics import spread
from hf_unlearn.data.randomness import unchanged_randomness
from hf_unlearn.models.output_layer import reset_outputs
from hf_unlearn.models.quantization import check_not_quantized
from hf_unlearn.models.resetting import Weights, base_weights, check_adapter, go_back
from hf_unlearn.models.types import Model
from hf_unlearn.targets import MaskedClassTarget, make_target
from hf_unlearn.trainer.checkpointing import UnlearningState
from hf_unlearn.trainer.guard import DivergenceGuard
from hf_unlearn.trainer.pacing import PacingMixin

logger = logging.getLogger(__name__)


def check_base(
    model: Model, base_model: PreTrainedModel | str | None, seed: int, peft_config: PeftConfig | str | None
) -> Weights:
    """The weights that the model goes back towards.

    Raises:
        ValueError: see `base_weights` and `check_adapter`; also for quantised weights.
    """
    check_not_quantized(model, "reset", "cannot go back towards others")
    check_adapter(model, peft_config)
    with unchanged_randomness():
        return base_weights(model, base_model, seed)


class BeginningMixin(PacingMixin):
    """A `Trainer` that measures the original model, and sets its weights back as far as the run is to begin."""

    guard: DivergenceGuard
    _has_begun = False  # the run
    _base: Weights | None  # what the weights go back towards, where they do
    _reset_share: float

    def _measure_original(self) -> UnlearningState:
        """What is known before the first step; a second run of the same model still compares with its original.

        A run that is begun again for want of memory goes on with what is known: its weights may be set back by then.
        """
        if self._has_begun:
            return self.unlearning_state
        self._has_begun = True
        original_hash = self._hash_original_weights()
        draws = self._draws = self._draw_samples()
        statistics = self._dataset_statistics({name: draw.before for name, draw in draws.items()})
        self._refuse_unmeasurable(statistics)
        first = self._unlearning_state if self.model_init is None else None
        forget = statistics["forget"]
        target = make_target(
            self.target_kind, self.args.forget_target, self.args.hinge, statistics, self.forgotten_labels
        )
        original_losses, latest_scores = (
            spread(values, draws["forget"].before, len(self.forget_ds))
            for values in (forget.losses, target.measured(forget))
        )
        state = UnlearningState(
            target=target,
            original_losses=original_losses,
            latest_scores=latest_scores,
            score_ages=torch.full((len(latest_scores),), -1.0),
            metrics_before=self._metrics_before(statistics) if first is None else first.metrics_before,
            original_hash=original_hash,
            retain_before=statistics["retain"].losses if first is None else first.retain_before,
            begins_with_original=first is None,
            hyperparameters=asdict(self.method.hp),
        )
        self.method.on_train_begin(self._calibration_pass())
        state.method = self.method.state_dict()
        self._go_back(state, is_first=first is None)
        self._forget_outputs(state)
        return state

    def _go_back(self, state: UnlearningState, is_first: bool) -> None:
        """Move the weights a share of the way to those before training, where the run is to begin there."""
        if goes_back := self._base is not None and is_first:
            assert self._base is not None
            go_back(self.model, self._base, self._reset_share, self.added_adapter)
        if goes_back or self.method.resets_weights:
            state.retain_after_reset = self.guard.retain_loss()

    def _forget_outputs(self, state: UnlearningState) -> None:
        """Take the weights of forgotten classes out of the output layer, where the target is what the run descends."""
        method, target = self.method, state.target
        if not isinstance(target, MaskedClassTarget) or not method.raises_forget_loss:
            return
        if method.objective(target, state.original_losses) is not target:
            return
        if self._is_sharded or not reset_outputs(self.model, target.classes):
            logger.warning(
                "model: the output layer's weights of the forgotten classes stay, as it is not a linear layer that "
                "trains on every process; an attack may find the classes there"
            )

    @torch.no_grad()
    def _check_original(self) -> None:
        """Refuse a resumed run whose original model is not the one that the run began with.

        Raises:
            ValueError: it has other losses on the first forget samples than the checkpoint says.
        """
        if self.method.original_model is None:
            return
        batch = next(iter(self._calibration_pass().batches("forget")), None)
        if batch is None:
            return  # fewer forget samples than processes
        with self.compute_loss_context_manager():
            losses = self.head.losses(self.head.run(self.method.original_model, batch), batch).cpu()
        self.cost.add("measuring", len(losses))
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        expected = self.unlearning_state.original_losses[rank::processes][: len(losses)]
        if not torch.allclose(losses.double(), expected.double(), rtol=1e-2, atol=1e-2):
            raise ValueError(
                f"model: is not the one that the run in the checkpoint began with, which {self.method.name} compares "
                "with; give the trainer the original model, train(resume_from_checkpoint=...) loads the weights"
            )
