"""`hf-unlearn audit`: has a model forgotten?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from hf_unlearn.auditing.audit import audit
from hf_unlearn.cli import UsageError
from hf_unlearn.cli.datasets import load_sets
from hf_unlearn.cli.settings import DataSettings, parse, setting
from hf_unlearn.models.loading import load_model
from hf_unlearn.training import quiet


@dataclass
class AuditSettings(DataSettings):
    """The settings of `audit`."""

    original: str | None = setting(None, "The model before.")
    reference: str | None = setting(None, "A model retrained without the forget set.")
    out: str = setting("audit.html", "The page; the figures go beside it, as .json.")
    request: str | None = setting(None, "rows, class or group; default: by the column that forget names.")
    relearning: bool = setting(False, "Also try to bring the data back.")
    group_column: str | None = setting(None, "Column to break the figures down by.")
    batch_size: int = setting(256, "Rows a batch.")
    cache_dir: str | None = setting(None, "Where per-row losses are kept, so that a second audit is instant.")
    seed: int = setting(42, "Of a random share, as in run, and of everything else.")


def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    found = parse("audit", [AuditSettings], argv)
    if found is None:
        return 0
    [settings] = found
    settings.require("model", "dataset", "forget")
    if settings.unseen_split is None and settings.unseen_dataset is None:
        raise UsageError("--unseen_split is missing: forgotten rows are compared with rows never trained on")
    page = Path(settings.out)
    if page.suffix != ".html":
        raise UsageError(f"--out: {settings.out!r} should end with .html; the figures go beside it, as .json")
    quiet()
    state = PartialState()
    names = {"model": settings.model, "original": settings.original, "reference": settings.reference}
    models: dict[str, Any] = {what: load_model(name).to(state.device) for what, name in names.items() if name}
    with state.main_process_first():
        sets, processor = load_sets(settings, models["model"], settings.request, settings.seed)
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
        print(f"Page: {report.to_html(page)}, figures: {report.to_json(page.with_suffix('.json'))}")
    return 0
