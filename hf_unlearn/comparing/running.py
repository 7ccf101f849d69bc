"""Running a comparison: trains every model once and measures every run, where its executor says; resumable."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from hf_unlearn.auditing.depth import depth
from hf_unlearn.comparing.config import Comparison
from hf_unlearn.comparing.folder import ComparisonFolder
from hf_unlearn.comparing.runs import MeasuredRun, TrainingRun, measured_runs, training_runs
from hf_unlearn.executors import DIED, Executor, ExecutorName, make_executor
from hf_unlearn.report.audit_result import is_retrained
from hf_unlearn.report.comparison import lines, markdown_table
from hf_unlearn.report.plots import plot_gaps

RESULTS = "results.json"
TRIED = "finetuned_forget_loss"  # a metric of every model on which attempts to bring data back were made
logger = logging.getLogger(__name__)


def compare(
    config: Comparison,
    output_dir: str | Path,
    *,
    workers: int = 1,
    executor: ExecutorName = "local",
    progress: bool = True,
) -> dict[str, Any]:
    """Unlearn with every method, and compare with models retrained without the forget dataset.

    Args:
        config: the comparison.
        output_dir: the folder of the results: trained models in `models` (they hold the data: delete them at the end),
            one JSON file a run in `runs`, `results.json`, `table.md` and `picture.png`. A comparison that is run again
            continues where it stopped.
        workers: number of processes that share the work; where there are several GPUs, each process has its own.
        executor: where they are: `"local"`, on this machine (one worker: in this process), or `"ray"`, on those of a
            Ray cluster, which all need `output_dir` and the configuration at the same path. The results are the
            same, bitwise where `OMP_NUM_THREADS` is.
        progress: whether to show a progress bar.

    Returns:
        The content of `results.json`: the configuration, and one entry a run: `status` ("done", "refused" or
        "failed"), `metrics`, `seconds`, `settings`, `device`, `versions`.

    Raises:
        ValueError: the task of the configuration does not exist, or what all runs share does not do: the data, the
            model, or the samples of a request; or Ray is not installed. Nothing is trained then.
    """
    jobs = make_executor(executor, workers)
    folder = ComparisonFolder(config, output_dir)
    progress_bars = is_progress_bar_enabled()
    disable_progress_bar()  # of every model that is loaded or saved
    try:
        if not all(folder.is_done(run) for run in measured_runs(config)):
            folder.check_shared()
        _run_all(folder, jobs, progress)
    finally:
        if progress_bars:
            enable_progress_bar()
    results = {
        "name": config.name,
        "seeds": list(config.seeds),
        "requests": {name: list(request.forget) for name, request in config.requests.items()},
        "budget": dict(config.budget),
        "runs": with_depth([folder.read_result(run) for run in measured_runs(config)]),
    }
    _write(results, folder.path)
    return results


def with_depth(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs, those of models that were not retrained with their depth, where attempts to bring data back were made.

    Args:
        runs: results of `ComparisonFolder.measure`.
    """
    retrained: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for run in runs:
        if is_retrained(run["model"]) and run["status"] == "done":
            retrained.setdefault((run["request"], run["seed"]), []).append(run["metrics"])
    deep = []
    for run in runs:
        if run["status"] == "done" and not is_retrained(run["model"]) and TRIED in run["metrics"]:
            found = depth(run["metrics"], retrained.get((run["request"], run["seed"]), []))
            run = {**run, "metrics": {**run["metrics"], **found}}
        deep.append(run)
    return deep


def _write(results: dict[str, Any], folder: Path) -> None:
    """Write `results.json`, `table.md` and, where matplotlib is installed, `picture.png`."""
    (folder / RESULTS).write_text(json.dumps(results, indent=1) + "\n")
    (folder / "table.md").write_text(markdown_table(results))
    plotted = [line for line in lines(results) if line.forgetting and line.utility]
    try:
        plot_gaps(plotted, results["name"], folder / "picture.png")
    except ImportError:
        (folder / "picture.png").unlink(missing_ok=True)


def _run_all(folder: ComparisonFolder, executor: Executor, progress: bool) -> None:
    """Train the models that are missing, each once, then measure."""
    trained = {str(run): run for run in training_runs(folder.config) if not folder.is_trained(run)}
    measured = {str(run): run for run in measured_runs(folder.config) if not folder.is_done(run)}
    stages: dict[str, dict[str, Any]] = {"Training": trained, "Comparing": measured}
    for name in executor.run(partial(_train_or_measure, folder), stages, progress=progress):
        logger.error("%s failed: %s", name, DIED)
        if name in measured:  # without a trained model those that need it fail
            folder.write_result(measured[name], {"status": "failed", "error": DIED})


def _train_or_measure(folder: ComparisonFolder, run: TrainingRun | MeasuredRun) -> None:
    if isinstance(run, TrainingRun):
        folder.train(run)
    else:
        folder.measure(run)
