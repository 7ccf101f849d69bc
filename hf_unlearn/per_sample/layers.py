"""Per-sample gradients of one layer, from its input and the gradient of its output: one rule per layer type."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

Rule = Callable[[nn.Module, torch.Tensor, torch.Tensor], dict[str, torch.Tensor]]
RULES: dict[type[nn.Module], Rule] = {}


def rule(*types: type[nn.Module]) -> Callable[[Rule], Rule]:
    """Register a function as the rule of exactly these module types (a subclass may compute something else)."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(types, function))
        return function

    return register


@rule(nn.Linear)
def linear(module: nn.Module, inputs: torch.Tensor, grads: torch.Tensor) -> dict[str, torch.Tensor]:
    """`y = x W^T + b`, with `inputs` [k, ..., in] and `grads` [k, ..., out]: weight [k, out, in], bias [k, out]."""
    size = inputs.shape[0]
    inputs, grads = inputs.reshape(size, -1, inputs.shape[-1]), grads.reshape(size, -1, grads.shape[-1])
    return {"weight": torch.einsum("kto,kti->koi", grads, inputs), "bias": grads.sum(1)}
