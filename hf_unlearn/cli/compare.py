"""`hf-unlearn compare`: methods side by side with a retrained model."""

from __future__ import annotations

from dataclasses import dataclass

from hf_unlearn.cli import UsageError
from hf_unlearn.cli.settings import parse, setting
from hf_unlearn.comparing import Comparison, compare
from hf_unlearn.report.comparison import print_lines
from hf_unlearn.training import quiet


@dataclass
class CompareSettings:
    """The settings of `compare`."""

    output_dir: str = setting("comparison", "Where models, cells, results.json, table.md and picture.png go.")
    workers: int = setting(1, "Processes that share the work.")


def main(argv: list[str]) -> int:
    """Run the command; returns its exit code: 1 where a cell has failed."""
    file, flags = (None, argv) if not argv or argv[0].startswith("-") else (argv[0], argv[1:])
    found = parse("compare CONFIG.yaml", [CompareSettings], flags)
    if found is None:
        return 0
    [settings] = found
    if file is None:
        raise UsageError("CONFIG.yaml: the file that says what is compared comes first")
    try:
        config = Comparison.from_yaml(file)
        config.task_class  # noqa: B018  what is not there is said before any work
    except ValueError as error:
        raise UsageError(str(error)) from error
    quiet()
    report = compare(config, settings.output_dir, workers=settings.workers)
    print_lines(report)
    print(f"Table, picture and results: {settings.output_dir}")
    return int(any(cell["status"] == "failed" for cell in report["cells"]))
