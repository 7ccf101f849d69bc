"""Running a comparison: trains every model once and measures every run, in one process or several; resumable."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, TypeAlias

import torch
from tqdm.auto import tqdm
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from hf_unlearn.auditing.depth import depth
from hf_unlearn.comparing.config import Comparison
from hf_unlearn.comparing.folder import ComparisonFolder
from hf_unlearn.comparing.runs import MeasuredRun, TrainingRun, measured_runs, training_runs
from hf_unlearn.report.audit_result import is_retrained
from hf_unlearn.report.comparison import lines, markdown_table
from hf_unlearn.report.plots import plot_gaps
from hf_unlearn.training import quiet

RESULTS = "results.json"
TRIED = "finetuned_forget_loss"  # a metric of every model on which attempts to bring data back were made
CONTEXT: BaseContext = multiprocessing.get_context("spawn")  # a forked process cannot use the GPU
Action: TypeAlias = Callable[[ComparisonFolder, Any], None]  # ComparisonFolder.train or ComparisonFolder.measure


def compare(config: Comparison, output_dir: str | Path, *, workers: int = 1, progress: bool = True) -> dict[str, Any]:
    """Unlearn with every method, and compare with models retrained without the forget dataset.

    Args:
        config: the comparison.
        output_dir: the folder of the results: trained models in `models` (they hold the data: delete them at the end),
            one JSON file a run in `runs`, `results.json`, `table.md` and `picture.png`. A comparison that is run again
            continues where it stopped.
        workers: number of processes that share the work; where there are several GPUs, each process has its own.
        progress: whether to show a progress bar.

    Returns:
        The content of `results.json`: the configuration, and one entry a run: `status` ("done", "refused" or
        "failed"), `metrics`, `seconds`, `settings`, `device`, `versions`.

    Raises:
        ValueError: the task of the configuration does not exist, or what all runs share does not do: the data, the
            model, or the samples of a request. Nothing is trained then.
    """
    folder = ComparisonFolder(config, output_dir)
    progress_bars = is_progress_bar_enabled()
    disable_progress_bar()  # of every model that is loaded or saved
    try:
        if not all(folder.is_done(run) for run in measured_runs(config)):
            # Several workers load the data themselves.
            (folder if workers == 1 else ComparisonFolder(config, output_dir)).check_shared()
        _run_all([run for run in training_runs(config) if not folder.is_trained(run)], folder,
                 ComparisonFolder.train, workers, "Training" if progress else "")  # fmt: skip
        _run_all([run for run in measured_runs(config) if not folder.is_done(run)], folder,
                 ComparisonFolder.measure, workers, "Comparing" if progress else "")  # fmt: skip
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


def _run_all(
    runs: Sequence[TrainingRun] | Sequence[MeasuredRun],
    folder: ComparisonFolder,
    action: Action,
    workers: int,
    title: str,
) -> None:
    """Train or measure all runs, in this process or in several."""
    with tqdm(total=len(runs), desc=title, disable=not title or not runs) as bar:  # ends its line before an error
        if workers == 1:
            for run in runs:
                action(folder, run)
                bar.update()
        else:
            lost_runs = _run_in_pool(runs, folder, action, workers, bar)
            _run_alone(lost_runs, folder, action, bar)


def _run_in_pool(
    runs: Sequence[TrainingRun | MeasuredRun], folder: ComparisonFolder, action: Action, workers: int, bar: tqdm
) -> list[TrainingRun | MeasuredRun]:
    """Run all in a pool of processes; returns those that were lost because a process died."""
    lost_runs = []
    with _process_pool(folder, workers) as pool:
        futures = {pool.submit(_run_in_worker, action, run): run for run in runs}
        try:
            for future in as_completed(futures):
                try:
                    future.result()
                    bar.update()
                except BrokenProcessPool:
                    lost_runs.append(futures[future])
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
    return lost_runs


def _run_alone(runs: list[TrainingRun | MeasuredRun], folder: ComparisonFolder, action: Action, bar: tqdm) -> None:
    """Run one after the other in a process of their own, where one that dies (out of memory) stops no other."""
    while runs:
        with _process_pool(folder, 1) as pool:
            while runs:
                run = runs.pop()
                try:
                    pool.submit(_run_in_worker, action, run).result()
                except BrokenProcessPool:
                    if isinstance(run, MeasuredRun):
                        error = "the process died, probably out of memory"
                        folder.write_result(run, {"status": "failed", "error": error})
                    break
                finally:
                    bar.update()


def _process_pool(folder: ComparisonFolder, workers: int) -> ProcessPoolExecutor:
    numbers = CONTEXT.Queue()
    for number in range(workers):
        numbers.put(number)
    return ProcessPoolExecutor(
        workers, CONTEXT, initializer=_start_worker, initargs=(folder.config, folder.path, numbers, workers)
    )


_folder_of_worker: ComparisonFolder


def _start_worker(config: Comparison, path: Path, numbers: Queue[int], workers: int) -> None:
    global _folder_of_worker
    threading.Thread(target=_exit_with, args=[multiprocessing.parent_process()], daemon=True).start()
    number = numbers.get()
    # Ctrl-C reaches every process. As an exception it would only end the current run, and the next would begin.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if (gpus := torch.cuda.device_count()) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu_of_worker(number, gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    quiet()
    disable_progress_bar()
    _folder_of_worker = ComparisonFolder(config, path)


def _exit_with(parent: BaseProcess) -> None:
    """Exit when the parent does: a worker whose parent was killed would continue with the waiting runs."""
    parent.join()
    os._exit(1)


def gpu_of_worker(number: int, gpus: int, visible_devices: str | None) -> str:
    """The value of CUDA_VISIBLE_DEVICES for a worker.

    Args:
        number: of the worker.
        gpus: number of GPUs that this process sees.
        visible_devices: CUDA_VISIBLE_DEVICES of this process.

    Examples:
        >>> gpu_of_worker(2, 2, None), gpu_of_worker(1, 2, "2,3"), gpu_of_worker(0, 2, "GPU-5f,GPU-8a")
        ('0', '3', 'GPU-5f')
    """
    devices = visible_devices.split(",") if visible_devices else [str(i) for i in range(gpus)]
    return devices[number % gpus]


def _run_in_worker(action: Action, run: TrainingRun | MeasuredRun) -> None:
    action(_folder_of_worker, run)
