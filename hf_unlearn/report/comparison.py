"""The results of a comparison as a table: means and deviations over seeds, and mean ranks."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

ORIGINAL, RETRAINED = "original", "retrained"
TIME, PASSES = "time / retraining", "passes / retrained"
DEPTH, FORGET_LOSS = "depth", "forget loss / retrained"
COLUMNS = ("forget", "retain", "unseen", "MIA", "gap", DEPTH, FORGET_LOSS, TIME, PASSES)


@dataclass
class Line:
    """One line of the table: a model and a request, over seeds.

    Attributes:
        request: name of the request.
        model: name of the model, as in the results.
        values: column to one value a seed; percent, points, or a ratio.
        forgetting: distance [seeds] to the retrained model, in points, on forget samples and of membership inference.
        utility: the same on retain and unseen samples.
        ranks: rank [seeds] among the methods by gap, 1 is best.
        failed: the errors of the runs that failed.
        refused: why the method does not support this request; empty if it does.
    """

    request: str
    model: str
    values: dict[str, list[float]] = field(default_factory=dict)
    forgetting: list[float] = field(default_factory=list)
    utility: list[float] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    refused: str = ""


def lines(results: Mapping[str, Any]) -> list[Line]:
    """The lines of a comparison's table, by request, in the order of the runs.

    Args:
        results: as `hf_unlearn.comparing.compare` returns them.
    """
    table: dict[tuple[str, str], Line] = {}
    runs = {(run["request"], run["seed"], run["model"]): run for run in results["runs"]}
    gaps: dict[tuple[str, int], dict[str, float]] = {}
    for (request, seed, model), run in runs.items():
        line = table.setdefault((request, model), Line(request, model))
        retrained = runs[request, seed, RETRAINED]
        if run["status"] == "refused":
            line.refused = run["error"]
        elif run["status"] == "failed":
            line.failed.append(run["error"])
        elif retrained["status"] == "done":
            _add(line, run, retrained)
            if "gap" in run["metrics"] and model != ORIGINAL and not model.startswith(RETRAINED):
                gaps.setdefault((request, seed), {})[model] = run["metrics"]["gap"]
    for (request, _), gap_by_model in gaps.items():
        for rank, model in enumerate(sorted(gap_by_model, key=gap_by_model.__getitem__), start=1):
            table[request, model].ranks.append(rank)
    requests = list(results["requests"])
    return sorted(table.values(), key=lambda line: requests.index(line.request))


def _add(line: Line, run: Mapping[str, Any], retrained: Mapping[str, Any]) -> None:
    """Add the values of a run, beside those of the retrained model of its seed."""
    metrics, retrained_metrics = run["metrics"], retrained["metrics"]
    score = "wer" if "forget_wer" in metrics else "accuracy"
    names = {column: f"{column}_{score}" for column in ("forget", "retain", "unseen")} | {"MIA": "mia_accuracy"}
    values = {column: 100 * metrics[name] for column, name in names.items() if name in metrics}
    distances = {
        column: abs(value - 100 * retrained_metrics[names[column]])
        for column, value in values.items()
        if names[column] in retrained_metrics
    }
    for means, columns in ((line.forgetting, ("forget", "MIA")), (line.utility, ("retain", "unseen"))):
        if measured := [distances[column] for column in columns if column in distances]:
            means.append(statistics.mean(measured))
    values |= {name: metrics[name] for name in ("gap", DEPTH) if name in metrics}
    values[FORGET_LOSS] = metrics["forget_loss"] / retrained_metrics["forget_loss"]
    clock = retrained["clock"]
    if line.model != ORIGINAL and clock == run["clock"] and clock in retrained:
        values[TIME] = run[clock] / retrained[clock]
    if "cost_of_retraining" in run:
        values[PASSES] = run["cost_of_retraining"]
    for column, value in values.items():
        line.values.setdefault(column, []).append(value)


def mean_ranks(table: Sequence[Line]) -> dict[str, tuple[float, float]]:
    """Mean rank of every method over requests and seeds, and its standard deviation; best first."""
    ranks: dict[str, list[int]] = {}
    for line in table:
        ranks.setdefault(line.model, []).extend(line.ranks)
    means = {model: (statistics.mean(values), _deviation(values)) for model, values in ranks.items() if values}
    return dict(sorted(means.items(), key=lambda item: item[1][0]))


def markdown_table(results: Mapping[str, Any]) -> str:
    """A table with one row a model and request: mean ± deviation over seeds; below it the mean ranks."""
    table = lines(results)
    columns = columns_of(table)
    rows = ["| request | model | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    rows += [f"| {' | '.join(texts)} |" for texts in table_rows(table, columns)]
    ranks = "; ".join(
        f"{model} {mean:.1f} ± {deviation:.1f}" for model, (mean, deviation) in mean_ranks(table).items()
    )
    ranked = f"Mean rank by gap, over requests and seeds: {ranks}."
    return "\n\n".join(["\n".join(rows), ranked, *notes_of(table)]) + "\n"


def notes_of(table: Sequence[Line]) -> list[str]:
    """What was refused and what has failed, and why: a paragraph each, where there was any."""
    refused = sorted({f"{line.model} ({line.refused})" for line in table if line.refused})
    failed = sorted({f"{line.model}: {error}" for line in table for error in line.failed})
    of_kind = {"Refused": refused, "Failed": failed}
    return [f"{kind}: {'; '.join(texts)}." for kind, texts in of_kind.items() if texts]


def print_lines(results: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the table of `markdown_table`: failed runs are counted, methods that were refused are left out.

    A terminal has room for one measure of cost, the sample passes, or the time where these were not counted, and for
    depth in place of the forget loss.
    """
    of_runs = lines(results)
    columns = columns_of(of_runs)
    left_out = {TIME if any(PASSES in line.values for line in of_runs) else PASSES}
    left_out |= {FORGET_LOSS} if DEPTH in columns else set()
    columns = [column for column in columns if column not in left_out]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for heading in ("request", "model", *columns):
        table.add_column(heading, justify="left" if heading in ("request", "model") else "right")
    previous = ""
    for request, *texts in table_rows(of_runs, columns):
        table.add_row(request if request != previous else "", *texts)
        previous = request
    (console or Console()).print(table)


def columns_of(table: Sequence[Line]) -> list[str]:
    """The columns; depth only where attempts to bring data back were made."""
    return [column for column in COLUMNS if column != DEPTH or any(DEPTH in line.values for line in table)]


def table_rows(table: Sequence[Line], columns: Sequence[str]) -> list[list[str]]:
    """Request, model, and a text a column, of the lines that were not refused."""
    return [
        [
            line.request,
            line.model + (f" ({len(line.failed)} failed)" if line.failed else ""),
            *(_mean_and_deviation(line.values.get(column, [])) for column in columns),
        ]
        for line in table
        if not line.refused
    ]


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _mean_and_deviation(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{statistics.mean(values):.2f}" + (f" ± {_deviation(values):.2f}" if len(values) > 1 else "")
