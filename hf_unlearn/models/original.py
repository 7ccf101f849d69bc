"""The frozen original model beside the model that is trained, and an untrained model."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from accelerate.utils.operations import convert_to_fp32
from torch import nn
from transformers import PreTrainedModel

from hf_unlearn.models.types import Model, inner_model

ModuleT = TypeVar("ModuleT", bound=nn.Module)
logger = logging.getLogger(__name__)


class OriginalModel:
    """The original model (ref in the formulas): the model as it is now, unchanged for the whole run.

    With an adapter that the trainer added, it is the model with that adapter switched off, and takes no memory.
    Otherwise it is a copy in eval mode. Frozen weights are shared with the model, so of a model with the user's own
    adapter only the adapter is copied.

    Args:
        model: the model as it came, with no step taken and no checkpoint loaded into it; not sharded.
        added_adapter: whether the trainable weights are an adapter that the trainer added.

    Attributes:
        autocast: the context that it runs in, for mixed precision the same as that of the trained model.
    """

    def __init__(self, model: Model, added_adapter: bool):
        self.added_adapter = added_adapter
        self.autocast: Callable[[], AbstractContextManager] = nullcontext
        self.model: Any = model if added_adapter else frozen_copy(model)

    @torch.no_grad()
    def __call__(self, **inputs: Any) -> Any:
        """The original model's output."""
        frozen = [p for p in self.model.parameters() if not p.requires_grad]
        with self.autocast(), self.model.disable_adapter() if self.added_adapter else nullcontext():
            outputs = convert_to_fp32(self.model(**inputs))
        for p in frozen:
            p.requires_grad_(False)  # PEFT makes the whole adapter trainable again, also what the method has frozen
        return outputs


def frozen_copy(model: ModuleT) -> ModuleT:
    """A frozen copy in eval mode, which shares the weights that are frozen in `model`."""
    shared = {id(p): p for p in model.parameters() if not p.requires_grad}
    size = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    logger.info(f"A frozen copy of the original model is kept for comparison: {size / 2**20:.0f} MiB more memory")
    # `deepcopy` does not copy objects that are in its memo.
    return copy.deepcopy(model, shared).requires_grad_(False).eval()


def untrained(model: Model, seed: int) -> PreTrainedModel:
    """A plain model of the same class and configuration with random weights.

    Args:
        model: the model, with or without adapters.
        seed: seed of the weights.
    """
    base: Any = inner_model(model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        random_model: Any = type(base)(copy.deepcopy(base.config))
    logger.info(f"An untrained model is kept for comparison: {random_model.num_parameters()} weights more in memory")
    return random_model.to(device=base.device, dtype=base.dtype).requires_grad_(False).eval()
