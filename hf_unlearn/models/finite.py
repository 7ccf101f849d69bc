"""Weights that are no numbers, or not there."""

from __future__ import annotations

from torch import nn

from hf_unlearn.models.quantization import is_quantized


def check_finite_weights(model: nn.Module) -> None:
    """Refuse a model with NaN or infinity in its weights, which no run and no audit can do anything with.

    Raises:
        ValueError: how many tensors hold some, and the first.
    """
    weights = {name: p for name, p in model.named_parameters() if not is_quantized(p)}
    broken = [name for name, p in weights.items() if not (p.is_meta or p.isfinite().all())]
    if broken:
        raise ValueError(
            f"model: {len(broken)} of its {len(weights)} weight tensors hold nan or infinity, {broken[0]!r} first; "
            "load weights that are whole"
        )


def check_not_offloaded(model: nn.Module) -> None:
    """Refuse a model whose weights accelerate keeps elsewhere between calls (`device_map` with "cpu" or "disk").

    They can be run, not hashed, compared or merged with an adapter.

    Raises:
        ValueError: how many tensors are elsewhere.
    """
    hooked = [module for module in model.modules() if hasattr(module, "_hf_hook")]
    away = sum(p.is_meta for module in hooked for p in module.parameters(recurse=False))
    if away:
        raise ValueError(
            f"model: {away} of its weight tensors are offloaded (device_map with 'cpu' or 'disk'), and could be "
            "neither hashed nor merged with an adapter; load it in 4 or 8 bits, or use FSDP and its CPU offload"
        )
