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


def load_model(name: str, dtype: DType = "auto", argument: str = "model") -> PreTrainedModel:
    """The model of a checkpoint, of the class that its configuration names.

    Args:
        name: name on the Hub or folder.
        dtype: of its weights; `"auto"`: as they were saved.
        argument: what gave the name, for the messages.

    Raises:
        ValueError: there is no such checkpoint, its configuration names no class of transformers, or it lacks weights
            of that class; one line.
    """
    try:
        architectures = AutoConfig.from_pretrained(name).architectures
        if not architectures:
            raise ValueError("its configuration names no class")
        model_class = getattr(transformers, architectures[0], None)
        if not (isinstance(model_class, type) and issubclass(model_class, PreTrainedModel)):
            raise ValueError(f"transformers has no model {architectures[0]!r}")
    except (OSError, ValueError) as error:
        raise not_loaded(name, argument, error) from error
    try:
        return load_whole(model_class, name, argument=argument, dtype=dtype)
    except OSError as error:
        raise not_loaded(name, argument, error) from error


def not_loaded(name: str, argument: str, error: Exception) -> ValueError:
    """The error of a checkpoint that does not load, in one line."""
    return ValueError(
        f"{argument}: {name!r} does not load ({str(error).splitlines()[0]}); give the folder of a saved model, or its "
        "name on the Hub"
    )


def load_whole(
    model_class: Any, name: str, *, fresh_head: bool = False, argument: str = "model", **settings: Any
) -> PreTrainedModel:
    """A model all of whose weights are those of the checkpoint, where `from_pretrained` fills gaps with random ones.

    Args:
        model_class: the class of the model, or an auto class.
        name: name on the Hub or folder.
        fresh_head: whether weights outside of the base model (and its pooler) may be new.
        argument: what gave the name, for the messages.
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
        raise _not_whole(name, argument, model, [shapes[key] for key in other], "has other shapes of")
    if missing := sorted(set(found["missing_keys"]) - may_be_new - _unread(found["missing_keys"])):
        raise _not_whole(name, argument, model, missing, "lacks")
    patterns = {re.sub(r"\d+", "0", key) for key in model.state_dict()}
    unexpected = sorted(found["unexpected_keys"])
    if layers := [key for key in unexpected if re.search(r"\.\d+\.", key) and re.sub(r"\d+", "0", key) in patterns]:
        raise _not_whole(name, argument, model, layers, "has more layers than its configuration says:")
    return model


def _head_weights(model: PreTrainedModel) -> set[str]:
    """The weights outside of the base model, and those of its pooler, which heads add where they need one."""
    prefix = f"{model.base_model_prefix}."
    return {key for key in model.state_dict() if not key.startswith(prefix) or ".pooler." in key}


def _unread(keys: Iterable[str]) -> set[str]:
    """Weights that only masking in pretraining reads; published recognisers are saved without them."""
    return {key for key in keys if key.rpartition(".")[2] in ("masked_spec_embed", "mask_token")}


def _not_whole(name: str, argument: str, model: PreTrainedModel, keys: Sequence[str], what: str) -> ValueError:
    more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    return ValueError(
        f"{argument}: {name!r} {what} {keys[0]}{more}, as a {type(model).__name__}; give a checkpoint that is "
        "complete, or load the model and pass it instead"
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
        raise ValueError(
            f"model: {name!r} has no processor ({str(error).splitlines()[0]}); save the one of its training beside it"
        ) from error
    return processor
