"""The guard against divergence: it stops a run of any method, and puts the last good weights back."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from typing_extensions import override

from hf_unlearn.data.splitting import select
from hf_unlearn.trainer.loss_step import put_weights, trainable_parameters
from hf_unlearn.trainer.pacing import PacingMixin

logger = logging.getLogger(__name__)
# Ascent is exponential near the end: check often, on few samples.
CHECK_STEPS = 5
# A rise of ln 2 halves the probability that the model gives to what it should keep.
RETAIN_GUARD = math.log(2)
# Kinds of head whose losses are no nats a decision: what they may rise by follows their size.
KINDS_WITHOUT_UNIT = ("regression", "ctc", "custom")


def retain_limit(loss_before: float, head_kind: str) -> float:
    """The retain loss above which a run has diverged: ln 2 above where it began.

    Args:
        loss_before: the original model's.
        head_kind: of the model; where losses are no nats a decision, the rise is ln 2 times a loss above 1.

    Examples:
        >>> round(retain_limit(3.0, "causal_lm"), 3), round(retain_limit(3.0, "regression"), 3)
        (3.693, 5.079)
    """
    return loss_before + RETAIN_GUARD * (max(1.0, loss_before) if head_kind in KINDS_WITHOUT_UNIT else 1.0)


class DivergenceGuard(TrainerCallback):
    """Stops a run whose loss or gradient is not finite, or whose retain loss has risen too far, and undoes the harm.

    Where the learning rate was chosen by the trainer, the run goes on at a lower one instead, as long as there is one.

    Every few steps, before the optimizer's step and before each checkpoint, it looks at the losses of the step: they
    are those of the weights as they are then. Where these retain losses have risen by half of what they may, and where
    the step has none, it measures a fixed sample of the retain dataset. Weights that are found good are copied to the
    memory of the CPU, and put back when the run is stopped.

    Args:
        trainer: that is watched.

    Attributes:
        reason: why the run was stopped; None where it was not.
        good_step: the number of steps after which the weights were last found good.
    """

    def __init__(self, trainer: PacingMixin):
        self.trainer = trainer
        self.reason: str | None = None
        self.good_step = 0
        self._weights: dict[str, Tensor] = {}
        self._is_finite: Tensor | None = None

    # ---- what the trainer tells it ----

    def begin(self, step: int) -> None:
        """Begin a run, or go on after `step` steps, with weights that are good."""
        self.reason, self._weights, self._is_finite = None, {}, None
        if self.trainer._is_sharded:
            logger.info("The weights are spread over processes: a run that diverges ends in an error")
        self._keep_weights(step)

    def fall_back_to(self, weights: Mapping[str, Tensor]) -> None:
        """Take weights, those of the original model, for the last good ones until a check finds later ones good."""
        self.good_step = 0
        self._weights = {name: weight.clone() for name, weight in weights.items()}

    def retain_loss(self) -> float:
        """Mean loss of the model as it is now on the retain samples that are measured before and after the run."""
        drawn = select(self.trainer.retain_ds, self.trainer._draws["retain"].after)
        return float(self.trainer._collect_statistics(drawn).losses.mean())

    def add_loss(self, loss: Tensor) -> None:
        """Take in the loss of a batch of the step."""
        is_finite = loss.detach().isfinite().all()
        self._is_finite = is_finite if self._is_finite is None else self._is_finite & is_finite

    def check_step(self, parameters: Mapping[str, nn.Parameter], retain_losses: Sequence[Tensor], step: int) -> None:
        """Look at a step, after its backward pass; what is wrong is acted upon when the step ends.

        Args:
            parameters: those that train, with the step's gradients.
            retain_losses: of the step's retain samples on this process, a tensor a batch; empty where it has none.
            step: number of steps before it.
        """
        # A loss scaler finds its scale by gradients that are not finite, and takes no step with them.
        if not self.trainer._is_sharded and self.trainer.accelerator.scaler is None:
            gradients = [p.grad for p in parameters.values() if p.grad is not None]
            if gradients:
                self.add_loss(torch.stack([torch.linalg.vector_norm(g.float()) for g in gradients]))
        if step % CHECK_STEPS == 0 and self.reason is None:
            self.is_good(step, retain_losses)

    def is_good(self, step: int, retain_losses: Sequence[Tensor] = ()) -> bool:
        """Whether all losses since the run began were finite and the retain loss is within its limit.

        Weights that are good are kept; otherwise `reason` says what is wrong. All processes have to call it.

        Args:
            step: the number of steps done.
            retain_losses: of retain samples under the weights as they are now; without them the fixed sample is
                measured.
        """
        state = self.trainer.unlearning_state
        before = state.metrics_before["retain_loss"]
        limit = retain_limit(before, self.trainer.head.kind)
        if self._is_finite is not None:
            finite = self.trainer.accelerator.reduce(self._is_finite.float(), "sum")
            if float(finite) < self.trainer.accelerator.num_processes:
                self.reason = "the loss or its gradient was not finite"
                return False
        if retain_losses:
            loss = float(self.trainer.accelerator.reduce(torch.cat(list(retain_losses)).mean(), "mean"))
        if not retain_losses or not loss <= (before + limit) / 2:
            loss = self.retain_loss()
        if loss <= limit:
            self._keep_weights(step)
            return True
        # What a reset took comes back by and by; until then the original's weights are the last good ones.
        reset = state.retain_after_reset
        if reset is not None and self.good_step == 0 and loss <= retain_limit(reset, self.trainer.head.kind):
            return True
        self.reason = f"the retain loss rose from {before:.3g} to {loss:.3g}, by more than ln 2"
        return False

    def accepts(self, metrics: Mapping[str, float]) -> bool:
        """Whether a run may end with these metrics; otherwise `reason` says why not."""
        before = self.trainer.unlearning_state.metrics_before["retain_loss"]
        loss = metrics["retain_loss"]
        if not all(math.isfinite(value) for name, value in metrics.items() if name.endswith("_loss")):
            self.reason = "losses are not finite at its end"
        elif not loss <= retain_limit(before, self.trainer.head.kind):
            self.reason = f"the retain loss rose from {before:.3g} to {loss:.3g}, by more than ln 2"
        return self.reason is None

    # ---- what it does ----

    @override
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop where the step was bad; no checkpoint is written of weights that are not good."""
        if self.reason is None and not (control.should_save and not self.is_good(state.global_step)):
            return
        self.stop(state.global_step, control)

    @override
    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """As after a step: checkpoints may be written once an epoch."""
        if self.reason is None:  # otherwise the last step has been stopped at
            self.on_step_end(args, state, control)

    def stop(self, step: int, control: Any) -> None:
        """End the run, once it has diverged, or go on at a lower rate; without a checkpoint.

        Raises:
            ValueError: samples that the last steps read have no finite loss under good weights either.
            RuntimeError: the weights are spread over processes, and cannot be put back.
        """
        self._put_back(step)
        control.should_save = False
        if self.trainer.begin_again():
            logger.warning(
                f"Diverged at step {step}, as {self.reason}; the weights of step {self.good_step} were put back, and "
                f"the run goes on at a learning rate of {self.trainer.highest_rate:.2g}"
            )
            self.reason, self._is_finite = None, None
            return
        control.should_training_stop = True
        self._warn(step)

    def put_back(self, step: int) -> None:
        """Put the last good weights back, with a warning; raises as `stop` does."""
        self._put_back(step)
        self._warn(step)

    def _put_back(self, step: int) -> None:
        if self.trainer._is_sharded:
            raise RuntimeError(
                f"The run diverged at step {step}: {self.reason}. Its weights are spread over processes, and the last "
                "good ones cannot be put back; lower learning_rate and begin again"
            )
        put_weights(self.trainer.model, self._weights)
        self.trainer.refuse_samples_without_loss(self.good_step, step)

    def _warn(self, step: int) -> None:
        logger.warning(
            f"Diverged: stopped at step {step}, as {self.reason}; the weights of step {self.good_step} were put back"
        )

    @torch.no_grad()
    def _keep_weights(self, step: int) -> None:
        self.good_step = step
        for name, p in {} if self.trainer._is_sharded else trainable_parameters(self.trainer.model).items():
            if name not in self._weights:
                self._weights[name] = torch.empty_like(p, device="cpu", pin_memory=p.is_cuda)
            self._weights[name].copy_(p, non_blocking=True)
