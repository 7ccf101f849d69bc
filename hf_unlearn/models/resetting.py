"""A share of the way back to weights that never saw the data: the pretrained checkpoint, or a fresh initialisation."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel, set_seed
from transformers.pytorch_utils import Conv1D

from hf_unlearn.models.loading import load_whole, not_loaded
from hf_unlearn.models.types import Model, inner_model

logger = logging.getLogger(__name__)
Weights = Mapping[str, Tensor]


def fresh_weights(model: PreTrainedModel, seed: int) -> Weights:
    """A fresh initialisation of a model, by name; the generators of random numbers are seeded by it."""
    set_seed(seed)
    return type(model)(model.config).state_dict()


def base_weights(model: Model, base_model: PreTrainedModel | str | None, seed: int) -> Weights:
    """The weights to go back to, by the names that they have in the model without its adapter.

    What is new draws from the generator of torch, which is seeded.

    Args:
        model: that is to go back.
        base_model: what it was fine-tuned from: a model, the name of a checkpoint, or `"auto"`: the checkpoint that
            its configuration names. A head that the checkpoint lacks is new. None: a fresh initialisation.
        seed: of what is new.

    Raises:
        ValueError: the checkpoint does not load, lacks most of the model's weights, or is the model itself; one line.
    """
    inner = inner_model(model)
    set_seed(seed)  # a head that the checkpoint lacks is drawn
    if base_model is None:
        logger.warning(
            "base_model: is not given, so the weights go back towards a fresh initialisation, as those of a model "
            "that was trained from scratch; otherwise give what it was fine-tuned from"
        )
        return fresh_weights(inner, seed)
    if base_model == "auto":
        base_model = inner.config._name_or_path
        if not base_model:
            raise ValueError('base_model: "auto" finds no checkpoint in the configuration; name it')
    if isinstance(base_model, str):
        name = base_model
        try:
            base_model = load_whole(
                type(inner), name, fresh_head=True, argument="base_model", config=inner.config, dtype=torch.float32
            )
        except OSError as error:
            raise not_loaded(name, "base_model", error) from error
    if not isinstance(base_model, PreTrainedModel):
        raise ValueError(f"base_model: found a {type(base_model).__name__}; give a model, or the name of a checkpoint")
    base = base_model.state_dict()
    weights = _plain_weights(model)
    own = {key: w for key, w in weights.items() if key in base and base[key].shape == w.shape}
    if 2 * sum(w.numel() for w in own.values()) < sum(w.numel() for w in weights.values()):
        raise ValueError(
            f"base_model: a {type(base_model).__name__} lacks most weights of the model, a {type(inner).__name__}; "
            "give what it was fine-tuned from"
        )
    if other := [key for key, w in weights.items() if key in base and key not in own]:
        raise ValueError(
            f"base_model: its {other[0]} has shape {list(base[other[0]].shape)}, the model's "
            f"{list(weights[other[0]].shape)}; give a model of this vocabulary and these labels"
        )
    if not isinstance(model, PeftModel) and all(torch.equal(base[key].to(w), w) for key, w in own.items()):
        raise ValueError("base_model: has the weights of the model itself; give the checkpoint it was fine-tuned from")
    return base


def _plain_weights(model: Model) -> dict[str, Tensor]:
    """The parameters by the names that they have without an adapter."""
    named = inner_model(model).named_parameters()
    return {name.replace(".base_layer.", ".").replace(".original_module.", "."): p.data for name, p in named}


def check_adapter(model: Model, peft_config: PeftConfig | str | None) -> None:
    """Refuse adapters that cannot go back.

    Args:
        model: with the adapter that it came with, if any.
        peft_config: of the adapter that is added, if one is; `"auto"` and None are plain LoRA, or none.

    Raises:
        ValueError: one line that names the kind.
    """
    if isinstance(model, PeftModel):
        layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
        kinds = {type(layer).__name__ for layer in layers if not _is_plain_lora(layer)}
    elif isinstance(peft_config, PeftConfig):
        is_plain = isinstance(peft_config, LoraConfig) and peft_config.init_lora_weights in (True, False, "gaussian")
        kinds = set() if is_plain else {f"{peft_config.peft_type}".removeprefix("PeftType.")}
    else:
        kinds = set()
    if kinds:
        raise ValueError(
            f"reset: an adapter of {' and '.join(sorted(kinds))} layers cannot go back; use plain LoRA, or reset=0"
        )


def _is_plain_lora(layer: nn.Module) -> bool:
    """Whether what an adapter's layer adds is a product of two factors alone."""
    return isinstance(layer, LoraLayer) and not layer.lora_embedding_B and not layer.lora_magnitude_vector


@torch.no_grad()
def go_back(model: Model, base: Weights, share: float, added_adapter: bool) -> None:
    """Move what trains a share of the way to the base weights: `w + share (base - w)`.

    With an adapter that was added to the model, LoRA starts as the part of that difference that its rank can hold (a
    truncated singular value decomposition), and the head that trains with it moves as all weights do; an adapter that
    came with the model shrinks, as its base is the base. Weights that do not train stay.

    Shrinking weights before training goes on is from Ash and Adams 2020 (On warm-starting neural network training,
    arXiv 1910.08475); towards the weights before training, and before forgetting, it is proposed here.

    Args:
        model: is changed.
        base: from `base_weights`; not read where the adapter came with the model.
        share: in [0, 1].
        added_adapter: whether what trains is an adapter that was added.
    """
    if not isinstance(model, PeftModel):
        for name, p in model.named_parameters():
            if p.requires_grad and name in base and base[name].shape == p.shape:
                p.lerp_(base[name].to(p), share)
        return
    left = []
    for name, module in inner_model(model).named_modules():
        if isinstance(module, LoraLayer) and added_adapter:
            if not _start_as_difference(module, base.get(f"{name}.weight"), share):
                left.append(name)
        elif isinstance(module, LoraLayer):
            for factor in module.lora_B.values():
                factor.get_parameter("weight").mul_(1 - share)
        elif isinstance(module, ModulesToSaveWrapper):
            for adapter in module.active_adapters:
                for own, p in module.modules_to_save[adapter].named_parameters():
                    original = module.original_module.get_parameter(own)
                    p.lerp_((base.get(f"{name}.{own}", p) if added_adapter else original).to(p), share)
    if left:
        logger.warning(f"reset: {len(left)} layers with adapters stay, {left[0]} for one: they are not linear layers")


def _start_as_difference(layer: LoraLayer, base: Tensor | None, share: float) -> bool:
    """Set the factors of a linear layer to the largest part of `share (base - weight)` that their rank can hold.

    Returns:
        Whether they were set.
    """
    linear = layer.get_base_layer()
    if base is None or not isinstance(linear, nn.Linear | Conv1D) or base.shape != linear.weight.shape:
        return False
    difference = share * (base.to(linear.weight) - linear.weight).float()
    difference = difference.T if isinstance(linear, Conv1D) else difference  # shape: [out, in]
    left, values, right = torch.linalg.svd(difference, full_matrices=False)
    for adapter in layer.active_adapters:
        factors = (of_layer[adapter] for of_layer in (layer.lora_A, layer.lora_B))
        down, up = (factor.get_parameter("weight") for factor in factors)  # shapes: [rank, in], [out, rank]
        rank = min(len(down), len(values))
        root = (values[:rank] / layer.scaling[adapter]).sqrt()
        down[:rank], up[:, :rank] = root[:, None] * right[:rank], left[:, :rank] * root
        up[:, rank:] = 0
    return True
