"""What every executor does with independent jobs."""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeAlias, TypeVar

from tqdm.auto import tqdm

Job = TypeVar("Job")
# Runs the jobs, one at a time if the last argument is true; returns the names of those whose process died, in order.
RunJobs: TypeAlias = Callable[[Mapping[str, Any], tqdm, bool], list[str]]
DIED = "the process died, probably out of memory"


class JobError(RuntimeError):
    """A job has failed: its name, and its error, whose traceback is the cause."""

    def __init__(self, name: str, error: BaseException):
        text = (str(error).splitlines() or [""])[0]
        super().__init__(f"{name}: {type(error).__name__}: {text}")


class Executor(ABC):
    """Runs independent jobs.

    A job leaves its result in a file or folder that every worker sees, and is left out by the caller where that is
    there already: so whatever was killed goes on, with whichever executor, and no result passes through here.

    Args:
        workers: how many jobs run at once.
    """

    def __init__(self, workers: int = 1):
        self.workers = workers

    def run(
        self, work: Callable[[Job], None], stages: Mapping[str, Mapping[str, Job]], *, progress: bool = True
    ) -> list[str]:
        """Run every job of a stage, then those of the next; one whose process dies runs again after the others, alone.

        Args:
            work: does a job. It is pickled and sent to every process once: what it keeps in memory stays from job to
                job.
            stages: description of the progress bar to name to job; jobs begin in this order.
            progress: whether to show progress bars.

        Returns:
            Names of the jobs whose process died both times, as for want of memory.

        Raises:
            JobError: a job raised an error. Jobs that wait are not begun, those that run are ended.
            TypeError: `work` cannot be sent to another process.
        """
        stages = {description: jobs for description, jobs in stages.items() if jobs}
        if not stages:
            return []
        died = []
        with self._workers(work) as run_jobs:
            for description, jobs in stages.items():
                with tqdm(total=len(jobs), desc=description, disable=not progress) as bar:
                    lost = run_jobs(jobs, bar, False)
                    lost = run_jobs({name: jobs[name] for name in lost}, bar, True) if lost else []
                    bar.update(len(lost))
                died += lost
        return died

    @abstractmethod
    def _workers(self, work: Callable[[Any], None]) -> AbstractContextManager[RunJobs]:
        """Workers that do jobs while the context lasts; an error in it ends them."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(workers={self.workers})"


def pickled(work: Any, dumps: Callable[[Any], bytes]) -> bytes:
    """Work as it is sent to another process.

    Raises:
        TypeError: it cannot be sent.
    """
    try:
        return dumps(work)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            f"executor: the work cannot be sent to another process ({str(error).splitlines()[0]}); "
            "give functions of a module, and objects that can be pickled"
        ) from error
