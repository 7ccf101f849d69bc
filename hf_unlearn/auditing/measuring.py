"""The metrics of any model on forget, retain and unseen datasets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from hf_unlearn.auditing.caching import cached, setting_key
from hf_unlearn.auditing.dataset_metrics import dataset_metrics
from hf_unlearn.auditing.statistics import SampleStatistics, collect_statistics
from hf_unlearn.data.collator import Collator, readable_collator
from hf_unlearn.data.splitting import request_for_head
from hf_unlearn.data.types import AnyDataset
from hf_unlearn.losses import head_of
from hf_unlearn.models.types import Model


def statistics_of(
    model: Model,
    dataset: AnyDataset,
    *,
    data_collator: Collator | None = None,
    batch_size: int | None = None,
    description: str = "Measuring",
    cache_dir: str | Path | None = None,
    scores: bool = False,
    log_probs: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> SampleStatistics:
    """Per-sample statistics of a model on one dataset; see `hf_unlearn.auditing.statistics.SampleStatistics`.

    Args:
        model: a model with a head.
        dataset: samples ready for the model.
        data_collator: samples to batch; default: the model's.
        batch_size: samples a batch and process; default: at most 64, and of language models no more than have logits
            of 256 MiB.
        description: of the progress bar.
        cache_dir: where statistics are kept, by a fingerprint of model, samples and settings: losses and scores, no
            sample. A collator that cannot be hashed is refused.
        scores: as in `collect_statistics`.
        log_probs: as in `collect_statistics`.
        tokenizer: as in `collect_statistics`.
    """
    settings = () if cache_dir is None else (
        scores, log_probs, setting_key("tokenizer", tokenizer), setting_key("data_collator", data_collator)
    )  # fmt: skip

    def collect() -> dict[str, Any]:
        accelerator = Accelerator()
        with preserve_modes(model.to(accelerator.device)):
            statistics = collect_statistics(
                model,
                dataset,
                head=head_of(model),
                collator=data_collator or readable_collator(model),
                accelerator=accelerator,
                batch_size=batch_size,
                description=description,
                scores=scores,
                log_probs=log_probs,
                tokenizer=tokenizer,
            )
        return {name: values for name, values in vars(statistics).items() if values is not None}

    return SampleStatistics(**cached(collect, cache_dir, model, [dataset], settings))


@contextmanager
def preserve_modes(model: torch.nn.Module) -> Iterator[None]:
    """Give every module of a model back the mode (train or eval) that it had before the block."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def measure(
    model: Model,
    *,
    forget_ds: AnyDataset,
    retain_ds: AnyDataset,
    unseen_ds: AnyDataset | None = None,
    **kwargs: Any,
) -> dict[str, float]:
    """The metrics of any model, from any method or library.

    Args:
        model: a model with a head.
        forget_ds: the forget dataset, ready for the model, as are the others. It carries the mark of
            `split_forget_retain` when whole classes were forgotten.
        retain_ds: the retain dataset.
        unseen_ds: samples never trained on; without them their metrics are left out.
        **kwargs: as in `statistics_of`.
    """
    datasets_by_name = {"forget": forget_ds, "retain": retain_ds, "unseen": unseen_ds}
    statistics = {name: statistics_of(model, ds, **kwargs) for name, ds in datasets_by_name.items() if ds is not None}
    labels = statistics["forget"].labels
    # Only single-label heads have labels.
    if labels is None or request_for_head(forget_ds, retain_ds, "single_label") != "class":
        return dataset_metrics(statistics, ())
    return dataset_metrics(statistics, labels.unique().tolist())


def average_gap(metrics: Mapping[str, float], retrained: Mapping[str, float]) -> float:
    """Mean absolute difference to a retrained model, in points.

    Over the accuracy (speech: word error rate) on forget, retain and unseen samples and the accuracy of the membership
    inference, those that both have; NaN when they share none. 0 is best. The gap between two retrained models (two
    seeds) is the seed noise to compare it with.

    Examples:
        >>> retrained = {"forget_accuracy": 0.88, "retain_accuracy": 1.0}
        >>> average_gap({"forget_accuracy": 0.9, "retain_accuracy": 1.0}, retrained)
        1.0
    """
    score = "wer" if "forget_wer" in metrics else "accuracy"
    names = [f"forget_{score}", f"retain_{score}", f"unseen_{score}", "mia_accuracy"]
    differences = [abs(metrics[n] - retrained[n]) for n in names if n in metrics and n in retrained]
    return round(100 * sum(differences) / len(differences), 10) if differences else math.nan
