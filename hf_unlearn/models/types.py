"""Type aliases of models and processors."""

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
