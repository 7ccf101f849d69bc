"""Jobs on the machines of a Ray cluster."""

from __future__ import annotations

import importlib.util
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from uuid import uuid4

import torch
from tqdm.auto import tqdm
from transformers.utils.logging import disable_progress_bar
from typing_extensions import override

from hf_unlearn.executors.base import Executor, JobError, RunJobs, pickled


class RayExecutor(Executor):
    """Jobs on the machines of a [Ray](https://docs.ray.io) cluster.

    The cluster is the one that this process is connected to, else the one of `RAY_ADDRESS`, else one that Ray starts
    on this machine. Every machine needs the same environment, and the working directory and all folders at the same
    path.

    Each job has as many threads as `OMP_NUM_THREADS` says here; without it, the processors of the cluster are shared
    out. Sums of another number of threads are rounded otherwise. GPUs are shared out, too.

    Args:
        workers: how many jobs run at once.

    Raises:
        ValueError: Ray is not installed.
    """

    def __init__(self, workers: int = 1):
        if importlib.util.find_spec("ray") is None:
            raise ValueError("executor: ray is not installed; pip install 'hf-unlearn[ray]', or use local")
        super().__init__(workers)

    @override
    @contextmanager
    def _workers(self, work: Callable[[Any], None]) -> Iterator[RunJobs]:
        import ray
        from ray import cloudpickle

        sent = pickled(work, cloudpickle.dumps)
        if not ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would send them to its makers
            ray.init(logging_level=logging.WARNING)
        share = share_of_job([node["Resources"] for node in ray.nodes() if node["Alive"]], self.workers)
        threads = torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else int(share["num_cpus"])
        # Ray's own retries of a job for which memory is short do not end.
        task = ray.remote(_run_in_worker).options(max_retries=0, **share)
        begin = partial(task.remote, uuid4().hex, ray.put(sent), os.getcwd(), threads)
        yield partial(_run_on_cluster, begin, self.workers)


def _run_on_cluster(
    begin: Callable[[Any], Any], workers: int, jobs: Mapping[str, Any], bar: tqdm, alone: bool
) -> list[str]:
    import ray

    waiting, survived = list(jobs), set()
    running: dict[Any, str] = {}
    try:
        while waiting or running:
            while waiting and len(running) < (1 if alone else workers):
                name = waiting.pop(0)
                running[begin(jobs[name])] = name
            [done], _ = ray.wait(list(running))
            name = running.pop(done)
            try:
                ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise JobError(name, error.cause) from error
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError):
                continue
            survived.add(name)
            bar.update()
    finally:
        for task in running:
            ray.cancel(task, force=True)
    return [name for name in jobs if name not in survived]


def share_of_job(machines: Sequence[Mapping[str, float]], workers: int) -> dict[str, float]:
    """What is reserved for each of the jobs that run at once: `num_cpus` and `num_gpus`, which some machine has.

    Args:
        machines: `CPU` and `GPU` of each, where it has any.
        workers: how many jobs run at once.

    Examples:
        >>> share_of_job([{"CPU": 8.0}, {"CPU": 4.0}], 2)
        {'num_cpus': 4, 'num_gpus': 0}
        >>> share_of_job([{}, {"CPU": 16.0, "GPU": 2.0}], 3)
        {'num_cpus': 5, 'num_gpus': 0.5}
    """
    cpus = [int(machine["CPU"]) for machine in machines if machine.get("CPU", 0) >= 1] or [1]
    gpus = sum(machine.get("GPU", 0) for machine in machines)
    return {
        "num_cpus": max(1, min(min(cpus), sum(cpus) // workers)),
        "num_gpus": 1 / math.ceil(workers / gpus) if gpus else 0,
    }


_work_of_worker: dict[str, Callable[[Any], None]] = {}  # the last one


def _run_in_worker(key: str, work: bytes, folder: str, threads: int, job: Any) -> None:
    global _work_of_worker
    from ray import cloudpickle

    os.chdir(folder)
    torch.set_num_threads(threads)
    if key not in _work_of_worker:
        disable_progress_bar()  # of every model that is loaded or saved
        _work_of_worker = {key: cloudpickle.loads(work)}
    _work_of_worker[key](job)
