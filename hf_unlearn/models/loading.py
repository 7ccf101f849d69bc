"""Loading a model and its processor, of the class that they were saved as."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
)

from hf_unlearn.losses import head_of
from hf_unlearn.models.precision import DType
from hf_unlearn.models.types import Model, ProcessingClass


def load_model(name: str, dtype: DType = "auto") -> PreTrainedModel:
    """The model of a checkpoint, of the class that its configuration names.

    Args:
        name: name on the Hub or folder.
        dtype: of its weights; `"auto"`: as they were saved.

    Raises:
        ValueError: the configuration names no class.
    """
    architectures = AutoConfig.from_pretrained(name).architectures
    if not architectures:
        raise ValueError(f"model: the configuration of {name!r} names no class; load the model and pass it instead")
    return getattr(transformers, architectures[0]).from_pretrained(name, dtype=dtype)


def load_processor(name: str, model: Model, *, needed: bool = True) -> ProcessingClass | None:
    """The tokenizer, image processor, feature extractor or combined processor of a checkpoint.

    Args:
        name: name on the Hub or folder.
        model: the model of the checkpoint.
        needed: whether to refuse a checkpoint without a processor; otherwise None is returned.

    Raises:
        ValueError: the checkpoint has no processor, and it is needed.
    """
    transcribes = head_of(model).kind in ("ctc", "seq2seq_lm")
    loaders = {"pixel_values": AutoImageProcessor, "input_ids": AutoTokenizer}
    loader: Any = loaders.get(model.main_input_name, AutoProcessor if transcribes else AutoFeatureExtractor)
    try:
        processor = loader.from_pretrained(name)
        # A folder without a tokenizer's files gives one that has special tokens only.
        if loader is AutoTokenizer and len(processor.get_vocab()) <= len(processor.all_special_ids):
            raise ValueError("its tokenizer has no tokens")
    except (OSError, ValueError) as error:
        if not needed:
            return None
        raise ValueError(f"model: {name!r} has no processor ({str(error).splitlines()[0]})") from error
    return processor
