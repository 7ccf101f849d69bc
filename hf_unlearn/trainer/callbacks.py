"""The trainer's callbacks: what happens around a step, stopping at the target, audits during a run."""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
import weakref
from typing import Any

from transformers import TrainerCallback

from hf_unlearn.data.splitting import subsample
from hf_unlearn.losses.head import SEVERAL
from hf_unlearn.report.audit_report import AuditReport
from hf_unlearn.trainer.evaluation import EvaluationMixin
from hf_unlearn.trainer.surgery_step import SurgeryStep

logger = logging.getLogger(__name__)
# Ascent is exponential near the end: check often, on few samples.
CHECK_STEPS = 5
CHECK_SAMPLES = 256
CHECK_SAMPLES_OF_TOKENS = 64  # beside batches that are four times smaller, too
# A rise of ln 2 halves the probability that the model gives to what it should keep.
RETAIN_GUARD = math.log(2)
CLASS_ACCURACY = 0.01


class TargetStoppingCallback(TrainerCallback):
    """Stops training when, on a fixed sample, the forget loss (a class: accuracy) is at its target.

    A guard stops it too, with a warning, when the loss on a fixed sample of the retain dataset has risen by over ln 2.

    Args:
        trainer: the trainer that is watched.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        samples = CHECK_SAMPLES_OF_TOKENS if trainer.head.kind in SEVERAL else CHECK_SAMPLES
        self.forget = subsample(trainer.forget_ds, samples)
        self.retain = subsample(trainer.retain_ds, samples)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the retain sample; a resumed run has it in its checkpoint."""
        if self.trainer.retain_before is None:
            self.trainer.retain_before = float(self.trainer._collect_statistics(self.retain).losses.mean())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Every few steps: measure, and stop if there."""
        if state.global_step % CHECK_STEPS:
            return
        forget, retain = self.trainer._collect_statistics(self.forget), self.trainer._collect_statistics(self.retain)
        limit = self.trainer.retain_before + RETAIN_GUARD
        target = self.trainer.target.value
        if self.trainer.request == "class" and not forget.correct.isnan().any():
            reached = float(forget.correct.mean()) <= CLASS_ACCURACY
        else:
            reached = target is not None and float(forget.losses.mean()) >= target
        if reached:
            logger.info(f"Forgetting target reached at step {state.global_step}")
        elif not float(retain.losses.mean()) <= limit:
            logger.warning(f"Stopped at step {state.global_step}: the retain loss has risen by more than ln 2")
        else:
            return
        control.should_training_stop = True


class Conductor(TrainerCallback):
    """Calls the trainer at the moments that only callbacks see."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure, and set the target."""
        self.trainer._begin()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell the sampler, which loaders that resume do not reach."""
        self.trainer.pair_sampler.epoch = int(state.epoch + 1e-6)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remember the weights, where the step is to be looked at."""
        if isinstance(self.trainer.step, SurgeryStep):
            # The log that shows this step's metrics is written once its number is counted.
            self.trainer.step.before_update(watch=(state.global_step + 1) % state.logging_steps == 0)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Correct the step."""
        if isinstance(self.trainer.step, SurgeryStep):
            self.trainer.step.after_update()
        self.trainer.method.on_optimizer_step(self.trainer._trainable_parameters())


class AuditCallback(TrainerCallback):
    """Audits whenever the trainer evaluates: `eval_strategy="steps"`, `eval_steps=N`.

    The report's metrics join those of the evaluation (`eval_mia_loss_auc`, with a retrained model `eval_gap`), so that
    `metric_for_best_model="gap"` with `load_best_model_at_end=True` keeps the checkpoint nearest to a retrained model.

        trainer.add_callback(AuditCallback(trainer, unseen_ds=test_ds, retrained=retrained))

    Args:
        trainer: that it is added to.
        resamples: bootstrap samples; fewer than in a final audit, as it is done often.
        **kwargs: as in `trainer.audit`.

    Attributes:
        reports: one an evaluation, in order.
    """

    def __init__(self, trainer: EvaluationMixin, *, resamples: int = 200, **kwargs: Any):
        self.trainer, self.kwargs = trainer, {"resamples": resamples, **kwargs}
        self.reports: list[AuditReport] = []
        # What the retrained model says of its samples does not change during the run.
        if "cache_dir" not in kwargs:
            self.kwargs["cache_dir"] = kept = tempfile.mkdtemp()
            weakref.finalize(self, shutil.rmtree, kept, ignore_errors=True)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Audit, log, and add to what the trainer chooses the best checkpoint by."""
        if "eval_forget_loss" not in metrics:
            return  # that was an evaluation dataset; the metrics of forgetting come after it
        report = self.trainer.audit(**self.kwargs)
        self.reports.append(report)
        found = {f"eval_{name}": value for name, value in report.metrics.items()}
        metrics.update(found)
        self.trainer.log({name: value for name, value in found.items() if not name.endswith(("_low", "_high"))})
