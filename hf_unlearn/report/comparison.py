"""A comparison seen: a table with deviations over seeds, ranks, and a picture."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from hf_unlearn.report.plots import gaps

ORIGINAL, RETRAINED = "original", "retrained"
COLUMNS = ("forget", "retain", "unseen", "MIA", "gap", "forget loss / retrained", "time / retraining")


@dataclass
class Line:
    """One model of one request, over seeds.

    Attributes:
        values: column to one value a seed; percent, points, or a ratio.
        forgetting: distance [seeds] to the retrained model, in points, on forget rows and of membership inference.
        utility: the same for retain and unseen rows.
        ranks: place [seeds] among the methods by gap, 1 is best.
        failed: what went wrong, a line a seed.
        refused: why the method does not work here.
    """

    request: str
    model: str
    values: dict[str, list[float]] = field(default_factory=dict)
    forgetting: list[float] = field(default_factory=list)
    utility: list[float] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    refused: str = ""


def lines(report: Mapping[str, Any]) -> list[Line]:
    """The lines of a comparison's table, from its cells, in their order.

    Args:
        report: as `hf_unlearn.comparing.running` returns it.
    """
    found: dict[tuple[str, str], Line] = {}
    cells = {(c["request"], c["seed"], c["model"]): c for c in report["cells"]}
    gaps_of: dict[tuple[str, int], dict[str, float]] = {}
    for (request, seed, model), cell in cells.items():
        line = found.setdefault((request, model), Line(request, model))
        retrained = cells[request, seed, RETRAINED]
        if cell["status"] == "refused":
            line.refused = cell["error"]
        elif cell["status"] == "failed":
            line.failed.append(cell["error"])
        elif retrained["status"] == "done":
            _add(line, cell, retrained)
            if "gap" in cell["metrics"] and model != ORIGINAL and not model.startswith(RETRAINED):
                gaps_of.setdefault((request, seed), {})[model] = cell["metrics"]["gap"]
    for (request, _), each in gaps_of.items():
        for place, model in enumerate(sorted(each, key=each.__getitem__), start=1):
            found[request, model].ranks.append(place)
    requests = list(report["requests"])
    return sorted(found.values(), key=lambda line: requests.index(line.request))


def _add(line: Line, cell: Mapping[str, Any], retrained: Mapping[str, Any]) -> None:
    metrics, wanted = cell["metrics"], retrained["metrics"]
    measure = "wer" if "forget_wer" in metrics else "accuracy"
    names = {name: f"{name}_{measure}" for name in ("forget", "retain", "unseen")} | {"MIA": "mia_accuracy"}
    shown = {column: 100 * metrics[name] for column, name in names.items() if name in metrics}
    away = {c: abs(shown[c] - 100 * wanted[names[c]]) for c in shown if names[c] in wanted}
    for sides, columns in ((line.forgetting, ("forget", "MIA")), (line.utility, ("retain", "unseen"))):
        if there := [away[c] for c in columns if c in away]:
            sides.append(statistics.mean(there))
    if "gap" in metrics:
        shown["gap"] = metrics["gap"]
    shown["forget loss / retrained"] = metrics["forget_loss"] / wanted["forget_loss"]
    clock = retrained["clock"]
    if line.model != ORIGINAL and clock == cell["clock"] and clock in retrained:
        shown["time / retraining"] = cell[clock] / retrained[clock]
    for column, value in shown.items():
        line.values.setdefault(column, []).append(value)


def mean_ranks(found: Sequence[Line]) -> dict[str, tuple[float, float]]:
    """Mean rank of every method over requests and seeds, and its deviation; best first."""
    ranks: dict[str, list[int]] = {}
    for line in found:
        ranks.setdefault(line.model, []).extend(line.ranks)
    means = {model: (statistics.mean(each), _deviation(each)) for model, each in ranks.items() if each}
    return dict(sorted(means.items(), key=lambda item: item[1][0]))


def markdown_table(report: Mapping[str, Any]) -> str:
    """One row a model and request: mean ± deviation over seeds; then the mean ranks."""
    found = lines(report)
    rows = ["| request | model | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    rows += [f"| {' | '.join(each)} |" for each in _rows(found)]
    ranks = "; ".join(f"{model} {mean:.1f} ± {off:.1f}" for model, (mean, off) in mean_ranks(found).items())
    text = "\n".join(rows) + f"\n\nMean rank by gap, over requests and seeds: {ranks}."
    refused = sorted({f"{line.model} ({line.refused})" for line in found if line.refused})
    failed = sorted({f"{line.model}: {error}" for line in found for error in line.failed})
    text += f"\n\nRefused: {'; '.join(refused)}." if refused else ""
    return text + (f"\n\nFailed: {'; '.join(failed)}." if failed else "") + "\n"


def print_lines(report: Mapping[str, Any], console: Console | None = None) -> None:
    """The same as `markdown_table`, for the terminal: what was refused or failed is counted, not told."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for heading in ("request", "model", *COLUMNS):
        table.add_column(heading, justify="left" if heading in ("request", "model") else "right")
    before = ""
    for request, *shown in _rows(lines(report)):
        table.add_row(request if request != before else "", *shown)
        before = request
    (console or Console()).print(table)


def write_comparison(report: Mapping[str, Any], folder: Path) -> None:
    """Write `table.md` and, where matplotlib is installed, `picture.png`."""
    (folder / "table.md").write_text(markdown_table(report))
    found = [line for line in lines(report) if line.forgetting and line.utility]
    try:
        gaps(found, report["name"], folder / "picture.png")
    except ImportError:
        (folder / "picture.png").unlink(missing_ok=True)


def _rows(found: Sequence[Line]) -> list[list[str]]:
    """Request, model, and a text a column, of the lines that were not refused."""
    return [
        [
            line.request,
            line.model + (f" ({len(line.failed)} failed)" if line.failed else ""),
            *(_show(line.values.get(column, [])) for column in COLUMNS),
        ]
        for line in found
        if not line.refused
    ]


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _show(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{statistics.mean(values):.2f}" + (f" ± {_deviation(values):.2f}" if len(values) > 1 else "")
