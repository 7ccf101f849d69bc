"""What is audited, and whether it can be: bad arguments are refused before any forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hf_unlearn.auditing.attack_scores import DatasetStatistics
from hf_unlearn.auditing.budget import Budget
from hf_unlearn.auditing.extraction import EXTRACTED_SAMPLES, can_extract
from hf_unlearn.auditing.shadows import Shadows
from hf_unlearn.auditing.statistics import MEASURED_TOGETHER
from hf_unlearn.data.collator import Collator, columns_read
from hf_unlearn.data.hashing import sample_hashes
from hf_unlearn.data.splitting import subsample
from hf_unlearn.data.types import AnyDataset, check_request
from hf_unlearn.data.validation import check_datasets
from hf_unlearn.losses.head import LANGUAGE_KINDS
from hf_unlearn.models.types import Model, inner_model
from hf_unlearn.per_sample.layers import plain_class

# Samples of the retain dataset that are measured: enough for half a point of accuracy.
RETAIN_SAMPLES = 2000
LIKELIHOOD = ("single_label", *LANGUAGE_KINDS)


@dataclass(frozen=True)
class Subject:
    """What is audited, and how.

    Attributes:
        models: "original", "audited", "retrained", "retrained 2", ..., those that were given, in this order.
        measured_original: the statistics of the original model, where they were given instead of the model.
        datasets_by_name: "forget", "retain" and "unseen", all of their samples.
        request: `"samples"`, `"class"` or `"group"`.
        kind: the kind of the model's head.
        training_passes: over the retain dataset, that retraining takes.
        general_ds: samples of the model's general ability, as they are measured, or None.
    """

    models: dict[str, Model]
    measured_original: DatasetStatistics | None
    datasets_by_name: dict[str, AnyDataset]
    shadows: Shadows | None
    request: str
    kind: str
    data_collator: Collator
    tokenizer: Any
    batch_size: int | None
    cache_dir: str | Path | None
    resamples: int
    seed: int
    training_passes: float
    general_ds: AnyDataset | None = None

    @cached_property
    def measured(self) -> dict[str, AnyDataset]:
        """The datasets as they are measured: a part of the retain dataset, all of the others, "general" the last."""
        retain_ds = subsample(self.datasets_by_name["retain"], RETAIN_SAMPLES, self.seed)
        general = {} if self.general_ds is None else {"general": self.general_ds}
        return {**self.datasets_by_name, "retain": retain_ds, **general}

    @property
    def budget(self) -> Budget:
        """Of the attempts to bring the data back."""
        is_asked = can_extract(self.models["audited"], self.kind, self.tokenizer)
        asked = min(EXTRACTED_SAMPLES, len(self.datasets_by_name["forget"])) if is_asked else 0
        return Budget.of(len(self.datasets_by_name["retain"]), self.training_passes, asked)

    @property
    def generation_batch_size(self) -> int:
        """Samples that are transcribed or asked for together."""
        return MEASURED_TOGETHER if self.batch_size is None else self.batch_size

    def measuring_options(self) -> dict[str, Any]:
        """Keyword arguments of `statistics_of`."""
        return {"data_collator": self.data_collator, "batch_size": self.batch_size, "cache_dir": self.cache_dir}


def check_subject(subject: Subject) -> None:
    """Refuse bad arguments before any forward pass."""
    check_request(subject.request)
    if not 0 < subject.training_passes < float("inf"):
        raise ValueError(
            f"training_passes: must be a number above 0, got {subject.training_passes}; leave it out if unknown"
        )
    _check_models(subject.models)
    forget_ds, retain_ds, unseen_ds = subject.datasets_by_name.values()
    check_datasets(forget_ds, retain_ds, unseen_ds, columns_read(subject.models["audited"]), subject.kind)
    if subject.measured_original is not None:
        _check_statistics(subject.measured_original, subject.measured)
    if subject.shadows is not None:
        _check_shadows(subject.shadows, {"forget": forget_ds, "unseen": unseen_ds}, subject.kind)


def _check_models(models: Mapping[str, Model]) -> None:
    audited = inner_model(models["audited"])
    for name, model in models.items():
        compared = inner_model(model)
        if (given := plain_class(compared)) is not (expected_class := plain_class(audited)):
            raise ValueError(f"{name}: is a {given.__name__}, the model a {expected_class.__name__}; use one class")
        for setting in ("num_labels", "vocab_size"):
            value, expected = (getattr(m.config, setting, None) for m in (compared, audited))
            if value != expected:
                raise ValueError(
                    f"{name}: has {setting}={value}, the model {expected}; compare models of one label space"
                )


def _check_statistics(original: DatasetStatistics, measured: Mapping[str, AnyDataset]) -> None:
    for name, dataset in measured.items():
        count = len(original[name]) if name in original else 0
        if count != len(dataset):
            raise ValueError(
                f"original: holds statistics of {count} {name} samples, the audit measures {len(dataset)}; give the "
                "original model"
            )
        if name in ("forget", "unseen") and "loss" not in original[name].scores:
            raise ValueError("original: its statistics have no scores; collect them with scores, or give the model")


def _check_shadows(shadows: Shadows, datasets_by_name: Mapping[str, AnyDataset], kind: str) -> None:
    if kind not in LIKELIHOOD:
        raise ValueError(f"shadows: LiRA and RMIA need likelihoods, and a {kind} head has none; leave shadows out")
    advice = "give train_shadows the datasets of the audit"
    for name, dataset in datasets_by_name.items():
        count = shadows.members[name].shape[1] if name in shadows.members else 0
        if count != len(dataset):
            raise ValueError(f"shadows: know {count} {name} samples, the dataset has {len(dataset)}; {advice}")
    for name, dataset in datasets_by_name.items():
        if name in shadows.hashes and shadows.hashes[name] != sample_hashes(dataset):
            raise ValueError(f"shadows: know other {name} samples than the dataset has; {advice}")
