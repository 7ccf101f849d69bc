"""The linear layer that computes the logits of a classifier, and what it knows of a class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from hf_unlearn.models.adapters import outside_body
from hf_unlearn.models.types import Model, inner_model


def output_layer(model: PreTrainedModel) -> nn.Linear:
    """The linear layer that computes the logits: the last one outside the body with an output for every label.

    Raises:
        ValueError: there is none.
    """
    heads = [model.get_submodule(name) for name in outside_body(model)]
    labels = model.config.num_labels
    modules = [module for head in heads for module in _without_adapters(head)]
    layers = [module for module in modules if isinstance(module, nn.Linear) and module.out_features == labels]
    if not layers:
        raise ValueError(f"model: {type(model).__name__} has no linear layer with {labels} outputs outside its body")
    return layers[-1]


def _without_adapters(head: nn.Module) -> list[nn.Module]:
    """The modules of a head, those of adapters in it left out."""
    modules = {id(module): module for module in head.modules()}
    for tuner in head.modules():
        if isinstance(tuner, BaseTunerLayer):
            kept = {id(module) for module in tuner.get_base_layer().modules()}
            for module in tuner.modules():
                if id(module) not in kept:
                    modules.pop(id(module), None)
    return list(modules.values())


@torch.no_grad()
def reset_outputs(model: Model, classes: Sequence[int]) -> bool:
    """Set the weights of some outputs to the mean of the other outputs' weights: nothing of their own is left there.

    Where only one other output is left they are set to zero, as with its weights all outputs would be one.

    As long as an output has the weights that training gave it, a forgotten class is known to it and only held down:
    one number added brings it back, and so does training on other classes.

    Args:
        model: a classifier; of a `PeftModel` the copy of the head that trains.
        classes: numbers of outputs.

    Returns:
        Whether they were set: not where no linear layer computes the logits, or where it does not train.
    """
    try:
        layer = output_layer(inner_model(model))
    except ValueError:
        return False
    parameters = [p for p in (layer.weight, layer.bias) if p is not None]
    if not all(p.requires_grad for p in parameters):
        return False
    kept = [output for output in range(layer.out_features) if output not in set(classes)]
    for p in parameters:
        p[list(classes)] = p[kept].mean(0) if len(kept) > 1 else 0.0
    return True
