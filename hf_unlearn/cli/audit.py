"""`hf-unlearn audit`: an audit of any model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState

from hf_unlearn.auditing.audit import audit
from hf_unlearn.cli import UsageError, before_work
from hf_unlearn.cli.datasets import load_datasets
from hf_unlearn.cli.settings import GENERAL_DS, DataSettings, check_at_least, parse, setting
from hf_unlearn.data.types import RequestKind
from hf_unlearn.models.loading import load_model
from hf_unlearn.trainer.cost import training_epochs
from hf_unlearn.training import quiet


@dataclass
class AuditSettings(DataSettings):
    """The settings of `audit`."""

    original: str | None = setting(None, "The original model: before unlearning.")
    retrained: list[str] | None = field(
        default=None, metadata={"help": "Models retrained without the forget dataset, with other seeds."}
    )
    out: str = setting("audit.html", "The HTML report; the metrics go beside it, as .json.")
    request: RequestKind | None = field(
        default=None, metadata={"help": "Kind of request; default: by the column that --forget names."}
    )
    relearning: bool = setting(False, "Also try to recover the forgotten data.")
    group_column: str | None = setting(None, "Column to break the metrics down by.")
    general_ds: str | None = setting(None, GENERAL_DS)
    batch_size: int | None = setting(None, "Samples in a batch (default: by tokens and vocabulary, at most 64).")
    cache_dir: str | None = setting(None, "Where per-sample statistics are saved, which a second audit then reads.")
    seed: int = setting(42, "Seed of a random --forget, as in run, and of everything else.")


SETTINGS = (AuditSettings,)


def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    parsed = parse("audit", SETTINGS, argv)
    if parsed is None:
        return 0
    [settings] = parsed
    with before_work():
        settings.require("model", "dataset", "forget")
        check_at_least(0, settings, "seed")
        if settings.batch_size is not None:
            check_at_least(1, settings, "batch_size")
    if settings.unseen_split is None and settings.unseen_dataset is None:
        raise UsageError(
            "unseen_split: is missing, and forgotten samples are compared with samples never trained on; give it, or "
            "unseen_dataset"
        )
    html_path = Path(settings.out)
    if html_path.suffix != ".html":
        raise UsageError(f"out: {settings.out!r} must end with .html; the metrics go beside it, as .json")
    quiet()
    state = PartialState()
    names = {"model": settings.model, "original": settings.original}
    trained = [*(settings.retrained or ()), *filter(None, (settings.original, settings.model))]
    with before_work():
        models: dict[str, Any] = {
            role: load_model(name, argument=role).to(state.device) for role, name in names.items() if name
        }
        models["retrained"] = [
            load_model(name, argument="retrained").to(state.device) for name in settings.retrained or ()
        ]
        with state.main_process_first():
            data = load_datasets(settings, models["model"], settings.request, settings.seed)
    with before_work():  # nothing is written before its end
        report = audit(
            **models,
            forget_ds=data.forget_ds,
            retain_ds=data.retain_ds,
            unseen_ds=data.unseen_ds,
            request=settings.request,
            relearning=settings.relearning,
            group_column=settings.group_column,
            processing_class=data.processor,
            batch_size=settings.batch_size,
            seed=settings.seed,
            cache_dir=settings.cache_dir,
            general_ds=settings.general_ds,
            training_passes=next(filter(None, map(training_epochs, trained)), None),
        )
    if state.is_main_process:
        report.print()
        html_path.parent.mkdir(parents=True, exist_ok=True)
        print(f"Report: {report.to_html(html_path)}, metrics: {report.to_json(html_path.with_suffix('.json'))}")
    return 0
