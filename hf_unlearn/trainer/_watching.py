"""Audits during a run, so that forgetting can be seen, stopped, and kept where it was best."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from typing import Any

from transformers import TrainerCallback

from hf_unlearn.report.audit_report import AuditReport
from hf_unlearn.trainer.evaluation import MeasuringTrainer


class AuditCallback(TrainerCallback):
    """Audits whenever the trainer evaluates: `eval_strategy="steps"`, `eval_steps=N`.

    The report's metrics join those of the evaluation (`eval_mia_loss_auc`, with a reference `eval_gap`), so that
    `metric_for_best_model="gap"` with `load_best_model_at_end=True` keeps the checkpoint nearest to a retrained model.

        trainer.add_callback(AuditCallback(trainer, unseen=test_ds, reference=retrained))

    Args:
        trainer: that it is added to.
        resamples: bootstrap samples; fewer than in a final audit, as it is done often.
        **kwargs: as in `trainer.audit`.

    Attributes:
        reports: one an evaluation, in order.
    """

    def __init__(self, trainer: MeasuringTrainer, *, resamples: int = 200, **kwargs: Any):
        self.trainer, self.kwargs = trainer, {"resamples": resamples, **kwargs}
        self.reports: list[AuditReport] = []
        # What the reference says of its rows does not change during the run.
        if "cache_dir" not in kwargs:
            self.kwargs["cache_dir"] = kept = tempfile.mkdtemp()
            weakref.finalize(self, shutil.rmtree, kept, ignore_errors=True)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Audit, log, and add to what the trainer chooses the best checkpoint by."""
        if "eval_forget_loss" not in metrics:
            return  # that was an evaluation set; the figures of forgetting come after it
        report = self.trainer.audit(**self.kwargs)
        self.reports.append(report)
        found = {f"eval_{name}": value for name, value in report.metrics.items()}
        metrics.update(found)
        self.trainer.log({name: value for name, value in found.items() if not name.endswith(("_low", "_high"))})
