"""`hf-unlearn dashboard`: requests and comparisons in one HTML file."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile

from hf_unlearn.cli import UsageError, before_work
from hf_unlearn.cli.settings import parse, setting
from hf_unlearn.hub.dashboard import make_dashboard


@dataclass
class DashboardSettings:
    """The settings of `dashboard`."""

    out: str = setting("dashboard.html", "The file to write.")


SETTINGS = (DashboardSettings,)


def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    folders = list(takewhile(lambda word: not word.startswith("-"), argv))
    parsed = parse("dashboard FOLDER ...", SETTINGS, argv[len(folders) :])
    if parsed is None:
        return 0
    [settings] = parsed
    if not folders:
        raise UsageError("FOLDER: is missing; give the folders of runs, audits or comparisons first")
    if not settings.out.endswith(".html"):
        raise UsageError(f"out: {settings.out!r} must end with .html")
    with before_work():
        print(f"Dashboard: {make_dashboard(folders, settings.out)}")
    return 0
