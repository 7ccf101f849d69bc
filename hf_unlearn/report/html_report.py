"""The HTML report of an audit: one file that loads nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from hf_unlearn.report import charts, svg
from hf_unlearn.report.audit_result import MODELS, AuditResult
from hf_unlearn.report.meanings import DATASETS, attack_label, meaning, metric_label
from hf_unlearn.report.numbers import natural_key, show, show_difference
from hf_unlearn.report.tables import metric_names, metrics_by_model

# Level of the verdict to sign and colour of its badge: what is bad has one colour, what is not known has none.
BADGES = {
    "consistent": ("✓", "green"),
    "remembers": ("✗", "vermillion"),
    "over-forgotten": ("✗", "vermillion"),
    "hidden": ("✗", "vermillion"),
    "damaged": ("✗", "vermillion"),
    "unclear": ("?", "muted"),
}
# First word of a metric to the heading of its block.
BLOCKS = {
    "forget": "On forget samples",
    "retain": "On retain samples",
    "unseen": "On unseen samples",
    "general": "General ability",
    "mia": "Membership inference",
    "probe": "Gone, or only hidden",
    "extraction": "Gone, or only hidden",
    "depth": "Gone, or only hidden",
    "relearn": "Gone, or only hidden",
    "relearned": "Gone, or only hidden",
    "finetuned": "Gone, or only hidden",
    "int8": "Gone, or only hidden",
    "int4": "Gone, or only hidden",
    "one": "Gone, or only hidden",
    "without": "Gone, or only hidden",
    "": "Overall",
}
# First words of the metrics that `relearning=True` adds.
ATTEMPTS = ("probe_", "relearn_", "finetuned_")
# With more models a table has no room for a column each, and its cells are laid out below each other.
MOST_COLUMNS = 6
# Entries of `about` that have a place of their own.
COUNTED = ("forget_samples", "retain_samples", "unseen_samples", "measured", "attacked", "groups")


def to_html(report: AuditResult, path: str | Path) -> Path:
    """Write the HTML report: light and dark, without scripts, readable on a phone and on paper.

    Args:
        report: the result of an audit; its texts are escaped, never read as HTML.
        path: the file to write.

    Returns:
        `path`.
    """
    environment = Environment(
        loader=PackageLoader("hf_unlearn.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    models = metrics_by_model(report)
    sections = (charts.losses(report), charts.attacks(report), charts.relearning(report), charts.training(report))
    html = environment.get_template("audit.html").render(
        verdict=report.verdict,
        badge=BADGES[report.verdict["level"]],
        limits=[*_limits(report, models), *report.notes],
        models=list(models),
        most_columns=MOST_COLUMNS,
        blocks=_blocks(models, charts.loss_unit(report)),
        glance=charts.at_a_glance(models),
        differences=_differences(report),
        sections=[section for section in sections if section],
        breakdown=_breakdown(report),
        samples=_samples(report),
        about={name.replace("_", " "): _text(v) for name, v in report.about.items() if name not in COUNTED},
        svg=svg,
    )
    path = Path(path)
    path.write_text(html, encoding="utf-8")
    return path


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(item)}" for name, item in value.items())
    return ", ".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)


def _limits(report: AuditResult, models: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What was not given or not tried, and is therefore not known."""
    limits = []
    if "retrained" not in models:
        limits.append(
            "No retrained model was given: it is not known what the forget samples look like to a model that never "
            "saw them. They are compared with unseen samples."
        )
    if not report.relearning and not any(name.startswith(ATTEMPTS) for name in models["audited"]):
        limits.append("Nothing was tried to bring the data back: it is not known whether it is gone, or only hidden.")
    return limits


def _differences(report: AuditResult) -> list[list[str]]:
    """Rows of the table of what the verdict goes by."""
    return [
        [
            metric_label(d["metric"]), show(d["audited"], d["metric"]), show(d["expected"], d["metric"]),
            show_difference(d["low"], d["high"], d["metric"]), "no" if d["low"] <= 0 <= d["high"] else "yes",
        ]
        for d in report.differences
    ]  # fmt: skip


