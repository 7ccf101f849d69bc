"""The step of a method that combines gradients: record retain samples, solve the geometry, write `p.grad`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from hf_unlearn.losses import Head
from hf_unlearn.methods import SurgeryMethod
from hf_unlearn.methods.surgery import Geometry
from hf_unlearn.per_sample import PerSampleGradients
from hf_unlearn.per_sample.basis import Basis
from hf_unlearn.per_sample.loop import Batch, batch_size
from hf_unlearn.per_sample.projection import cone_coefficients
from hf_unlearn.targets import Objective
from hf_unlearn.trainer.cost import CostCounter
from hf_unlearn.trainer.loss_step import NO_INDEX, LossStep
from hf_unlearn.trainer.memory import MemoryPrediction, Surgery, predict

# Retain samples recorded at once, unless the forget batch is larger: the memory that it needs is there.
CHUNK = 32
# Parameter name, or "" for all together, to the Gramian [k, k] and the inner products [k] with the forget gradient.
InnerProducts = dict[str, tuple[Tensor, Tensor]]


class SurgeryStep(LossStep):
    """The optimizer steps of a method that combines gradients: it writes `p.grad` itself, the same on every process.

    Args:
        method: combines the gradients.
        head: scores samples.
        accelerator: gathers over processes.
        objective: what is descended on the forget dataset.
        cost: counts the samples that go through the model, a recomputed one every time.
        model: unwrapped.
        engine: of the per-sample gradients.
        per_tensor: whether every tensor has a geometry of its own.
        cache: what to do with the recorded retain samples; see `Basis`.
    """

    method: SurgeryMethod

    def __init__(
        self,
        method: SurgeryMethod,
        head: Head,
        accelerator: Accelerator,
        objective: Objective,
        cost: CostCounter | None = None,
        *,
        model: nn.Module,
        engine: Literal["auto", "hooks", "loop"],
        per_tensor: bool,
        cache: Literal["auto", "keep", "recompute"] = "auto",
    ):
        super().__init__(method, head, accelerator, objective, cost)
        self.per_sample = PerSampleGradients(model, self._retain_losses, engine)
        self.basis = Basis(self.per_sample, "keep" if method.needs_every_gradient else cache)
        self.model, self.per_tensor = model, per_tensor
        self._forget_gradient: dict[str, Tensor] = {}
        self._weights_before: dict[str, Tensor] = {}
        self._gramians: dict[str, Tensor] = {}

    def loss(self, model: nn.Module, inputs: Batch, retain_weight: float, is_last: bool) -> Tensor:
        """Take in one batch of the step; with the last one, write the step's gradient to `p.grad`.

        Returns:
            The loss of the batch, as in `LossStep.loss`, but cut off from the weights: the backward pass that
            `Trainer` makes of it ends there, and what else `Trainer` does around a batch goes on as for any method.
        """
        share = self._add_forget_gradient(inputs)
        recorded = self.basis.add(inputs["retain"], self._chunk_size(inputs), self.num_batches)
        self.retain_losses.append(recorded / self.loss_scale)
        retain_loss = self.retain_losses[-1].mean()
        self.record(retain_loss=retain_loss, retain_weight=retain_weight)
        if is_last:
            self._write_gradient(retain_weight)
        forget_loss = share * self.num_batches * self.accelerator.num_processes
        return ((1 - retain_weight) * forget_loss + retain_weight * retain_loss).detach().requires_grad_()

    def _chunk_size(self, inputs: Batch) -> int:
        """How many retain samples of a batch are recorded at once, at most."""
        return max(CHUNK, batch_size(inputs["forget"]))

    def predict_memory(self, model: nn.Module, inputs: Batch, optimizer: Any, copies: int) -> MemoryPrediction:
        """As `LossStep.predict_memory`."""
        size = batch_size(inputs["retain"])
        at_once = min(size, self._chunk_size(inputs))
        # A sample alone, and all of them by the loop, have a backward pass each, of which the gradient is kept.
        is_alone = at_once == 1 or (self.per_sample.engine == "loop" and not self.per_sample.sharded)
        at_once = 1 if is_alone else at_once
        chunks = -(-size // at_once) * self.num_batches
        forget = self._footprint(self.objective, model, inputs["forget"], inputs["index"])
        retain = self._footprint(self.retain_objective, model, inputs["retain"], NO_INDEX, at_once)
        if is_alone:
            trained = sum(p.numel() * p.element_size() for p in self.per_sample.parameters.values())
            retain = replace(retain, backprops=0.0, factors=float(trained), formed=0.0)
        surgery = Surgery(
            chunks=min(chunks, 2) if self.basis.cache == "recompute" else chunks,
            samples=size * self.num_batches * self.accelerator.num_processes,
            geometries=len(self.per_sample.parameters) if self.per_tensor else 1,
        )
        return predict(model, optimizer, forget, retain, copies=copies, surgery=surgery)

    def _add_forget_gradient(self, inputs: Batch) -> Tensor:
        """Add the gradient of the batch's share of the forgetting objective to the step's; returns the share."""
        shares = []

        def scaled_share(batch: Batch) -> Tensor:
            shares.append(self.forget_share(self.model, batch, inputs["index"]))
            return self._scaled(shares[0])

        for name, gradient in self.per_sample.gradient(scaled_share, inputs["forget"]).items():
            total = self._forget_gradient.get(name)
            self._forget_gradient[name] = gradient if total is None else total + gradient
        return shares[0].detach()

    def _write_gradient(self, retain_weight: float) -> None:
        # The basis is all retain samples of the step: projections of parts do not add up to the projection of the sum.
        names = list(self._forget_gradient)
        # `reduce` copies, so each gradient goes when its copy has come.
        forget = {name: self.accelerator.reduce(self._forget_gradient.pop(name), "sum") for name in names}
        if self.method.needs_every_gradient:
            for name, p in self.per_sample.parameters.items():
                p.grad = self._combined(name, forget[name], retain_weight)
            return
        losses = self.accelerator.gather(self.basis.losses)
        products = self.basis.gram(forget, self.per_tensor)
        self._gramians = {key: gramian for key, (gramian, _) in products.items()}
        if not all(gramian.isfinite().all() and cross.isfinite().all() for gramian, cross in products.values()):
            # For the loss scaler, or the log, to see: there is no geometry of what has overflowed.
            update, self._gramians = {name: torch.full_like(g, torch.nan) for name, g in forget.items()}, {}
        else:
            retain_loss, scale = float(losses.mean()) / self.loss_scale, self.loss_scale
            update, log = combined_gradient(
                self.method, self.basis, forget, products, retain_weight, retain_loss, scale
            )
            self.record(**log)
        for name, p in self.per_sample.parameters.items():
            p.grad = update[name]
            if isinstance(p, DTensor):
                p.grad = distribute_tensor(update[name], p.device_mesh, p.placements)

    def _combined(self, name: str, forget: Tensor, retain_weight: float) -> Tensor:
        """One tensor's gradient of the step, by a method that looks at the retain samples' gradients themselves."""
        parameter = {name: self.per_sample.parameters[name]}
        gradients = [recording.gradients(parameter)[name] for recording in self.basis.recordings]
        # A batch of the first process, then that of the next one: the order in which one process has them.
        retain = torch.cat([self.accelerator.gather(of_batch) for of_batch in gradients])
        scale = self.loss_scale
        update, log = self.method.combine_gradients(name, retain / scale, forget / scale, retain_weight)
        self.record(**log)
        return update * scale

    def on_pre_optimizer_step(self, is_logged: bool) -> None:
        """Keep the weights, where the step is corrected, or its angle to the retain gradients logged."""
        if self._gramians and (self.method.corrects_step or (is_logged and not self.per_sample.sharded)):
            self._weights_before = {name: p.detach().clone() for name, p in self.per_sample.parameters.items()}

    @torch.no_grad()
    def on_optimizer_step(self) -> None:
        """Correct the optimizer's step where the method does, and log the largest cosine that is left.

        The cosine is that of the step with the retain sample's gradient along which it climbs most: where it is
        positive, that sample's loss rises to first order.
        """
        if self._weights_before:
            self._examine_step(self.per_sample.parameters)
        self.basis.clear()
        self._weights_before, self._gramians = {}, {}

    def _examine_step(self, parameters: Mapping[str, nn.Parameter]) -> None:
        weights_after = {name: p.clone() for name, p in parameters.items()}
        step = {name: p - self._weights_before[name] for name, p in parameters.items()}
        for name, p in parameters.items():  # retain samples that are run again must see the weights of the step
            p.copy_(self._weights_before[name])
        slopes = self._slopes(step)
        if self.method.corrects_step:
            weights = {key: -cone_coefficients(gramian, slopes[key]) for key, gramian in self._gramians.items()}
            change = self.basis.combine({name: weights[name if self.per_tensor else ""] for name in parameters}, step)
            weights_after = {name: p + change[name] for name, p in weights_after.items()}
            step = {name: p - self._weights_before[name] for name, p in weights_after.items()}
            slopes = self._slopes(step)
        for name, p in parameters.items():
            p.copy_(weights_after[name])
        self.record(step_cosine=self._largest_cosine(step, slopes))

    def _largest_cosine(self, step: Mapping[str, Tensor], slopes: Mapping[str, Tensor]) -> float:
        """Of the angles between a step and the retain gradients, over all tensors."""
        total = torch.stack(list(slopes.values())).sum(0)  # shape: [k]
        gramian = torch.stack(list(self._gramians.values())).sum(0)  # shape: [k, k]
        length = float(torch.stack([s.double().square().sum() for s in step.values()]).sum().sqrt())
        norms = gramian.diagonal().clamp_min(0).sqrt() * length
        return float((total / norms.clamp_min(1e-30)).max())

    def _slopes(self, step: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`<step, g_i>` of all retain samples, for every tensor or over all of them."""
        if not self.per_tensor:
            return {"": self.basis.cross(step)}
        return {name: self.basis.cross({name: s}) for name, s in step.items()}

    def _retain_losses(self, batch: Batch) -> Tensor:
        self.cost.add("steps", batch_size(batch), gradient=torch.is_grad_enabled())
        return self._scaled(self.head.losses(self.head.run(self.model, batch), batch))

    def _scaled(self, losses: Tensor) -> Tensor:
        scaler = self.accelerator.scaler
        return losses if scaler is None else scaler.scale(losses)


