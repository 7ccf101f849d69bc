"""A rehearsal of the end of a run: whether an adapter, merged or saved and loaded, gives the outputs it had."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_unlearn.models.adapter_checks import kind_of
from hf_unlearn.models.adapters import merged
from hf_unlearn.models.quantization import quantized_layers

# The outputs of a model on a fixed batch, flat, in eval mode and without gradient.
Forward = Callable[[nn.Module], Tensor]
# The size of the random steps that a rehearsal takes: large against what floating point loses.
STEP = 0.05
# Outputs beyond are masks (float32's lowest, -infinity), not logits.
LARGEST_OUTPUT = 1e6
# LLM.int8() multiplies with activations of 8 bits; once merged, the model does not.
INT8_RESOLUTION = 2**-7


def rehearse(model: PeftModel, forward: Forward, *, added: bool) -> None:
    """Take random steps with an adapter, do with it what the end of a run does, and put its weights back.

    An adapter that is added beside the model is switched off, which has to give the original outputs, and merged,
    which has to give those of the adapted model. An adapter of the user's is saved and loaded.

    Args:
        model: the model with its adapter.
        forward: the outputs of a model on a batch.
        added: whether the adapter is new, and will be merged.

    Raises:
        ValueError: one line: the adapter cannot be carried to the end.
    """
    kind, argument = kind_of(model.active_peft_config), "peft_config" if added else "model"
    trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    weights = {name: weight.detach().clone() for name, weight in trainable.items()}
    try:
        before = forward(model)
        original = _without_adapter(model, forward) if added else before
        _perturb(trainable)
        expected = forward(model)
        original_again = _without_adapter(model, forward) if added else before
        if added:
            reloaded = forward(merged(model))
        else:
            state = {name: value.clone() for name, value in get_peft_model_state_dict(model).items()}
            _put_back(trainable, weights)
            set_peft_model_state_dict(model, state)
            reloaded = forward(model)
            _reload_config(model.active_peft_config)
    except Exception as error:  # PEFT raises all kinds for what it does not support
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"{argument}: {kind} cannot be trained and {'merged' if added else 'saved'} on this "
            f"{type(model.get_base_model()).__name__}; use another adapter, such as LoRA ({text})"
        ) from error
    finally:
        _put_back(trainable, weights)
    noise = 32 * resolution(model)
    if not _difference(original_again, original) <= noise * _scale(original):
        raise ValueError(
            f"{argument}: {kind} trains weights of the model itself, which with the adapter off is no longer the "
            "original; use an adapter that leaves them, or peft_config=None to train all weights"
        )
    if not _difference(reloaded, expected) <= noise * _scale(expected) + 0.1 * _difference(expected, before):
        raise ValueError(
            f"{argument}: {kind}, {'merged into the weights' if added else 'saved and loaded'}, does not give the "
            "outputs that were trained; adapt other layers, train nothing but the adapter, or use another kind"
        )


def check_outputs(saved: PreTrainedModel, trained: nn.Module, forward: Forward, description: str) -> None:
    """Compare a model that is saved with the one that was trained.

    Args:
        saved: a merged, or a loaded model.
        trained: the model of the trainer.
        forward: the outputs of a model on a batch.
        description: of `saved`, for the message.

    Raises:
        ValueError: their outputs differ by more than rounding in the dtype of the weights explains, or are not finite.
    """
    expected = forward(trained)
    difference, scale = _difference(forward(saved), expected), _scale(expected)
    if not difference <= 2 * resolution(trained) ** 0.5 * scale:
        raise ValueError(
            f"model: {description}, its outputs differ by up to {difference:.3g} from those of the model that was "
            f"trained (up to {scale:.3g}), so it is not released; trainer.model still has what was trained, "
            "trainer.save_adapter() saves an adapter"
        )


def _reload_config(config: PeftConfig) -> None:
    """Write a configuration and read it again: PEFT refuses some that it has written itself."""
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        type(config).from_pretrained(folder)


@torch.no_grad()
def _perturb(weights: dict[str, nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(0)
    for weight in weights.values():
        step = STEP * torch.randn(weight.shape, generator=generator)
        weight.add_(step.to(weight.device, weight.dtype))


@torch.no_grad()
def _put_back(weights: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, weight in weights.items():
        weight.copy_(values[name])


def _without_adapter(model: PeftModel, forward: Forward) -> Tensor:
    trains = {weight: weight.requires_grad for weight in model.parameters()}
    with model.disable_adapter():
        outputs = forward(model)
    for weight, flag in trains.items():
        weight.requires_grad_(flag)  # PEFT makes the whole adapter trainable again
    return outputs


def resolution(model: nn.Module) -> float:
    """The relative step of the coarsest dtype in which a model computes, float32 at least, or rounds activations."""
    layers: Any = quantized_layers(model).values()
    dtypes = {weight.dtype for weight in model.parameters() if weight.is_floating_point()} | {torch.float32}
    dtypes |= {layer.compute_dtype for layer in layers if getattr(layer, "compute_dtype", None)}  # of 4-bit layers
    rounds = any(type(layer.weight).__name__ == "Int8Params" for layer in layers)
    return max(INT8_RESOLUTION if rounds else 0.0, *(torch.finfo(dtype).eps for dtype in dtypes))


def _scale(outputs: Tensor) -> float:
    sizes = outputs.abs()
    return _largest(sizes[sizes < LARGEST_OUTPUT])


def _difference(outputs: Tensor, others: Tensor) -> float:
    """The largest difference; NaN where an output is not a number."""
    return _largest(torch.where(outputs == others, 0.0, outputs - others).abs())


def _largest(sizes: Tensor) -> float:
    return float(sizes.max()) if sizes.numel() else 0.0
