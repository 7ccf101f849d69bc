"""The dtype that weights train in."""

from __future__ import annotations

import logging
from typing import Literal

import torch
from transformers import PreTrainedModel

logger = logging.getLogger(__name__)
DType = Literal["auto", "float32", "bfloat16", "float16"]


def train_in_float32(model: PreTrainedModel, name: str) -> None:
    """Convert a loaded checkpoint whose weights will all train to float32, in place, and say so.

    In bfloat16 a step smaller than 1/512 of a weight is lost to rounding: at a learning rate of 1e-5 that is nearly
    every one. Weights in float32 stay as they are.

    Args:
        model: as loaded.
        name: of the checkpoint.
    """
    if rounding := {weight.dtype for weight in model.parameters()} & {torch.bfloat16, torch.float16}:
        names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in rounding))
        logger.warning(
            f"model: {name!r} is in {names}, and trains in float32, as steps would be lost to rounding; bf16=True "
            "makes it faster"
        )
        model.float()
