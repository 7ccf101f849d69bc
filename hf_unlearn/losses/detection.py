"""Which kind of head a model has, by the lists of classes of transformers."""

from __future__ import annotations

import inspect
from typing import Any, Literal, TypeAlias, get_args

from torch import nn
from transformers.models.auto import modeling_auto

from hf_unlearn.losses.head import Head, HeadKind, PerSampleLoss, classification_kind

# The head of a classifier depends on its config, too: see `classification_kind`.
ListedKind: TypeAlias = HeadKind | Literal["classification"]

# Keys are the MODEL_FOR_*_MAPPING_NAMES of transformers; of two lists that have a class the later one holds: the own
# loss of XLMWithLMHeadModel, a masked and a causal model, does not shift the labels.
KIND_OF_MAPPING: dict[str, ListedKind] = {
    "IMAGE_TEXT_TO_TEXT": "causal_lm",
    "SEQUENCE_CLASSIFICATION": "classification",
    "IMAGE_CLASSIFICATION": "classification",
    "VIDEO_CLASSIFICATION": "classification",
    "AUDIO_CLASSIFICATION": "classification",
    "TOKEN_CLASSIFICATION": "token",
    "QUESTION_ANSWERING": "question_answering",
    "DOCUMENT_QUESTION_ANSWERING": "question_answering",
    "MULTIPLE_CHOICE": "multiple_choice",
    "SEMANTIC_SEGMENTATION": "segmentation",
    "ZERO_SHOT_IMAGE_CLASSIFICATION": "contrastive",
    "CTC": "ctc",
    "SEQ_TO_SEQ_CAUSAL_LM": "causal_lm",
    "SPEECH_SEQ_2_SEQ": "causal_lm",
    "CAUSAL_LM": "causal_lm",
    "MASKED_LM": "masked_lm",
}
# PreTrainedModel.loss_type, which comes from the class name: for classes that are not in transformers (remote code).
KIND_OF_LOSS_TYPE: dict[str, ListedKind] = {
    "ForSequenceClassification": "classification",
    "ForImageClassification": "classification",
    "ForVideoClassification": "classification",
    "ForAudioClassification": "classification",
    "ForTokenClassification": "token",
    "ForQuestionAnswering": "question_answering",
    "ForMultipleChoice": "multiple_choice",
    "ForSemanticSegmentation": "segmentation",
    "ForCTC": "ctc",
    "ForConditionalGeneration": "causal_lm",
    "ForCausalLM": "causal_lm",
    "ForMaskedLM": "masked_lm",
}


def _kinds_of_classes() -> dict[str, ListedKind]:
    """Class name to kind, by the lists of transformers."""
    kinds: dict[str, ListedKind] = {}
    for mapping, kind in KIND_OF_MAPPING.items():
        for names in getattr(modeling_auto, f"MODEL_FOR_{mapping}_MAPPING_NAMES").values():
            kinds.update(dict.fromkeys((names,) if isinstance(names, str) else names, kind))
    return kinds


KIND_OF_CLASS = _kinds_of_classes()


def head_of(model: nn.Module, per_sample_loss: PerSampleLoss | None = None) -> Head:
    """Find the head of a model.

    Args:
        model: a `PreTrainedModel`, or a `PeftModel` around one. A subclass of a class of transformers counts as that
            class.
        per_sample_loss: a function `(outputs, batch) -> losses` of shape `[batch]`, to be used instead of the model's
            own loss. Any model is supported then, and its forward gets the whole batch, labels included.

    Raises:
        ValueError: no per-sample loss can be formed for this class (none for models of diffusers), and
            `per_sample_loss` is not given.

    Example:
        >>> import torch
        >>> from transformers import ResNetConfig, ResNetForImageClassification
        >>> config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=3)
        >>> model = ResNetForImageClassification(config).eval()
        >>> batch = {"pixel_values": torch.ones(4, 3, 32, 32), "labels": torch.tensor([0, 1, 2, 2])}
        >>> head = head_of(model)
        >>> head
        Head(kind='single_label')
        >>> outputs = model(**head.inputs(batch))
        >>> head.losses(outputs, batch).shape, head.correct(outputs, batch).shape
        (torch.Size([4]), torch.Size([4]))
    """
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    if per_sample_loss is not None:
        return Head("custom", base, per_sample_loss)
    if type(base).__module__.startswith("diffusers."):
        raise ValueError(
            f"model: {type(base).__name__} is a model of diffusers, whose loss depends on the noise that is drawn; "
            "only models of transformers are supported"
        )
    kind = kind_of(base)
    if kind is None:
        raise ValueError(
            f"model: no per-sample loss can be formed for {type(base).__name__}; "
            "pass per_sample_loss=f, where f(outputs, batch) returns one loss a sample, shape [batch]"
        )
    return Head(kind, base)


def kind_of(model: Any) -> HeadKind | None:
    """The kind of head of a model without a wrapper, by its class; None where no per-sample loss can be formed."""
    ancestors = (cls for cls in type(model).__mro__ if _in_transformers(cls))
    listed = next((cls for cls in ancestors if cls.__name__ in KIND_OF_CLASS), None)
    if listed is None and _in_transformers(type(model)):
        # Not in the lists, so its outputs are its own, whatever its name says (BlipForQuestionAnswering).
        return None
    kind = KIND_OF_CLASS[listed.__name__] if listed else KIND_OF_LOSS_TYPE.get(getattr(model, "loss_type", None) or "")
    if kind == "classification":
        return classification_kind(model.config) if listed is None or _returns_logits(listed) else None
    if kind in ("causal_lm", "masked_lm") and model.config.is_encoder_decoder:
        return "seq2seq_lm"
    if listed and not _reads_labels_as(kind, listed, model.config.num_labels):
        return None
    return kind


def _in_transformers(cls: type) -> bool:
    return cls.__module__.startswith("transformers.")


def _returns_logits(cls: Any) -> bool:
    """Whether a classifier that takes no labels by name has logits; PP-LCNet calls them its last hidden state."""
    forward = inspect.unwrap(cls.forward)
    returned = forward.__annotations__.get("return")
    outputs = get_args(returned) or (returned,)
    return "labels" in inspect.signature(forward).parameters or any(hasattr(output, "logits") for output in outputs)


def _reads_labels_as(kind: HeadKind | None, cls: Any, num_labels: int) -> bool:
    """Whether a class of transformers reads labels as its list says; a few classes in the lists do not."""
    forward = inspect.unwrap(cls.forward)
    if kind == "causal_lm":
        # ForCausalLMLoss shifts the labels; the decoders with a loss of their own (BartForCausalLM, XLNet) do not.
        return "loss_function" in forward.__code__.co_names
    if kind == "ctc":
        # Parakeet and its relatives count their frames inside the encoder and do not return them.
        return hasattr(cls, "_get_feat_extract_output_lengths")
    if kind == "question_answering":
        # Lxmert chooses an answer out of a list.
        return "start_positions" in inspect.signature(forward).parameters
    if kind == "contrastive":
        # Others in the list have outputs of their own (Blip2ForImageTextRetrieval).
        return "return_loss" in inspect.signature(forward).parameters
    if kind == "segmentation":
        # With one output, a pixel is in the class or not: a loss of its own, for some of the models.
        return num_labels > 1
    return True
