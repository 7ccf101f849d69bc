"""Loading a model and its processor, of the class that they were saved as."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
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
        ValueError: the configuration names no class, or the checkpoint lacks weights of that class.
    """
    architectures = AutoConfig.from_pretrained(name).architectures
    if not architectures:
        raise ValueError(f"model: the configuration of {name!r} names no class; load the model and pass it instead")
    return load_whole(getattr(transformers, architectures[0]), name, dtype=dtype)


def load_whole(model_class: Any, name: str, *, fresh_head: bool = False, **settings: Any) -> PreTrainedModel:
    """A model all of whose weights are those of the checkpoint, where `from_pretrained` fills gaps with random ones.

    Args:
        model_class: the class of the model, or an auto class.
        name: name on the Hub or folder.
        fresh_head: whether weights outside of the base model (and its pooler) may be new.
        **settings: of `from_pretrained`.

    Raises:
        ValueError: weights are missing, have other shapes, or are those of more layers than the model has.
    """
    model, found = model_class.from_pretrained(
        name, output_loading_info=True, ignore_mismatched_sizes=True, **settings
    )
    shapes = {key: f"{key} ({list(saved)} for {list(expected)})" for key, saved, expected in found["mismatched_keys"]}
    may_be_new = _head_weights(model) if fresh_head else set()
    if other := sorted(shapes.keys() - may_be_new):
        raise _not_whole(name, model, [shapes[key] for key in other], "has other shapes of")
    if missing := sorted(set(found["missing_keys"]) - may_be_new - _unread(found["missing_keys"])):
        raise _not_whole(name, model, missing, "lacks")
    patterns = {re.sub(r"\d+", "0", key) for key in model.state_dict()}
    unexpected = sorted(found["unexpected_keys"])
    if layers := [key for key in unexpected if re.search(r"\.\d+\.", key) and re.sub(r"\d+", "0", key) in patterns]:
        raise _not_whole(name, model, layers, "has more layers than its configuration says:")
    return model


def _head_weights(model: PreTrainedModel) -> set[str]:
    """The weights outside of the base model, and those of its pooler, which heads add where they need one."""
    prefix = f"{model.base_model_prefix}."
    return {key for key in model.state_dict() if not key.startswith(prefix) or ".pooler." in key}


def _unread(keys: Iterable[str]) -> set[str]:
    """Weights that only masking in pretraining reads; published recognisers are saved without them."""
    return {key for key in keys if key.rpartition(".")[2] in ("masked_spec_embed", "mask_token")}


def _not_whole(name: str, model: PreTrainedModel, keys: Sequence[str], what: str) -> ValueError:
    more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    return ValueError(
        f"model: {name!r} {what} {keys[0]}{more}, as a {type(model).__name__}; give a checkpoint that is complete, "
        "or load the model and pass it instead"
    )


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
