"""From the settings of a command to the forget, retain and unseen datasets of a model."""

from __future__ import annotations

from typing import Any

from hf_unlearn.cli.settings import DataSettings
from hf_unlearn.data.loading import load_samples, parse_forget
from hf_unlearn.data.preprocessing import prepare
from hf_unlearn.data.splitting import split_forget_retain
from hf_unlearn.models.loading import load_processor


def load_datasets(settings: DataSettings, model: Any, request: str | None, seed: int) -> tuple[dict[str, Any], Any]:
    """`forget_ds`, `retain_ds` and `unseen_ds` (which may be None), ready for the model, and its processor."""
    assert settings.model is not None and settings.dataset is not None and settings.forget is not None
    samples, unseen = load_samples(settings.dataset, settings.split), None
    if settings.unseen_dataset is not None or settings.unseen_split is not None:
        unseen = load_samples(settings.unseen_dataset or settings.dataset, settings.unseen_split)
    needed = any(model.main_input_name not in each.column_names for each in (samples, unseen) if each is not None)
    processor = load_processor(settings.model, model, needed=needed)
    columns = settings.named_columns()
    samples = prepare(samples, model, processor, columns=columns)
    forget, retain = split_forget_retain(samples, **parse_forget(settings.forget, samples), request=request, seed=seed)
    if unseen is not None:
        unseen = prepare(unseen, model, processor, columns=columns)
        # What only one side has (an index, a duration) says nothing to the model.
        shared = [name for name in samples.column_names if name in unseen.column_names]
        forget, retain, unseen = (each.select_columns(shared) for each in (forget, retain, unseen))
    return {"forget_ds": forget, "retain_ds": retain, "unseen_ds": unseen}, processor
