"""Quantised models: which ones they are, and what cannot be done with them."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.tensor import DTensor


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


def is_quantized(weight: nn.Parameter) -> bool:
    """Whether a weight is no plain tensor of floating point numbers, of 16 bits or more."""
    kind = type(weight.data)
    is_plain = kind in (Tensor, DTensor) or issubclass(kind, nn.Parameter)
    return not is_plain or not weight.is_floating_point() or weight.dtype.itemsize == 1


def check_not_quantized(model: nn.Module, argument: str, action: str) -> None:
    """Refuse to change the weights of a quantised model.

    Args:
        model: the model.
        argument: the argument that the message names.
        action: what cannot be done.

    Raises:
        ValueError: one line that names the quantisation.
    """
    if (found := quantization_of(model)) is not None:
        raise ValueError(
            f"{argument}: the model is quantised ({found}), and its weights {action}; load it without quantisation"
        )
