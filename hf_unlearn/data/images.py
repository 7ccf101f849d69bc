"""From images to the pixels that a model reads."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset, Image

from hf_unlearn.data.columns import Columns, file_of, located

BATCH_SIZE = 64  # samples in memory at a time: an image of 224 x 224 is 0.6 MB
NOTICES = {
    "_is_scaled": "have images of 16 bits a pixel, which are scaled to 8",
    "_has_frames": "have images of several frames, of which the first is read",
}


def image_samples(raw: Columns, model: Any, processor: Any) -> Dataset:
    """The samples with `pixel_values` in place of their image."""
    image = raw.need("image")
    raw.samples = raw.samples.cast_column(image, Image(decode=False))
    settings = {
        "image": image,
        "processor": getattr(processor, "image_processor", processor),
        "mode": "L" if getattr(model.config, "num_channels", 3) == 1 else "RGB",
    }
    return raw.apply(_pixels, [image], BATCH_SIZE, NOTICES, **settings).with_format("torch")


def _pixels(batch: dict, places: list[str], image: str, processor: Any, mode: str) -> dict:
    pictures, is_scaled, has_frames = [], [], []
    for cell, place in zip(batch[image], places, strict=True):
        file = file_of(cell, place, image)
        with located(place, image, "does not open as an image"):
            picture = Image().decode_example(file)
        is_scaled.append(picture.mode.startswith("I;16"))
        has_frames.append(getattr(picture, "n_frames", 1) > 1)
        pictures.append(_in_8_bits(picture, f"{place}, column {image!r}").convert(mode))
    return {
        "pixel_values": processor(pictures, return_tensors="np").pixel_values,
        "_is_scaled": is_scaled,
        "_has_frames": has_frames,
    }


def _in_8_bits(picture: Any, place: str) -> Any:
    """A picture whose pixels have at most 8 bits a channel: Pillow would clip others at 255.

    Raises:
        ValueError: the pixels are floats or 32-bit integers, whose white is not known.
    """
    if picture.mode in ("I", "F"):
        kind = "floats" if picture.mode == "F" else "integers of 32 bits"
        raise ValueError(f"{place}: the pixels are {kind}, whose white is not known; scale them to 0 to 255, 8 bits")
    if not picture.mode.startswith("I;16"):
        return picture
    from PIL import Image as Pillow

    return Pillow.fromarray((np.asarray(picture).astype(np.uint32) * 255 // 65535).astype(np.uint8))
