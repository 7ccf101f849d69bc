"""`hf-unlearn audit`: has a model forgotten?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from hf_unlearn.auditing.audit import audit
from hf_unlearn.cli import UsageError
from hf_unlearn.cli.datasets import load_datasets
from hf_unlearn.cli.settings import DataSettings, parse, setting
from hf_unlearn.models.loading import load_model
from hf_unlearn.training import quiet


@dataclass
class AuditSettings(DataSettings):
    """The settings of `audit`."""

    original: str | None = setting(None, "The model before.")
    retrained: str | None = setting(None, "A model retrained without the forget dataset.")
    out: str = setting("audit.html", "The page; the metrics go beside it, as .json.")
    request: str | None = setting(None, "samples, class or group; default: by the column that forget names.")
    relearning: bool = setting(False, "Also try to bring the data back.")
    group_column: str | None = setting(None, "Column to break the metrics down by.")
    batch_size: int = setting(256, "Samples a batch.")
    cache_dir: str | None = setting(None, "Where per-sample losses are kept, so that a second audit is instant.")
    seed: int = setting(42, "Of a random share, as in run, and of everything else.")


def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    found = parse("audit", [AuditSettings], argv)
    if found is None:
        return 0
    [settings] = found
    settings.require("model", "dataset", "forget")
    if settings.unseen_split is None and settings.unseen_dataset is None:
        raise UsageError("--unseen_split is missing: forgotten samples are compared with samples never trained on")
    page = Path(settings.out)
    if page.suffix != ".html":
        raise UsageError(f"--out: {settings.out!r} should end with .html; the metrics go beside it, as .json")
    quiet()
    state = PartialState()
    names = {"model": settings.model, "original": settings.original, "retrained": settings.retrained}
    models: dict[str, Any] = {what: load_model(name).to(state.device) for what, name in names.items() if name}
    with state.main_process_first():
        sets, processor = load_datasets(settings, models["model"], settings.request, settings.seed)
    report = audit(
        **models,
        **sets,
        request=settings.request,
        relearning=settings.relearning,
        group_column=settings.group_column,
        processing_class=processor,
        batch_size=settings.batch_size,
        seed=settings.seed,
        cache_dir=settings.cache_dir,
    )
    if state.is_main_process:
        report.print()
        page.parent.mkdir(parents=True, exist_ok=True)
        print(f"Page: {report.to_html(page)}, metrics: {report.to_json(page.with_suffix('.json'))}")
    return 0
