"""Which layers of a model the default adapter goes to, by what they are and where they stand."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

_LINEAR = (nn.Linear, Conv1D)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Parts of names. Beside experts stands the router that chooses among them (mlp.gate, block_sparse_moe.router.layer); a
# sparse attention's indexer chooses what is attended to. No gradient flows through a choice.
_EXPERTS = re.compile(r"(\w+_)?experts?")
_ROUTER = re.compile(r"(\w+_)?(gate|router|gating)")
_INDEXER = re.compile(r"indexer")
# PEFT takes these names for the experts', whose weights are tensors of three axes, and puts the adapter there.
_EXPERT_LAYERS = ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
# The last parts of names of layers whose weight is taken without calling them, by model type: an adapter beside them
# would never act. (PEFT refuses the first two names in the first five itself.)
_UNCALLED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"), ("out_proj", "conv1d", "dt_proj")),
    "jamba": ("dt_proj",),
    "wavlm": ("q_proj", "k_proj", "v_proj", "out_proj"),
}


def target_modules(model: PreTrainedModel, heads: Iterable[str]) -> list[str]:
    """The layers that LoRA goes to, by the shortest ends of names that no other module's name has.

    The linear layers of the repeated blocks; where blocks have convolutions alone, the convolutions; without blocks,
    all linear layers. Never: heads; what chooses (routers of mixtures of experts, indexers of sparse attention);
    layers that share their weight with another; layers that do more, or less, than multiply with their weight;
    convolutions in groups, which PEFT does not merge; in mixtures of experts, feed-forward layers beside the experts.

    Args:
        model: without an adapter.
        heads: names of the modules outside the body.

    Returns:
        Ends of names, sorted; empty where no layer will do.
    """
    names = [name for name, _ in model.named_modules()]
    left_out = {*_shared(model), *_choosing(model, names)}
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if not _is_inside(name, heads) and name not in left_out and _is_adaptable(name, layer, model)
    }
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    linear = [name for name, layer in layers.items() if isinstance(layer, _LINEAR)]
    convolutions = [name for name, layer in layers.items() if isinstance(layer, _CONVOLUTIONS)]
    if in_blocks := [name for name in linear if _is_inside(name, lists)]:
        return _shortest_ends(in_blocks, names)
    return _shortest_ends(convolutions if any(_is_inside(name, lists) for name in convolutions) else linear, names)


def norms(model: PreTrainedModel) -> list[str]:
    """The names of a model's normalisations, whose weights are vectors: what trains where no layer takes LoRA."""
    return [
        name
        for name, module in model.named_modules()
        if "Norm" in type(module).__name__
        and module._parameters.get("weight") is not None
        and all(weight.dim() == 1 for weight in module.parameters())
    ]


def _is_adaptable(name: str, layer: nn.Module, model: PreTrainedModel) -> bool:
    """Whether a layer's output is its input times its weight, as an adapter beside it takes for granted."""
    if not isinstance(layer, _LINEAR + _CONVOLUTIONS) or isinstance(layer, NonDynamicallyQuantizableLinear):
        return False
    last = name.rpartition(".")[2]
    if isinstance(layer, _CONVOLUTIONS) and (layer.groups > 1 or getattr(model.config, "tf_padding", False)):
        return False  # padding as in TensorFlow reads the layer's kernel size and stride, which an adapter hides
    if last in _UNCALLED.get(model.config.model_type, ()) or (last in _EXPERT_LAYERS and _has_experts(model)):
        return False
    return not _is_own(layer) or _multiplies(layer)


def _is_own(layer: nn.Module) -> bool:
    """Whether a layer is a model's own class with a forward of its own: layers of quantization libraries are not."""
    cls = type(layer)
    return cls.__module__.startswith("transformers.models.") and "forward" in vars(cls)


@torch.no_grad()
def _multiplies(layer: Any) -> bool:
    """Whether a layer's forward is that of the class of torch it is derived from.

    A router returns its choice, a convolution may standardise its weight, a layer in groups wants another shape.
    """
    base: Any = next(cls for cls in type(layer).__mro__ if cls.__module__.startswith("torch."))
    sides = () if isinstance(layer, nn.Linear) else (8,) * (layer.weight.dim() - 2)
    inputs = torch.randn((2, layer.weight.shape[1], *sides), generator=torch.Generator().manual_seed(0))
    inputs = inputs.to(layer.weight)
    try:
        output = layer(inputs)
    except RuntimeError:
        return False
    expected = base.forward(layer, inputs)
    if not isinstance(output, torch.Tensor) or output.shape != expected.shape:
        return False
    return torch.allclose(output, expected, rtol=1e-2, atol=1e-4)


def _has_experts(model: PreTrainedModel) -> bool:
    config = model.config.get_text_config()
    return any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts"))


def _is_inside(name: str, modules: Iterable[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _choosing(model: nn.Module, names: list[str]) -> set[str]:
    """Modules that choose: named as a router in a module that has experts, or as an indexer."""
    mixtures = {name.rpartition(".")[0] for name in names if _EXPERTS.fullmatch(name.rpartition(".")[2])}
    routers = {
        name
        for mixture in mixtures
        for name in names
        if name.startswith(f"{mixture}.") and _has_part(name.removeprefix(f"{mixture}."), _ROUTER)
    }
    return routers | {name for name in names if _has_part(name, _INDEXER)}


def _has_part(name: str, pattern: re.Pattern) -> bool:
    return any(pattern.fullmatch(part) for part in name.split("."))


def _shared(model: nn.Module) -> set[str]:
    """Layers whose weight is another module's as well: merged, an adapter would act in both."""
    holders: dict[int, dict[int, list[str]]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for weight in module._parameters.values():
            if weight is not None:
                holders.setdefault(id(weight), {}).setdefault(id(module), []).append(name)
    return {name for modules in holders.values() if len(modules) > 1 for names in modules.values() for name in names}


def _shortest_ends(chosen: list[str], names: list[str]) -> list[str]:
    """For each chosen name its shortest end, in whole parts, that ends no other name."""
    others = {end for name in set(names).difference(chosen) for end in _ends(name)}
    return sorted({next((end for end in _ends(name) if end not in others), name) for name in chosen})


def _ends(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[i:]) for i in range(len(parts) - 1, -1, -1)]
