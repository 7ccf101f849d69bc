"""Running a comparison: every model trained once, every cell measured, over processes, resumable."""

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
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from hf_unlearn.comparing.config import Comparison
from hf_unlearn.comparing.runs import Cell, ComparisonFolder, Training, cells, trainings
from hf_unlearn.report.comparison import write_comparison
from hf_unlearn.training import quiet

RESULTS = "results.json"
CONTEXT: BaseContext = multiprocessing.get_context("spawn")  # a forked process may not use the GPU


def compare(config: Comparison, output_dir: str | Path, *, workers: int = 1, progress: bool = True) -> dict[str, Any]:
    """Unlearn with every method, and compare with models retrained without the forget dataset.

    Args:
        config: what is compared.
        output_dir: where everything goes: trained models (they hold the data: delete them when you are done), one
            JSON file a cell, `results.json`, `table.md` and `picture.png`. Run again, it goes on where it stopped.
        workers: processes that share the work, each on a GPU of its own where there are several.
        progress: whether to show a progress bar.

    Returns:
        The content of `results.json`: the configuration, and one entry a cell: `status` ("done", "refused" or
        "failed"), `metrics`, `seconds`, `settings`, `device`, `versions`.

    Raises:
        ValueError: when the configuration names what is not there.
    """
    config.task_class  # noqa: B018  what is not there is said before any work
    shown = is_progress_bar_enabled()
    disable_progress_bar()  # of every model that is read or written, in between our own
    try:
        return _compare(config, output_dir, workers, progress)
    finally:
        if shown:
            enable_progress_bar()


def _compare(config: Comparison, output_dir: str | Path, workers: int, progress: bool) -> dict[str, Any]:
    place = ComparisonFolder(config, output_dir)
    models = [training for training in trainings(config) if not place.model_folder(training).exists()]
    _share(models, place, ComparisonFolder.train, workers, "Training" if progress else "")
    waiting = [cell for cell in cells(config) if not place.done(cell)]
    _share(waiting, place, ComparisonFolder.run, workers, "Comparing" if progress else "")
    found = [place.read(cell) for cell in cells(config)]
    report = {
        "name": config.name,
        "seeds": list(config.seeds),
        "requests": {name: list(each.forget) for name, each in config.requests.items()},
        "budget": dict(config.budget),
        "cells": found,
    }
    (place.folder / RESULTS).write_text(json.dumps(report, indent=1) + "\n")
    write_comparison(report, place.folder)
    return report


def _share(
    work: Sequence[Training] | Sequence[Cell],
    place: ComparisonFolder,
    do: Callable[[ComparisonFolder, Any], None],
    workers: int,
    title: str,
) -> None:
    """Do the work, in this process or in several."""
    bar = tqdm(total=len(work), desc=title, disable=not title or not work)
    if workers == 1:
        with bar:  # ends its line before an error is told
            for each in work:
                do(place, each)
                bar.update()
        return
    lost = []
    with _pool(place, workers) as pool:
        running = {pool.submit(_in_worker, do, each): each for each in work}
        try:
            for future in as_completed(running):
                try:
                    future.result()
                    bar.update()
                except BrokenProcessPool:
                    lost.append(running[future])
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
    # One process that dies (out of memory) takes the others' work with it. Alone, only its own.
    while lost:
        with _pool(place, 1) as pool:
            while lost:
                each = lost.pop()
                try:
                    pool.submit(_in_worker, do, each).result()
                except BrokenProcessPool:
                    if isinstance(each, Cell):
                        place.write(each, {"status": "failed", "error": "the process died, probably out of memory"})
                    break
                finally:
                    bar.update()
    bar.close()


def _pool(place: ComparisonFolder, workers: int) -> ProcessPoolExecutor:
    numbers = CONTEXT.Queue()
    for number in range(workers):
        numbers.put(number)
    return ProcessPoolExecutor(
        workers, CONTEXT, initializer=_start, initargs=(place.config, place.folder, numbers, workers)
    )


_place: ComparisonFolder


def _start(config: Comparison, folder: Path, numbers: Any, workers: int) -> None:
    global _place
    threading.Thread(target=_end_with, args=[multiprocessing.parent_process()], daemon=True).start()
    number = numbers.get()
    # Ctrl-C reaches every process. As an exception it would only end a worker's cell, and the next would begin.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if (gpus := torch.cuda.device_count()) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu_of(number, gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    quiet()
    disable_progress_bar()
    _place = ComparisonFolder(config, folder)


def _end_with(parent: Any) -> None:
    """A worker whose parent was killed would go on with the cells that wait."""
    parent.join()
    os._exit(1)


def gpu_of(number: int, gpus: int, visible: str | None) -> str:
    """What a worker's CUDA_VISIBLE_DEVICES is to be.

    Args:
        number: of the worker.
        gpus: how many this process sees.
        visible: its own CUDA_VISIBLE_DEVICES.

    Examples:
        >>> gpu_of(2, 2, None), gpu_of(1, 2, "2,3"), gpu_of(0, 2, "GPU-5f,GPU-8a")
        ('0', '3', 'GPU-5f')
    """
    return (visible.split(",") if visible else [str(i) for i in range(gpus)])[number % gpus]


def _in_worker(do: Callable[[ComparisonFolder, Any], None], each: Any) -> None:
    do(_place, each)
