"""Shadow models: the same training on other halves of the data, to know how a sample looks to those that never saw it."""

from __future__ import annotations

import copy
import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, Subset
from tqdm.auto import tqdm
from transformers import PrinterCallback, Trainer, TrainingArguments

from hf_unlearn.data.collator import readable_collator
from hf_unlearn.data.hashing import sample_hashes
from hf_unlearn.models.loading import load_model

Unlearn = Callable[[Any, Any, Any], Any]
PLAN = "rows.npz"


@dataclass(frozen=True)
class Shadows:
    """Shadow models in a folder, made by `train_shadows`.

    Attributes:
        folders: one a model, as `from_pretrained` reads them.
        members: set ("forget", "unseen", ...) to [models, samples]: was the model trained on the sample? After unlearning:
            has it forgotten the sample?
        unseen: the same: was the model never trained on the sample? Neither member nor unseen are samples that an unlearned
            shadow model was trained on and kept.
        hashes: set to the content hashes of its samples, in the order of the masks; a set that is not named is not known.
    """

    folders: tuple[Path, ...]
    members: Mapping[str, np.ndarray]
    unseen: Mapping[str, np.ndarray]
    hashes: Mapping[str, list[bytes]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Models."""
        return len(self.folders)

    def models(self) -> Iterator[Any]:
        """The models, one after the other: only one is in memory."""
        for folder in self.folders:
            yield load_model(str(folder))


def train_shadows(
    build: Callable[[int], Any],
    forget_ds: Any,
    retain_ds: Any,
    unseen_ds: Any,
    output_dir: str | Path,
    args: TrainingArguments,
    *,
    count: int = 16,
    data_collator: Any = None,
    unlearn: Unlearn | None = None,
    forget_share: float = 0.25,
    seed: int = 0,
    process_index: int = 0,
    num_processes: int = 1,
) -> Shadows:
    """Train `count` shadow models, each on a random half of all samples; what is there already is not trained again.

    Every sample is in exactly half of the models (Carlini et al. 2022, arXiv 2112.03570, section 5). An interrupted run
    goes on with the first model that is not whole. Several processes share the work: give each its `process_index`;
    each is an ordinary process that trains models of its own, not a distributed run.

    Args:
        build: seed to a fresh model of the original's class and configuration.
        forget_ds: the forget dataset of the audit, ready for the model, as are the others.
        retain_ds: the retain dataset of the audit.
        unseen_ds: the unseen dataset of the audit.
        output_dir: where the models go, one folder each. They hold what they were trained on, forget samples included:
            delete them after the audit.
        args: how the original was trained; `output_dir` and `seed` of it are not used.
        count: models, even.
        data_collator: samples to batch; default: the model's.
        unlearn: model, forget samples, retain samples to the unlearned model, for U-LiRA (Hayes et al. 2024, arXiv
            2403.01218): each shadow model then forgets a random share of the samples it was trained on.
        forget_share: that share, in (0, 1); every sample is forgotten by `forget_share * count / 2` models, rounded.
        seed: of the halves and the models.
        process_index: of this process.
        num_processes: that share the work.

    Returns:
        All shadow models, where all are there; the other processes' may still be in the making: see `Shadows`.

    Raises:
        ValueError: `count` is odd or below 2, with `unlearn` too few models would forget a sample for U-LiRA to compare
            (two are the least), or the folder holds shadow models of other samples or settings.
    """
    if count < 2 or count % 2:
        raise ValueError(
            f"count: expected an even number of shadow models, got {count}; every sample is in half of them"
        )
    named = {"forget": forget_ds, "retain": retain_ds, "unseen": unseen_ds}
    forgetting = 0 if unlearn is None else _forgetting(count, forget_share)
    folder, sizes = Path(output_dir), {name: len(ds) for name, ds in named.items()}
    trained, forgotten = _plan(sizes, count, forgetting, seed)
    hashes = {name: sample_hashes(ds) for name, ds in named.items()}
    _keep_plan(folder, trained, forgotten, hashes)
    everything: ConcatDataset = ConcatDataset(list(named.values()))
    folders = tuple(folder / f"shadow-{number:03d}" for number in range(count))
    mine = [i for i in range(process_index, count, num_processes) if not folders[i].exists()]
    for i in tqdm(mine, desc="Training shadow models", disable=args.disable_tqdm or not mine):
        model = build(seed + i)
        model = _trained(model, Subset(everything, np.flatnonzero(trained[i]).tolist()), args, seed + i, data_collator)
        if unlearn is not None:
            kept = np.flatnonzero(trained[i] & ~forgotten[i]).tolist()
            model = unlearn(model, Subset(everything, np.flatnonzero(forgotten[i]).tolist()), Subset(everything, kept))
        # Written aside and renamed: a folder that is there is whole.
        partial = folders[i].with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        model.save_pretrained(partial)
        os.rename(partial, folders[i])
    members = forgotten if unlearn is not None else trained
    places = np.cumsum(list(sizes.values()))[:-1]
    split = [dict(zip(sizes, np.split(mask, places, axis=1), strict=True)) for mask in (members, ~trained)]
    there = [i for i, path in enumerate(folders) if path.exists()]
    of_there = [{name: mask[there] for name, mask in masks.items()} for masks in split]
    return Shadows(tuple(folders[i] for i in there), of_there[0], of_there[1], hashes)


def _forgetting(count: int, share: float) -> int:
    """How many of the models that are trained on a sample forget it."""
    if not 0 < share < 1:
        raise ValueError(f"forget_share: must lie between 0 and 1, got {share}")
    if 2 <= (found := round(share * count / 2)) < count // 2:
        return found
    enough = next(each for each in itertools.count(6, 2) if 2 <= round(share * each / 2) < each // 2)
    other = f", or forget_share={4 / count:.2g}" if count > 4 else ""
    raise ValueError(
        f"forget_share: {share} of the {count // 2} models that are trained on a sample makes {found} that forget it; "
        f"U-LiRA needs two of them, and one that keeps the sample: use count={enough}{other}"
    )


def _plan(sizes: Mapping[str, int], count: int, forgetting: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """[models, samples]: which are trained on, and which of these are forgotten."""
    generator = np.random.default_rng(seed)
    samples = sum(sizes.values())
    trained = generator.random((count, samples)).argsort(0) < count // 2
    order = np.where(trained, generator.random((count, samples)), 1.0).argsort(0).argsort(0)
    return trained, order < forgetting


def _keep_plan(folder: Path, trained: np.ndarray, forgotten: np.ndarray, hashes: Mapping[str, list[bytes]]) -> None:
    plan = {"trained": trained, "forgotten": forgotten}
    for name, samples in hashes.items():  # in the order of the sets, which the masks go by
        plan[f"{len(plan)} {name}"] = np.frombuffer(b"".join(samples), np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / PLAN).exists():
        with np.load(folder / PLAN) as kept:
            same = kept.keys() == plan.keys() and all(np.array_equal(kept[name], plan[name]) for name in plan)
            if not same:
                raise ValueError(
                    f"output_dir: {folder} holds shadow models of other sets, count, seed or forget_share; use another"
                )
        return
    partial = folder / f"{os.getpid()}-{PLAN}"  # several processes may start together
    np.savez(partial, **plan)  # type: ignore[arg-type]
    os.replace(partial, folder / PLAN)


def _trained(model: Any, samples: Any, args: TrainingArguments, seed: int, data_collator: Any) -> Any:
    args = copy.copy(args)
    args.seed = args.data_seed = seed
    args.eval_strategy = args.save_strategy = "no"
    args.load_best_model_at_end, args.report_to = False, []
    trainer = Trainer(model, args, train_dataset=samples, data_collator=data_collator or readable_collator(model))
    trainer.pop_callback(PrinterCallback)
    trainer.train()
    return trainer.model
