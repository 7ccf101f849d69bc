"""Figures as a table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

PERCENT = ("accuracy", "wer", "share")
DECIMALS = {"seconds": 0, "gap": 1, "forget_loss": 2}


def show(value: float | None, name: str) -> str:
    """A figure as text: percent for accuracies and error rates, two or three decimals else, a dash for none."""
    if value is None:
        return "-"
    return f"{100 * value:.1f} %" if name.endswith(PERCENT) else f"{value:.{DECIMALS.get(name, 3)}f}"


def print_comparison(
    scenes: Mapping[str, Mapping[str, Mapping[str, float]]],
    figures: Mapping[str, str],
    title: str,
    console: Console | None = None,
) -> None:
    """One row a model, one block a scene, one column a figure.

    Args:
        scenes: scene to model to figures.
        figures: column heading to figure.
        title: caption of the table.
        console: where to print; the terminal when left out.
    """
    table = Table(title=title, title_justify="left", box=box.SIMPLE, collapse_padding=True, pad_edge=False)
    for heading in ("forgotten", "model", *figures):
        table.add_column(heading, justify="left" if heading in ("forgotten", "model") else "right", no_wrap=True)
    for scene, models in scenes.items():
        for number, (name, found) in enumerate(models.items()):
            shown = (show(found.get(figure), figure).removesuffix(" %") for figure in figures.values())
            table.add_row(scene if number == 0 else "", name, *shown)
        table.add_section()
    (console or Console()).print(table)


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
