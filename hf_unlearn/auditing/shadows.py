"""Shadow models: the same training on random halves of the data, so that each sample is unseen to half of them."""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from torch.utils.data import ConcatDataset, Subset
from transformers import PreTrainedModel, PrinterCallback, TrainingArguments

from hf_unlearn.data.collator import Collator, readable_collator
from hf_unlearn.data.files import claim, replacing
from hf_unlearn.data.hashing import sample_hashes
from hf_unlearn.data.types import AnyDataset
from hf_unlearn.executors import DIED, ExecutorName, make_executor
from hf_unlearn.models.head_trainer import HeadTrainer
from hf_unlearn.models.loading import load_model
from hf_unlearn.models.sharding import unpartitioned
from hf_unlearn.models.types import Model

# Model, forget samples, retain samples to the unlearned model.
Unlearn: TypeAlias = Callable[[Model, AnyDataset, AnyDataset], Model]
PLAN_FILE = "plan.npz"


@dataclass(frozen=True)
class Shadows:
    """Shadow models in a folder, made by `train_shadows`.

    Attributes:
        folders: one a model, as `from_pretrained` reads them.
        members: dataset ("forget", "unseen", ...) to [models, samples]: was the model trained on the sample? After
            unlearning: has it forgotten the sample?
        unseen: the same: was the model never trained on the sample? Samples that an unlearned shadow model was trained
            on and kept are neither members nor unseen.
        hashes: dataset to the content hashes of its samples, in the order of the masks; a dataset without hashes is
            not checked.
    """

    folders: tuple[Path, ...]
    members: Mapping[str, np.ndarray]
    unseen: Mapping[str, np.ndarray]
    hashes: Mapping[str, list[bytes]] = field(default_factory=dict)

    def __len__(self) -> int:
        """The number of models."""
        return len(self.folders)

    def models(self) -> Iterator[PreTrainedModel]:
        """The models, one after the other: only one is in memory."""
        for folder in self.folders:
            with unpartitioned():
                model = load_model(str(folder))
            yield model


def train_shadows(
    build: Callable[[int], PreTrainedModel],
    forget_ds: AnyDataset,
    retain_ds: AnyDataset,
    unseen_ds: AnyDataset,
    output_dir: str | Path,
    args: TrainingArguments,
    *,
    count: int = 16,
    data_collator: Collator | None = None,
    unlearn: Unlearn | None = None,
    forget_share: float = 0.25,
    seed: int = 0,
    process_index: int = 0,
    num_processes: int = 1,
    workers: int = 1,
    executor: ExecutorName = "local",
) -> Shadows:
    """Train `count` shadow models, each on a random half of all samples; models in the folder are not trained again.

    Every sample is in exactly half of the models (Carlini et al. 2022, arXiv 2112.03570, section 5). An interrupted
    run continues with the first model that was not finished. Several processes share the work: those of `workers`, or
    processes of your own when each gets its `process_index`. They are ordinary processes that train different models,
    not a distributed run; the models are the same, bitwise where `OMP_NUM_THREADS` is.

    Args:
        build: seed to a new model of the original's class and configuration.
        forget_ds: the forget dataset of the audit, ready for the model, as are the others.
        retain_ds: the retain dataset of the audit.
        unseen_ds: the unseen dataset of the audit.
        output_dir: where the models go, one folder each. They hold what they were trained on, forget samples included:
            delete them after the audit.
        args: how the original was trained; its `output_dir` and `seed` are not used.
        count: number of models, even.
        data_collator: samples to batch; default: the model's.
        unlearn: model, forget samples, retain samples to the unlearned model, for U-LiRA (Hayes et al. 2024, arXiv
            2403.01218): each shadow model then forgets a random share of the samples it was trained on.
        forget_share: that share, in (0, 1); every sample is forgotten by `forget_share * count / 2` models, rounded.
        seed: of the halves and the models.
        process_index: of this process, where you start several.
        num_processes: how many you start.
        workers: number of processes that this one shares its work with. With two or more, or Ray, `build`,
            `data_collator` and `unlearn` are sent there: they are functions of a module.
        executor: where they are: `"local"`, on this machine (one worker: in this process), or `"ray"`, on those of a
            Ray cluster, which all need `output_dir` at the same path.

    Returns:
        The shadow models that are finished: all of them, unless other processes are still training theirs.

    Raises:
        ValueError: the processes are those of a distributed run, `count` is odd or below 2, with `unlearn` too few
            models would forget a sample for U-LiRA to compare (two are the least), or the folder holds shadow models
            of other samples or settings.
        TypeError: a function cannot be sent to another process.
        JobError: a model could not be trained; the error names it.
    """
    if "LOCAL_RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError(
            f"train_shadows: is called by {os.environ['WORLD_SIZE']} processes that were started together, and would "
            "train every model on all of them; call it on one, with workers="
        )
    jobs = make_executor(executor, workers)
    if count < 2 or count % 2:
        raise ValueError(
            f"count: expected an even number of shadow models, got {count}; every sample is in half of them"
        )
    datasets_by_name = {"forget": forget_ds, "retain": retain_ds, "unseen": unseen_ds}
    forgetting = 0 if unlearn is None else _forgetting_models(count, forget_share)
    folder, sizes = Path(output_dir), {name: len(ds) for name, ds in datasets_by_name.items()}
    trained, forgotten = _plan(sum(sizes.values()), count, forgetting, seed)
    hashes = {name: sample_hashes(ds) for name, ds in datasets_by_name.items()}
    _save_plan(folder, trained, forgotten, hashes)
    all_samples: ConcatDataset = ConcatDataset(list(datasets_by_name.values()))  # type: ignore[arg-type]
    folders = tuple(folder / f"shadow-{number:03d}" for number in range(count))
    shares = range(process_index, count, num_processes)
    missing = {folders[i].name: i for i in shares if not folders[i].exists()}
    training = _ShadowTraining(build, all_samples, trained, forgotten, folders, args, seed, data_collator, unlearn)
    died = jobs.run(training, {"Training shadow models": missing}, progress=not args.disable_tqdm)
    if died:
        raise RuntimeError(f"{', '.join(died)}: {DIED}; run it again with fewer workers")
    finished = [i for i, path in enumerate(folders) if path.exists()]

    def split(mask: np.ndarray) -> dict[str, np.ndarray]:
        parts = np.split(mask[finished], np.cumsum(list(sizes.values()))[:-1], axis=1)
        return dict(zip(sizes, parts, strict=True))

    members = forgotten if unlearn is not None else trained
    return Shadows(tuple(folders[i] for i in finished), split(members), split(~trained), hashes)


