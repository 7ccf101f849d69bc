"""What a run costs, in sample passes and seconds, beside what training again would cost."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object
from transformers.trainer import TRAINER_STATE_NAME

from hf_unlearn.auditing.budget import PASSES_WITH_GRADIENT
from hf_unlearn.hub.release_files import RECORD_FILE
from hf_unlearn.report.numbers import show, significant
from hf_unlearn.trainer.manifest import checkpoints, is_unlearning

logger = logging.getLogger(__name__)
Purpose: TypeAlias = Literal["steps", "calibration", "measuring"]
PURPOSES: tuple[Purpose, ...] = ("steps", "calibration", "measuring")


class CostCounter:
    """Counts the sample passes and the time of this process since the run began.

    One sample forward is one sample pass, forward and backward are three. Per-sample gradients count as three,
    whatever their engine: the inner products that gradient surgery makes of them are no passes, and show in the
    seconds alone. What is run again counts again: recomputed retain samples, the scores of a step of several batches.
    A teacher's pass counts, too. A sample that is generated or transcribed counts as one pass a beam, as each of its
    tokens goes through the model once. What an audit measures is no part of the run.

    Attributes:
        passes: by purpose: `"steps"`, `"calibration"` (what the method measures once before them) and `"measuring"`.
    """

    def __init__(self) -> None:
        self.passes: dict[str, float] = dict.fromkeys(PURPOSES, 0.0)
        self._before = {"processor_seconds": 0.0, "wall_seconds": 0.0}  # of the run that this one goes on from
        self._started = {"processor_seconds": time.process_time(), "wall_seconds": time.perf_counter()}

    def add(self, purpose: Purpose, samples: float, *, gradient: bool = False) -> None:
        """Count samples of this process that went through the model once, with or without a backward pass."""
        self.passes[purpose] += samples * (PASSES_WITH_GRADIENT if gradient else 1)

    def resume(self, totals: Mapping[str, float], accelerator: Accelerator) -> None:
        """Go on from the `totals` of a checkpoint, which are those of all processes: the first one takes them over."""
        share = float(accelerator.is_main_process)
        for purpose in PURPOSES:
            self.passes[purpose] += share * totals.get(purpose, 0.0)
        self._before = {
            "processor_seconds": share * totals.get("processor_seconds", 0.0),
            "wall_seconds": totals.get("wall_seconds", 0.0),
        }

    def totals(self) -> dict[str, float]:
        """Sample passes by purpose and `processor_seconds`, summed over processes, and `wall_seconds`; all call it."""
        clocks = {"processor_seconds": time.process_time(), "wall_seconds": time.perf_counter()}
        seconds = {name: self._before[name] + now - self._started[name] for name, now in clocks.items()}
        by_process = gather_object([{**self.passes, **seconds}])
        sums = {name: sum(process[name] for process in by_process) for name in by_process[0]}
        return {**sums, "wall_seconds": max(process["wall_seconds"] for process in by_process)}


@dataclass(frozen=True)
class RunCost:
    """What a run has cost, over all processes.

    Attributes:
        passes: sample passes by purpose; see `CostCounter`.
        processor_seconds: of all threads of the run's processes, data loading in other processes left out.
        wall_seconds: the same by the clock.
        retraining_passes: sample passes of training again without the forget dataset; None where not known.
        has_unknown_length: whether the retain dataset is a stream of which nobody says how long it is.
    """

    passes: Mapping[str, float]
    processor_seconds: float
    wall_seconds: float
    retraining_passes: float | None = None
    has_unknown_length: bool = False

    @classmethod
    def of(cls, totals: Mapping[str, float], epochs: float | None, retain_samples: float) -> RunCost:
        """From the totals of a counter, the epochs of training (None: not known) and the samples of retraining.

        What retraining costs is not known of a stream of unknown length, with infinite `retain_samples`.

        Examples:
            >>> totals = {"steps": 900, "calibration": 0, "measuring": 90, "processor_seconds": 1, "wall_seconds": 1}
            >>> RunCost.of(totals, 3, 1000).metrics()["cost_of_retraining"]
            0.11
        """
        passes: dict[str, float] = {purpose: totals[purpose] for purpose in PURPOSES}
        is_unknown = math.isinf(retain_samples)
        retraining = None if epochs is None or is_unknown else PASSES_WITH_GRADIENT * epochs * retain_samples
        return cls(passes, totals["processor_seconds"], totals["wall_seconds"], retraining, is_unknown)

    @property
    def sample_passes(self) -> float:
        """Of all purposes."""
        return sum(self.passes.values())

    def metrics(self) -> dict[str, float]:
        """Numbers for the log and the record; `cost_of_retraining` is the ratio of the sample passes."""
        metrics = {"sample_passes": float(round(self.sample_passes))}
        metrics |= {f"sample_passes_{purpose}": float(round(n)) for purpose, n in self.passes.items()}
        metrics |= {"processor_seconds": self.processor_seconds, "wall_seconds": self.wall_seconds}
        if self.retraining_passes is not None:
            metrics["retraining_sample_passes"] = self.retraining_passes
            metrics["cost_of_retraining"] = self.sample_passes / self.retraining_passes
        return metrics

    @property
    def sentence(self) -> str:
        """The same in words, for a person."""
        measuring = self.passes["measuring"] / max(1.0, self.sample_passes)
        total = f"{show(self.sample_passes, 'samples')} sample passes ({show(measuring, 'share')} measuring)"
        text = f"{total} in {significant(self.processor_seconds)} processor seconds"
        if self.retraining_passes is None:
            asked = "training_passes, the epochs of the model's training,"
            if self.has_unknown_length:
                return f"{text} ({asked} and retain_samples, of the stream, say what share of retraining)"
            return f"{text} ({asked} says what share of retraining)"
        ratio = significant(self.sample_passes / self.retraining_passes, 2)
        return f"{text}, {ratio} of the {show(self.retraining_passes, 'samples')} passes of retraining"


def warn_of_cost(before: RunCost, steps: float) -> None:
    """Say so in one warning, before the first step, where the run would cost more than retraining.

    Args:
        before: what the run has cost so far; what was measured is measured again after the steps.
        steps: sample passes of all its steps.
    """
    retraining, planned = before.retraining_passes, before.sample_passes + steps + before.passes["measuring"]
    if retraining is not None and planned > retraining and PartialState().is_main_process:
        logger.warning(
            f"Unlearning would cost more than retraining: up to {show(planned, 'samples')} sample passes, of which "
            f"{show(steps, 'samples')} are steps and the rest is measured; training on the retain dataset again "
            f"takes {show(retraining, 'samples')}. Lower max_steps, or retrain"
        )


def training_epochs(name_or_path: str) -> float | None:
    """The epochs of training behind a checkpoint, from its `trainer_state.json`; None where that does not say.

    Args:
        name_or_path: `config._name_or_path` of a model: of a local folder that `Trainer` wrote, or of a `checkpoint-N`
            in it. What an unlearning run wrote says nothing about the training before it.
    """
    folder = Path(name_or_path)
    if not name_or_path or not folder.is_dir() or (folder / RECORD_FILE).is_file():
        return None
    for candidate in (folder, *checkpoints(folder)):
        if is_unlearning(candidate):
            continue
        epochs = _epochs(candidate / TRAINER_STATE_NAME)
        if epochs is not None:
            return epochs
    return None


def _epochs(path: Path) -> float | None:
    try:
        state: Any = json.loads(path.read_text(encoding="utf-8"))
        epochs = float(state["epoch"] or state["num_train_epochs"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # written by somebody else, or not there
    return epochs if 0 < epochs < float("inf") else None
