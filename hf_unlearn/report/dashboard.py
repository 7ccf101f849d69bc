"""The dashboard: the requests of models and the results of comparisons as one HTML file that loads nothing else."""

from __future__ import annotations

import base64
import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hf_unlearn.report import comparison, svg
from hf_unlearn.report.html_report import BADGES
from hf_unlearn.report.numbers import show, significant
from hf_unlearn.report.svg import DATASET_STYLES, Style

# Pixels of a forgetting curve, and its most points: more are thinned out.
WIDTH, HEIGHT, MARGIN, MOST_POINTS = 168, 46, 3, 80
CURVES = {"retain_loss": "retain", "target": "target", "forget_loss": "forget"}
ENDINGS = {
    "reached": "reached",
    "short": "short of it",
    "past": "past it",
    "no target": "none",
    "diverged": "the run diverged",
    "no steps": "no step was taken",
}


@dataclass(frozen=True)
class Curve:
    """A forgetting curve: losses of the forget and retain samples of each step, and the target.

    Attributes:
        lines: style and path of each.
        description: the same in words.
        last: the last forget loss.
    """

    lines: list[tuple[Style, str]]
    description: str
    last: float


@dataclass(frozen=True)
class RequestEntry:
    """One line of the table of requests. What is not known is None, or empty.

    Attributes:
        name: the number of the request, or the folder.
        place: the folder or file that this is from.
        link: to the HTML report of the audit, from the folder of the dashboard; percent-encoded.
        kind: `"samples"`, `"class"` or `"group"`.
        samples: number of forget samples.
        date: of the record, in ISO form.
        method: its name.
        target_loss: the mean loss that the forget dataset should end with.
        ending: a key of `ENDINGS`.
        curve: of the run that made the model.
        level: of the verdict.
        sentence: of the verdict.
        passes: sample passes of the run.
        cost_of_retraining: the same, as a share of those of retraining.
        seconds: of processors.
        depth: what attempts to bring the data back find beyond retrained models, in deviations.
        warning: what does not match.
    """

    name: str
    place: str
    link: str = ""
    kind: str = ""
    samples: float | None = None
    date: str = ""
    method: str = ""
    target_loss: float | None = None
    ending: str = ""
    curve: Curve | None = None
    level: str = ""
    sentence: str = ""
    passes: float | None = None
    cost_of_retraining: float | None = None
    seconds: float | None = None
    depth: float | None = None
    warning: str = ""


@dataclass(frozen=True)
class ComparisonTable:
    """The results of a comparison.

    Attributes:
        name: of the comparison.
        place: the file that this is from.
        columns: of the numbers.
        rows: request, model, and for every column its text and the number to sort by.
        notes: what was refused, and what has failed.
    """

    name: str
    place: str
    columns: list[str]
    rows: list[tuple[str, str, list[tuple[str, float | None]]]]
    notes: list[str] = field(default_factory=list)


def forgetting_curve(training: Sequence[Mapping[str, float]]) -> Curve | None:
    """The curve of a run; None where no forget loss was logged.

    Args:
        training: entries with `step`, and of `forget_loss`, `retain_loss` and `target` what was logged.
    """
    every = -(-len(training) // MOST_POINTS) or 1
    kept = [entry for i, entry in enumerate(training) if i % every == 0 or i == len(training) - 1]
    points = {name: [(e["step"], e[name]) for e in kept if name in e] for name in CURVES}
    if not points["forget_loss"]:
        return None
    steps = [step for of_name in points.values() for step, _ in of_name]
    axis = svg.symlog("", [loss for of_name in points.values() for _, loss in of_name])
    first, length = min(steps), max(1, max(steps) - min(steps))

    def pixel(step: float, loss: float) -> str:
        x, y = MARGIN + (step - first) / length * (WIDTH - 2 * MARGIN), axis.at(loss) * (HEIGHT - 2 * MARGIN)
        return f"{x:.1f} {HEIGHT - MARGIN - y:.1f}"

    lines = [
        (DATASET_STYLES[CURVES[name]], "M" + "L".join(pixel(*point) for point in of_name))
        for name, of_name in points.items()
        if of_name
    ]
    ends = [
        f"{name.replace('_', ' ')} from {significant(of_name[0][1])} to {significant(of_name[-1][1])}"
        for name, of_name in reversed(points.items())
        if of_name
    ]
    return Curve(lines, f"Over {show(max(steps), 'steps')} steps: {'; '.join(ends)}", points["forget_loss"][-1][1])


def comparison_table(results: Mapping[str, Any], place: str) -> ComparisonTable:
    """The table of a comparison, as `hf_unlearn.report.comparison.markdown_table` has it.

    Args:
        results: the content of `results.json`.
        place: where that is.
    """
    lines = comparison.lines(results)
    columns = comparison.columns_of(lines)
    rows = [
        (request, model, list(zip(texts, map(_mean, map(line.values.get, columns)), strict=True)))
        for line, (request, model, *texts) in zip(
            (line for line in lines if not line.refused), comparison.table_rows(lines, columns), strict=True
        )
    ]
    return ComparisonTable(str(results["name"]), place, columns, rows, comparison.notes_of(lines))


def _mean(values: Sequence[float] | None) -> float | None:
    mean = sum(values) / len(values) if values else math.nan
    return mean if math.isfinite(mean) else None


def write_dashboard(
    path: str | Path, requests: Sequence[RequestEntry], comparisons: Sequence[ComparisonTable], unread: Sequence[str]
) -> None:
    """Write the dashboard: light and dark, sortable, readable on a phone, on paper and without scripts.

    Args:
        path: the file to write.
        requests: shown in this order at first; their texts are escaped, never read as HTML.
        comparisons: each is a table of its own.
        unread: what could not be read, and why, a line each.
    """
    environment = Environment(
        loader=PackageLoader("hf_unlearn.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    script = environment.get_template("dashboard.js").render()
    html = environment.get_template("dashboard.html").render(
        requests=requests,
        comparisons=comparisons,
        unread=unread,
        levels=Counter(entry.level for entry in requests if entry.level),
        badges=BADGES,
        endings=ENDINGS,
        legend={name: DATASET_STYLES[name] for name in ("forget", "retain", "target")},
        size=(WIDTH, HEIGHT),
        show=show,
        significant=significant,
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    # A name of a file may hold what is no text.
    Path(path).write_text(html, encoding="utf-8", errors="replace")