@dataclass(frozen=True)
class _ShadowTraining:
    """Trains and saves the shadow model of a number, here or in another process."""

    build: Callable[[int], PreTrainedModel]
    samples: ConcatDataset
    trained: np.ndarray
    forgotten: np.ndarray
    folders: tuple[Path, ...]
    args: TrainingArguments
    seed: int
    data_collator: Collator | None
    unlearn: Unlearn | None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """What comes from another process: this one finds its device itself, and shows no bar."""
        vars(self).update(state)
        vars(self.args).pop("_setup_devices", None)
        _ = self.args.device
        self.args.disable_tqdm = True

    def __call__(self, number: int) -> None:
        folder, seed, mask = self.folders[number], self.seed + number, self.trained[number]
        with claim(folder):
            if folder.exists():  # another process that was given the same share has trained it
                return
            model: Model = _train(self.build(seed), _subset(self.samples, mask), self.args, seed, self.data_collator)
            if self.unlearn is not None:
                forgotten = self.forgotten[number]
                forget, retain = (_subset(self.samples, part) for part in (forgotten, mask & ~forgotten))
                model = self.unlearn(model, forget, retain)
            with replacing(folder) as partial:  # a folder that exists is complete
                model.save_pretrained(str(partial))


def _subset(samples: ConcatDataset, mask: np.ndarray) -> Subset:
    return Subset(samples, np.flatnonzero(mask).tolist())


def _forgetting_models(count: int, share: float) -> int:
    """How many of the models that are trained on a sample forget it."""
    if not 0 < share < 1:
        raise ValueError(f"forget_share: must lie between 0 and 1, got {share}")
    if 2 <= (forgetting := round(share * count / 2)) < count // 2:
        return forgetting
    enough = next(n for n in itertools.count(6, 2) if 2 <= round(share * n / 2) < n // 2)
    alternative = f", or forget_share={4 / count:.2g}" if count > 4 else ""
    raise ValueError(
        f"forget_share: {share} of the {count // 2} models that are trained on a sample makes {forgetting} that "
        f"forget it; U-LiRA needs two of them, and one that keeps the sample: use count={enough}{alternative}"
    )


def _plan(samples: int, count: int, forgetting: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Masks [models, samples]: which samples each model is trained on, and which of these it forgets."""
    generator = np.random.default_rng(seed)
    trained = generator.random((count, samples)).argsort(0) < count // 2
    order = np.where(trained, generator.random((count, samples)), 1.0).argsort(0).argsort(0)
    return trained, order < forgetting


def _save_plan(folder: Path, trained: np.ndarray, forgotten: np.ndarray, hashes: Mapping[str, list[bytes]]) -> None:
    """Write the plan, or compare it with the one that the folder has."""
    plan = {"trained": trained, "forgotten": forgotten}
    for name, samples in hashes.items():  # in the order of the masks' columns
        plan[f"{len(plan)} {name}"] = np.frombuffer(b"".join(samples), np.uint8)
    if (folder / PLAN_FILE).exists():
        with np.load(folder / PLAN_FILE) as saved:
            same = saved.keys() == plan.keys() and all(np.array_equal(saved[name], plan[name]) for name in plan)
        if not same:
            raise ValueError(
                f"output_dir: {folder} holds shadow models of other datasets, count, seed or forget_share; use another"
            )
        return
    with replacing(folder / PLAN_FILE) as partial:  # several processes may start together
        np.savez(partial, **plan)  # type: ignore[arg-type]


def _train(
    model: PreTrainedModel, samples: Subset, args: TrainingArguments, seed: int, data_collator: Collator | None
) -> Any:
    args = copy.copy(args)
    args.seed = args.data_seed = seed
    args.eval_strategy = args.save_strategy = "no"
    args.load_best_model_at_end, args.report_to = False, []
    trainer = HeadTrainer(model, args, train_dataset=samples, data_collator=data_collator or readable_collator(model))
    trainer.pop_callback(PrinterCallback)
    trainer.train()
    return trainer.model
