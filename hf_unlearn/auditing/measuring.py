"""The metrics of any model on forget, retain and unseen datasets."""

from __future__ import annotations

import hashlib
import math
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from datasets.fingerprint import Hasher
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from transformers import PreTrainedTokenizerBase

from hf_unlearn.auditing.dataset_metrics import dataset_metrics
from hf_unlearn.auditing.statistics import SampleStatistics, collect_statistics
from hf_unlearn.data.collator import readable_collator
from hf_unlearn.data.hashing import sample_hashes, weights_hash
from hf_unlearn.data.splitting import request_of
from hf_unlearn.losses import head_of


def statistics_of(
    model: Any,
    dataset: Any,
    *,
    data_collator: Callable | None = None,
    batch_size: int = 256,
    description: str = "Measuring",
    cache_dir: str | Path | None = None,
    **wanted: Any,
) -> SampleStatistics:
    """Per-sample signals of a model on one set; see `hf_unlearn.auditing.statistics.SampleStatistics`.

    Args:
        model: a model with a head.
        dataset: samples ready for the model.
        data_collator: samples to batch; default: the model's.
        batch_size: samples a batch and process.
        description: of the progress bar.
        cache_dir: where signals are kept, by a fingerprint of model, samples and settings: losses and scores, no sample.
            A collator that cannot be hashed is refused.
        **wanted: `scores`, `log_probs`, `tokenizer`, as in `collect_statistics`.
    """
    accelerator = Accelerator()
    kept = None
    if cache_dir is not None:
        settings = {name: value if name != "tokenizer" else _told(name, value) for name, value in wanted.items()}
        about = (sorted(settings.items()), type(model).__name__, _told("data_collator", data_collator))
        key = hashlib.blake2b(fingerprint(model), digest_size=16)
        for part in (*sample_hashes(dataset), repr(about).encode()):
            key.update(part)
        kept = Path(cache_dir) / f"{key.hexdigest()}.pt"
        there = accelerator.is_main_process and kept.exists()
        # The other processes may see another folder, and all have to go the same way.
        loaded = [torch.load(kept, weights_only=True) if there else None]
        broadcast_object_list(loaded)
        if loaded[0] is not None:
            return SampleStatistics(**loaded[0])
    with evaluating(model.to(accelerator.device)):
        found = collect_statistics(
            model,
            dataset,
            head=head_of(model),
            collator=data_collator or readable_collator(model),
            accelerator=accelerator,
            batch_size=batch_size,
            description=description,
            **wanted,
        )
    if kept is not None and accelerator.is_main_process:
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{os.getpid()}")
        torch.save(vars(found), partial)
        os.replace(partial, kept)
    return found


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Gives every module of a model back the mode (train or eval) that it had."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def fingerprint(model: Any) -> bytes:
    """A hash of a model's weights and buffers, by name, and of which adapters are at work: 16 bytes."""
    found = hashlib.blake2b(weights_hash(model.state_dict()).encode(), digest_size=16)
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper):
            scaling = sorted(getattr(module, "scaling", {}).items())
            found.update(f"{name} {module.active_adapters} {module.disable_adapters} {scaling}".encode())
    return found.digest()


def _told(name: str, value: Any) -> str:
    """What tells a tokenizer or a collator, its settings included, from every other one."""
    if isinstance(value, PreTrainedTokenizerBase):
        vocabulary = hashlib.blake2b(repr(sorted(value.get_vocab().items())).encode(), digest_size=16)
        return f"{type(value).__name__} {vocabulary.hexdigest()}"
    try:
        return Hasher.hash(value)
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise ValueError(
            f"cache_dir: {name} cannot be told from others ({str(error).splitlines()[0]}); leave cache_dir out"
        ) from error


def measure(model: Any, *, forget_ds: Any, retain_ds: Any, unseen_ds: Any = None, **kwargs: Any) -> dict[str, float]:
    """The metrics of a model, whichever method or library made it.

    Args:
        model: a model with a head.
        forget_ds: samples ready for the model, as are the others. It says by itself when whole classes were forgotten
            (`split_forget_retain`).
        retain_ds: samples that were kept.
        unseen_ds: samples never trained on; without them their metrics are left out.
        **kwargs: as in `statistics_of`.
    """
    named = {"forget": forget_ds, "retain": retain_ds, "unseen": unseen_ds}
    signals = {name: statistics_of(model, ds, **kwargs) for name, ds in named.items() if ds is not None}
    labels = signals["forget"].labels
    whole_class = request_of(forget_ds) == "class" and labels is not None
    return dataset_metrics(signals, labels.unique().tolist() if whole_class and labels is not None else ())


def average_gap(found: Mapping[str, float], retrained: Mapping[str, float]) -> float:
    """Mean absolute difference to a retrained model, in points.

    Over the accuracy (speech: word error rate) on forget, retain and unseen samples and the accuracy of the membership
    inference, those that both have; NaN when there are none. 0 is best. How much two retrained models (two seeds)
    differ is the yardstick.

    Examples:
        >>> average_gap({"forget_accuracy": 0.9, "retain_accuracy": 1.0}, {"forget_accuracy": 0.88, "retain_accuracy": 1.0})
        1.0
    """
    score = "wer" if "forget_wer" in found else "accuracy"
    names = [f"forget_{score}", f"retain_{score}", f"unseen_{score}", "mia_accuracy"]
    differences = [abs(found[n] - retrained[n]) for n in names if n in found and n in retrained]
    return round(100 * sum(differences) / len(differences), 10) if differences else math.nan
