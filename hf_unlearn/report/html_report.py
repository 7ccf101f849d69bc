"""The HTML report of an audit: one file that loads nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from hf_unlearn.report import svg
from hf_unlearn.report.audit_result import MODELS, AuditResult
from hf_unlearn.report.svg import CHANCE, COLOURS, DASHES, DATASET_STYLES, MODEL_STYLES, Panel, Series, Style
from hf_unlearn.report.tables import PERCENT, meaning, metric_names, metrics_by_model, show

# Level of the verdict to sign and colour of its badge.
BADGES = {
    "consistent": ("✓", "green"),
    "remembers": ("✗", "vermillion"),
    "over-forgotten": ("!", "purple"),
    "hidden": ("!", "vermillion"),
    "damaged": ("!", "vermillion"),
    "unclear": ("?", "blue"),
}
# First word of a metric to the heading of its block.
BLOCKS = {
    "forget": "On forget samples",
    "retain": "On retain samples",
    "unseen": "On unseen samples",
    "mia": "Membership inference",
    "probe": "Gone, or only hidden",
    "relearn": "Gone, or only hidden",
    "finetuned": "Gone, or only hidden",
    "int8": "Gone, or only hidden",
    "int4": "Gone, or only hidden",
    "without": "Gone, or only hidden",
    "": "Overall",
}


@dataclass(frozen=True)
class Section:
    """A heading, how to read the charts, charts that share one legend, and the numbers behind them."""

    id: str
    title: str
    text: str
    panels: list[Panel]
    legend: dict[str, Series]
    header: Sequence[str]
    rows: list[list[str]]


def to_html(report: AuditResult, path: str | Path) -> Path:
    """Write the HTML report: light and dark, without scripts, readable on a phone.

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
    sections = (_histograms(report), _roc(report), _relearning(report), _training(report))
    html = environment.get_template("audit.html").render(
        verdict=report.verdict,
        badge=BADGES[report.verdict["level"]],
        models=list(models),
        blocks=_blocks(models),
        glance=_at_a_glance(models),
        sections=[section for section in sections if section],
        breakdown=_breakdown(report),
        notes=report.notes,
        about={name: _text(value) for name, value in report.about.items()},
        svg=svg,
    )
    path = Path(path)
    path.write_text(html, encoding="utf-8")
    return path


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(item)}" for name, item in value.items())
    return ", ".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)


def _number(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _blocks(models: Mapping[str, Mapping[str, float]]) -> dict[str, list[dict[str, Any]]]:
    """Rows of the table of metrics, by the heading of their block."""
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
    for rows in blocks.values():  # metrics with one meaning are grouped: the AUC of every attack
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
    for title, shown, chance in (
        ("Right and wrong answers", scores, None),
        ("Membership inference (AUC)", inference, 0.5),
    ):
        if not shown:
            continue
        points = [
            (model, i, [metrics.get(f"{name}{end}", metrics[name]) for end in ("", "_low", "_high")])
            for i, name in enumerate(shown)
            for model, metrics in models.items()
            if name in metrics
        ]
        values = [value for _, _, point in points for value in point]
        x = svg.linear("", values if chance is None else [*values, chance], percent=chance is None, zero=False)
        labels = [(float(i), re.sub("^mia_|_auc$", "", name).replace("_", " ")) for i, name in enumerate(shown)]
        left = 16 + 7 * max(len(label) for _, label in labels)  # pixels a letter
        panel = Panel(
            title, f"One row a metric, one marker a model, with its 95 % interval: {', '.join(models)}.",
            x, svg.Axis("", len(shown) - 0.5, -0.5, labels), left=left, height=46 * len(shown) + 52,
        )  # fmt: skip
        for model, i, point in points:
            panel.interval(model, MODEL_STYLES[model], i + 0.24 * (MODELS.index(model) - 1), *point)
            rows.append([shown[i].replace("_", " "), model, *map(_number, point)])
        if chance is not None:
            panel.line("chance", CHANCE, [(chance, -0.5), (chance, len(shown) - 0.5)])
        panels.append(panel)
    if not panels:
        return None
    return Section(
        "glance", "At a glance",
        "A model that has forgotten is where the retrained model is, which never saw the forget samples: neither "
        "above nor below.",
        panels, _legend(panels), ["metric", "model", "value", "low", "high"], rows,
    )  # fmt: skip


def _histograms(report: AuditResult) -> Section | None:
    if not report.histograms:
        return None
    edges, counts = report.histograms["edges"], report.histograms["counts"]
    shares = {
        (model, name): [count / max(1, sum(of_dataset)) for count in of_dataset]
        for model in MODELS
        for name, of_dataset in counts.get(model, {}).items()
    }
    compared = "unseen" if any(name == "unseen" for _, name in shares) else "retain"
    shown = {key: heights for key, heights in shares.items() if key[1] in ("forget", compared)}
    x = svg.bins("loss (nats)", edges)
    y = svg.linear("share of samples", [height for heights in shown.values() for height in heights], percent=True)
    panels: dict[str, Panel] = {}
    for (model, name), heights in shown.items():
        description = f"Losses of the forget samples against the {compared} samples under the {model} model."
        panel = panels.setdefault(model, Panel(model, description, x, y))
        panel.bars(name, DATASET_STYLES[name], edges, heights, filled=name == "forget")
    rows = [
        [f"{_number(low)} – {_number(high)}", *(_number(counts[model][name][i]) for model, name in shares)]  # noqa: RUF001
        for i, (low, high) in enumerate(pairwise(edges))
    ]
    return Section(
        "losses", f"Losses: forget against {compared} samples",
        f"A model that never saw the forget samples gives them losses like those of {compared} samples. The axes are "
        "shared; every bin is drawn equally wide.",
        list(panels.values()), _legend(list(panels.values())),
        ["loss", *(f"{model}: {name}" for model, name in shares)], rows,
    )  # fmt: skip


def _roc(report: AuditResult) -> Section | None:
    if not report.roc:
        return None
    shares = [value for curve in report.roc.values() for value in (*curve["fpr"], *curve["tpr"])]
    x, y = svg.log("false positive rate (FPR)", shares), svg.log("true positive rate (TPR)", shares)
    panel = Panel(
        "audited", f"ROC curves of the attacks {', '.join(report.roc)} and the line of chance.", x, y, height=290
    )
    for i, (attack, curve) in enumerate(report.roc.items()):
        style = Style(COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)])
        # On the left border, which stands for zero, only the highest point counts.
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
        "roc", "Attacks: how many forget samples are found",
        "Each curve is an attack that tells forget samples from unseen ones by one score. On the line of chance it "
        "finds nothing; far above it on the left, it finds forget samples with few false positives. Both axes are "
        "logarithmic.",
        [panel], _legend([panel]), ["attack", "FPR", "TPR"], rows,
    )  # fmt: skip


