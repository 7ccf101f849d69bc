"""`hf-unlearn compare`: methods compared with a retrained model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hf_unlearn.cli import UsageError, before_work
from hf_unlearn.cli.launched import workers_of_launcher
from hf_unlearn.cli.settings import check_at_least, parse, setting
from hf_unlearn.comparing import Comparison, compare
from hf_unlearn.report.comparison import print_lines
from hf_unlearn.training import quiet


@dataclass
class CompareSettings:
    """The settings of `compare`."""

    output_dir: str = setting("comparison", "Folder of models, runs, results.json, table.md and picture.png.")
    workers: int = setting(1, "Number of processes that share the work.")
    executor: Literal["local", "ray"] = setting("local", "Where they are: on this machine, or on a Ray cluster.")


SETTINGS = (CompareSettings,)


def main(argv: list[str]) -> int:
    """Run the command; returns its exit code: 1 if a run has failed."""
    file, flags = (None, argv) if not argv or argv[0].startswith("-") else (argv[0], argv[1:])
    parsed = parse("compare CONFIG.yaml", SETTINGS, flags)
    if parsed is None:
        return 0
    [settings] = parsed
    if file is None:
        raise UsageError("CONFIG.yaml: is missing; give the file of the comparison first")
    check_at_least(1, settings, "workers")
    with before_work():
        config = Comparison.from_yaml(file)
        config.load_task_class()  # a task that does not exist is bad usage, too
    if not (started := workers_of_launcher()):
        return 0
    quiet()
    with before_work():  # errors of runs are in the results
        workers = max(settings.workers, started)
        results = compare(config, settings.output_dir, workers=workers, executor=settings.executor)
    print_lines(results)
    print(f"Table, picture and results: {settings.output_dir}")
    return int(any(run["status"] == "failed" for run in results["runs"]))
