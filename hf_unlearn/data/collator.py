"""The default data collator: preprocessed samples become one padded batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import find_labels

from hf_unlearn.data.columns import LABEL_MASKS, LABELS
from hf_unlearn.losses.detection import kind_of
from hf_unlearn.losses.images import image_tokens, takes_images
from hf_unlearn.models.types import Model, ProcessingClass, inner_model

Collator = Callable[[list[Any]], dict[str, Any]]


def default_collator(model: Model, processing_class: ProcessingClass | None = None) -> Collator:
    """A collator that pads every ragged column along its first axis, for text, images, audio and Whisper features.

    Columns of equal shape are stacked. Ragged ones are padded at the end: `input_ids` with the pad id of
    `processing_class` or of the model's configuration, anything named `labels` with -100, `attention_mask` and the
    rest with 0. Padded `input_ids` get an attention mask when the samples have none; padded `input_values` get one
    when the model's feature encoder uses layer normalisation (those with group normalisation were trained without).
    Samples of a causal language model without labels get their tokens as labels, except for padding, for the places of
    images, and for tokens that a `completion_mask` or `assistant_masks` (as TRL and chat templates make them) leaves
    out. `label` and
    `label_ids` become `labels`. Samples of a multiple choice model, and of one that compares images with captions,
    hold a list of choices in every column of text; all choices of a batch are padded together.

    Args:
        model: the model, for its configuration and its class.
        processing_class: tokenizer, feature extractor or processor; only its pad id is read.

    Examples:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=1, pad_token_id=0))
        >>> batch = default_collator(model)([{"input_ids": [5, 6, 7]}, {"input_ids": [8]}])
        >>> batch["input_ids"].tolist(), batch["labels"].tolist()
        ([[5, 6, 7], [8, 0, 0]], [[5, 6, 7], [8, -100, -100]])
    """
    base = inner_model(model)
    config = base.config
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    # Beside images the text's own configuration has the pad id: Idefics' outer one names a token it does not have.
    sources = (tokenizer, getattr(config, "text_config", None) or config)
    candidates = [getattr(source, "pad_token_id", None) for source in sources]
    pad_id = next((value for value in candidates if value is not None), 0)
    predicts_input = _predicts_input(base)
    no_text = torch.tensor(sorted(image_tokens(config)))
    chooses = kind_of(base) in ("multiple_choice", "contrastive")
    masks_audio = getattr(config, "feat_extract_norm", None) == "layer"

    def collate(samples: list) -> dict[str, Any]:
        samples = [
            {("labels" if k in ("label", "label_ids") else k): v for k, v in sample.items()} for sample in samples
        ]
        if predicts_input and "labels" not in samples[0]:
            samples = [{**sample, "labels": _causal_labels(sample, no_text)} for sample in samples]
        samples = [{name: value for name, value in sample.items() if name not in LABEL_MASKS} for sample in samples]
        if chooses:
            return _with_choices(samples, collate_columns)
        return collate_columns(samples)

    def collate_columns(samples: list) -> dict[str, Any]:
        batch: dict[str, Any] = {}
        for name in samples[0]:
            values = [_tensor(sample[name]) for sample in samples]
            fill = pad_id if name == "input_ids" else -100 if "labels" in name else 0
            batch[name], lengths = _stack(values, fill)
            needs_mask = name == "input_ids" or (name == "input_values" and masks_audio)
            if lengths is not None and needs_mask and "attention_mask" not in samples[0]:
                positions = torch.arange(batch[name].shape[1])
                batch["attention_mask"] = (positions[None] < lengths[:, None]).long()
        return batch

    return collate


def _with_choices(samples: list[Mapping[str, Any]], collate: Collator) -> dict[str, Any]:
    """A batch of texts `[batch, choices, ...]`, from samples that hold a list of choices in each column of text."""
    whole = [
        name for name, value in samples[0].items()
        if name == "labels" or name.startswith(("pixel_", "spatial_shapes")) or _is_number(value)
    ]  # fmt: skip
    columns = [name for name in samples[0] if name not in whole]
    if any(_tensor(sample["input_ids"][0]).dim() == 0 for sample in samples):
        raise ValueError("input_ids: found one text a sample; give each a list of those it chooses from")
    counts = {len(sample[name]) for sample in samples for name in columns}
    if len(counts) > 1:
        raise ValueError(f"samples: have {sorted(counts)} choices in one batch; give every sample as many")
    choices = [
        {name: sample[name][i] for name in columns} for sample in samples for i in range(len(sample[columns[0]]))
    ]
    batch = {name: values.unflatten(0, (len(samples), -1)) for name, values in collate(choices).items()}
    return collate([{name: sample[name] for name in whole} for sample in samples]) | batch if whole else batch


def readable_collator(model: Model, processing_class: ProcessingClass | None = None) -> Collator:
    """`default_collator` on the columns that the model reads; others (a speaker, an author) are dropped.

    It raises ValueError on samples that hold no input of the model.
    """
    collate, names = default_collator(model, processing_class), set(columns_read(model))
    # Not the model itself: what a cache knows the collator by would change with the weights.
    main, architecture = inner_model(model).main_input_name, type(inner_model(model)).__name__

    def collate_readable(samples: list) -> dict[str, Any]:
        if main in names and not names & set(samples[0]) - set(LABELS):
            raise ValueError(
                f"samples: hold {', '.join(samples[0])}, none of which {architecture} reads; "
                f"make {main} of them (hf_unlearn.data.preprocessing.prepare), or give a data_collator that does"
            )
        return collate([{k: v for k, v in sample.items() if k in names} for sample in samples])

    return collate_readable


def columns_read(model: Model) -> list[str]:
    """The columns of a dataset that the model's forward pass takes, and those that hold or make its labels."""
    base = inner_model(model)
    masks = LABEL_MASKS if _predicts_input(base) else ()
    # Some take labels by **kwargs (Qwen3.5), or none at all (CLIP), and their head reads them all the same.
    labels = [*find_labels(type(base)), "label", "labels", "label_ids"]
    return list(dict.fromkeys([*inspect.signature(base.forward).parameters, *masks, *labels]))


def _predicts_input(base: PreTrainedModel) -> bool:
    name = type(base).__name__
    return name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() or (kind_of(base) == "causal_lm" and takes_images(base))


def _causal_labels(sample: Mapping[str, Any], no_text: torch.Tensor) -> torch.Tensor:
    """The sample's tokens, with -100 where a mask marks padding, or a token that is no answer, or no text."""
    labels = _tensor(sample["input_ids"])
    labels = labels.masked_fill(torch.isin(labels, no_text), -100)
    for name in ("attention_mask", *LABEL_MASKS):
        if name in sample:
            labels = labels.masked_fill(_tensor(sample[name]) == 0, -100)
    return labels


def _is_number(value: Any) -> bool:
    """Whether a value of a sample is one number or text: no list of choices."""
    return not isinstance(value, list | tuple) and np.ndim(value) == 0


def _tensor(value: Any) -> torch.Tensor:
    if isinstance(value, np.ndarray) and value.dtype == np.float64:
        value = value.astype(np.float32)  # numpy's default, not the user's choice; a float64 tensor stays as it is
    return torch.as_tensor(value)


def _stack(values: list[torch.Tensor], fill: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    if all(v.shape == values[0].shape for v in values):
        return torch.stack(values), None
    lengths = torch.tensor([len(v) for v in values])
    return torch.nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=fill), lengths
