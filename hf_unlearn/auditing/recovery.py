"""Copies that may give forgotten data back without any training: rounded weights, the base of an adapter."""

from __future__ import annotations

import logging
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, cast

import torch
from accelerate import Accelerator
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_unlearn.models.adapters import dequantized_copy, merged
from hf_unlearn.models.sharding import whole_copy
from hf_unlearn.models.types import Model

BITS = (4, 8)
SIMULATED = "simulated"
# Weights of four bits that share a scale.
NF4_BLOCK = 64


def plain_copy(model: Model) -> PreTrainedModel:
    """A copy of a model, the active adapter of a `PeftModel` merged into it; `model` stays as it is.

    The quantised base of an adapter is dequantised, as when it is saved.

    Raises:
        ValueError: an adapter that cannot be merged (prompt tuning), or a weight that is not a floating point number.
    """
    if not isinstance(model, PeftModel):
        if any(not weight.is_floating_point() for weight in model.parameters()):
            raise ValueError(f"model: this {type(model).__name__} has quantised weights; load it without quantisation")
        return cast(PreTrainedModel, whole_copy(model))
    if not isinstance(model.base_model, BaseTuner):
        kind = model.active_peft_config.peft_type
        raise ValueError(f"model: an adapter of type {kind} cannot be merged into the weights; audit its base model")
    return merged(model)


def quantised(model: Model, bits: int) -> PreTrainedModel:
    """A copy with the weights of its linear layers rounded to integers of `bits` bits, and multiplied out again.

    Unlearning that moves weights less than half a step of the integers is undone by rounding: 4 bits brought back most
    of what language models had forgotten (Zhang et al. 2024, Catastrophic failure of LLM unlearning via quantization,
    arXiv 2410.16454). So the forget metrics of the copy, `measure(quantised(model, 4), ...)`, belong beside those of
    the model, and of a retrained model that was rounded in the same way.

    Rounding is to nearest, symmetric, with one step for each output channel: the largest magnitude of its weights over
    `2 ** (bits - 1) - 1`. It is fake quantisation: the rounded values are stored in the dtype of the weights, so the
    model runs everywhere and gets neither smaller nor faster.

    Rounded are `torch.nn.Linear` and GPT-2's `Conv1D`, heads included. Everything else stays: biases, norms,
    convolutions, embeddings, heads that share their weight with an embedding, and experts kept in one tensor.

    Args:
        model: any model; the active adapter of a `PeftModel` is merged first.
        bits: 4 or 8.

    Raises:
        ValueError: `bits` is neither; adapter layers outside a `PeftModel`; see also `plain_copy`.
    """
    rounded = _copy_to_round(model, bits)
    embeddings = {id(module.weight) for module in rounded.modules() if isinstance(module, nn.Embedding)}
    for module in rounded.modules():
        if isinstance(module, nn.Linear | Conv1D) and id(module.weight) not in embeddings:
            # Conv1D stores [in, out], Linear [out, in]
            inputs = 0 if isinstance(module, Conv1D) else 1
            module.weight.data = _round(module.weight.data, bits, inputs)
    return rounded


