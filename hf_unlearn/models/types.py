"""Type aliases of models and processors, and the model inside its adapter."""

from __future__ import annotations

from typing import TypeAlias

from peft import PeftModel
from transformers import (
    BaseImageProcessor,
    FeatureExtractionMixin,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

Model: TypeAlias = PreTrainedModel | PeftModel
ProcessingClass: TypeAlias = PreTrainedTokenizerBase | BaseImageProcessor | FeatureExtractionMixin | ProcessorMixin


def inner_model(model: Model) -> PreTrainedModel:
    """The model inside its adapter; a model without one is itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model  # type: ignore[return-value]
