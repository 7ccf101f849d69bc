"""Quantised models: which ones they are, what cannot be done with them, and their weights as plain numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

# A layer's output and gradient may be this far from those of its dequantised weight: LLM.int8() rounds activations,
# too, which makes 1 to 2 %; a layer that passes no gradient on is 100 % away.
TOLERANCE = 0.1
ADVICE = "use bitsandbytes, optimum-quanto or torchao's int8 weights, or load it without quantisation"


def quantization_of(model: nn.Module) -> str | None:
    """What a model is quantised with, or None.

    Looked at are what transformers says of a model that it has loaded, and the weights: bitsandbytes, GGUF and
    optimum-quanto keep integers, torchao tensors of its own classes, `torch.ao.quantization` packed weights.
    """
    if getattr(model, "is_quantized", False):
        method: object = getattr(model, "quantization_method", None)
        return str(getattr(method, "value", method))
    for weight in model.parameters():
        if is_quantized(weight):
            is_plain = type(weight.data) is Tensor
            return f"weights of {str(weight.dtype).removeprefix('torch.')}" if is_plain else type(weight.data).__name__
    packed = next((value for value in model.state_dict().values() if not isinstance(value, Tensor)), None)
    return None if packed is None else "torch.ao.quantization"


def is_quantized(weight: Tensor) -> bool:
    """Whether a weight is no plain tensor of floating point numbers, of 16 bits or more."""
    kind = type(weight.data)
    is_plain = kind in (Tensor, DTensor) or issubclass(kind, nn.Parameter)
    return not is_plain or not weight.is_floating_point() or weight.dtype.itemsize == 1


def check_not_quantized(model: nn.Module, argument: str, action: str, advice: str = "") -> None:
    """Refuse to change the weights of a quantised model.

    Args:
        model: the model.
        argument: the argument that the message names.
        action: what cannot be done.
        advice: what to do; default: load it without quantisation.

    Raises:
        ValueError: one line that names the quantisation.
    """
    if (found := quantization_of(model)) is not None:
        raise ValueError(
            f"{argument}: the model is quantised ({found}), and its weights {action}; "
            f"{advice or 'load it without quantisation'}"
        )


def check_takes_adapter(model: PreTrainedModel) -> None:
    """Refuse a quantised model on which an adapter could not be trained, or not be merged when the model is saved.

    Raises:
        ValueError: one line that names the quantisation and the layer.
    """
    found = quantization_of(model)
    if found is None:
        return
    layers = quantized_layers(model)
    others = [
        name
        for name, module in model.named_modules()
        if name not in layers and any(map(is_quantized, module.parameters(recurse=False)))
    ]
    if others or not layers:
        what = f"{others[0]} is no linear layer, and" if others else "no weight of its layers can be read:"
        raise ValueError(
            f"model: the model is quantised ({found}), {what} a merged adapter could not be saved; {ADVICE}"
        )
    check_layers(model)


def check_layers(model: nn.Module) -> None:
    """Refuse quantised layers that do not compute on this device, or pass no gradient on.

    Of every shape and kind one is tried: it has to give the outputs and gradients of its dequantised weight.

    Raises:
        ValueError: one line that names the quantisation and the layer.
    """
    tried = set()
    for name, layer in quantized_layers(model).items():
        weight: Any = layer.weight
        kind = type(layer), type(weight.data), weight.dtype, layer.in_features, layer.out_features
        if kind not in tried and (problem := _problem(layer)) is not None:
            raise ValueError(
                f"model: the model is quantised ({quantization_of(model)}), and its layer {name} {problem}; {ADVICE}"
            )
        tried.add(kind)


def pass_gradients(model: nn.Module) -> None:
    """Keep bitsandbytes' 4-bit layers from a kernel for inference, which passes no gradient on.

    On CPUs with AVX512-BF16 a layer in eval mode packs its weight for it when an input needs no gradient, for good;
    unlearning both measures and trains in eval mode. A weight that is packed is unpacked.
    """
    for layer in quantized_layers(model).values():
        if getattr(layer, "support_avx512bf16_for_cpu", False):
            layer.state_dict()  # unpacks
            layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def quantized_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers with a quantised weight, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and is_quantized(module.weight)
    }


def dequantized(layer: nn.Linear) -> Tensor:
    """The weight of a quantised layer in floating point, [out, in].

    Raises:
        ValueError: the weight is of a kind that has no floating point numbers to give.
    """
    weight: Any = layer.weight
    kind = type(weight).__name__
    if kind == "Params4bit":
        import bitsandbytes

        return bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
    if kind == "Int8Params":  # the largest of each output is 127
        state: Any = layer.state
        largest = weight.SCB if state.SCB is None else state.SCB
        return weight.data * (largest / 127)[:, None]
    values = weight.dequantize().detach()  # torchao and optimum-quanto
    if is_quantized(values):
        raise ValueError(f"{kind} has no weights in floating point")
    return values


@torch.no_grad()
def dequantize(model: PreTrainedModel) -> None:
    """Make a quantised model a plain one, in place: layers, attributes and configuration.

    Its weights get the model's own dtype, in which bitsandbytes and torchao multiply with them as well.
    """
    dtype = model.dtype
    for name, layer in quantized_layers(model).items():
        plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta", dtype=dtype)
        plain.weight = nn.Parameter(dequantized(layer).to(dtype), requires_grad=False)
        plain.bias = layer.bias
        model.set_submodule(name, plain)
    for attribute in ("hf_quantizer", "is_quantized", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        model.__dict__.pop(attribute, None)
    model.config.__dict__.pop("quantization_config", None)


def _problem(layer: nn.Linear) -> str | None:
    """What keeps an adapter from being trained beside a layer and merged into it; None if nothing does."""
    device = layer.weight.device
    inputs = torch.randn(2, 3, layer.in_features, generator=torch.Generator().manual_seed(0)).to(device)
    try:
        weight = dequantized(layer)
        inputs = inputs.to(weight.dtype).requires_grad_()
        with torch.enable_grad():
            outputs = layer(inputs)
        expected = nn.functional.linear(inputs, weight, None if layer.bias is None else layer.bias.to(weight.dtype))
        if outputs.shape != expected.shape or not _is_near(outputs, expected):
            return "computes with other numbers than its weight dequantises to"
        gradient = None
        if outputs.requires_grad:
            (gradient,) = torch.autograd.grad(outputs, inputs, torch.ones_like(outputs), allow_unused=True)
    except Exception as error:  # libraries raise all kinds for kernels that a device has not
        return f"does not compute here ({' '.join(f'{type(error).__name__}: {error}'.split())[:150]})"
    if gradient is None or not _is_near(gradient, torch.ones_like(expected) @ weight):
        return "does not pass the gradient on to the layers before it"
    return None


def _is_near(values: Tensor, expected: Tensor) -> bool:
    return bool((values.float() - expected.float()).norm() <= TOLERANCE * expected.float().norm())
