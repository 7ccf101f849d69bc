"""Per-sample gradients of a batch, and their geometry. Knows no trainer."""

from __future__ import annotations

import logging
from functools import cached_property

import torch
from torch import nn

from hf_unlearn.per_sample.loop import Batch, Losses, Rows, loop_gradients
from hf_unlearn.per_sample.recorder import NotCovered, owners, recorded_gradients

__all__ = ["PerSampleGradients"]
logger = logging.getLogger(__name__)


class PerSampleGradients:
    """Per-sample gradients of a model, by hooks where every trainable layer has a rule and by the loop otherwise.

    The first batch is checked against the gradient of a weighted sum of its losses; a model that fails the check, or
    has a layer without a rule, goes through the loop from then on, with one warning that names the layer.

    Args:
        model: the model that `losses` runs, unwrapped.
        losses: gives the per-sample losses [k] of a batch, with gradient.
        engine: `"auto"`, `"hooks"` (raise instead of falling back) or `"loop"`.
    """

    def __init__(self, model: nn.Module, losses: Losses, engine: str = "auto"):
        self.model, self.losses, self.engine = model, losses, engine
        self.verified = False

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name, a shared one under its first name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    @cached_property
    def _modules(self) -> dict[nn.Module, dict[str, str]]:
        return owners(self.model, self.parameters)

    def __call__(self, batch: Batch) -> tuple[torch.Tensor, Rows]:
        """The detached losses [k] of a batch and, per trainable parameter, the gradients [k, numel]."""
        if self.engine != "loop":
            try:
                result = recorded_gradients(
                    self._modules, self.losses, batch, self.parameters, verify=not self.verified
                )
                self.verified = True
                return result
            except NotCovered as error:
                if self.engine == "hooks":
                    raise
                self.engine = "loop"
                logger.warning(
                    "Per-sample gradients fall back to one backward pass a sample (slower, exact): "
                    f"no rule covers {error}"
                )
        return loop_gradients(self.losses, batch, self.parameters)
