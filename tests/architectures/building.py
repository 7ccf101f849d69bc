"""Every class of the auto mappings of transformers as a small model with random weights, and batches for it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as tf
from shrinking import FIRST_TOKEN, IMAGE, MELS, VOCAB, small_settings
from transformers.models.auto import modeling_auto

from hf_unlearn.models.eval_mode import EvalMode

Batch = dict[str, torch.Tensor]
# The task of a batch, by the MODEL_FOR_*_MAPPING_NAMES of transformers; a class in several lists counts once.
TASKS = {
    "IMAGE_CLASSIFICATION": "image", "AUDIO_CLASSIFICATION": "audio", "SEQUENCE_CLASSIFICATION": "text",
    "TOKEN_CLASSIFICATION": "token", "MASKED_LM": "masked_lm", "SEQ_TO_SEQ_CAUSAL_LM": "seq2seq_lm", "CTC": "ctc",
    "SPEECH_SEQ_2_SEQ": "speech", "CAUSAL_LM": "causal_lm",
}  # fmt: skip
TEXT_TASKS = ("text", "token", "masked_lm", "seq2seq_lm", "causal_lm")
NUM_LABELS = 3
# Its layers give a gradient in training mode alone; their dropout is 0.
TRAINING = ("reformer",)
# More weights than this are not small: a field that no rule knows.
LARGEST = 3_000_000


@dataclass(frozen=True)
class Architecture:
    """A class of the auto mappings: its name, its model type and its task."""

    name: str
    model_type: str
    task: str


def architectures() -> list[Architecture]:
    """All classes of the installed transformers, each once."""
    listed: dict[str, Architecture] = {}
    for mapping, task in TASKS.items():
        for model_type, names in getattr(modeling_auto, f"MODEL_FOR_{mapping}_MAPPING_NAMES").items():
            for name in (names,) if isinstance(names, str) else names:
                listed.setdefault(name, Architecture(name, model_type, task))
    return sorted(listed.values(), key=lambda architecture: architecture.name)


def build(architecture: Architecture, seed: int = 0) -> Any:
    """A small model in float64 and eval mode, always with the same weights.

    Every weight is moved by a little noise: zeros and ones, as norms and gates begin with, would hide errors.

    Raises:
        ImportError: the class needs a package that is not installed.
        ValueError: the model is not small.
    """
    cls = getattr(tf, architecture.name)
    config = small_config(cls, architecture)
    with torch.device("meta"):
        weights = dict(cls(config).named_parameters())
    if (count := sum(weight.numel() for weight in weights.values())) > LARGEST:
        largest = max(weights, key=lambda name: weights[name].numel())
        raise ValueError(f"{count} weights, the largest {largest} {list(weights[largest].shape)}")
    torch.manual_seed(seed)
    model = cls(small_config(cls, architecture)).double()
    if architecture.model_type in TRAINING:
        model.train()
    else:
        EvalMode().apply(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator, dtype=weight.dtype), alpha=0.1)
    return model


def has_experts(model: Any) -> bool:
    """Whether it has experts whose weights are one tensor, which are multiplied in groups by default."""
    return any(hasattr(module, "has_gate") for module in model.modules())


def small_config(cls: Any, architecture: Architecture) -> tf.PretrainedConfig:
    """The configuration of the small model of a class."""
    config_class = cls.config_class
    settings = small_settings(config_class)
    if architecture.task in ("image", "audio", "text", "token"):
        settings["num_labels"] = NUM_LABELS
    config = config_class(**settings)
    for part in (config, config.get_text_config()):
        if getattr(part, "pad_token_id", None) is None:
            part.pad_token_id = 0
        if config.is_encoder_decoder and getattr(part, "decoder_start_token_id", None) is None:
            part.decoder_start_token_id = 1
    if architecture.task == "causal_lm" and hasattr(config, "is_decoder") and not config.is_encoder_decoder:
        config.is_decoder = True
    return config


def batch_for(architecture: Architecture, model: Any, size: int, length: int = 12, seed: int = 0) -> Batch:
    """A batch as the forward pass of a model wants it, with labels; texts are of `length` tokens and fewer."""
    generator = torch.Generator().manual_seed(1000 * seed + 10 * size + length)
    inputs = _inputs(architecture, model, size, length, generator)
    taken = inspect.signature(model.forward).parameters
    batch = {name: value for name, value in inputs.items() if name in taken}
    return batch | {"labels": _labels(task_of(architecture, model), inputs, size, generator)}


def task_of(architecture: Architecture, model: Any) -> str:
    """The task of a batch: models of speech and text that are decoders alone continue a text."""
    decodes = architecture.task in ("seq2seq_lm", "speech") and not model.config.is_encoder_decoder
    return "causal_lm" if decodes and model.main_input_name == "input_ids" else architecture.task


def _inputs(
    architecture: Architecture, model: Any, size: int, length: int, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    if architecture.task == "speech" and architecture.model_type in SPEECH:
        return SPEECH[architecture.model_type](model, size, length, generator)
    if architecture.model_type in INPUTS:
        return INPUTS[architecture.model_type](model, size, length, generator)
    if architecture.task == "image":
        return images(model, size, length, generator)
    if architecture.task in ("audio", "ctc", "speech") and model.main_input_name in AUDIO:
        return AUDIO[model.main_input_name](model, size, length, generator)
    return texts(model, size, length, generator)


def texts(model: Any, size: int, length: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Token ids `[size, length]`, padded at the end but for the first sample."""
    ids = torch.randint(FIRST_TOKEN, VOCAB, (size, length), generator=generator)
    mask = torch.ones_like(ids)
    for i in range(size):
        mask[i, length - i % 3 :] = 0
    config = model.config.get_text_config()
    if config.is_encoder_decoder and model.can_generate() is False:
        # The classifiers among the encoder-decoders read the last token, which has to be the end.
        ids[torch.arange(size), mask.sum(1) - 1] = config.eos_token_id
    return {"input_ids": ids.masked_fill(mask == 0, config.pad_token_id), "attention_mask": mask}


