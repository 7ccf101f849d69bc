"""Images and text: a collated batch holds each sample's own, and the model gets them as it wants them.

Models differ in what the leading axis of their pixels counts: samples, images, or patches of all images one after
another (Qwen-VL). In a batch it always counts samples, so that a batch can be cut into samples; patches are padded.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

# Pixels and the numbers of patches (time, height, width) of their images or videos.
_PATCHES = {"pixel_values": "image_grid_thw", "pixel_values_videos": "video_grid_thw"}


def unpadded_images(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a model with its images one after another, where that is how it takes them.

    Args:
        model: its forward's arguments tell how.
        inputs: with `pixel_values` `[batch, patches, width]` and `image_grid_thw` `[batch, images, 3]`, padded with
            zeros (a batch without any image loses both); or with `pixel_values` `[batch, images, channels, height,
            width]`, as many images a sample. Others are returned as they are, also images that are one after another.
    """
    inputs = dict(inputs)
    for name, grid in _PATCHES.items():
        sizes = inputs.get(grid)
        if isinstance(sizes, Tensor) and sizes.dim() == 3:
            counts = sizes.prod(dim=2).sum(dim=1)  # shape: [batch], patches
            inputs[name] = _own_patches(inputs[name], counts)
            inputs[grid] = sizes[sizes.any(dim=2)]
            if not len(inputs[grid]):
                del inputs[name], inputs[grid]
    pixels = inputs.get("pixel_values")
    if isinstance(pixels, Tensor) and pixels.dim() == 5 and not _takes_images_by_sample(model):
        inputs["pixel_values"] = pixels.flatten(0, 1)
    return inputs


def _takes_images_by_sample(model: Any) -> bool:
    """Whether its pixels are `[batch, images, ...]`: models that mask pixels, and that cut an image into several."""
    return _takes(model, "pixel_attention_mask") or hasattr(model.config, "image_grid_pinpoints")


def _own_patches(patches: Tensor, counts: Tensor) -> Tensor:
    """Of patches [batch, most, width] each sample's own: [all patches, width]."""
    places = torch.arange(patches.shape[1], device=patches.device)
    return patches[places < counts[:, None].to(patches.device)]


def unstacked_captions(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a model that compares images with captions: the captions of all samples one after another.

    Args:
        inputs: with `input_ids` `[batch, captions, tokens]` and what belongs to them in the same shape.

    Raises:
        ValueError: a sample has one caption, so that its loss would be one of the whole batch.
    """
    shape = inputs["input_ids"].shape
    if len(shape) != 3:
        raise ValueError(
            f"input_ids: found shape {list(shape)}; among the captions of other samples a sample has no loss of its "
            "own: give each image captions to choose from, [captions, tokens], and labels the number of the right one"
        )
    return {n: v.flatten(0, 1) if isinstance(v, Tensor) and v.shape == shape else v for n, v in inputs.items()}


def own_captions(logits: Tensor) -> Tensor:
    """Of the logits [batch, batch * captions] of images beside all captions those of its own: [batch, captions]."""
    return logits.unflatten(1, (len(logits), -1)).diagonal(dim1=0, dim2=1).T


def takes_images(model: Any) -> bool:
    """Whether a language model reads images beside its text."""
    return _takes(model, "pixel_values") and model.main_input_name == "input_ids"


def image_tokens(config: Any) -> set[int]:
    """The ids of the tokens in whose place a model puts images, videos or sound."""
    names = (f"{what}_token_{kind}" for what in ("image", "video", "audio") for kind in ("id", "index"))
    return {value for name in names if isinstance(value := getattr(config, name, None), int)}


def _takes(model: Any, name: str) -> bool:
    return name in inspect.signature(model.forward).parameters
