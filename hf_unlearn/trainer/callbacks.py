"""The trainer's callbacks: what happens around a step, stopping at the target, audits during a run."""

from __future__ import annotations

import logging
import shutil
import tempfile
import weakref
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy
from typing_extensions import Unpack, override

from hf_unlearn.auditing.audit import AuditOptions
from hf_unlearn.data.splitting import subsample
from hf_unlearn.data.types import AnyDataset
from hf_unlearn.methods import Method
from hf_unlearn.report.audit_report import AuditReport
from hf_unlearn.trainer.evaluation import EvaluationMixin
from hf_unlearn.trainer.guard import CHECK_STEPS, DivergenceGuard, check_samples
from hf_unlearn.trainer.hub import HubMixin
from hf_unlearn.trainer.loss_step import LossStep, trainable_parameters
from hf_unlearn.trainer.outcome import CLASS_ACCURACY

logger = logging.getLogger(__name__)
RESAMPLES = 200


class StepCallback(TrainerCallback):
    """What step and method do on either side of the optimizer's step, of which `Trainer` tells callbacks alone.

    Args:
        step: of the run.
        method: of the run.
    """

    def __init__(self, step: LossStep, method: Method):
        self.step, self.method = step, method

    @override
    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # The log that has this step's metrics is written once the step is counted.
        self.step.on_pre_optimizer_step(is_logged=(state.global_step + 1) % state.logging_steps == 0)

    @override
    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.step.on_optimizer_step()
        self.method.on_optimizer_step(trainable_parameters(model))


class TargetStoppingCallback(TrainerCallback):
    """Stops training when, on a fixed sample, the forget loss (a class: accuracy) is at its target.

    The guard is asked first: a model that has been destroyed has reached no target.

    Args:
        trainer: the trainer that is watched.
        guard: of the same trainer.
    """

    def __init__(self, trainer: HubMixin, guard: DivergenceGuard):
        self.trainer, self.guard = trainer, guard
        self.forget_ds = subsample(trainer.forget_ds, check_samples(trainer.head.kind))

    @override
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Every few steps: measure, and stop if there."""
        if state.global_step % CHECK_STEPS or self.guard.reason is not None:
            return
        forget, target = self.trainer._collect_statistics(self.forget_ds), self.trainer.unlearning_state.target
        if self.trainer.request == "class" and not forget.correct.isnan().any():
            is_reached = float(forget.correct.mean()) <= CLASS_ACCURACY
        else:
            is_reached = target.value is not None and not float(forget.losses.mean()) < target.value
        if not is_reached:
            return
        if not self.guard.is_good(state.global_step):
            self.guard.stop(state.global_step, control)
            return
        logger.info(f"Forgetting target reached at step {state.global_step}")
        self.trainer.unlearning_state.ended = control.should_training_stop = True
        control.should_save = control.should_save or args.save_strategy == SaveStrategy.STEPS


class AuditCallback(TrainerCallback):
    """Audits whenever the trainer evaluates: `eval_strategy="steps"`, `eval_steps=N`.

    The report's metrics join those of the evaluation (`eval_mia_loss_auc`, with a retrained model `eval_gap`), so that
    `metric_for_best_model="gap"` with `load_best_model_at_end=True` keeps the checkpoint nearest to a retrained model.

        trainer.add_callback(AuditCallback(trainer, unseen_ds=test_ds, retrained=retrained))

    Args:
        trainer: that it is added to.
        unseen_ds: as in `trainer.audit`.
        **options: as in `trainer.audit`; `resamples` is 200 by default, fewer than in a final audit.

    Attributes:
        reports: one an evaluation, in order.
    """

    def __init__(
        self, trainer: EvaluationMixin, *, unseen_ds: AnyDataset | None = None, **options: Unpack[AuditOptions]
    ):
        self.trainer, self.unseen_ds = trainer, unseen_ds
        self.options: AuditOptions = {"resamples": RESAMPLES, **options}
        self.reports: list[AuditReport] = []
        # What the retrained model says of its samples does not change during the run.
        if "cache_dir" not in options:
            self.options["cache_dir"] = cache_dir = tempfile.mkdtemp()
            weakref.finalize(self, shutil.rmtree, cache_dir, ignore_errors=True)

    @override
    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Audit, log, and add to what the trainer chooses the best checkpoint by."""
        if "eval_forget_loss" not in metrics:
            return  # one of several evaluation datasets, but the first: the metrics of forgetting are there
        report = self.trainer.audit(self.unseen_ds, **self.options)
        self.reports.append(report)
        added = {f"eval_{name}": value for name, value in report.metrics.items()}
        metrics.update(added)
        self.trainer.log({name: value for name, value in added.items() if not name.endswith(("_low", "_high"))})
