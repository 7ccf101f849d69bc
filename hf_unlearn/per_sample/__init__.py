"""Per-sample gradients of a batch, and their inner products. Knows no trainer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm

from hf_unlearn.per_sample.factors import Recording
from hf_unlearn.per_sample.gram import weighted_sum
from hf_unlearn.per_sample.layers import NotCovered
from hf_unlearn.per_sample.loop import Batch, Losses, batch_size, contiguous_gradients, gradients_of, loop_gradients
from hf_unlearn.per_sample.plan import GradientMismatch, Plan, Way
from hf_unlearn.per_sample.recorder import record
from hf_unlearn.per_sample.state import ModuleState, unchanged_state
from hf_unlearn.per_sample.verification import Verified, in_float32, two_samples_in_float32

__all__ = ["Engine", "PerSampleGradients", "Recording"]
logger = logging.getLogger(__name__)
Engine: TypeAlias = Literal["auto", "hooks", "loop"]
# What happens for the parameters that go these ways.
SLOW_WAYS = {
    Way.MODULE: "the module that holds them runs",
    Way.PARENT: "the module around the one that holds them runs",
    Way.ALONE: "the model runs",
}


class PerSampleGradients:
    """Per-sample gradients of a model, by hooks on its layers.

    Whenever sizes, shapes or operations are new, the gradients are checked against that of a weighted sum of the
    losses. A parameter that fails the check, or is used in a way that no rule covers, goes another way from then on
    (see `Way`), with one warning that names it: its module, or in the end the whole model, runs again a sample at a
    time. Where the samples of a batch are mixed, all gradients are those of one sample at a time.

    Args:
        model: the model that `losses` runs, unwrapped.
        losses: gives the per-sample losses [k] of a batch, with gradient.
        engine: `"auto"`, `"hooks"` (raise instead of running the whole model again) or `"loop"`.
    """

    def __init__(self, model: nn.Module, losses: Losses, engine: Engine = "auto"):
        self.model, self.losses, self.engine = model, losses, engine
        self._verified = Verified()
        self._announced: set[str] = set()

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name, a shared one under its first name; none without entries."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad and p.numel()}

    @cached_property
    def sharded(self) -> bool:
        """Whether the parameters are spread over processes (FSDP2): the forward pass uses other tensors then."""
        return any(isinstance(p, DTensor) for p in self.parameters.values())

    @cached_property
    def _plan(self) -> Plan:
        return Plan.from_model(self.model, self.parameters, checked=not self.sharded)

    @property
    def ways(self) -> dict[str, Way]:
        """How the gradients of each parameter are found, as of the last batch; by the loop none is."""
        return {name: self._plan.ways[name] for name in self.parameters}

    def gradient(self, loss: Callable[[Batch], Tensor], batch: Batch) -> dict[str, Tensor]:
        """The gradient of any loss of a batch by the trainable parameters, whole also where these are sharded.

        Raises:
            NotCovered: for sharded parameters that no rule covers.
        """
        if not self.sharded:
            with contiguous_gradients(self.model):
                grads = gradients_of(loss(batch), list(self.parameters.values()))
            return dict(zip(self.parameters, grads, strict=True))
        recording = record(self._plan, lambda samples: loss(samples)[None], batch, self._verified)
        ones = torch.ones(batch_size(batch), device=recording.losses.device)
        like = {name: torch.empty(p.shape, dtype=p.dtype, device=ones.device) for name, p in self.parameters.items()}
        return weighted_sum([recording], {name: [ones] for name in like}, like)

    def __call__(self, batch: Batch) -> Recording:
        """The losses of a batch, and the factors of every trainable parameter's per-sample gradients.

        Raises:
            NotCovered: a batch normalisation is in training mode, a parameter is complex, or a hook on it changes its
                gradient (`register_hook`, `register_post_accumulate_grad_hook`); what else no rule covers, with
                `"hooks"` and for sharded parameters.
            ValueError: a batch without samples, or other than one loss for each of them; gradients that activation
                checkpointing hides.
        """
        self._look_at_parameters()
        for name, module in self.model.named_modules():
            if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
                raise NotCovered(f"{name} (a batch normalisation mixes the samples of a batch; put it in eval mode)")
        with contiguous_gradients(self.model):
            return self._recording(batch)

    def _look_at_parameters(self) -> None:
        """Begin anew where others train than at the last batch."""
        known = self.parameters
        del self.parameters
        if [*map(id, known.values())] != [*map(id, self.parameters.values())]:
            self.__dict__.pop("_plan", None)
            self._verified = Verified()
        for name, p in self.parameters.items():
            if p.is_complex():
                raise NotCovered(f"{name} (it is complex; train its real view, torch.view_as_real)")
            if p._backward_hooks or p._post_accumulate_grad_hooks:
                raise NotCovered(
                    f"{name} (a hook changes its gradient, not those of samples; remove it, and clip or mask losses)"
                )

    def _recording(self, batch: Batch) -> Recording:
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
        if self._plan.half_precision and self._plan.checked and not self._verified.checks:
            self._check_in_float32(batch)
        recording = self._settled(batch)
        self._announce()
        return recording

    def _settled(self, batch: Batch) -> Recording:
        """Record a batch, every parameter by the first way that works out."""
        while True:
            # An attempt that fails leaves no trace in counters and the like; later ones hardly ever do.
            state = None if self._verified.checks else ModuleState(self.model)
            try:
                return record(self._plan, self.losses, batch, self._verified)
            except GradientMismatch as error:
                if state is not None:
                    state.restore()
                if self.sharded:
                    raise
                self._plan.reassign(error.names, error.reason)
                alone = self._plan.by(Way.ALONE)
                if alone and (self.engine == "hooks" or len(alone) == len(self.parameters)):
                    raise

    def _check_in_float32(self, batch: Batch) -> None:
        """Rounding in half precision hides a use of a parameter that makes a few per cent of its gradient."""
        try:
            with unchanged_state(self.model), in_float32(self.model):
                self._settled(two_samples_in_float32(batch))
        except NotCovered:
            raise
        except Exception as error:  # what else takes part may be in half precision only, or memory too small
            logger.warning(
                f"Per-sample gradients are not checked in float32 ({' '.join(str(error).split())[:100]}): in half "
                "precision the check does not see uses of a weight that make a few per cent of its gradient"
            )

    def _announce(self) -> None:
        """Warn of the parameters for which something runs a sample at a time, once."""
        for way, what in SLOW_WAYS.items():
            names = self._plan.by(way).keys() - self._announced
            if names:
                self._announced |= names
                reasons = ", ".join(sorted({self._plan.reasons[name] for name in names}))
                logger.warning(
                    f"Per-sample gradients of {_abbreviated(sorted(names))}: {what} once a sample (slower, exact): "
                    f"no rule covers them ({reasons})"
                )


def _abbreviated(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