def images(model: Any, size: int, length: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    config = getattr(model.config, "vision_config", model.config)
    side = getattr(config, "image_size", IMAGE)
    side = side if isinstance(side, int) else side[0]
    channels = getattr(config, "num_channels", 3)
    return {"pixel_values": torch.randn(size, channels, side, side, generator=generator, dtype=torch.float64)}


def waveforms(model: Any, size: int, length: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {"input_values": torch.randn(size, 4000, generator=generator, dtype=torch.float64)}


def spectrograms(model: Any, size: int, length: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Features `[size, mels, frames]`."""
    bins = getattr(model.config, "num_mel_bins", MELS)
    frames = 2 * model.config.max_source_positions
    return {"input_features": torch.randn(size, bins, frames, generator=generator, dtype=torch.float64)}


def frames_of(width: Callable[[Any], int], masked: bool = True, count: int = 32) -> Any:
    """Features `[size, frames, width]`, with a mask."""

    def make(model: Any, size: int, length: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        features = torch.randn(size, count, width(model.config), generator=generator, dtype=torch.float64)
        mask = {"attention_mask": torch.ones(size, count, dtype=torch.long)} if masked else {}
        return {"input_features": features, "input_values": features, **mask}

    return make


def pixel_tokens(model: Any, size: int, length: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(0, VOCAB, (size, model.config.n_positions), generator=generator)}


def boxed_texts(model: Any, size: int, length: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Tokens with the boxes that they stand in."""
    inputs = texts(model, size, length, generator)
    return inputs | {"bbox": torch.rand(size, length, 8, generator=generator, dtype=torch.float64)}


def filled_texts(model: Any, size: int, length: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Tokens at all the positions that there are: as many predictions come out."""
    if "Image" in type(model).__name__:
        return images(model, size, length, generator)
    return texts(model, size, model.config.max_position_embeddings, generator)


def patches(model: Any, size: int, length: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """The patches of images of 4 x 4."""
    width = 3 * model.config.vision_config.patch_size**2
    return {
        "pixel_values": torch.randn(size, 16, width, generator=generator, dtype=torch.float64),
        "pixel_attention_mask": torch.ones(size, 16, dtype=torch.long),
        "spatial_shapes": torch.full((size, 2), 4),
    }


AUDIO = {"input_values": waveforms, "input_features": spectrograms}
INPUTS: dict[str, Any] = {
    "audio-spectrogram-transformer": frames_of(lambda config: config.num_mel_bins, masked=False),
    "bros": boxed_texts,
    "canary": frames_of(lambda config: config.encoder_config.num_mel_bins),
    "cohere_asr": frames_of(lambda config: config.encoder_config.num_mel_bins),
    "granite_speech5_ctc": frames_of(lambda config: 4 * config.encoder_config.num_mel_bins),
    "imagegpt": pixel_tokens,
    "lasr_ctc": frames_of(lambda config: config.encoder_config.num_mel_bins),
    "parakeet_ctc": frames_of(lambda config: config.encoder_config.num_mel_bins),
    "perceiver": filled_texts,
    "reformer": filled_texts,
    "siglip2": patches,
    "speech-encoder-decoder": waveforms,
    "speech_to_text": frames_of(lambda config: config.input_feat_per_channel),
    "wav2vec2-bert": frames_of(lambda config: config.feature_projection_input_dim),
}
# Speech of model types that have another kind of input for other tasks.
SPEECH = dict.fromkeys(
    ("seamless_m4t", "seamless_m4t_v2"), frames_of(lambda config: config.feature_projection_input_dim)
)


def _labels(task: str, inputs: Batch, size: int, generator: torch.Generator) -> torch.Tensor:
    if task in ("image", "audio", "text"):
        return torch.randint(NUM_LABELS, (size,), generator=generator)
    if task in ("seq2seq_lm", "speech", "ctc"):
        labels = torch.randint(FIRST_TOKEN, VOCAB, (size, 5), generator=generator)
        for i in range(size):
            labels[i, 5 - i % 3 :] = -100
        return labels
    mask = inputs["attention_mask"] == 0
    if task == "causal_lm":
        return inputs["input_ids"].masked_fill(mask, -100)
    classes = NUM_LABELS if task == "token" else VOCAB
    labels = torch.randint(classes, mask.shape, generator=generator)
    if task == "masked_lm":
        mask = mask | (torch.arange(mask.shape[1]) % 3 != 1)
    return labels.masked_fill(mask, -100)
