"""LoRA adapters: the default for each architecture, adding an adapter, and merging it into a plain model."""

import copy
from typing import Any, Literal, cast

from accelerate.utils import recursively_apply
from peft import (
    LNTuningConfig,
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_unlearn.models.adapter_checks import check_config, check_untied, gradient_flags, remove_adapter
from hf_unlearn.models.adapter_targets import norms, target_modules
from hf_unlearn.models.quantization import (
    check_layers,
    dequantize,
    pass_gradients,
    quantization_of,
    quantized_layers,
)
from hf_unlearn.models.sharding import whole_copy

# Classes with one of these in their name predict labels that are the task's own: their heads train with the adapter.
_HEAD_TASKS = ("Classification", "QuestionAnswering", "MultipleChoice")


def lora_config(model: PreTrainedModel) -> LoraConfig:
    """The default adapter of a model: LoRA on every linear layer of its blocks, or on its convolutions.

    Rank 8, alpha 16, no dropout (forget and retain gradients must come from the same network), no bias. The layers are
    those of `hf_unlearn.models.adapter_targets.target_modules`. A classification or question answering head is
    trained too, as `modules_to_save`; the head of a language model (causal, masked, seq2seq, CTC) is not.

    `task_type` is None: with a task type, PEFT passes arguments to Whisper that it does not accept.

    Raises:
        ValueError: the model has no layer that an adapter can be merged into.

    Source: Hu et al. 2022, LoRA: Low-Rank Adaptation of Large Language Models.
    """
    targets = target_modules(model, outside_body(model))
    if not targets:
        raise ValueError(
            f"peft_config: {type(model).__name__} has no layer that LoRA can be merged into; "
            "leave it to peft_config='auto', which trains its normalisations"
        )
    return LoraConfig(
        r=8,
        lora_alpha=16,
        lora_dropout=0.0,
        bias="none",
        task_type=None,
        target_modules=targets,
        modules_to_save=_trained_heads(model),
        # GPT-2's Conv1D stores its weight transposed.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )


def default_config(model: PreTrainedModel) -> PeftConfig:
    """What `peft_config="auto"` stands for: `lora_config`, or else the weights of all normalisations, and the head.

    Where no layer takes LoRA: convolutions with standardised weights (BiT) or padded as in TensorFlow (MobileNet),
    quantized layers of a model's own (I-BERT).

    Source of the second: Zhao et al. 2023, Tuning LayerNorm in Attention.
    """
    heads = outside_body(model)
    if target_modules(model, heads):
        return lora_config(model)
    return LNTuningConfig(target_modules=norms(model), modules_to_save=_trained_heads(model))


def add_adapter(model: PreTrainedModel, peft_config: PeftConfig | Literal["auto"] = "auto") -> PeftModel:
    """Add a new adapter to a model, and freeze all other weights.

    The layers of `model` are wrapped in place, as by `peft.get_peft_model`; `peft_config` is copied.

    Args:
        model: a model without an adapter.
        peft_config: "auto" for `default_config(model)`, or a configuration of any PEFT method.

    Raises:
        ValueError: the model already has an adapter, PEFT cannot apply the configuration to it (for example, because
            its target modules match no layer), or the adapter could not be merged into the model. The model is left as
            it was.
    """
    if isinstance(model, PeftModel) or any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError(
            f"model: this {type(model).__name__} has an adapter already; unlearn that one, or merge it first"
        )
    if model.config.model_type == "reformer":
        raise ValueError(
            "peft_config: Reformer's reversible layers give no gradient to an adapter beside frozen embeddings; train "
            "all weights (peft_config=None)"
        )
    config = default_config(model) if peft_config == "auto" else copy.deepcopy(peft_config)
    check_config(config)
    trains = gradient_flags(model)
    try:
        adapted_model = _apply(model, config)
        check_untied(adapted_model)
    except ValueError:
        remove_adapter(model, trains)
        raise
    for wrapper in _wrapped_heads(adapted_model).values():
        head = wrapper.modules_to_save[wrapper.active_adapters[0]]
        if any(weight.dtype.itemsize < 4 for weight in head.parameters()):
            head.float().register_forward_pre_hook(_in_its_dtype, with_kwargs=True)
    return adapted_model


def _wrapped_heads(model: nn.Module) -> dict[str, ModulesToSaveWrapper]:
    return {name: module for name, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)}


def _in_its_dtype(head: nn.Module, args: Any, kwargs: Any) -> Any:
    """A head that trains is float32, as the adapter is; in half precision its steps would be lost to rounding."""
    dtype = next(head.parameters()).dtype

    def converted(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return recursively_apply(converted, args), recursively_apply(converted, kwargs)


def _apply(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    targets = getattr(config, "target_modules", None)
    try:
        return get_peft_model(model, config)
    except Exception as error:  # PEFT raises all kinds for what it does not support
        text = " ".join(str(error).split())
        raise ValueError(
            f"peft_config: PEFT cannot apply target_modules={targets!r} to {type(model).__name__} ({text}); give some "
            f"of its layers, which are named {', '.join(_layer_names(model))}"
        ) from error


def wants_adapter(model: nn.Module, peft_config: PeftConfig | Literal["auto"] | None, by_default: bool) -> bool:
    """Whether a model gets a new adapter: by default or asked for, and without one so far.

    By default a quantised model does, whose own weights cannot train.
    """
    if isinstance(model, PeftModel):
        return False
    return by_default or quantization_of(model) is not None if peft_config == "auto" else peft_config is not None


def adapted(
    model: PreTrainedModel | PeftModel, peft_config: PeftConfig | Literal["auto"] | None, by_default: bool
) -> PreTrainedModel | PeftModel:
    """The model that is trained: with a new adapter where `wants_adapter` says so, otherwise as it is.

    Raises:
        ValueError: a configuration for a model that already has an adapter; nothing of the model trains; quantised
            layers that do not compute here.
    """
    has_adapter = isinstance(model, PeftModel)
    if has_adapter and peft_config not in ("auto", None):
        raise ValueError("peft_config: the model already has an adapter; merge it first, or leave peft_config out")
    pass_gradients(model)
    if has_adapter:
        check_layers(model)
    if wants_adapter(model, peft_config, by_default):
        model = add_adapter(model, peft_config or "auto")  # type: ignore[arg-type]
    if not any(p.requires_grad for p in model.parameters()):
        advice = "load the adapter with is_trainable=True" if has_adapter else "unfreeze some, or give a peft_config"
        raise ValueError(f"model: all parameters are frozen, nothing can be unlearned; {advice}")
    return model


def merged(model: PeftModel) -> PreTrainedModel:
    """A plain model of the base model's class with the active adapter merged into its weights; a copy of `model`.

    The sums are computed in float32 and rounded once to the dtype of each weight; changes below half a rounding step
    of that dtype are lost (bfloat16 has 8 bits of precision: load the base in float32 to keep smaller ones). Heads
    that trained with the adapter (`modules_to_save`) replace the original ones. All weights require gradients: PEFT
    froze them and does not store whether they did before.

    A quantised base is dequantised first, to its own dtype: the model that is returned is quantised no more.

    Takes the memory of a second model, plus float32 copies of the adapted layers while merging.

    Raises:
        ValueError: a merged weight is not finite.
    """
    clone = dequantized_copy(model)
    adapted: dict[str, Any] = {
        n: module for n, module in clone.get_base_model().named_modules() if isinstance(module, BaseTunerLayer)
    }
    dtypes = {
        f"{name}.{own}": tensor.dtype
        for name, layer in adapted.items()
        for own, tensor in (*layer.get_base_layer().named_parameters(), *layer.get_base_layer().named_buffers())
    }
    for layer in adapted.values():
        layer.float()
    heads = _wrapped_heads(clone.get_base_model())
    head_dtypes = {name: next(head.original_module.parameters()).dtype for name, head in heads.items()}
    plain = clone.merge_and_unload(safe_merge=True)
    for name, head in _wrapped_heads(plain).items():  # LNTuning leaves them wrapped
        parent, _, child = name.rpartition(".")
        setattr(plain.get_submodule(parent), child, head.modules_to_save[head.active_adapters[0]])
    for name, dtype in head_dtypes.items():
        plain.get_submodule(name).to(dtype)
    for name, tensor in plain.state_dict(keep_vars=True).items():
        tensor.data = tensor.data.to(dtypes.get(name, tensor.dtype))
    return plain.requires_grad_(True)


def dequantized_copy(model: PeftModel) -> PeftModel:
    """A copy of a model with its active adapter; a quantised base is dequantised, to its own dtype.

    PEFT itself would round the weights that it merges again.
    """
    if quantization_of(model) is None:
        return cast(PeftModel, whole_copy(model))
    name: Any = model.active_adapter
    # What is in the memo is not copied: the quantised weights, which optimum-quanto could not copy.
    shared = {id(layer.weight): layer.weight for layer in quantized_layers(model).values()}
    base: Any = copy.deepcopy(model.get_base_model(), shared)
    remove_adapter(base, {})
    dequantize(base)
    plain = get_peft_model(base, copy.deepcopy(model.active_peft_config), adapter_name=name)
    set_peft_model_state_dict(plain, get_peft_model_state_dict(model, adapter_name=name), adapter_name=name)
    return plain


def outside_body(model: PreTrainedModel) -> list[str]:
    """The names of the top-level modules with weights outside the body; empty if the model is a body itself."""
    children = dict(model.named_children())
    # T5ForQuestionAnswering and CLIPForImageClassification have no module named base_model_prefix.
    bodies = {
        name for name, child in children.items() if child is model.base_model or isinstance(child, PreTrainedModel)
    }
    if not bodies:
        return []
    return [
        name
        for name, child in children.items()
        if name not in bodies and not isinstance(child, nn.Embedding) and any(True for _ in child.parameters())
    ]


def _trained_heads(model: PreTrainedModel) -> list[str] | None:
    """The heads that train beside the adapter: those of tasks with labels of their own."""
    trains_heads = any(task in cls.__name__ for task in _HEAD_TASKS for cls in type(model).__mro__)
    return _without_body_matches(outside_body(model), model) if trains_heads else None


def _without_body_matches(heads: list[str], model: PreTrainedModel) -> list[str]:
    """The heads whose name ends no name in the body: PEFT compares ends, and "norm" would match every norm there."""
    body = [name for name, _ in model.named_modules() if name.split(".")[0] not in heads]
    return [head for head in heads if not any(name.endswith(head) for name in body)]


def _layer_names(model: nn.Module) -> list[str]:
    layers = nn.Linear | nn.Conv1d | nn.Conv2d | Conv1D
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, layers)}
    return sorted(name for name in names if not name.isdigit())
