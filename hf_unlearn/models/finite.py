"""Weights that are no numbers."""

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
