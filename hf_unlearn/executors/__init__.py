"""Where independent jobs run: in this process, in several, or on the machines of a Ray cluster."""

from __future__ import annotations

from typing import Literal, TypeAlias

from hf_unlearn.executors.base import DIED, Executor, JobError
from hf_unlearn.executors.local import LocalExecutor
from hf_unlearn.executors.ray_cluster import RayExecutor
from hf_unlearn.names import did_you_mean

__all__ = [
    "DIED", "EXECUTORS", "Executor", "ExecutorName", "JobError", "LocalExecutor", "RayExecutor", "make_executor",
]  # fmt: skip

ExecutorName: TypeAlias = Literal["local", "ray"]
EXECUTORS: dict[str, type[Executor]] = {"local": LocalExecutor, "ray": RayExecutor}


def make_executor(name: str, workers: int = 1) -> Executor:
    """The executor of a name.

    Args:
        name: `"local"` or `"ray"`.
        workers: how many jobs run at once.

    Raises:
        ValueError: there is no such executor, Ray is not installed, or `workers` is below 1.

    Examples:
        >>> make_executor("local", workers=2)
        LocalExecutor(workers=2)
    """
    if name not in EXECUTORS:
        raise ValueError(
            f"executor: there is no {name!r}; use one of {', '.join(EXECUTORS)}{did_you_mean(name, EXECUTORS)}"
        )
    if workers < 1:
        raise ValueError(f"workers: must be at least 1, got {workers}")
    return EXECUTORS[name](workers)
