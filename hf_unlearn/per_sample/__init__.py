"""Per-sample gradients of a batch, and their inner products. Knows no trainer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hf_unlearn.per_sample.factors import Recording
from hf_unlearn.per_sample.gram import weighted_sum
from hf_unlearn.per_sample.layers import NotCovered
from hf_unlearn.per_sample.loop import Batch, Losses, batch_size, loop_gradients
from hf_unlearn.per_sample.recorder import GradientMismatch, Plan, record

__all__ = ["Engine", "PerSampleGradients", "Recording"]
logger = logging.getLogger(__name__)
Engine: TypeAlias = Literal["auto", "hooks", "loop"]


class PerSampleGradients:
    """Per-sample gradients of a model, by hooks where every trainable layer has a rule and by the loop otherwise.

    The first batch is checked against the gradient of a weighted sum of its losses; a model that fails the check, or
    uses a parameter in a way that no rule covers, goes through the loop from then on, with one warning that names it.

    Args:
        model: the model that `losses` runs, unwrapped.
        losses: gives the per-sample losses [k] of a batch, with gradient.
        engine: `"auto"`, `"hooks"` (raise instead of falling back) or `"loop"`.
    """

    def __init__(self, model: nn.Module, losses: Losses, engine: Engine = "auto"):
        self.model, self.losses, self.engine = model, losses, engine

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name, a shared one under its first name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    @cached_property
    def sharded(self) -> bool:
        """Whether the parameters are spread over processes (FSDP2): the forward pass uses other tensors then."""
        return any(isinstance(p, DTensor) for p in self.parameters.values())

    @cached_property
    def _plan(self) -> Plan:
        return Plan.from_model(self.model, self.parameters, checked=not self.sharded)

    def gradient(self, loss: Callable[[Batch], Tensor], batch: Batch) -> dict[str, Tensor]:
        """The gradient of any loss of a batch by the trainable parameters, whole also where these are sharded.

        Raises:
            NotCovered: for sharded parameters that no rule covers.
        """
        if not self.sharded:
            grads = torch.autograd.grad(loss(batch), list(self.parameters.values()), allow_unused=True)
            pairs = zip(self.parameters.items(), grads, strict=True)
            return {name: torch.zeros_like(p) if grad is None else grad for (name, p), grad in pairs}
        recording = record(self._plan, lambda samples: loss(samples)[None], batch)
        ones = torch.ones(batch_size(batch), device=recording.losses.device)
        like = {name: torch.empty(p.shape, dtype=p.dtype, device=ones.device) for name, p in self.parameters.items()}
        return weighted_sum([recording], {name: [ones] for name in like}, like)

    def __call__(self, batch: Batch) -> Recording:
        """The losses of a batch, and the factors of every trainable parameter's per-sample gradients."""
        # The gradient of a batch of one sample is the sample's: the loop is one backward pass.
        if self.sharded or (self.engine != "loop" and batch_size(batch) > 1):
            try:
                return self._recorded(batch)
            except NotCovered as error:
                if self.engine == "hooks" or self.sharded:
                    raise
                self.engine = "loop"
                logger.warning(
                    "Per-sample gradients fall back to one backward pass a sample (slower, exact): "
                    f"no rule covers {error}"
                )
        return loop_gradients(self.losses, batch, self.parameters)

    def _recorded(self, batch: Batch) -> Recording:
        while True:
            try:
                return record(self._plan, self.losses, batch)
            except GradientMismatch as error:
                if not self._plan.reassign(error.names):
                    raise
