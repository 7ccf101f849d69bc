"""Eval mode while training: no dropout, no SpecAugment, frozen BatchNorm, as when the model is measured."""

from __future__ import annotations

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


class EvalMode:
    """Keeps a model in eval mode while it is trained, with activation checkpointing still active.

    Transformers checkpoints a layer only while the layer's own `training` is true. Checkpointed layers therefore keep
    it, and the dropout rates that they store as plain numbers are set to zero; `restore` resets them.
    """

    def __init__(self) -> None:
        self._dropout_rates: list[tuple[nn.Module, str, float]] = []

    def apply(self, model: nn.Module) -> None:
        """Put the model in eval mode, except for the flag that activation checkpointing depends on."""
        model.eval()
        for module in model.modules():
            if hasattr(module, "attention_bias_cache"):
                # LeViT's attention in eval mode keeps what it once computed from its weights; nothing else differs.
                vars(module)["attention_bias_cache"] = {}
                module.training = True
            if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
                module.training = True
                for name, value in list(vars(module).items()):
                    if isinstance(value, float) and "drop" in name and value:
                        self._dropout_rates.append((module, name, value))
                        setattr(module, name, 0.0)

    def restore(self) -> None:
        """Reset the dropout rates."""
        for module, name, value in self._dropout_rates:
            setattr(module, name, value)
        self._dropout_rates = []
