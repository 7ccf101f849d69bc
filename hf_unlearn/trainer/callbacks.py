"""The trainer's callbacks: what happens around a step, stopping at the target, audits during a run."""

from __future__ import annotations

import logging
import shutil
import tempfile
import weakref
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_utils import SaveStrategy
from typing_extensions import Unpack, override

from hf_unlearn.auditing.audit import AuditOptions
from hf_unlearn.data.types import AnyDataset
from hf_unlearn.methods import Method
from hf_unlearn.report.audit_report import AuditReport
from hf_unlearn.trainer.evaluation import EvaluationMixin
from hf_unlearn.trainer.guard import DivergenceGuard
from hf_unlearn.trainer.hub import HubMixin
from hf_unlearn.trainer.loss_step import LossStep, trainable_parameters

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


class EndingCallback(TrainerCallback):
    """Measures how a run has ended, while it can still be reported.

    Args:
        measure: what to call.
    """

    def __init__(self, measure: Callable[[], None]):
        self.measure = measure

    @override
    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.measure()


def order_callbacks(callbacks: list[TrainerCallback], step: StepCallback, ending: EndingCallback) -> None:
    """Put `step` first, so that others see the weights that a step ends with, and `ending` after them.

    What reports a run closes it when told of its end, and is told last: the metrics after it are part of it.
    """
    reporting = tuple(INTEGRATION_TO_CALLBACK.values())
    reports = [callback for callback in callbacks if isinstance(callback, reporting)]
    earlier_runs = (StepCallback, EndingCallback)
    others = [callback for callback in callbacks if not isinstance(callback, (*earlier_runs, *reporting))]
    callbacks[:] = [step, *others, ending, *reports]


class TargetStoppingCallback(TrainerCallback):
    """Ends a run when its pace says so: at its target, once the rate has fallen.

    The guard is asked first: a model that has been destroyed has reached no target.

    Args:
        trainer: the trainer that is watched.
        guard: of the same trainer.
    """

    def __init__(self, trainer: HubMixin, guard: DivergenceGuard):
        self.trainer, self.guard = trainer, guard

    @override
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop where the run has ended."""
        pace = self.trainer.pace
        if pace is None or pace.arrived is None or state.global_step < pace.last_step or self.guard.reason is not None:
            return
        if not self.guard.is_good(state.global_step):
            self.guard.stop(state.global_step, control)
            return
        logger.info(f"Forgetting target reached at step {pace.arrived}")
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
