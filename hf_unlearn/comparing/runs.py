"""The runs of a comparison: models that are trained once and saved, and models that are measured."""

from __future__ import annotations

from dataclasses import dataclass

from hf_unlearn.comparing.config import Comparison
from hf_unlearn.report.comparison import ORIGINAL, RETRAINED


@dataclass(frozen=True)
class TrainingRun:
    """A model that is trained: the original, a retrained model, or a shadow model.

    Attributes:
        seed: of the task.
        name: "original", "retrained", "retrained 2", ..., or the name of a shadow model.
        forget: the forget expression of retrained and shadow models; None for the original.
        number: of the model among those of its task: 0 is the original.
    """

    seed: int
    name: str
    forget: str | None
    number: int

    @property
    def training_seed(self) -> int:
        """Seed of initial weights and order of samples; models of one task differ in it."""
        return self.seed + 1000 * self.number

    def __str__(self) -> str:
        return f"{self.name} model of seed {self.seed}" + (f" without {self.forget}" if self.forget else "")


@dataclass(frozen=True)
class MeasuredRun:
    """A model that is measured: the original, a retrained model, or the original after unlearning with a method.

    Attributes:
        request: name of the request.
        seed: of the task.
        model: "original", "retrained", "retrained 2", ... or the name of a method's entry.
    """

    request: str
    seed: int
    model: str

    def __str__(self) -> str:
        return f"{self.model} of request {self.request!r}, seed {self.seed}"


def retrained_names(config: Comparison) -> list[str]:
    """Names of the retrained models; metrics are compared with the first."""
    return [RETRAINED, *(f"{RETRAINED} {number}" for number in range(2, config.retrained + 1))]


def training_runs_for(config: Comparison, seed: int, forget: str) -> dict[str, TrainingRun]:
    """By name, the models that a request needs: the original, the retrained ones, the shadow models."""
    names = [*retrained_names(config), *config.load_task_class().shadows]
    runs = {name: TrainingRun(seed, name, forget, number) for number, name in enumerate(names, start=1)}
    return {ORIGINAL: TrainingRun(seed, ORIGINAL, None, 0), **runs}


def training_runs(config: Comparison) -> list[TrainingRun]:
    """Every model that is trained, once: requests that forget the same samples share them."""
    runs: dict[TrainingRun, None] = {}
    for seed in config.seeds:
        for request in config.requests:
            forget = config.forget_expression(request, seed)
            runs |= dict.fromkeys(training_runs_for(config, seed, forget).values())
    return list(runs)


def measured_runs(config: Comparison) -> list[MeasuredRun]:
    """Every model that is measured; those of one seed and request follow each other, because they share data."""
    names = [ORIGINAL, *retrained_names(config), *config.methods]
    return [MeasuredRun(request, seed, name) for seed in config.seeds for request in config.requests for name in names]
