"""What is refused of a new adapter: what cannot be merged, and what merging would do to two layers at once."""

from __future__ import annotations

from collections.abc import Mapping

from peft import PeftConfig, PeftModel
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

_WRAPPERS = (BaseTunerLayer, AuxiliaryTrainingWrapper)


def check_config(config: PeftConfig) -> None:
    """Refuse a new adapter that cannot be merged, or with which the original model would change.

    Raises:
        ValueError: one line that names the kind of adapter.
    """
    tuner = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]  # type: ignore[index]
    if not issubclass(tuner, BaseTuner):
        raise ValueError(
            f"peft_config: {kind_of(config)} cannot be merged into the weights, and beside the original model an "
            "adapter has forgotten nothing; use LoRA, or another adapter that merges"
        )
    if (bias := getattr(config, "bias", "none")) not in ("none", False, None):
        raise ValueError(
            f"peft_config: bias={bias!r} trains biases of the model itself, which with the adapter off would no "
            "longer be the original; use bias='none'"
        )


def check_untied(model: PeftModel) -> None:
    """Refuse adapters on a weight that the model shares with another layer: merged, they would act in both.

    Raises:
        ValueError: one line that names the layers.
    """
    base: nn.Module = model.get_base_model()
    holders: dict[int, set[str]] = {}
    for name, weight in base.named_parameters(remove_duplicate=False):
        holders.setdefault(id(weight), set()).add(_layer(name))
    adapted = {name for name, module in base.named_modules() if isinstance(module, _WRAPPERS)}
    for layers in holders.values():
        # A layer that stands in several places (ALBERT) has its adapter in all of them, too.
        modules = {id(base.get_submodule(layer)) for layer in layers}
        if len(modules) > 1 and (wrapped := sorted(layers & adapted)):
            others = ", ".join(sorted(layers - {wrapped[0]}))
            raise ValueError(
                f"peft_config: adapts {wrapped[0]}, whose weight is also that of {others}, so that merging would "
                "change both; leave it out of target_modules and modules_to_save, or give the two weights of their own"
            )


def _layer(parameter: str) -> str:
    """The name of the layer that a parameter belongs to, adapted or not."""
    name = parameter.rpartition(".")[0]
    for wrapper in (".base_layer", ".original_module"):
        name = name.partition(f"{wrapper}.")[0].removesuffix(wrapper)
    return name


def remove_adapter(model: nn.Module, trains: Mapping[nn.Parameter, bool]) -> None:
    """Leave a model that is refused as it was: without the layers that PEFT has put around its own.

    Args:
        model: the model, as it was given to PEFT.
        trains: of each of its weights whether it required gradients.
    """
    for name, module in [*model.named_modules()]:
        if isinstance(module, _WRAPPERS):
            parent, _, child = name.rpartition(".")
            inner = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module.original_module
            setattr(model.get_submodule(parent), child, inner)
    for weight, flag in trains.items():
        weight.requires_grad_(flag)


def gradient_flags(model: nn.Module) -> dict[nn.Parameter, bool]:
    """Of each weight whether it requires gradients."""
    return {weight: weight.requires_grad for weight in model.parameters()}


def kind_of(config: PeftConfig) -> str:
    """The name of a kind of adapter: `"LORA"`."""
    kind: object = config.peft_type
    return str(getattr(kind, "value", kind))
