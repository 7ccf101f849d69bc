"""What was measured of a model, kept on disk for the next audit that asks for it."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from datasets.fingerprint import Hasher
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from transformers import PreTrainedTokenizerBase

from hf_unlearn.data.files import replacing
from hf_unlearn.data.hashing import sample_hashes, weights_hash
from hf_unlearn.data.types import AnyDataset
from hf_unlearn.models.sharding import whole_state
from hf_unlearn.models.types import Model, inner_model
from hf_unlearn.per_sample.layers import plain_class


def cached(
    compute: Callable[[], dict[str, Any]],
    cache_dir: str | Path | None,
    model: Model,
    datasets: Sequence[AnyDataset],
    settings: tuple,
) -> dict[str, Any]:
    """What `compute` returns, from the cache where it has been computed before; all processes call it.

    Args:
        compute: measures; returns numbers and tensors, no sample.
        cache_dir: where they are kept, by a fingerprint of model, samples and settings; None: nowhere.
        model: that is measured.
        datasets: whose samples are measured.
        settings: whatever else the result depends on, as texts and numbers.
    """
    if cache_dir is None:
        return compute()
    state = Accelerator()  # before any other state, so that its settings count
    cache_file = Path(cache_dir) / f"{_cache_key(model, datasets, settings)}.pt"
    is_cached = state.is_main_process and cache_file.exists()
    # The other processes may see another folder, and all have to take the same branch.
    loaded = [torch.load(cache_file, weights_only=True) if is_cached else None]
    broadcast_object_list(loaded)
    if loaded[0] is not None:
        return loaded[0]
    result = compute()
    if state.is_main_process:
        with replacing(cache_file) as partial:
            torch.save(result, partial)
    return result


def fingerprint(model: Model) -> bytes:
    """A hash of a model's weights and buffers, by name, and of its active adapters: 16 bytes."""
    digest = hashlib.blake2b(weights_hash(whole_state(model)).encode(), digest_size=16)
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper):
            scaling = sorted(getattr(module, "scaling", {}).items())
            digest.update(f"{name} {module.active_adapters} {module.disable_adapters} {scaling}".encode())
    return digest.digest()


def _cache_key(model: Model, datasets: Sequence[AnyDataset], settings: tuple) -> str:
    digest = hashlib.blake2b(fingerprint(model), digest_size=16)
    for dataset in datasets:
        for part in (len(dataset).to_bytes(8, "big"), *sample_hashes(dataset)):
            digest.update(part)
    digest.update(repr((plain_class(model).__name__, *settings)).encode())
    return digest.hexdigest()


def setting_key(name: str, value: Any) -> str:
    """A text that differs between tokenizers or collators of different classes or settings."""
    if isinstance(value, PreTrainedTokenizerBase):
        vocabulary = hashlib.blake2b(repr(sorted(value.get_vocab().items())).encode(), digest_size=16)
        return f"{type(value).__name__} {vocabulary.hexdigest()} {sorted(value.special_tokens_map.items())}"
    try:
        return Hasher.hash(value)
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise ValueError(
            f"cache_dir: {name} cannot be told from others ({str(error).splitlines()[0]}); leave cache_dir out"
        ) from error


def language_settings(
    what: str, cache_dir: str | Path | None, model: Model, tokenizer: Any, data_collator: Any
) -> tuple[str, ...]:
    """The settings of what a model says: what is asked, how it writes and is read; empty where nothing is cached."""
    if cache_dir is None:
        return ()
    writes = inner_model(model).generation_config.to_dict() if inner_model(model).can_generate() else {}
    keys = (setting_key("tokenizer", tokenizer), setting_key("data_collator", data_collator))
    return (what, *keys, repr(sorted(writes.items(), key=str)))