def combined_gradient(
    method: SurgeryMethod,
    basis: Basis,
    forget: Mapping[str, Tensor],
    products: InnerProducts,
    retain_weight: float,
    retain_loss: float = 0.0,
    scale: float = 1.0,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The gradient that the optimizer gets, from the retain samples' gradients and the forget gradient.

    Args:
        method: combines them.
        basis: the retain samples of the step.
        forget: name to gradient of the forgetting loss, the same on every process; the result takes its place.
        products: Gram matrix and slopes, as `gram` gives them: by parameter, or under "" for all together.
        retain_weight: in [0, 1].
        retain_loss: mean over the step.
        scale: what all gradients were multiplied with, for half precision; the update comes multiplied as well.

    Returns:
        The gradient by parameter, and metrics for the log (means over the tensors where each has its own geometry).
    """
    per_tensor = "" not in products
    squares = {name: float(g.double().square().sum()) for name, g in forget.items()}
    combinations = {}
    for key, (gramian, cross) in products.items():
        square = (squares[key] if per_tensor else sum(squares.values())) / scale**2
        geometry = Geometry(gramian / scale**2, cross / scale**2, square, retain_loss)
        combinations[key] = method.combine(geometry, retain_weight)
    log_names = next(iter(combinations.values())).log
    log = {name: sum(c.log[name] for c in combinations.values()) / len(combinations) for name in log_names}
    by_name = {name: combinations[name if per_tensor else ""] for name in forget}
    update = {name: g.mul_(by_name[name].forget) for name, g in forget.items()}
    basis.add_combination({name: combination.retain for name, combination in by_name.items()}, update)
    return update, log
