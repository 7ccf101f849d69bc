"""Figures as a table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

PERCENT = ("accuracy", "wer", "share")


def show(value: float | None, name: str) -> str:
    """A figure as text: percent for accuracies and error rates, three decimals for the rest, a dash for none."""
    if value is None:
        return "-"
    return f"{100 * value:.1f} %" if name.endswith(PERCENT) else f"{value:.3f}"


def print_figures(columns: Mapping[str, Mapping[str, float]], title: str, console: Console | None = None) -> None:
    """One row a figure, one column a model (before, after, ...).

    Args:
        columns: column heading to figures, as `hf_unlearn.auditing.figures.figures` gives them.
        title: caption of the table.
        console: where to print; the terminal when left out.
    """
    table = Table(title=title, title_justify="left")
    table.add_column("figure")
    for heading in columns:
        table.add_column(heading, justify="right")
    names: Sequence[str] = list(dict.fromkeys(name for figures in columns.values() for name in figures))
    for name in names:
        table.add_row(name.replace("_", " "), *(show(figures.get(name), name) for figures in columns.values()))
    (console or Console()).print(table)
