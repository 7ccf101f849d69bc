"""The step of a method that combines gradients: record retain samples, solve the geometry, write `p.grad`."""

from __future__ import annotations

from collections.abc import Mapping

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
from hf_unlearn.targets import ForgetTarget
from hf_unlearn.trainer.loss_step import LossStep

# Retain samples recorded at once, unless the forget batch is larger: what fits there fits here.
CHUNK = 32
Products = dict[str, tuple[Tensor, Tensor]]


class SurgeryStep(LossStep):
    """Writes `p.grad` itself, once an optimizer step, the same on every process.

    Args:
        method: combines the gradients.
        head: scores samples.
        accelerator: gathers over processes.
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
        model: nn.Module,
        engine: str,
        per_tensor: bool,
        cache: str = "auto",
    ):
        super().__init__(method, head, accelerator)
        self.per_sample = PerSampleGradients(model, self._retain_losses, engine)
        self.basis = Basis(self.per_sample, cache)
        self.model, self.per_tensor = model, per_tensor
        self._forget: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}
        self._grams: dict[str, Tensor] = {}

    def start(self, target: ForgetTarget, original: Tensor | None = None) -> None:
        """Set the target, and forget a step that was broken off: the next begins with nothing."""
        super().start(target, original)
        self.basis.clear()
        self._forget, self._before, self._grams = {}, {}, {}

    def gradients(self, inputs: Batch, retain_weight: float, last: bool) -> Tensor:
        """Take in one batch of the step; with the last one, write the step's gradient to `p.grad`.

        Returns:
            The detached loss of the batch, such that the sum over batches is the loss of the step.
        """
        # Not before training starts: until then FSDP2 has not replaced the parameters.
        if self.per_sample.sharded and self.method.corrects_step:
            raise ValueError('projection: "update" does not work on sharded parameters; use "gradient"')
        shares = []

        def forget_share(batch: Batch) -> Tensor:
            shares.append(self.forget_share(self.model, batch, inputs["index"]))
            return self._scaled(shares[0])

        for name, grad in self.per_sample.gradient(forget_share, inputs["forget"]).items():
            self._forget[name] = self._forget[name] + grad if name in self._forget else grad
        samples = max(CHUNK, batch_size(inputs["forget"]))
        retain_loss = self.basis.add(inputs["retain"], samples, self.batches).mean() / self.scale
        self.note(retain_loss=retain_loss, retain_weight=retain_weight)
        if last:
            self._write(retain_weight)
        processes = self.accelerator.num_processes
        return ((1 - retain_weight) * shares[0] * processes + retain_weight * retain_loss / self.batches).detach()

    def _write(self, retain_weight: float) -> None:
        # The basis is all retain samples of the step: projections of parts do not add up to the projection of the sum.
        forget = {name: self.accelerator.reduce(g, "sum") for name, g in self._forget.items()}
        losses = self.accelerator.gather(self.basis.losses)
        products = self.basis.gram(forget, self.per_tensor)
        self._forget, self._grams = {}, {key: inner for key, (inner, _) in products.items()}
        if not all(inner.isfinite().all() and slopes.isfinite().all() for inner, slopes in products.values()):
            # For the loss scaler, or the log, to see: there is no geometry of what has overflowed.
            update, self._grams = {name: torch.full_like(g, torch.nan) for name, g in forget.items()}, {}
        else:
            retain_loss = float(losses.mean()) / self.scale
            update, log = update_of(self.method, self.basis, forget, products, retain_weight, retain_loss, self.scale)
            self.note(**log)
        for name, p in self.per_sample.parameters.items():
            p.grad = update[name]
            if isinstance(p, DTensor):
                p.grad = distribute_tensor(update[name], p.device_mesh, p.placements)

    def before_update(self, watch: bool) -> None:
        """Before the optimizer's step; `watch` to log how it lies to the retain gradients."""
        if self._grams and (self.method.corrects_step or (watch and not self.per_sample.sharded)):
            self._before = {name: p.detach().clone() for name, p in self.per_sample.parameters.items()}

    @torch.no_grad()
    def after_update(self) -> None:
        """After the optimizer's step: correct it where the method does, and log the largest cosine that is left.

        The cosine is that of the step with the retain sample's gradient along which it climbs most: where it is
        positive, that sample's loss rises to first order.
        """
        if self._before:
            self._look_back(self.per_sample.parameters)
        self.basis.clear()
        self._before, self._grams = {}, {}

    def _look_back(self, parameters: Mapping[str, nn.Parameter]) -> None:
        after = {name: p.clone() for name, p in parameters.items()}
        step = {name: p - self._before[name] for name, p in parameters.items()}
        for name, p in parameters.items():  # retain samples that are run again must see the weights of the step
            p.copy_(self._before[name])
        slopes = self._slopes(step)
        if self.method.corrects_step:
            weights = {key: -cone_coefficients(inner, slopes[key]) for key, inner in self._grams.items()}
            change = self.basis.combine({name: weights[name if self.per_tensor else ""] for name in parameters}, step)
            after = {name: p + change[name] for name, p in after.items()}
            step = {name: p - self._before[name] for name, p in after.items()}
            slopes = self._slopes(step)
        for name, p in parameters.items():
            p.copy_(after[name])
        total = torch.stack(list(slopes.values())).sum(0)
        inner = torch.stack(list(self._grams.values())).sum(0)
        length = float(torch.stack([s.double().square().sum() for s in step.values()]).sum().sqrt())
        norms = inner.diagonal().clamp_min(0).sqrt() * length
        self.note(step_cosine=float((total / norms.clamp_min(1e-30)).max()))

    def _slopes(self, step: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`<step, g_i>` of all retain samples, for every tensor or over all of them."""
        if not self.per_tensor:
            return {"": self.basis.cross(step)}
        return {name: self.basis.cross({name: s}) for name, s in step.items()}

    def _retain_losses(self, batch: Batch) -> Tensor:
        return self._scaled(self.head.losses(self.model(**self.head.inputs(batch)), batch))

    def _scaled(self, losses: Tensor) -> Tensor:
        scaler = self.accelerator.scaler
        return losses if scaler is None else scaler.scale(losses)


def update_of(
    method: SurgeryMethod,
    basis: Basis,
    forget: Mapping[str, Tensor],
    products: Products,
    retain_weight: float,
    retain_loss: float = 0.0,
    scale: float = 1.0,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The gradient that the optimizer gets, from the retain samples' gradients and the forget gradient.

    Args:
        method: combines them.
        basis: the retain samples of the step.
        forget: name to gradient of the forgetting loss, the same on every process.
        products: Gram matrix and slopes, as `gram` gives them: by parameter, or under "" for all together.
        retain_weight: in [0, 1].
        retain_loss: mean over the step.
        scale: what all gradients were multiplied with, for half precision; the update comes multiplied as well.

    Returns:
        The gradient by parameter, and metrics for the log (means over the tensors where each has its own geometry).
    """
    per_tensor = "" not in products
    squares = {name: float(g.double().square().sum()) for name, g in forget.items()}
    found = {}
    for key, (inner, slopes) in products.items():
        square = (squares[key] if per_tensor else sum(squares.values())) / scale**2
        geometry = Geometry(inner / scale**2, slopes / scale**2, square, retain_loss)
        found[key] = method.combine(geometry, retain_weight)
    log = {
        name: sum(each.log[name] for each in found.values()) / len(found) for name in next(iter(found.values())).log
    }
    per_name = {name: found[name if per_tensor else ""] for name in forget}
    retain = basis.combine({name: each.retain for name, each in per_name.items()}, forget)
    return {name: per_name[name].forget * g + retain[name] for name, g in forget.items()}, log