def _blocks(models: Mapping[str, Mapping[str, float]], unit: str) -> dict[str, list[dict[str, Any]]]:
    """Rows of the table of metrics, by the heading of their block."""
    blocks: dict[str, list[dict[str, Any]]] = {heading: [] for heading in BLOCKS.values()}
    for name in metric_names(models):
        cells = []
        for model, metrics in models.items():
            ends = [metrics.get(f"{name}_{end}") for end in ("low", "high")]
            low, high = (show(end, name).removesuffix(" %") for end in ends)
            interval = "" if ends[0] is None else f"{low} – {high}"  # noqa: RUF001
            cells.append((model, show(metrics.get(name), name), interval))
        first = name.partition("_")[0]
        row = {"name": metric_label(name), "meaning": meaning(name, unit), "cells": cells}
        blocks[BLOCKS.get(first, BLOCKS[""])].append(row)
    for rows in blocks.values():  # metrics with one meaning are grouped: the AUC of every attack
        meanings = [row["meaning"] for row in rows]
        rows.sort(key=lambda row: meanings.index(row["meaning"]))
    return {heading: rows for heading, rows in blocks.items() if rows}


def _breakdown(report: AuditResult) -> dict[str, Any]:
    """The table of classes or groups, by dataset; bars are shares of the largest value, accuracies of 1."""
    entries = report.breakdown
    # All that were measured: one that has diverged has no finite mean, and a column of dashes.
    models = list(metrics_by_model(report))
    # A model with accuracies has them per group too; a model without has losses.
    has_accuracy = any(name.endswith("_accuracy") and name[:3] != "mia" for name in report.metrics)
    measure = "accuracy" if has_accuracy else "loss"
    largest = max((entry[model] for entry in entries for model in models if model in entry), default=0.0)
    largest = 1.0 if has_accuracy or largest <= 0 else largest
    others = [model for model in models if model not in MODELS]

    def cell(entry: Mapping[str, Any], model: str) -> tuple[str, str, float, str]:
        """Model, text of its metric, per cent of its bar, colour."""
        width = 100 * max(0.0, entry.get(model, 0.0)) / largest
        return model, show(entry.get(model), measure), round(width, 1), svg.model_style(model, others).colour

    blocks = {
        name: [
            {"group": str(entry["group"]), "samples": show(entry["samples"], "samples")}
            | {"cells": [cell(entry, model) for model in models]}
            for entry in sorted(entries, key=lambda entry: natural_key(str(entry["group"])))
            if entry["dataset"] == name
        ]
        for name in [*DATASETS, *sorted({entry["dataset"] for entry in entries} - set(DATASETS))]
    }
    shown = len({entry["group"] for entry in entries})
    return {
        "models": models,
        "measure": measure,
        "blocks": {name: rows for name, rows in blocks.items() if rows},
        "shown": show(shown, "samples"),
        "left_out": max(0, report.about.get("groups", shown) - shown),
        "groups": show(report.about.get("groups", shown), "samples"),
    }


def _samples(report: AuditResult) -> list[tuple[str, list[str]]]:
    """How many samples were given, measured and attacked: rows of a table with a column a dataset."""
    about = report.about
    attacks_by_counts: dict[tuple[int | None, ...], list[str]] = {}
    for attack, counts in about.get("attacked", {}).items():
        attacks_by_counts.setdefault(tuple(map(counts.get, DATASETS)), []).append(attack_label(attack))
    rows = [
        ("given", [about.get(f"{name}_samples") for name in DATASETS]),
        ("measured", [about.get("measured", {}).get(name) for name in DATASETS]),
        *((f"attacked by {', '.join(attacks)}", list(counts)) for counts, attacks in attacks_by_counts.items()),
    ]
    return [
        (text, [show(count, "samples") for count in counts])
        for text, counts in rows
        if any(count is not None for count in counts)
    ]
