"""Type aliases of the audit."""

from __future__ import annotations

from typing import TypeAlias

from peft import PeftModel
from transformers import PreTrainedModel

from hf_unlearn.data.types import AnyDataset, RequestKind

__all__ = ["AnyDataset", "Model", "RequestKind"]
Model: TypeAlias = PreTrainedModel | PeftModel
