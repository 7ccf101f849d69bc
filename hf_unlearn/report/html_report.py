"""The page of an audit report: one HTML file, nothing beside it, nothing fetched."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from hf_unlearn.report import svg
from hf_unlearn.report.audit_report import MODELS, AuditReport
from hf_unlearn.report.svg import CHANCE, COLOURS, DASHES, MODEL_STYLES, SET_STYLES, Panel, Series, Style
from hf_unlearn.report.tables import PERCENT, meaning, metric_names, metrics_by_model, show

# Level of the verdict: sign and colour of its badge.
BADGES = {
    "consistent": ("✓", "green"),
    "remembers": ("✗", "vermillion"),
    "over-forgotten": ("!", "purple"),
    "hidden": ("!", "vermillion"),
    "damaged": ("!", "vermillion"),
    "unclear": ("?", "blue"),
}
BLOCKS = {
    "forget": "On rows to be forgotten",
    "retain": "On rows to be kept",
    "unseen": "On unseen rows",
    "mia": "Membership inference",
    "probe": "Gone, or only hidden",
    "relearn": "Gone, or only hidden",
    "finetuned": "Gone, or only hidden",
    "int8": "Gone, or only hidden",
    "int4": "Gone, or only hidden",
    "without": "Gone, or only hidden",
    "": "All in all",
}


@dataclass(frozen=True)
class Section:
    """A heading, what to look for, charts that share one legend, and the numbers behind them."""

    id: str
    title: str
    text: str
    panels: list[Panel]
    legend: dict[str, Series]
    header: Sequence[str]
    rows: list[list[str]]


def to_html(report: AuditReport, path: str | Path) -> Path:
    """Write the page of a report: light and dark, without scripts, readable on a phone.

    Args:
        report: what the audit found; its texts are shown as they stand, never as HTML.
        path: where the page goes.

    Returns:
        `path`.
    """
    environment = Environment(
        loader=PackageLoader("hf_unlearn.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    models = metrics_by_model(report)
    sections = (_histograms(report), _roc(report), _relearning(report), _training(report))
    page = environment.get_template("audit.html").render(
        verdict=report.verdict,
        badge=BADGES[report.verdict["level"]],
        models=list(models),
        blocks=_blocks(models),
        glance=_at_a_glance(models),
        sections=[section for section in sections if section],
        breakdown=_breakdown(report),
        notes=report.notes,
        about={name: _plain(value) for name, value in report.about.items()},
        svg=svg,
    )
    path = Path(path)
    path.write_text(page, encoding="utf-8")
    return path


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(found)}" for name, found in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, list | tuple) else str(value)


def _number(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _blocks(models: Mapping[str, Mapping[str, float]]) -> dict[str, list[dict[str, Any]]]:
    """Samples of the table of metrics, by what they are measured on."""
    blocks: dict[str, list[dict[str, Any]]] = {heading: [] for heading in BLOCKS.values()}
    for name in metric_names(models):
        cells = []
        for metrics in models.values():
            ends = [metrics.get(f"{name}_{end}") for end in ("low", "high")]
            low, high = (show(end, name).removesuffix(" %") for end in ends)
            cells.append((show(metrics.get(name), name), "" if ends[0] is None else f"{low} – {high}"))  # noqa: RUF001
        first = name.partition("_")[0]
        label = "logistic regression" if name == "mia_accuracy" else name.replace("mia_", "", 1).replace("_", " ")
        label = re.sub(r"tpr at (0?)1pct fpr", lambda m: f"TPR at {'0.1' if m[1] else '1'} % FPR", label)
        label = re.sub(r"\b(auc|wer)\b", lambda m: m[0].upper(), label)
        blocks[BLOCKS.get(first, BLOCKS[""])].append({"name": label, "meaning": meaning(name), "cells": cells})
    for rows in blocks.values():  # what means the same stands together: the AUC of every attack
        meanings = [row["meaning"] for row in rows]
        rows.sort(key=lambda row: meanings.index(row["meaning"]))
    return {heading: rows for heading, rows in blocks.items() if rows}


def _legend(panels: Sequence[Panel]) -> dict[str, Series]:
    return {series.name: series for panel in panels for series in panel.series}


def _at_a_glance(models: Mapping[str, Mapping[str, float]]) -> Section | None:
    names = metric_names(models)
    inference = [name for name in names if re.fullmatch("mia_.*_auc", name)]
    scores = [name for name in names if re.fullmatch("(forget|retain|unseen)_(accuracy|wer)", name)]
    panels: list[Panel] = []
    rows: list[list[str]] = []
    for title, own, chance in (
        ("Right and wrong answers", scores, None),
        ("Membership inference (AUC)", inference, 0.5),
    ):
        if not own:
            continue
        points = [
            (model, i, [metrics.get(f"{name}{end}", metrics[name]) for end in ("", "_low", "_high")])
            for i, name in enumerate(own)
            for model, metrics in models.items()
            if name in metrics
        ]
        values = [value for _, _, point in points for value in point]
        x = svg.linear("", values if chance is None else [*values, chance], percent=chance is None, zero=False)
        labels = [(float(i), re.sub("^mia_|_auc$", "", name).replace("_", " ")) for i, name in enumerate(own)]
        left = 16 + 7 * max(len(label) for _, label in labels)  # pixels a letter
        panel = Panel(
            title, f"One row a figure, one marker a model, with its 95 % interval: {', '.join(models)}.",
            x, svg.Axis("", len(own) - 0.5, -0.5, labels), left=left, height=46 * len(own) + 52,
        )  # fmt: skip
        for model, i, point in points:
            panel.interval(model, MODEL_STYLES[model], i + 0.24 * (MODELS.index(model) - 1), *point)
            rows.append([own[i].replace("_", " "), model, *map(_number, point)])
        if chance is not None:
            panel.line("chance", CHANCE, [(chance, -0.5), (chance, len(own) - 0.5)])
        panels.append(panel)
    if not panels:
        return None
    return Section(
        "glance", "At a glance",
        "To have forgotten is to be where the retrained model is, which never saw the rows: neither above it nor below.",
        panels, _legend(panels), ["metric", "model", "value", "low", "high"], rows,
    )  # fmt: skip


def _histograms(report: AuditReport) -> Section | None:
    if not report.histograms:
        return None
    edges, counts = report.histograms["edges"], report.histograms["counts"]
    shares = {
        (model, name): [count / max(1, sum(own)) for count in own]
        for model in MODELS
        for name, own in counts.get(model, {}).items()
    }
    other = "unseen" if any(name == "unseen" for _, name in shares) else "retain"
    drawn = {key: heights for key, heights in shares.items() if key[1] in ("forget", other)}
    x = svg.bins("loss (nats)", edges)
    y = svg.linear("share of rows", [height for heights in drawn.values() for height in heights], percent=True)
    panels: dict[str, Panel] = {}
    for (model, name), heights in drawn.items():
        description = f"Losses of the forget rows against the {other} rows under the {model} model."
        panel = panels.setdefault(model, Panel(model, description, x, y))
        panel.bars(name, SET_STYLES[name], edges, heights, filled=name == "forget")
    rows = [
        [f"{_number(low)} – {_number(high)}", *(_number(counts[model][name][i]) for model, name in shares)]  # noqa: RUF001
        for i, (low, high) in enumerate(pairwise(edges))
    ]
    return Section(
        "losses", f"Losses: forgotten against {other} rows",
        f"A model that never saw the forget rows gives them losses like those of {other} rows. The axes are shared; "
        "every bin is drawn equally wide.",
        list(panels.values()), _legend(list(panels.values())),
        ["loss", *(f"{model}: {name}" for model, name in shares)], rows,
    )  # fmt: skip


def _roc(report: AuditReport) -> Section | None:
    if not report.roc:
        return None
    shares = [value for curve in report.roc.values() for value in (*curve["fpr"], *curve["tpr"])]
    x, y = svg.log("unseen rows accused (FPR)", shares), svg.log("forgotten rows found (TPR)", shares)
    panel = Panel(
        "audited", f"ROC curves of the attacks {', '.join(report.roc)} and the line of chance.", x, y, height=290
    )
    for i, (attack, curve) in enumerate(report.roc.items()):
        style = Style(COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)])
        # On the left border, which stands for zero, only the highest point is a result.
        points = list(zip(curve["fpr"], curve["tpr"], strict=True))
        start = max((point for point in points if point[0] <= x.low), default=(x.low, 0.0))
        panel.line(attack, style, [start, *(point for point in points if point[0] > x.low)])
    panel.line("chance", CHANCE, [(x.low, x.low), (1.0, 1.0)])
    rows = [
        [attack, *map(_number, point)]
        for attack, curve in report.roc.items()
        for point in zip(curve["fpr"], curve["tpr"], strict=True)
    ]
    return Section(
        "roc", "Attacks: how many forgotten rows are found",
        "Each curve is an attack that tells forgotten rows from unseen ones by one score. On the line of chance it "
        "finds nothing; far above it on the left, it names rows with few false alarms. Both axes are logarithmic.",
        [panel], _legend([panel]), ["attack", "FPR", "TPR"], rows,
    )  # fmt: skip


def _relearning(report: AuditReport) -> Section | None:
    curves = {model: report.relearning[model] for model in MODELS if model in report.relearning}
    measures = list(dict.fromkeys(name for curve in curves.values() for name in curve if name != "steps"))
    if not measures:
        return None
    panels = []
    for name in measures:
        own = {
            model: list(zip(curve["steps"], curve[name], strict=True))
            for model, curve in curves.items()
            if name in curve
        }
        label = name.replace("_", " ")
        x = svg.linear("steps of training on forget rows", [step for points in own.values() for step, _ in points])
        y = svg.linear(label, [value for points in own.values() for _, value in points], name.endswith(PERCENT))
        ends = (f"{model} from {points[0][1]:.3g} to {points[-1][1]:.3g}" for model, points in own.items())
        panel = Panel(label, f"While training on forget rows: {'; '.join(ends)}.", x, y)
        for model, points in own.items():
            panel.line(model, MODEL_STYLES[model], points, marked=len(points) <= 30)
        panels.append(panel)
    rows = [
        [model, _number(step), *(_number(curve[name][i]) if name in curve else "-" for name in measures)]
        for model, curve in curves.items()
        for i, step in enumerate(curve["steps"])
    ]
    return Section(
        "relearning", "Relearning",
        "What is gone is learned again as slowly as by the retrained model; what was only hidden comes back at once.",
        panels, _legend(panels), ["model", "step", *(name.replace("_", " ") for name in measures)], rows,
    )  # fmt: skip


def _training(report: AuditReport) -> Section | None:
    names = {"forget_loss": "forget", "retain_loss": "retain", "target": "target"}
    curves = {name: [(entry["step"], entry[name]) for entry in report.training if name in entry] for name in names}
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return None
    values = [value for points in curves.values() for _, value in points]
    x = svg.linear("step", [step for points in curves.values() for step, _ in points])
    ends = (f"{name.replace('_', ' ')} from {p[0][1]:.3g} to {p[-1][1]:.3g}" for name, p in curves.items())
    panel = Panel("audited", f"Over the run: {'; '.join(ends)}.", x, svg.symlog("loss (nats)", values))
    for name, points in curves.items():
        panel.line(
            name.replace("_", " "), SET_STYLES[names[name]], points, marked=name != "target" and len(points) <= 30
        )
    rows = [
        [_number(entry["step"]), *(_number(entry[n]) if n in entry else "-" for n in curves)]
        for entry in report.training
        if any(n in entry for n in curves)
    ]
    return Section(
        "training", "The run that made the model",
        "The loss of the forget rows rises towards the target, the loss of unseen rows; the retain loss should stay "
        "low. The loss axis is logarithmic above 0.01.",
        [panel], _legend([panel]), ["step", *(name.replace("_", " ") for name in curves)], rows,
    )  # fmt: skip


def _breakdown(report: AuditReport) -> dict[str, Any]:
    """The table of classes or groups; bars are shares of the largest value, accuracies of 1."""
    models = [model for model in MODELS if any(model in entry for entry in report.breakdown)]
    # A model that has accuracies has them per group too; another has losses.
    measure = (
        "accuracy" if any(name.endswith("_accuracy") and name[:3] != "mia" for name in report.metrics) else "loss"
    )
    largest = max([1.0, *(entry[model] for entry in report.breakdown for model in models if model in entry)])

    def cell(entry: dict[str, Any], model: str) -> tuple[str, float, str]:
        """Text of the figure, per cent of its bar, colour."""
        width = 100 * max(0.0, entry.get(model, 0.0)) / largest
        return show(entry.get(model), measure), round(width, 1), MODEL_STYLES[model].colour

    rows = [
        {name: str(entry[name]) for name in ("group", "set", "samples")}
        | {"cells": [cell(entry, model) for model in models]}
        for entry in report.breakdown
    ]
    return {"models": models, "measure": measure, "rows": rows}
