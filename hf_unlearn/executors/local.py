"""Jobs in this process, or in several on this machine."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from queue import SimpleQueue
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers.utils.logging import disable_progress_bar
from typing_extensions import override

from hf_unlearn.executors.base import Executor, JobError, RunJobs, pickled

CONTEXT: BaseContext = multiprocessing.get_context("spawn")  # a forked process cannot use the GPU


class LocalExecutor(Executor):
    """Jobs in this process where there is one worker, else in so many processes of this machine.

    The processes are spawned: a script that has several needs `if __name__ == "__main__":`, as Python says. They end
    with this process, however that ends. Where there are several GPUs, each process has its own.

    Each has as many threads as `OMP_NUM_THREADS` says; without it, this process's threads are shared out. Sums of
    another number of threads are rounded otherwise.

    Args:
        workers: number of processes.
    """

    @override
    @contextmanager
    def _workers(self, work: Callable[[Any], None]) -> Iterator[RunJobs]:
        if self.workers == 1:
            yield partial(_run_here, work)
            return
        sent, threads = pickled(work, pickle.dumps), threads_of_worker(self.workers)
        lifeline, end = CONTEXT.Pipe(duplex=False)
        processes = [_WorkerProcess(sent, lifeline, number, threads) for number in range(self.workers)]
        with lifeline, end, ThreadPoolExecutor(self.workers) as pool:
            try:
                yield partial(_run_in_processes, processes, pool)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                end.close()
                raise
            finally:
                for process in processes:
                    process.close()


def threads_of_worker(workers: int) -> int:
    """The number of threads of each of several processes on this machine."""
    return torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else max(1, torch.get_num_threads() // workers)


def _run_here(work: Callable[[Any], None], jobs: Mapping[str, Any], bar: tqdm, alone: bool) -> list[str]:
    for name, job in jobs.items():
        try:
            work(job)
        except Exception as error:
            raise JobError(name, error) from error
        bar.update()
    return []


def _run_in_processes(
    processes: Sequence[_WorkerProcess], pool: ThreadPoolExecutor, jobs: Mapping[str, Any], bar: tqdm, alone: bool
) -> list[str]:
    if alone:  # the others hold no memory then
        for process in processes:
            process.close()
    idle: SimpleQueue[_WorkerProcess] = SimpleQueue()
    for process in processes[:1] if alone else processes:
        idle.put(process)
    has_failed = threading.Event()

    def run(job: Any) -> bool:
        process = idle.get()
        try:
            return not has_failed.is_set() and process.run(job)
        except Exception:
            has_failed.set()  # this thread would begin the next job before the error is seen
            raise
        finally:
            idle.put(process)

    survived = set()
    futures = {pool.submit(run, job): name for name, job in jobs.items()}
    for future in as_completed(futures):
        try:
            if future.result():
                survived.add(futures[future])
                bar.update()
        except Exception as error:
            raise JobError(futures[future], error) from error
    return [name for name in jobs if name not in survived]


class _WorkerProcess:
    """A process that does one job after the other, and is replaced when it dies: it is known of which job."""

    def __init__(self, *settings: Any):
        self._settings = settings
        self._pool = self._make_pool()

    def _make_pool(self) -> ProcessPoolExecutor:  # its process starts with the first job
        return ProcessPoolExecutor(1, CONTEXT, initializer=_start_worker, initargs=self._settings)

    def run(self, job: Any) -> bool:
        """Do a job; returns whether the process has survived it."""
        try:
            self._pool.submit(_run_in_worker, job).result()
        except BrokenProcessPool:
            self._pool = self._make_pool()
            return False
        return True

    def close(self) -> None:
        """End the process; a further job starts another one."""
        self._pool.shutdown()
        self._pool = self._make_pool()


_work_of_worker: Any  # bytes until the first job


def _start_worker(work: bytes, lifeline: Connection, number: int, threads: int) -> None:
    global _work_of_worker
    threading.Thread(target=_exit_at_end_of, args=[lifeline], daemon=True).start()
    # Ctrl-C reaches every process. As an exception it would only end the current job, and the next would begin.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if (gpus := torch.cuda.device_count()) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu_of_worker(number, gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
    torch.set_num_threads(threads)
    disable_progress_bar()  # of every model that is loaded or saved
    _work_of_worker = work


def _exit_at_end_of(lifeline: Connection) -> None:
    """Exit when the other end is closed, as it is when the parent dies: a worker would go on with its job."""
    lifeline.poll(None)
    os._exit(1)


def _run_in_worker(job: Any) -> None:
    global _work_of_worker
    if isinstance(_work_of_worker, bytes):
        _work_of_worker = pickle.loads(_work_of_worker)
    _work_of_worker(job)


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
