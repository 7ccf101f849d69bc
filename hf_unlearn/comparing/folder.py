"""The folder of a comparison: trains, measures and saves its runs."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import accelerate
import datasets
import peft
import torch
import transformers
from transformers import PreTrainedModel

import hf_unlearn
from hf_unlearn.auditing.caching import fingerprint as weights_fingerprint
from hf_unlearn.comparing.config import Comparison, fingerprint
from hf_unlearn.comparing.runs import MeasuredRun, TrainingRun, training_runs_for
from hf_unlearn.comparing.task import Task
from hf_unlearn.comparing.unlearning import Refusal, device_name, measure_time, unlearn
from hf_unlearn.data.collator import columns_read
from hf_unlearn.data.files import claim, replacing
from hf_unlearn.data.hashing import sample_hashes
from hf_unlearn.data.splitting import in_memory, subsample
from hf_unlearn.data.types import AnyDataset
from hf_unlearn.data.validation import check_datasets
from hf_unlearn.losses import head_of
from hf_unlearn.models.loading import load_model
from hf_unlearn.models.types import Model
from hf_unlearn.report.comparison import ORIGINAL, RETRAINED
from hf_unlearn.training import quiet

logger = logging.getLogger(__name__)
VERSIONS = {m.__name__: m.__version__ for m in (hf_unlearn, torch, transformers, peft, accelerate, datasets)}
TRAINING_FILE = "training.json"


class ComparisonFolder:
    """The folder of a comparison: trained models in `models`, one JSON file a measured run in `runs`.

    What was saved from the same settings is not computed again.

    Args:
        config: the comparison.
        path: of the folder, which need not exist.
    """

    def __init__(self, config: Comparison, path: str | Path):
        self.config, self.path = config, Path(path)
        self.task_class = config.load_task_class()
        # The last task and the last datasets stay in memory, because loading them takes time.
        self._tasks: dict[int, Task] = {}
        self._datasets: dict[tuple[int, str], dict[str, AnyDataset]] = {}
        self._data_hashes: dict[TrainingRun, str] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_in_worker, (self.config, self.path)

    def load_task(self, seed: int) -> Task:
        """The task of a seed."""
        if seed not in self._tasks:
            self._tasks = {seed: self.task_class(seed, **self.config.options)}
        return self._tasks[seed]

    def load_datasets(self, seed: int, forget: str) -> dict[str, AnyDataset]:
        """`forget_ds`, `retain_ds` and `unseen_ds` of a forget expression."""
        if (seed, forget) not in self._datasets:
            task = self.load_task(seed)
            forget_ds, retain_ds = task.split(forget)
            datasets_by_name = {"forget_ds": forget_ds, "retain_ds": retain_ds, "unseen_ds": task.datasets["test"]}
            self._datasets = {(seed, forget): {name: in_memory(ds) for name, ds in datasets_by_name.items()}}
        return self._datasets[seed, forget]

    def check_shared(self) -> None:
        """Refuse what would fail in every run of a request, as the first seed has it, before any model is trained.

        Raises:
            ValueError: the data does not load, or a request selects no samples or some that are shared.
        """
        seed = self.config.seeds[0]
        task = self.load_task(seed)
        model = task.build(seed)
        for name in self.config.requests:
            try:
                datasets_by_name = self.load_datasets(seed, self.config.forget_expression(name, seed))
                check_datasets(**datasets_by_name, columns=columns_read(model), kind=head_of(model).kind)
            except ValueError as error:
                raise ValueError(f"config: request {name!r}: {error}") from error

    # ---- trained models ----

    def load_training_samples(self, run: TrainingRun) -> AnyDataset:
        """What a model is trained on."""
        task = self.load_task(run.seed)
        if run.forget is None:
            return in_memory(task.datasets["train"])
        if run.name in task.shadows:
            return in_memory(task.shadow_samples(run.name, run.forget))
        return self.load_datasets(run.seed, run.forget)["retain_ds"]

    def hash_training_samples(self, run: TrainingRun) -> str:
        """A hash of the samples that a model is trained on."""
        if run not in self._data_hashes:
            hashes = sample_hashes(self.load_training_samples(run))
            self._data_hashes[run] = hashlib.blake2b(b"".join(hashes), digest_size=16).hexdigest()
        return self._data_hashes[run]

    def given_checkpoint(self, run: TrainingRun) -> str | None:
        """The checkpoint that the configuration names for a model; None if the model is trained."""
        if run.name == ORIGINAL:
            return self.config.original_checkpoint(run.seed)
        if run.name == RETRAINED and run.forget is not None:
            return self.config.retrained_checkpoint(run.seed, run.forget)
        return None

    def trained_model_folder(self, run: TrainingRun) -> Path:
        """Where a trained model is saved."""
        key = fingerprint(
            self.config.task, self.config.options, self.task_class.training, asdict(run), self.given_checkpoint(run)
        )
        return self.path / "models" / f"{slug(run.name)}-{run.seed}-{key}"

    def is_trained(self, run: TrainingRun) -> bool:
        """Whether a trained model is saved."""
        return self.trained_model_folder(run).exists()

    def train(self, run: TrainingRun) -> None:
        """Train a model, unless it is saved. An error is logged; the measured runs that need the model then fail."""
        try:
            with claim(self.trained_model_folder(run)):
                if not self.is_trained(run):
                    self._train(run)
        except Exception:
            logger.exception("%s failed", run)

    def _train(self, run: TrainingRun) -> None:
        durations: dict[str, float] = {}  # of a given checkpoint they are not known
        if checkpoint := self.given_checkpoint(run):
            model = load_model(checkpoint)
        else:
            samples = self.load_training_samples(run)
            with measure_time() as durations:
                model = self.load_task(run.seed).train(samples, run.training_seed)
        with replacing(self.trained_model_folder(run)) as folder:
            model.save_pretrained(folder)
            contents = {**durations, "data": self.hash_training_samples(run)}
            (folder / TRAINING_FILE).write_text(json.dumps(contents))

    def check_trained(self, run: TrainingRun) -> None:
        """Check that a trained model is saved.

        Raises:
            RuntimeError: it is not.
        """
        if not self.is_trained(run):
            checkpoint = self.given_checkpoint(run)
            action = f"loaded from {checkpoint}" if checkpoint else "trained"
            raise RuntimeError(f"the {run.name} model could not be {action}")

    def load_trained_model(self, run: TrainingRun) -> tuple[PreTrainedModel, dict[str, float]]:
        """A trained model, and the seconds that its training took (empty for a given checkpoint).

        Raises:
            RuntimeError: it is not saved, or the task gave it other samples than it gives now.
        """
        self.check_trained(run)
        folder = self.trained_model_folder(run)
        durations = json.loads((folder / TRAINING_FILE).read_text())
        if durations.pop("data") != self.hash_training_samples(run):
            raise RuntimeError(
                f"the {run.name} model of seed {run.seed} was trained on other samples than the task has now; "
                f"have it load the same samples in every process, and delete {folder}"
            )
        return load_model(str(folder)).eval(), durations

    # ---- measured runs ----

    def training_runs_for(self, run: MeasuredRun) -> dict[str, TrainingRun]:
        """By name, the trained models that a measured run may need."""
        return training_runs_for(self.config, run.seed, self.config.forget_expression(run.request, run.seed))

    def result_file(self, run: MeasuredRun) -> Path:
        """Where the result of a run is saved."""
        key = self._settings_key(run)[:6]
        return self.path / "runs" / f"{slug(run.request)}-{run.seed}-{slug(run.model)}-{key}.json"

    def _settings_key(self, run: MeasuredRun) -> str:
        config, trained = self.config, self.training_runs_for(run)
        return fingerprint(
            config.task, config.options, self.task_class.training, self.task_class.shadows, config.retrained,
            config.forget_expression(run.request, run.seed), config.requests[run.request].retain_samples,
            config.budget, config.relearning, asdict(run), config.methods.get(run.model),
            [self.given_checkpoint(trained[name]) for name in (ORIGINAL, RETRAINED)],
        )  # fmt: skip

    def is_done(self, run: MeasuredRun) -> bool:
        """Whether a run is measured, or refused by its method; failed runs are run again."""
        return self.result_file(run).exists() and self.read_result(run)["status"] != "failed"

    def read_result(self, run: MeasuredRun) -> dict[str, Any]:
        """The saved result of a run."""
        return json.loads(self.result_file(run).read_text())

    def write_result(self, run: MeasuredRun, result: dict[str, Any]) -> None:
        """Save the result of a run."""
        with replacing(self.result_file(run)) as path:
            path.write_text(json.dumps({**asdict(run), **result}, indent=1) + "\n")

    def measure(self, run: MeasuredRun) -> None:
        """Measure a model and save the result; an error is saved as the result, so that other runs go on."""
        with claim(self.result_file(run)):
            if self.is_done(run):
                return
            try:
                result = self._measure(run)
            except Exception as error:
                logger.exception("%s failed", run)
                text = (str(error).splitlines() or [""])[0]
                result = {"status": "failed", "error": f"{type(error).__name__}: {text}"}
            self.write_result(run, result)

    def _measure(self, run: MeasuredRun) -> dict[str, Any]:
        forget = self.config.forget_expression(run.request, run.seed)
        # Without an accelerator, processor time does not count what else the machine does.
        clock = "seconds" if torch.cuda.is_available() else "processor_seconds"
        result: dict[str, Any] = {"status": "done", "forget": forget, "device": device_name(), "clock": clock}
        unlearned = run.model in self.config.methods
        datasets_by_name = self.load_datasets(run.seed, forget)
        try:
            model, details = self._unlearn(run, datasets_by_name) if unlearned else self._load_measured_model(run)
        except Refusal as refusal:
            return {**result, "status": "refused", "error": str(refusal)}
        retrained, _ = self.load_trained_model(self.training_runs_for(run)[RETRAINED])
        task = self.load_task(run.seed)
        metrics = task.metrics(
            model, retrained, **datasets_by_name, relearning=self.config.relearning,
            training_passes=task.training.get("num_train_epochs"),
            cache_dir=self.path / "statistics",  # those of trained models serve several runs
        )  # fmt: skip
        weights = weights_fingerprint(model).hex()
        return {**result, **details, "metrics": metrics, "weights": weights, "versions": VERSIONS}

    def _load_measured_model(self, run: MeasuredRun) -> tuple[Model, dict[str, Any]]:
        """The original or a retrained model, and for the result: what its training took, or its checkpoint."""
        training_run = self.training_runs_for(run)[run.model]
        model, details = self.load_trained_model(training_run)
        checkpoint = self.given_checkpoint(training_run)
        return model, {**details, "checkpoint": checkpoint} if checkpoint else {**details}

    def _unlearn(self, run: MeasuredRun, datasets_by_name: dict[str, AnyDataset]) -> tuple[Model, dict[str, Any]]:
        """The original model after unlearning, and for the result: settings of the method, and what it took."""
        config, task, trained = self.config, self.load_task(run.seed), self.training_runs_for(run)
        original, _ = self.load_trained_model(trained[ORIGINAL])
        self.check_trained(trained[RETRAINED])  # before the work, not after it
        retain_ds = datasets_by_name["retain_ds"]
        retain_ds = subsample(retain_ds, config.requests[run.request].retain_samples or len(retain_ds), run.seed)
        loaders: dict[str, Callable[[], PreTrainedModel]] = {
            name: partial(self._load_shadow_model, trained[name]) for name in task.shadows
        }
        target = task.target(config.forget_expression(run.request, run.seed), loaders)
        settings = config.methods[run.model]
        epochs = task.training.get("num_train_epochs")  # of the retrained models, on the whole retain dataset
        training_passes = None if epochs is None else epochs * len(datasets_by_name["retain_ds"]) / len(retain_ds)
        model, cost = unlearn(
            original, datasets_by_name["forget_ds"], retain_ds, task, target, settings, config.budget, training_passes
        )
        return model, {"settings": dict(settings), **cost}

    def _load_shadow_model(self, run: TrainingRun) -> PreTrainedModel:
        return self.load_trained_model(run)[0]


def _open_in_worker(config: Comparison, path: Path) -> ComparisonFolder:
    """The folder in another process, which loads tasks and datasets itself."""
    quiet()
    return ComparisonFolder(config, path)


def slug(text: str) -> str:
    """A text as part of a file name.

    Examples:
        >>> slug("random 10 %"), slug("∇τ")
        ('random-10', 'τ')
    """
    return re.sub(r"[^\w]+", "-", text).strip("-")
