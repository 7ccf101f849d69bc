"""From images to the pixels that a model reads."""

from __future__ import annotations

from typing import Any

from datasets import Dataset, Image

from hf_unlearn.data.columns import Columns

BATCH_SIZE = 64  # samples in memory at a time: an image of 224 x 224 is 0.6 MB


def image_samples(raw: Columns, model: Any, processor: Any) -> Dataset:
    """The samples with `pixel_values` in place of their image."""
    image = raw.need("image")
    if not isinstance(raw.samples.features[image], Image) or not raw.samples.features[image].decode:
        raw.samples = raw.samples.cast_column(image, Image())
    settings = {
        "image": image,
        "processor": getattr(processor, "image_processor", processor),
        "mode": "L" if getattr(model.config, "num_channels", 3) == 1 else "RGB",
    }
    return raw.apply(_pixels, [image], BATCH_SIZE, **settings).with_format("torch")


def _pixels(batch: dict, image: str, processor: Any, mode: str) -> dict:
    images = [picture.convert(mode) for picture in batch[image]]
    return {"pixel_values": processor(images, return_tensors="np").pixel_values}