def quantised_by_kernels(model: Model, bits: int) -> PreTrainedModel:
    """A copy that computes with integers: bitsandbytes' kernels for its linear layers, as transformers deploys them.

    8 bits: LLM.int8(), integer products of weights and activations, one step for each output channel and position, and
    features beyond 6 in 16 bits (Dettmers et al. 2022, arXiv 2208.07339). 4 bits: NormalFloat, blocks of 64 weights
    with one scale, the products in the dtype of the weights (QLoRA, Dettmers et al. 2023, arXiv 2305.14314). Runs on
    CPU and GPU.

    What transformers leaves with `BitsAndBytesConfig` stays: the output layer of a language model, layers that share
    their weight. All that `quantised` leaves stays, too.

    Args:
        model: any model; the active adapter of a `PeftModel` is merged first.
        bits: 4 or 8.

    Raises:
        ImportError: bitsandbytes is not installed.
        ValueError: as `quantised`.
    """
    import bitsandbytes
    from transformers.quantizers.base import HfQuantizer
    from transformers.quantizers.quantizers_utils import should_convert_module

    class Int8Linear(bitsandbytes.nn.Linear8bitLt):
        def forward(self, x: torch.Tensor) -> torch.Tensor:  # it takes two or three dimensions
            return super().forward(x.flatten(0, -2)).unflatten(0, x.shape[:-1])

    class Nf4Linear(bitsandbytes.nn.Linear4bit):
        # The kernel for bfloat16 on a CPU takes multiples of 32 outputs only.
        support_avx512bf16_for_cpu = property(lambda self: False, lambda self, value: None)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(nn.functional.pad(x, (0, self.in_features - x.shape[-1])))

    # It says at every layer and step that activations are cast to 16 bits.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    rounded = _copy_to_round(model, bits).to(Accelerator().device)
    kept = HfQuantizer.get_modules_to_not_convert(rounded, None, rounded._keep_in_fp32_modules)
    for name, layer in list(rounded.named_modules()):
        # Subclasses of Linear may be read, not called.
        if not (type(layer) is nn.Linear or isinstance(layer, Conv1D)) or not should_convert_module(name, kept):
            continue
        weight = layer.weight.data.T if isinstance(layer, Conv1D) else layer.weight.data
        has_bias, device = layer.bias is not None, weight.device
        kernel: Any
        if bits == 8:
            outputs, inputs = weight.shape
            kernel = Int8Linear(inputs, outputs, has_bias, has_fp16_weights=False, threshold=6.0)
            kernel.weight = bitsandbytes.nn.Int8Params(
                weight.contiguous().cpu(), requires_grad=False, has_fp16_weights=False
            )
        else:
            # On a CPU a channel that ends within a block comes back with other scales (bitsandbytes 0.50.2).
            weight = nn.functional.pad(weight, (0, -weight.shape[1] % NF4_BLOCK))
            outputs, inputs = weight.shape
            kernel = Nf4Linear(inputs, outputs, has_bias, weight.dtype, quant_type="nf4")
            kernel.weight = bitsandbytes.nn.Params4bit(
                weight.cpu(), requires_grad=False, quant_type="nf4", blocksize=NF4_BLOCK, compress_statistics=False
            )
        kernel.bias = layer.bias
        rounded.set_submodule(name, kernel.to(device))  # which is when it is rounded
    return rounded.requires_grad_(False)


def quantisation_kernel(dtype: torch.dtype = torch.float32) -> str:
    """What quantises weights of a dtype: the package with its version, or "simulated" where there is none for it."""
    can_round = find_spec("bitsandbytes") is not None and dtype != torch.float64
    return f"bitsandbytes {version('bitsandbytes')}" if can_round else SIMULATED


def _copy_to_round(model: Model, bits: int) -> PreTrainedModel:
    if bits not in BITS:
        raise ValueError(f"bits: found {bits!r}; use one of {BITS}")
    if not isinstance(model, PeftModel) and any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError(f"model: this {type(model).__name__} has adapter layers; merge them first")
    return plain_copy(model)


def _round(weight: torch.Tensor, bits: int, inputs: int) -> torch.Tensor:
    exact = weight.to(torch.promote_types(weight.dtype, torch.float32))
    step = exact.abs().amax(inputs, keepdim=True) / (2 ** (bits - 1) - 1)
    # A channel of zeros has no step, and stays.
    integers = (exact / torch.where(step > 0, step, 1)).round()
    return (integers * step).to(weight.dtype)


def without_adapter(model: Model) -> PreTrainedModel:
    """A copy of the base of a `PeftModel`, its adapters dropped and its original head back.

    An adapter that unlearns is a layer over weights that still hold the data: the base alone gives the data back, and
    the forget metrics of this copy show it. A merged model (`UnlearningTrainer.save_model`) has no base to go back to.

    Every weight requires gradients. An adapter that was merged in place is taken out again, which is exact up to
    rounding. Initialisations that move weights from the base into the adapter (PiSSA, OLoRA, LoftQ) are not undone.

    Raises:
        ValueError: `model` is not a `PeftModel`, or its adapter trained the biases of the base, which are lost.
    """
    if not isinstance(model, PeftModel):
        raise ValueError(f"model: {type(model).__name__} is not a PeftModel; it has no adapter to drop")
    for name, config in model.peft_config.items():
        if (bias := getattr(config, "bias", "none")) != "none":
            raise ValueError(f"model: adapter {name!r} has bias={bias!r} and changed the base itself; load the base")
    clone = dequantized_copy(model)
    tuner: Any = clone.base_model
    if not isinstance(tuner, BaseTuner):
        return tuner.requires_grad_(True)
    for layer in clone.modules():
        if isinstance(layer, BaseTunerLayer) and layer.merged:
            layer.unmerge()
    # PEFT's unload keeps the heads that trained with the adapter.
    base: nn.Module = tuner.model
    wrappers = [(name, m) for name, m in base.named_modules() if isinstance(m, ModulesToSaveWrapper)]
    for name, wrapper in wrappers:
        base.set_submodule(name, wrapper.original_module)
    return cast(PreTrainedModel, tuner.unload().requires_grad_(True))
