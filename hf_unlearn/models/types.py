"""Type aliases of models."""

from __future__ import annotations

from typing import TypeAlias

from peft import PeftModel
from transformers import PreTrainedModel

Model: TypeAlias = PreTrainedModel | PeftModel
