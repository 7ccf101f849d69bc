"""The network that forgets is the network that is measured: no dropout, no SpecAugment, BatchNorm frozen."""

from __future__ import annotations

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


class EvalMode:
    """Keeps a model in eval mode while it is trained, with activation checkpointing still at work.

    Transformers checkpoints a layer only while the layer's own `training` is true, so checkpointed layers keep it, and
    lose the dropout rates that they hold as plain numbers; `restore` gives those back.
    """

    def __init__(self) -> None:
        self._rates: list[tuple[nn.Module, str, float]] = []

    def apply(self, model: nn.Module) -> None:
        """Put the model in eval mode, except for the flag that activation checkpointing reads."""
        model.eval()
        for module in model.modules():
            if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
                module.training = True
                for name, value in list(vars(module).items()):
                    if isinstance(value, float) and "drop" in name and value:
                        self._rates.append((module, name, value))
                        setattr(module, name, 0.0)

    def restore(self) -> None:
        """Give back the dropout rates."""
        for module, name, value in self._rates:
            setattr(module, name, value)
        self._rates = []
