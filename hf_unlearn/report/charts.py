"""The charts of the HTML report, one function a section, and the numbers behind them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from hf_unlearn.report import svg
from hf_unlearn.report.audit_result import MODELS, AuditResult
from hf_unlearn.report.meanings import ATTACKS, attack_label, metric_label
from hf_unlearn.report.numbers import PERCENT, show, significant, tick
from hf_unlearn.report.svg import CHANCE, COLOURS, DASHES, DATASET_STYLES, Panel, Series, Style
from hf_unlearn.report.tables import metric_names, model_order

# Kinds of head whose loss is no negative log-likelihood, and has no unit that the report knows.
WITHOUT_UNIT = ("regression", "custom")
# Pixels of a row of "At a glance": its name, and each of its models.
NAME_HEIGHT, MODEL_HEIGHT = 26, 12
# False positive rates at which the numbers behind ROC curves are shown.
RATES = (0.001, 0.01, 0.1, 0.5)
MOST_MARKED_POINTS = 30


@dataclass(frozen=True)
class Section:
    """A heading, how to read the charts, charts that share one legend, and the numbers behind them.

    Attributes:
        id: of the heading.
        title: the heading.
        text: how to read the charts.
        panels: the charts.
        header: of the table of numbers.
        rows: of the table of numbers, as text.
        names: columns of the table, from the left, that hold names and no numbers.
        terms: names in the legend, and what they mean.
    """

    id: str
    title: str
    text: str
    panels: list[Panel]
    header: Sequence[str]
    rows: list[list[str]]
    names: int = 1
    terms: list[tuple[str, str]] = field(default_factory=list)

    @property
    def legend(self) -> dict[str, Series]:
        """Name to a series of that name."""
        return {series.name: series for panel in self.panels for series in panel.series}


def loss_unit(report: AuditResult) -> str:
    """The unit of the losses; empty where they have none."""
    return "" if report.about.get("head") in WITHOUT_UNIT else "nats"


def _loss(report: AuditResult, name: str = "loss") -> str:
    """The label of an axis of losses."""
    return f"{name} ({unit})" if (unit := loss_unit(report)) else name


def _styles(models: Sequence[str]) -> dict[str, Style]:
    others = [model for model in models if model not in MODELS]
    return {model: svg.model_style(model, others) for model in models}


def at_a_glance(models: Mapping[str, Mapping[str, float]]) -> Section | None:
    """Accuracies and attacks of every model beside those of the others, with their intervals."""
    names = metric_names(models)
    attacks = [name for name in names if re.fullmatch("mia_.*_auc", name)]
    scores = [name for name in names if re.fullmatch("(forget|retain|unseen)_(accuracy|wer)", name)]
    kinds = {"accuracy": "accuracy", "wer": "word error rate (WER)"}
    measured = " and ".join(text for end, text in kinds.items() if any(name.endswith(end) for name in scores))
    panels: list[Panel] = []
    rows: list[list[str]] = []
    for title, label, shown in (
        ("Right and wrong answers", f"{measured} (%)", scores),
        ("Membership inference", "area under the ROC curve (AUC); 0.5 is chance", attacks),
    ):
        if shown:
            panels.append(_dots(title, label, shown, models))
            rows += [
                [metric_label(name), model, *(_end(metrics, name, end) for end in ("", "_low", "_high"))]
                for name in shown
                for model, metrics in models.items()
                if name in metrics
            ]
    if not panels:
        return None
    return Section(
        "glance", "At a glance",
        "A model that has forgotten is where the retrained model is, which never saw the forget samples: neither "
        "above nor below. Lines: 95 % intervals.",
        panels, ["metric", "model", "value", "low", "high"], rows, names=2,
    )  # fmt: skip


def _end(metrics: Mapping[str, float], name: str, end: str) -> str:
    return show(metrics.get(f"{name}{end}"), name)


def _dots(title: str, label: str, names: Sequence[str], models: Mapping[str, Mapping[str, float]]) -> Panel:
    """One row a metric, in it one marker a model, with its interval."""
    styles = _styles(list(models))
    percent = names[0].endswith(PERCENT)
    points = {
        (model, i): [metrics.get(f"{name}{end}", metrics[name]) for end in ("", "_low", "_high")]
        for i, name in enumerate(names)
        for model, metrics in models.items()
        if name in metrics
    }
    values = [value for point in points.values() for value in point]
    height = NAME_HEIGHT + MODEL_HEIGHT * len(models)
    labels = [attack_label(name[4:-4]) if name.startswith("mia_") else metric_label(name) for name in names]
    panel = Panel(
        title, f"One row a metric, one marker a model, with its 95 % interval: {', '.join(models)}.",
        svg.linear(label, values if percent else [*values, 0.5], percent=percent, zero=False),
        svg.Axis("", len(names) - 0.5, -0.5, []), categories=[(i - 0.5, text) for i, text in enumerate(labels)],
        height=height * len(names) + svg.TOP + svg.BOTTOM,
    )  # fmt: skip
    if not percent:
        panel.line("chance", CHANCE, [(0.5, -0.5), (0.5, len(names) - 0.5)])
    order = list(models)
    for (model, i), point in points.items():
        offset = (NAME_HEIGHT + MODEL_HEIGHT * order.index(model)) / height - 0.5
        panel.interval(model, styles[model], i + offset, *point)
    return panel


def losses(report: AuditResult) -> Section | None:
    """Histograms of the losses, one chart a model."""
    if not report.histograms:
        return None
    edges, counts = report.histograms["edges"], report.histograms["counts"]
    models = model_order(counts)
    datasets = list(dict.fromkeys(name for model in models for name in counts[model]))
    compared = "unseen" if "unseen" in datasets else "retain"
    shown = [name for name in datasets if name in ("forget", compared)]
    shares = {
        (model, name): [count / max(1, sum(counts[model][name])) for count in counts[model][name]]
        for model in models
        for name in shown
        if name in counts[model]
    }
    x = svg.bins(_loss(report), edges)
    y = svg.linear("share of samples (%)", [share for heights in shares.values() for share in heights], percent=True)
    panels: dict[str, Panel] = {}
    for (model, name), heights in shares.items():
        drawn = ", ".join(f"{show(sum(counts[model][n]), 'samples')} {n}" for n in shown if n in counts[model])
        description = f"Losses of the forget samples against the {compared} samples under the {model} model."
        panel = panels.setdefault(model, Panel(f"{model} ({drawn})", description, x, y))
        panel.bars(name, DATASET_STYLES[name], edges, heights, filled=name == "forget")
    rows = [
        [model, f"{significant(low)} – {significant(high)}", *(_count(counts[model], name, i) for name in datasets)]  # noqa: RUF001
        for model in models
        for i, (low, high) in enumerate(pairwise(edges))
        if any(of_dataset[i] for of_dataset in counts[model].values())
    ]
    return Section(
        "losses", f"Losses: forget against {compared} samples",
        f"A model that never saw the forget samples gives them losses like those of {compared} samples. The charts "
        "share their axes; every bin is drawn equally wide. In brackets: how many samples are drawn, those with a "
        "finite loss.",
        list(panels.values()), ["model", "loss", *datasets], rows, names=2,
    )  # fmt: skip


def _count(counts: Mapping[str, Sequence[int]], name: str, i: int) -> str:
    return show(counts[name][i] if name in counts else None, "samples")


def attacks(report: AuditResult) -> Section | None:
    """The ROC curves of the attacks on the audited model."""
    if not report.roc:
        return None
    rates = [value for curve in report.roc.values() for value in (*curve["fpr"], *curve["tpr"])]
    x, y = svg.log("false positive rate (FPR)", rates), svg.log("true positive rate (TPR)", rates)
    labels = {attack: attack_label(attack) for attack in report.roc}
    panel = Panel(
        "audited", f"ROC curves of the attacks {', '.join(labels.values())} and the line of chance.", x, y, height=290
    )
    for i, (attack, curve) in enumerate(report.roc.items()):
        style = Style(COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)])
        # On the left border, which stands for zero, only the highest point counts.
        points = list(zip(curve["fpr"], curve["tpr"], strict=True))
        start = max((point for point in points if point[0] <= x.low), default=(x.low, 0.0))
        panel.line(labels[attack], style, [start, *(point for point in points if point[0] > x.low)])
    panel.line("chance", CHANCE, [(x.low, x.low), (1.0, 1.0)])
    rows = [[labels[attack], *_found_at_rates(report, attack)] for attack in report.roc]
    terms = [(labels[attack], ATTACKS[attack][1]) for attack in report.roc if attack in ATTACKS]
    return Section(
        "roc", "Attacks: how many forget samples are found",
        "Each curve is an attack that tells forget samples from unseen ones by one score. On the line of chance it "
        "finds nothing; far above it on the left, it finds forget samples with few false positives. Both axes are "
        "logarithmic.",
        [panel], ["found at FPR", *(f"{tick(100 * rate)} %" for rate in RATES)], rows, terms=terms,
    )  # fmt: skip


def _found_at_rates(report: AuditResult, attack: str) -> list[str]:
    """The true positive rate at each of `RATES`; a dash where too few unseen samples have such a rate."""
    points = list(zip(report.roc[attack]["fpr"], report.roc[attack]["tpr"], strict=True))
    smallest = min(fpr for fpr, _ in points if fpr > 0)
    return [
        "-" if rate < smallest else show(max(tpr for fpr, tpr in points if fpr <= rate + 1e-9), "share")
        for rate in RATES
    ]


def relearning(report: AuditResult) -> Section | None:
    """Forget loss and accuracy while models are trained on forget samples."""
    curves = {model: report.relearning[model] for model in model_order(report.relearning)}
    measures = list(dict.fromkeys(name for curve in curves.values() for name in curve if name != "steps"))
    if not measures:
        return None
    styles = _styles(list(curves))
    panels = []
    for name in measures:
        points_by_model = {
            model: list(zip(curve["steps"], curve[name], strict=True))
            for model, curve in curves.items()
            if name in curve
        }
        label, percent = metric_label(name), name.endswith(PERCENT)
        steps = [step for points in points_by_model.values() for step, _ in points]
        values = [value for points in points_by_model.values() for _, value in points]
        x = svg.linear("steps of training on forget samples", steps, whole=True)
        y = svg.linear(f"{label} (%)" if percent else _loss(report, label), values, percent)
        ends = [
            f"{model} from {show(points[0][1], name)} to {show(points[-1][1], name)}"
            for model, points in points_by_model.items()
        ]
        panel = Panel(label, f"While training on forget samples: {'; '.join(ends)}.", x, y)
        for model, points in points_by_model.items():
            panel.line(model, styles[model], points, marked=len(points) <= MOST_MARKED_POINTS)
        panels.append(panel)
    rows = [
        [model, show(step, "step"), *(show(curve[name][i] if name in curve else None, name) for name in measures)]
        for model, curve in curves.items()
        for i, step in enumerate(curve["steps"])
    ]
    return Section(
        "relearning", "Relearning",
        "Forgotten data is learned again as slowly as by the retrained model; hidden data comes back at once.",
        panels, ["model", "step", *map(metric_label, measures)], rows,
    )  # fmt: skip


def training(report: AuditResult) -> Section | None:
    """The losses of the run that made the model."""
    datasets = {"forget_loss": "forget", "retain_loss": "retain", "target": "target"}
    curves = {name: [(entry["step"], entry[name]) for entry in report.training if name in entry] for name in datasets}
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return None
    values = [value for points in curves.values() for _, value in points]
    x = svg.linear("step", [step for points in curves.values() for step, _ in points], whole=True)
    ends = (
        f"{metric_label(name)} from {significant(points[0][1])} to {significant(points[-1][1])}"
        for name, points in curves.items()
    )
    panel = Panel("audited", f"Over the run: {'; '.join(ends)}.", x, svg.symlog(_loss(report), values))
    for name, points in curves.items():
        marked = name != "target" and len(points) <= MOST_MARKED_POINTS
        panel.line(metric_label(name), DATASET_STYLES[datasets[name]], points, marked=marked)
    rows = [
        [show(entry["step"], "step"), *(show(entry.get(name), name) for name in curves)]
        for entry in report.training
        if any(name in entry for name in curves)
    ]
    return Section(
        "training", "The run that made the model",
        "Losses of the samples of each step. The target, where a method has one, is where the forget loss should end; "
        "the retain loss should stay low. The loss axis is linear up to 0.01, and logarithmic from there.",
        [panel], ["step", *map(metric_label, curves)], rows,
    )  # fmt: skip
