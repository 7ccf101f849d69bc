"""The model from before unlearning, kept beside the one that is trained; and one that knows nothing."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate.utils.operations import convert_to_fp32
from torch import nn

logger = logging.getLogger(__name__)


class OriginalModel:
    """The model as it is now, for as long as the run takes: the original (ref) of the formulas.

    Beside an adapter that the trainer added, it is the model with that adapter switched off, and costs no memory.
    Otherwise it is a copy in eval mode. Weights that do not train are shared with the model, so beside a user's own
    adapter only the adapter is copied.

    Args:
        model: the original model the first step, and before a checkpoint is loaded into it; not sharded.
        added_adapter: whether all that trains is an adapter that the trainer added.

    Attributes:
        autocast: the context that it runs in: that of the model beside it, in mixed precision.
    """

    def __init__(self, model: Any, added_adapter: bool):
        self.added_adapter = added_adapter
        self.autocast: Callable[[], AbstractContextManager] = nullcontext
        self.model = model if added_adapter else frozen_copy(model)

    @torch.no_grad()
    def __call__(self, **inputs: Any) -> Any:
        """The original model's output."""
        frozen = [p for p in self.model.parameters() if not p.requires_grad]
        with self.autocast(), self.model.disable_adapter() if self.added_adapter else nullcontext():
            outputs = convert_to_fp32(self.model(**inputs))
        for p in frozen:
            p.requires_grad_(False)  # PEFT switches the whole adapter on again, what the method has frozen, too
        return outputs


def frozen_copy(model: nn.Module) -> Any:
    """A copy in eval mode that does not train; it shares the weights that do not train in `model` either."""
    shared = {id(p): p for p in model.parameters() if not p.requires_grad}
    size = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    logger.info(f"A frozen copy of the original model is kept for comparison: {size / 2**20:.0f} MiB more memory")
    # `deepcopy` takes what its memo holds for copied already.
    return copy.deepcopy(model, shared).requires_grad_(False).eval()


def untrained(model: Any, seed: int) -> Any:
    """A plain model of the same class and configuration with random weights: it has never seen any data.

    Args:
        model: a model of transformers, or a `PeftModel` around one.
        seed: of the weights.
    """
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        twin: Any = type(base)(copy.deepcopy(base.config))
    logger.info(f"An untrained model is kept for comparison: {twin.num_parameters()} weights more in memory")
    return twin.to(device=base.device, dtype=base.dtype).requires_grad_(False).eval()
