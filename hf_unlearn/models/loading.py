"""Models and their processors from disk, of the class that they were saved as."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import AutoConfig, AutoFeatureExtractor, AutoImageProcessor, AutoProcessor, AutoTokenizer

from hf_unlearn.losses import head_of


def load_model(name: str) -> Any:
    """The model of a checkpoint, of the class that its configuration names."""
    architectures = AutoConfig.from_pretrained(name).architectures
    if not architectures:
        raise ValueError(f"model: the configuration of {name!r} names no class; load the model and pass it instead")
    return getattr(transformers, architectures[0]).from_pretrained(name)


def load_processor(name: str, model: Any, *, needed: bool = True) -> Any:
    """What the checkpoint of `model` makes its inputs with: tokenizer, image processor, feature extractor, processor.

    Args:
        name: name on the Hub or folder.
        model: the model of the checkpoint.
        needed: whether to refuse a checkpoint without one; else None is returned for it.

    Raises:
        ValueError: the checkpoint has none, and it is needed.
    """
    speaks = head_of(model).kind in ("ctc", "seq2seq_lm")
    loaders = {"pixel_values": AutoImageProcessor, "input_ids": AutoTokenizer}
    loader: Any = loaders.get(model.main_input_name, AutoProcessor if speaks else AutoFeatureExtractor)
    try:
        found = loader.from_pretrained(name)
        # A folder without a tokenizer's files gives one that knows nothing but its special tokens.
        if loader is AutoTokenizer and len(found.get_vocab()) <= len(found.all_special_ids):
            raise ValueError("its tokenizer has no tokens")
    except (OSError, ValueError) as error:
        if not needed:
            return None
        raise ValueError(f"model: {name!r} brings no processor ({str(error).splitlines()[0]})") from error
    return found
