"""The forget, retain and unseen datasets that the settings of a command name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import datasets
from datasets import Dataset
from transformers import PreTrainedModel

from hf_unlearn.cli.settings import DataSettings
from hf_unlearn.data.loading import load_samples, parse_forget
from hf_unlearn.data.preprocessing import prepare
from hf_unlearn.data.splitting import split_forget_retain
from hf_unlearn.data.types import RequestKind
from hf_unlearn.models.loading import load_processor


class LoadedData(NamedTuple):
    """The datasets of a command, ready for its model, and what prepared them."""

    forget_ds: Dataset
    retain_ds: Dataset
    unseen_ds: Dataset | None
    processor: Any


class PreparedData(NamedTuple):
    """All samples that the settings of a command name, ready for its model, and what prepared them."""

    samples: Dataset
    unseen_ds: Dataset | None
    processor: Any


def load_prepared(settings: DataSettings, model: PreTrainedModel) -> PreparedData:
    """Load the samples of a command and prepare them for its model.

    Args:
        settings: names of model, dataset, splits and columns.
        model: the model.
    """
    assert settings.model is not None and settings.dataset is not None
    samples, unseen_ds = load_samples(settings.dataset, settings.split), None
    if settings.unseen_dataset is not None or settings.unseen_split is not None:
        try:
            unseen_ds = load_samples(settings.unseen_dataset or settings.dataset, settings.unseen_split)
        except ValueError as error:  # dataset: or split:
            raise ValueError(f"unseen_{error}") from error
    raw = any(ds is not None and model.main_input_name not in ds.column_names for ds in (samples, unseen_ds))
    processor = load_processor(settings.model, model, needed=raw)
    columns = settings.columns_by_role()
    samples = prepare(samples, model, processor, columns=columns, name="dataset")
    if unseen_ds is not None:
        unseen_ds = prepare(unseen_ds, model, processor, columns=columns, name="unseen_dataset")
    return PreparedData(samples, unseen_ds, processor)


def split(
    data: PreparedData, samples: Dataset, selection: Mapping[str, Any], request: RequestKind | None, seed: int
) -> LoadedData:
    """The datasets of one request.

    Args:
        data: the samples of the command.
        samples: those of them that the request selects from.
        selection: what is forgotten, as `split_forget_retain` takes it.
        request: kind of request; None: by the selection.
        seed: of a random forget dataset.
    """
    forget_ds, retain_ds = split_forget_retain(samples, **selection, request=request, seed=seed)
    unseen_ds = data.unseen_ds
    if unseen_ds is not None:
        # Columns of one side only (an index, a duration) are no inputs of the model.
        shared = [name for name in samples.column_names if name in unseen_ds.column_names]
        forget_ds, retain_ds, unseen_ds = (ds.select_columns(shared) for ds in (forget_ds, retain_ds, unseen_ds))
    return LoadedData(forget_ds, retain_ds, unseen_ds, data.processor)


def load_datasets(
    settings: DataSettings, model: PreTrainedModel, request: RequestKind | None, seed: int
) -> LoadedData:
    """Load the data of a command, prepare it for its model and split it.

    Args:
        settings: names of model, dataset, splits and columns, and what to forget.
        model: the model.
        request: kind of request; None: by the column that `settings.forget` names.
        seed: of a random forget dataset.
    """
    assert settings.forget is not None
    data = load_prepared(settings, model)
    return split(data, data.samples, parse_forget(settings.forget, data.samples), request, seed)


def cache_folders(data: LoadedData) -> list[Path]:
    """The folders in the cache of `datasets` that hold the samples of a command, raw or prepared; sorted."""
    cache = Path(datasets.config.HF_DATASETS_CACHE).resolve()
    named = (data.forget_ds, data.retain_ds, data.unseen_ds)
    files = [Path(file["filename"]).resolve() for ds in named if ds is not None for file in ds.cache_files]
    return sorted({file.parent for file in files if cache in file.parents})


def print_cache_folders(data: LoadedData) -> None:
    """Say where else the samples of a command are, now that some are to be gone."""
    for folder in cache_folders(data):
        print(f"The cache of datasets holds the samples, too; delete it once they are to be gone: {folder}")
