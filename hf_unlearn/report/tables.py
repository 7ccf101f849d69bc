"""Metrics as a table in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hf_unlearn.report.audit_result import MODELS, AuditResult
from hf_unlearn.report.numbers import natural_key, show

MODELS_IN_80_COLUMNS = 3


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
    """The metrics of every model in the report, in the order of `model_order`."""
    models = {name: dict(metrics) for name, metrics in report.metrics_by_model.items()}
    models["audited"] = {**models.get("audited", {}), **report.metrics}
    return {name: models[name] for name in model_order(models)}


def model_order(names: Iterable[str]) -> list[str]:
    """The models in the order in which they are shown: those of `MODELS`, then others ("retrained 2", ...).

    Examples:
        >>> model_order(["retrained 10", "retrained 2", "retrained", "audited"])
        ['audited', 'retrained', 'retrained 2', 'retrained 10']
    """
    others = sorted(set(names) - set(MODELS), key=natural_key)
    return [*(name for name in MODELS if name in names), *others]


def metric_names(models: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The metrics that any of the models has, without the ends of the intervals."""
    names = dict.fromkeys(name for metrics in models.values() for name in metrics)
    ends = {f"{name}_{end}" for name in names for end in ("low", "high")}
    return [name for name in names if name not in ends]


def print_report(report: AuditResult, console: Console | None = None) -> None:
    """Print the verdict of an audit and its notes, then one row a metric, one column a model, with 95 % intervals.

    Args:
        report: the result of an audit.
        console: default: the terminal.
    """
    console = console or Console()
    # Text, not str: texts of a report are never markup.
    console.print(Text.assemble((report.verdict["level"], "bold"), ": ", report.verdict["sentence"]))
    for note in report.notes:
        console.print(Text(f"Note: {note}", style="dim"))
    models = metrics_by_model(report)
    # Three models with intervals fit into 80 columns, without breaking "population": more make another table.
    columns = max(1, MODELS_IN_80_COLUMNS * console.width // 80)
    for first in range(0, len(models), columns):
        shown = dict(list(models.items())[first : first + columns])
        table = Table(caption="in brackets: 95 % intervals", caption_justify="left", box=box.SIMPLE_HEAD,
                      show_edge=False, padding=0)  # fmt: skip
        table.add_column("metric", min_width=10)
        for model in shown:
            table.add_column(Text(model), justify="right", no_wrap=True)
        for name in metric_names(shown):
            cells = (show_interval(metrics, name) for metrics in shown.values())
            table.add_row(Text(name.replace("_", " ")), *cells)
        console.print(table)
