"""The cells of a comparison: models that are trained once and kept, and models that are measured."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import accelerate
import datasets
import peft
import torch
import transformers

import hf_unlearn
from hf_unlearn.auditing.measuring import fingerprint as weights_fingerprint
from hf_unlearn.comparing.config import Comparison, fingerprint
from hf_unlearn.comparing.task import Task
from hf_unlearn.comparing.unlearning import Refusal, clocks, device, unlearn
from hf_unlearn.data.hashing import sample_hashes
from hf_unlearn.data.splitting import in_memory, subsample
from hf_unlearn.models.loading import load_model
from hf_unlearn.report.comparison import ORIGINAL, RETRAINED

logger = logging.getLogger(__name__)
VERSIONS = {m.__name__: m.__version__ for m in (hf_unlearn, torch, transformers, peft, accelerate, datasets)}


@dataclass(frozen=True)
class Training:
    """A model that is trained on `samples`: all of them, those without a forget dataset, or those of a shadow model.

    Attributes:
        seed: of the task.
        name: "original", "retrained", "retrained 2", ..., or the name of a shadow model.
        forget: the forget expression that it is for; None for the original.
        number: told apart models of one task by it: the training's own seed is `seed + 1000 * number`.
    """

    seed: int
    name: str
    forget: str | None
    number: int


@dataclass(frozen=True)
class Cell:
    """A model that is measured: one of the trained ones, or what a method makes of the original.

    Attributes:
        request: name of the request.
        seed: of the task.
        model: "original", "retrained", "retrained 2", ... or the name of a method's entry.
    """

    request: str
    seed: int
    model: str


def retrained_names(config: Comparison) -> list[str]:
    """Names of the retrained models: the first is the retrained model."""
    return [RETRAINED, *(f"{RETRAINED} {number}" for number in range(2, config.retrained + 1))]


def models(config: Comparison, seed: int, forget: str) -> dict[str, Training]:
    """By name, the models that forgetting these samples takes: the original, the retrained ones, the shadow models."""
    names = [*retrained_names(config), *config.task_class.shadows]
    theirs = {name: Training(seed, name, forget, number) for number, name in enumerate(names, start=1)}
    return {ORIGINAL: Training(seed, ORIGINAL, None, 0), **theirs}


def trainings(config: Comparison) -> list[Training]:
    """Every model that has to be trained, once: requests that differ only in what methods may use share theirs."""
    found: dict[Training, None] = {}
    for place, seed in enumerate(config.seeds):
        for request in config.requests.values():
            found |= dict.fromkeys(models(config, seed, request.forget[place]).values())
    return list(found)


def cells(config: Comparison) -> list[Cell]:
    """Every model that is measured, those of one seed and request together: they share data."""
    names = [ORIGINAL, *retrained_names(config), *config.methods]
    return [Cell(request, seed, name) for seed in config.seeds for request in config.requests for name in names]


def slug(text: str) -> str:
    """A text as part of a file name.

    Examples:
        >>> slug("random 10 %"), slug("∇τ")
        ('random-10', 'τ')
    """
    return re.sub(r"[^\w]+", "-", text).strip("-")


class ComparisonFolder:
    """A comparison's folder: trained models in `models`, one file a cell in `cells`.

    What is there already, made from the same settings, is not made again.
    """

    def __init__(self, config: Comparison, folder: str | Path):
        self.config, self.folder = config, Path(folder)
        self._tasks: dict[int, Task] = {}
        self._sets: dict[tuple[int, str], dict[str, Any]] = {}
        self._data: dict[Training, str] = {}

    # Of tasks and sets the last one is kept, because loading data takes time.

    def task(self, seed: int) -> Task:
        """The task of a seed."""
        if seed not in self._tasks:
            self._tasks = {seed: self.config.task_class(seed, **self.config.options)}
        return self._tasks[seed]

    def sets(self, seed: int, forget: str) -> dict[str, Any]:
        """The samples "forget", "retain" and "unseen" of a forget expression."""
        if (seed, forget) not in self._sets:
            task = self.task(seed)
            samples = (*task.split(forget), task.sets["test"])
            names = ("forget", "retain", "unseen")
            self._sets = {(seed, forget): {n: in_memory(each) for n, each in zip(names, samples, strict=True)}}
        return self._sets[seed, forget]

    # ---- models ----

    def samples(self, training: Training) -> Any:
        """What a model is trained on."""
        task = self.task(training.seed)
        if training.forget is None:
            return in_memory(task.sets["train"])
        if training.name in task.shadows:
            return in_memory(task.shadow_samples(training.name, training.forget))
        return self.sets(training.seed, training.forget)["retain"]

    def data(self, training: Training) -> str:
        """A hash of these samples."""
        if training not in self._data:
            hashes = sample_hashes(self.samples(training))
            self._data[training] = hashlib.blake2b(b"".join(hashes), digest_size=16).hexdigest()
        return self._data[training]

    def there(self, training: Training) -> list[str]:
        """The checkpoint that need not be trained: an original, or the retrained model that requests name; or none."""
        place, requests = self.config.seeds.index(training.seed), self.config.requests.values()
        if training.name == ORIGINAL:
            return list(self.config.original[place : place + 1])
        if training.name != RETRAINED:
            return []
        return [r.retrained[place] for r in requests if r.retrained and r.forget[place] == training.forget][:1]

    def model_folder(self, training: Training) -> Path:
        """Where a trained model is kept."""
        settings = self.config.task_class.training
        made_from = fingerprint(
            self.config.task, self.config.options, settings, asdict(training), *self.there(training)
        )
        return self.folder / "models" / f"{slug(training.name)}-{training.seed}-{made_from}"

    def train(self, training: Training) -> None:
        """Train a model, unless it is there. What goes wrong stops the cells that need it, and nothing else."""
        try:
            if not self.model_folder(training).exists():
                self._train(training)
        except Exception:
            logger.exception("%s failed", training)

    def _train(self, training: Training) -> None:
        folder = self.model_folder(training)
        if there := self.there(training):
            taken, model = {}, load_model(*there)  # nobody knows what it took
        else:
            samples = self.samples(training)
            with clocks() as taken:
                model = self.task(training.seed).train(samples, training.seed + 1000 * training.number)
        # Written aside and renamed: a folder that is there is whole.
        partial = folder.with_suffix(f".{os.getpid()}")
        model.save_pretrained(partial)
        (partial / "training.json").write_text(json.dumps({**taken, "data": self.data(training)}))
        try:
            os.rename(partial, folder)
        except OSError:  # another process was faster, with the same model
            shutil.rmtree(partial)

    def found(self, training: Training) -> Path:
        """The folder of a trained model.

        Raises:
            RuntimeError: there is none.
        """
        folder = self.model_folder(training)
        if not folder.exists():
            done = f"loaded from {there[0]}" if (there := self.there(training)) else "trained"
            raise RuntimeError(f"the {training.name} model could not be {done}")
        return folder

    def load(self, training: Training) -> tuple[Any, dict[str, float]]:
        """A trained model, and the seconds that it took, unless it was there.

        Raises:
            RuntimeError: there is none, or the task gave it other samples than it gives now.
        """
        folder = self.found(training)
        taken = json.loads((folder / "training.json").read_text())
        if taken.pop("data") != self.data(training):
            raise RuntimeError(
                f"the {training.name} model of seed {training.seed} was trained on other samples than the task has now; "
                f"have it load the same samples in every process, and delete {folder}"
            )
        return load_model(str(folder)).eval(), taken

    # ---- cells ----

    def cell_file(self, cell: Cell) -> Path:
        """Where a cell's metrics are kept."""
        return (
            self.folder / "cells" / f"{slug(cell.request)}-{cell.seed}-{slug(cell.model)}-{self._key(cell)[:6]}.json"
        )

    def _key(self, cell: Cell) -> str:
        config = self.config
        request, task = config.requests[cell.request], config.task_class
        there = [self.there(self.models(cell)[name]) for name in (ORIGINAL, RETRAINED)]
        return fingerprint(
            config.task, config.options, task.training, task.shadows, config.retrained, self.forget(cell),
            request.retain_samples, config.budget, config.relearning, asdict(cell), config.methods.get(cell.model),
            *(there if any(there) else []),
        )  # fmt: skip

    def forget(self, cell: Cell) -> str:
        """What a cell's model forgets."""
        return self.config.requests[cell.request].forget[self.config.seeds.index(cell.seed)]

    def models(self, cell: Cell) -> dict[str, Training]:
        """The trained models that a cell may need, by name; "retrained" is what it is compared with."""
        return models(self.config, cell.seed, self.forget(cell))

    def done(self, cell: Cell) -> bool:
        """Whether a cell need not be run: it was refused, or is there; failed ones are run again."""
        return self.cell_file(cell).exists() and self.read(cell)["status"] != "failed"

    def read(self, cell: Cell) -> dict[str, Any]:
        """A cell's result."""
        return json.loads(self.cell_file(cell).read_text())

    def write(self, cell: Cell, found: dict[str, Any]) -> None:
        """Keep a cell's result."""
        path = self.cell_file(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps({**asdict(cell), **found}, indent=1) + "\n")
        os.replace(partial, path)

    def run(self, cell: Cell) -> None:
        """Measure a model. What goes wrong is the cell's result, and stops nothing else."""
        try:
            found = self._measure(cell)
        except Exception as error:
            logger.exception("%s failed", cell)
            text = (str(error).splitlines() or [""])[0]
            found = {"status": "failed", "error": f"{type(error).__name__}: {text}"}
        self.write(cell, found)

    def _measure(self, cell: Cell) -> dict[str, Any]:
        config, request = self.config, self.config.requests[cell.request]
        task = self.task(cell.seed)
        forget_text = self.forget(cell)
        sets = self.sets(cell.seed, forget_text)
        needed = self.models(cell)
        # Elsewhere the processor waits for the accelerator, and wall-clock time counts what else the machine does.
        clock = "seconds" if torch.cuda.is_available() else "processor_seconds"
        result: dict[str, Any] = {"status": "done", "forget": forget_text, "device": device(), "clock": clock}
        if cell.model in config.methods:
            model, _ = self.load(needed[ORIGINAL])
            self.found(needed[RETRAINED])  # before the work, not after it
            settings = config.methods[cell.model]
            shadows = {name: (lambda name=name: self.load(needed[name])[0]) for name in task.shadows}
            retain = subsample(sets["retain"], request.retain_samples or len(sets["retain"]), cell.seed)
            target = task.target(forget_text, shadows)
            try:
                model, cost = unlearn(model, sets["forget"], retain, task, target, settings, config.budget)
            except Refusal as refusal:
                return {**result, "status": "refused", "error": str(refusal)}
            result |= {"settings": dict(settings), **cost}
        else:
            model, taken = self.load(needed[cell.model])
            result |= taken
            if there := self.there(needed[cell.model]):
                result["checkpoint"] = there[0]
        retrained, _ = self.load(needed[RETRAINED])
        kept = {"cache_dir": self.folder / "statistics"} if cell.model not in config.methods else {}
        result["metrics"] = task.metrics(
            model, retrained, **{f"{name}_ds": ds for name, ds in sets.items()}, relearning=config.relearning, **kept
        )
        return {**result, "weights": weights_fingerprint(model).hex(), "versions": VERSIONS}
