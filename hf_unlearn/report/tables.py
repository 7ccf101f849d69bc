"""Metrics as a table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hf_unlearn.report.audit_result import MODELS, AuditResult

PERCENT = ("accuracy", "wer", "share")
DECIMALS = {"seconds": 0, "gap": 1, "forget_loss": 2}

DATASETS = {
    "forget": "the forget samples",
    "retain": "the retain samples",
    "unseen": "samples that no model was trained on",
}
MEASURES = {
    "accuracy": "Share of correct predictions on {}.",
    "loss": "Mean loss on {}, in nats.",
    "wer": "Word errors per word on {}; 0 is perfect.",
}
# The end of the name of a membership inference metric to its meaning.
ATTACKS = {
    "balanced_accuracy": "Forget samples told from unseen ones at the best threshold; 50 % is chance.",
    "accuracy": "Forget samples told from unseen ones by a classifier; 50 % is chance.",
    "auc": "Probability that a forget sample scores higher than an unseen one; 0.5 is chance, 1 tells all apart.",
    "tpr_at_1pct_fpr": "Share of forget samples found while 1 % of the unseen are taken for them; 0.01 is chance.",
    "tpr_at_01pct_fpr": "Share of forget samples found while 0.1 % of the unseen are taken for them; 0.001 is chance.",
}
# What was done to a copy before its forget samples were measured again.
RECOVERIES = {
    "finetuned": "after 50 steps of training on retain samples",
    "int8": "with weights rounded to 8 bits",
    "int4": "with weights rounded to 4 bits",
    "without_adapter": "with the adapter dropped",
}
PROBE = "Correct predictions of a new linear head on the model's features, on {}; compare with the retrained model."
OTHERS = {
    "gap": "Average gap to the retrained model, in points; 0 is best.",
    "tug_of_war": "Closeness to the retrained model's accuracies on all datasets; 1 is best.",
    "unlearning_impact_score": "Accuracy lost on unseen samples, and what is left to forget; 0 is best.",
    "forget_js_divergence": "Distance of predictions on forget samples from the retrained model's; "
    "0 equal, 0.69 disjoint.",
    "unseen_js_divergence": "Distance of predictions on unseen samples from the retrained model's; "
    "0 equal, 0.69 disjoint.",
    "relearn_loss_advantage": "How much lower than the retrained model's the forget loss is while relearning, "
    "in nats; 0 or less is best.",
    "relearn_accuracy_advantage": "How much higher than the retrained model's the forget accuracy is while "
    "relearning, in points; 0 or less is best.",
}


def show(value: float | None, name: str) -> str:
    """A metric as text: per cent for accuracies and error rates, otherwise up to three decimals, a dash for None."""
    if value is None:
        return "-"
    return f"{100 * value:.1f} %" if name.endswith(PERCENT) else f"{value:.{DECIMALS.get(name, 3)}f}"


def print_comparison(
    requests: Mapping[str, Mapping[str, Mapping[str, float]]],
    columns: Mapping[str, str],
    title: str,
    console: Console | None = None,
) -> None:
    """Print one row a model, one block a request, one column a metric.

    Args:
        requests: request to model to metrics.
        columns: column heading to metric.
        title: title of the table.
        console: default: the terminal.
    """
    table = Table(title=title, title_justify="left", box=box.SIMPLE, collapse_padding=True, pad_edge=False)
    for heading in ("forgotten", "model", *columns):
        table.add_column(heading, justify="left" if heading in ("forgotten", "model") else "right", no_wrap=True)
    for request, models in requests.items():
        for number, (model, metrics) in enumerate(models.items()):
            cells = (show(metrics.get(name), name).removesuffix(" %") for name in columns.values())
            table.add_row(request if number == 0 else "", model, *cells)
        table.add_section()
    (console or Console()).print(table)


def print_metrics(columns: Mapping[str, Mapping[str, float]], title: str, console: Console | None = None) -> None:
    """Print one row a metric, one column a model (before, after, ...).

    Args:
        columns: column heading to metrics, as `hf_unlearn.auditing.dataset_metrics.dataset_metrics` returns them.
        title: title of the table.
        console: default: the terminal.
    """
    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    for heading in columns:
        table.add_column(heading, justify="right")
    names: Sequence[str] = list(dict.fromkeys(name for metrics in columns.values() for name in metrics))
    for name in names:
        table.add_row(name.replace("_", " "), *(show(metrics.get(name), name) for metrics in columns.values()))
    (console or Console()).print(table)


def meaning(name: str) -> str:
    """The meaning of a metric in one line; empty for an unknown metric.

    Examples:
        >>> meaning("forget_accuracy")
        'Share of correct predictions on the forget samples.'
    """
    first, _, rest = name.partition("_")
    if first in DATASETS and rest in MEASURES:
        return MEASURES[rest].format(DATASETS[first])
    if first == "mia":
        return next((text for end, text in ATTACKS.items() if name.endswith(end)), "")
    if first == "probe" and (dataset := rest.removesuffix("_accuracy")) in DATASETS:
        return PROBE.format(DATASETS[dataset])
    recovery, separator, measure = name.partition("_forget_")
    if separator and recovery in RECOVERIES:
        return MEASURES[measure].format(DATASETS["forget"]).removesuffix(".") + f", {RECOVERIES[recovery]}."
    return OTHERS.get(name, "")


def show_interval(metrics: Mapping[str, float], name: str) -> str:
    """A metric with its 95 % interval, where it has one.

    Examples:
        >>> show_interval({"unseen_accuracy": 0.481, "unseen_accuracy_low": 0.45, "unseen_accuracy_high": 0.512},
        ...               "unseen_accuracy")
        '48.1 (45.0 - 51.2) %'
    """
    text = show(metrics.get(name), name)
    if f"{name}_low" not in metrics:
        return text
    low, high = (show(metrics[f"{name}_{end}"], name).removesuffix(" %") for end in ("low", "high"))
    number, _, unit = text.partition(" ")
    return f"{number} ({low} - {high}) {unit}".rstrip()


def metrics_by_model(report: AuditResult) -> dict[str, dict[str, float]]:
    """The metrics of every model in the report, in the order of `MODELS`."""
    models = {name: dict(report.metrics_by_model[name]) for name in MODELS if name in report.metrics_by_model}
    models["audited"] = {**models.get("audited", {}), **report.metrics}
    return {name: models[name] for name in MODELS if name in models}


def metric_names(models: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The metrics that any of the models has, without the ends of the intervals."""
    names = dict.fromkeys(name for metrics in models.values() for name in metrics)
    ends = {f"{name}_{end}" for name in names for end in ("low", "high")}
    return [name for name in names if name not in ends]


def print_report(report: AuditResult, console: Console | None = None) -> None:
    """Print the verdict of an audit, then one row a metric, one column a model, with 95 % intervals.

    Args:
        report: the result of an audit.
        console: default: the terminal.
    """
    console = console or Console()
    # Text, not str: texts of a report are never markup.
    console.print(Text.assemble((report.verdict["level"], "bold"), ": ", report.verdict["sentence"]))
    models = metrics_by_model(report)
    # Three models with intervals fit into 80 columns, without breaking "confidence".
    table = Table(caption="in brackets: 95 % intervals", caption_justify="left", box=box.SIMPLE_HEAD, show_edge=False,
                  padding=0)  # fmt: skip
    table.add_column("metric", min_width=10)
    for model in models:
        table.add_column(model, justify="right", no_wrap=True)
    for name in metric_names(models):
        cells = (show_interval(metrics, name) for metrics in models.values())
        table.add_row(Text(name.replace("_", " ")), *cells)
    console.print(table)