def _relearning(report: AuditResult) -> Section | None:
    curves = {model: report.relearning[model] for model in MODELS if model in report.relearning}
    measures = list(dict.fromkeys(name for curve in curves.values() for name in curve if name != "steps"))
    if not measures:
        return None
    panels = []
    for name in measures:
        points_by_model = {
            model: list(zip(curve["steps"], curve[name], strict=True))
            for model, curve in curves.items()
            if name in curve
        }
        label = name.replace("_", " ")
        steps = [step for points in points_by_model.values() for step, _ in points]
        values = [value for points in points_by_model.values() for _, value in points]
        x = svg.linear("steps of training on forget samples", steps)
        y = svg.linear(label, values, name.endswith(PERCENT))
        ends = (f"{model} from {points[0][1]:.3g} to {points[-1][1]:.3g}" for model, points in points_by_model.items())
        panel = Panel(label, f"While training on forget samples: {'; '.join(ends)}.", x, y)
        for model, points in points_by_model.items():
            panel.line(model, MODEL_STYLES[model], points, marked=len(points) <= 30)
        panels.append(panel)
    rows = [
        [model, _number(step), *(_number(curve[name][i]) if name in curve else "-" for name in measures)]
        for model, curve in curves.items()
        for i, step in enumerate(curve["steps"])
    ]
    return Section(
        "relearning", "Relearning",
        "Forgotten data is learned again as slowly as by the retrained model; hidden data comes back at once.",
        panels, _legend(panels), ["model", "step", *(name.replace("_", " ") for name in measures)], rows,
    )  # fmt: skip


def _training(report: AuditResult) -> Section | None:
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
            name.replace("_", " "), DATASET_STYLES[names[name]], points, marked=name != "target" and len(points) <= 30
        )
    rows = [
        [_number(entry["step"]), *(_number(entry[n]) if n in entry else "-" for n in curves)]
        for entry in report.training
        if any(n in entry for n in curves)
    ]
    return Section(
        "training", "The run that made the model",
        "The loss of the forget samples rises towards the target, the loss of unseen samples; the retain loss should "
        "stay low. The loss axis is logarithmic above 0.01.",
        [panel], _legend([panel]), ["step", *(name.replace("_", " ") for name in curves)], rows,
    )  # fmt: skip


def _breakdown(report: AuditResult) -> dict[str, Any]:
    """The table of classes or groups; bars are shares of the largest value, accuracies of 1."""
    models = [model for model in MODELS if any(model in entry for entry in report.breakdown)]
    # A model with accuracies has them per group too; a model without has losses.
    measure = (
        "accuracy" if any(name.endswith("_accuracy") and name[:3] != "mia" for name in report.metrics) else "loss"
    )
    largest = max([1.0, *(entry[model] for entry in report.breakdown for model in models if model in entry)])

    def cell(entry: dict[str, Any], model: str) -> tuple[str, float, str]:
        """Text of the metric, per cent of its bar, colour."""
        width = 100 * max(0.0, entry.get(model, 0.0)) / largest
        return show(entry.get(model), measure), round(width, 1), MODEL_STYLES[model].colour

    rows = [
        {name: str(entry[name]) for name in ("group", "dataset", "samples")}
        | {"cells": [cell(entry, model) for model in models]}
        for entry in report.breakdown
    ]
    return {"models": models, "measure": measure, "rows": rows}
