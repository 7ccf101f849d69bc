"""Models whose weights are spread over processes (FSDP2, ZeRO-3): their class, their whole weights, a copy."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.integrations import deepspeed

from hf_unlearn.models.types import Model, inner_model
from hf_unlearn.per_sample.layers import plain_class


def is_sharded(model: nn.Module) -> bool:
    """Whether a process has only a part of some weight: not under DDP, nor under ZeRO-1 and ZeRO-2."""
    return is_partitioned(model) or any(isinstance(module, FSDPModule) for module in model.modules())


def is_partitioned(model: nn.Module) -> bool:
    """Whether the model is DeepSpeed's, of stage 3: its parameters are empty but when they are used."""
    return any(_is_partitioned(p) for p in model.parameters())


def _is_partitioned(tensor: Tensor) -> bool:
    return hasattr(tensor, "ds_id")


def spread_again(model: nn.Module) -> None:
    """Give FSDP2's modules their parts back: some keep the whole weights of a forward pass."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local_part(parameter: Tensor) -> Tensor:
    """What this process has of a parameter, as a plain tensor with the same memory; of all but ZeRO-3's."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


@torch.no_grad()
def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a model with whole tensors, on every process; all processes call it.

    Tensors of a model that is not sharded are its own, those of another one copies in the memory of the CPU.
    """
    if not is_sharded(model):
        return model.state_dict()
    spread_again(model)
    return {name: _whole(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}


def _whole(tensor: Tensor) -> Tensor:
    if isinstance(tensor, DTensor):
        return tensor.full_tensor().to("cpu", copy=True)
    if not _is_partitioned(tensor):
        return tensor.detach().to("cpu", copy=True)
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters([tensor]):  # one after the other: all together may not fit
        return tensor.detach().to("cpu", copy=True)


def whole_copy(model: Model) -> Model:
    """A copy of a model whose weights are whole on every process; all processes call it."""
    if not is_sharded(model):
        return copy.deepcopy(model)
    whole: Any = from_state(model, whole_state(model))
    return cast(Model, whole.to(model.device))


def from_state(model: Model, state: Mapping[str, Tensor]) -> Model:
    """A model like a sharded one, its adapter included, of whole weights.

    Args:
        model: of which class, configuration and adapter are taken.
        state: all of its weights, by name; they become the copy's own.
    """
    inner = inner_model(model)
    with unpartitioned():
        made: Any = plain_class(inner)(copy.deepcopy(inner.config))
    if isinstance(model, PeftModel):
        made = get_peft_model(made, model.active_peft_config)
    made.load_state_dict(state, strict=True, assign=True)
    inner_model(made).tie_weights()
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    for name, p in made.named_parameters():
        p.requires_grad_(name in trains)
    return cast(Model, made.train(model.training))


@contextmanager
def unpartitioned() -> Iterator[None]:
    """Within it a model that is made or loaded is whole, under ZeRO-3 too, which else waits for all processes."""
    held: Any = deepspeed._hf_deepspeed_config_weak_ref
    if not deepspeed.is_deepspeed_zero3_enabled():
        yield
        return
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed.set_hf_deepspeed_config(held())


def load_plain(model: PreTrainedModel, folder: str) -> PreTrainedModel:
    """A model that was saved, whole, on the process that calls it: of the class and dtype of one like it."""
    with unpartitioned():
        return plain_class(model).from_pretrained(folder, dtype=model.dtype)
