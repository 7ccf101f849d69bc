"""The step of smoothed forgetting: the forget gradient is that at the worst weights nearby."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from typing_extensions import override

from hf_unlearn.losses import Head
from hf_unlearn.losses.functional import at_least_float32
from hf_unlearn.methods import Method
from hf_unlearn.targets import Objective
from hf_unlearn.trainer.cost import CostCounter
from hf_unlearn.trainer.loss_step import Batch, LossStep, trainable_parameters


class SmoothedStep(LossStep):
    """The optimizer steps of a method that descends a loss, with sharpness-aware minimisation of the forgetting part.

    What is descended is `(1 - alpha) max_{|d| <= rho} F(w + d) + alpha R(w)`, F the method's forgetting objective, R
    its retain objective and alpha the retain weight (Fan et al. 2025, arXiv 2502.05374). To first order the maximum
    is at `d = rho g / |g|` with `g = dF/dw` over all weights that train (Foret et al. 2021, arXiv 2010.01412, eq. 2),
    so that the forget gradient is that of F at `w + d`, and the retain gradient that of R at w: weights near those
    where the run ends forget, too. g is the gradient of the whole step, over its batches and processes. It takes the
    forget samples through the model twice.

    Args:
        method: says how forget and retain samples are weighed.
        head: scores samples.
        accelerator: gathers over processes.
        objective: what is descended on the forget dataset.
        cost: counts the samples that go through the model.
        model: unwrapped.
        radius: rho.
    """

    def __init__(
        self,
        method: Method,
        head: Head,
        accelerator: Accelerator,
        objective: Objective,
        cost: CostCounter | None = None,
        *,
        model: nn.Module,
        radius: float,
    ):
        super().__init__(method, head, accelerator, objective, cost)
        self.model, self.radius = model, radius
        self._shares: list[Tensor] = []

    @override
    def prepare_step(self, model: nn.Module, batches: Sequence[Batch], retain_weight: float) -> None:
        """Before the first batch of a step: write the forget gradient of the whole step to `p.grad`."""
        super().prepare_step(model, batches, retain_weight)
        self._shares = []
        if retain_weight == 1:
            return
        parameters = trainable_parameters(self.model)
        moves = self._gradient(batches, parameters.values(), self._first_share)
        norm = torch.stack([at_least_float32(move).norm() for move in moves]).norm()
        weights = [p.detach().clone() for p in parameters.values()]
        with torch.no_grad():
            for p, move in zip(parameters.values(), moves, strict=True):
                p.add_(move * (self.radius / norm.clamp_min(1e-12)).to(move))
        self._weigh_step(self.model, batches)
        gradient = self._gradient(batches, parameters.values(), self._moved_share)
        with torch.no_grad():  # a copy: what was added and is taken away again leaves rounding
            for p, weight, grad in zip(parameters.values(), weights, gradient, strict=True):
                p.copy_(weight)
                p.grad = (1 - retain_weight) * grad

    def _gradient(
        self, batches: Sequence[Batch], parameters: Iterable[nn.Parameter], share: Callable[[Batch], Tensor]
    ) -> list[Tensor]:
        """The gradient of the forgetting objective over all batches and processes, times the loss scale."""
        parameters = list(parameters)
        total = [torch.zeros_like(p) for p in parameters]
        for batch in batches:
            with torch.enable_grad():
                grads = torch.autograd.grad(self.loss_scale * share(batch), parameters, allow_unused=True)
            for sum_, grad in zip(total, grads, strict=True):
                if grad is not None:
                    sum_ += grad
        return [self.accelerator.reduce(sum_, "sum") for sum_ in total]

    def _first_share(self, batch: Batch) -> Tensor:
        """A batch's share of the objective at the weights themselves: what is logged."""
        share = super().forget_share(self.model, batch["forget"], batch["index"])
        self._shares.append(share.detach())
        return share

    def _moved_share(self, batch: Batch) -> Tensor:
        """A batch's share of the objective at the moved weights."""
        scores, _ = self._scores(self.objective, self.model, batch["forget"], batch["index"])
        return self._share(scores, batch["index"])

    @override
    def forget_share(self, model: nn.Module, batch: Batch, index: Tensor) -> Tensor:
        """The share that the batch had at the weights themselves, cut off from them: `p.grad` has its gradient."""
        return self._shares.pop(0).requires_grad_()

    @property
    @override
    def _halves_graph(self) -> bool:
        return False

    @override
    def planned_passes(self, retain_weights: Iterable[float], forget: int, retain: int, batches: int) -> float:
        """As of `LossStep`, with the forget samples of every step twice."""
        return super().planned_passes(retain_weights, 2 * forget, retain, batches)
