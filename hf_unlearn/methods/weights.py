"""Forgetting by choosing weights: those that matter to the forget samples, or those that are not needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import override

from hf_unlearn.methods import bibliography
from hf_unlearn.methods.ascent import Finetune
from hf_unlearn.methods.base import CalibrationPass, Method, MethodSettings, Parameters, RunInfo
from hf_unlearn.methods.hyperparameters import hyperparameter
from hf_unlearn.methods.relabeling import RandomLabel
from hf_unlearn.per_sample.fisher import loss_gradient, squared_gradients


class MaskedMethod(Method):
    """A method that chooses weights once, at the original model.

    Attributes:
        masks: parameter name to which of its entries are chosen.
    """

    masks: dict[str, Tensor]

    @override
    def state_dict(self) -> dict[str, Any]:
        """The masks: at a checkpoint's weights they would be others."""
        return {"masks": self.masks}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The masks of the original model."""
        self.masks = dict(state["masks"])


class SalUn(MaskedMethod, RandomLabel):
    """Random labels, on the weights that matter to the forget dataset alone (Fan et al. 2024, arXiv 2310.12508).

    A weight trains when `|dL_f / dw|`, at the original model and over the whole forget dataset, is larger than the
    median over all weights: at most half of them, fewer where most have no gradient. All others keep their values bit
    by bit, whatever the optimizer would do to them (weight decay, momentum). Labels, losses and stopping are those of
    `random_label`.
    """

    name = "salun"
    title = "SalUn"
    paper = "Fan et al. 2024, arXiv 2310.12508"
    bibtex = bibliography.FAN_2024_SALUN
    needs_full_weights = True

    @override
    def on_train_begin(self, calibration: CalibrationPass) -> None:
        """Choose the weights that train."""
        gradient = loss_gradient(calibration.gradients, calibration.batches("forget"))
        saliency = {name: calibration.sum_over_processes(g).abs() for name, g in gradient.items()}
        median = torch.cat([s.flatten() for s in saliency.values()]).median()
        self.masks = {name: s > median for name, s in saliency.items()}

    @override
    @torch.no_grad()
    def on_pre_optimizer_step(self, parameters: Parameters, progress: float, scale: float) -> dict[str, float]:
        """No gradient where the mask is False, so that clipping and the optimizer's averages do not see it either."""
        self._before = {}
        for name, p in parameters.items():
            self.masks[name] = self.masks[name].to(p.device)
            self._before[name] = p.detach().clone()
            if p.grad is not None:
                p.grad.mul_(self.masks[name])
        return {}

    @override
    @torch.no_grad()
    def on_optimizer_step(self, parameters: Parameters) -> None:
        """Undo what the optimizer did to the other weights."""
        for name, p in parameters.items():
            p.copy_(p.where(self.masks[name], self._before[name]))
        self._before = {}


@dataclass(frozen=True)
class L1SparseHyperparameters:
    """Of `L1Sparse`."""

    gamma: float = hyperparameter(5e-5, "gamma, weight of the penalty at the first step", at_least=0)


class L1Sparse(Finetune):
    """Descend `L_r + gamma_t |w|_1`, gamma_t falling linearly from gamma to 0 (Jia et al. 2023, arXiv 2304.04934).

    Fine-tuning with a penalty on weights that retain samples do not need; w: all weights that train (of an adapter
    that came with the model, the adapter's). gamma 5e-5: their later paper (arXiv 2310.12508) searches 1e-6 to 1e-4.
    The penalty's gradient is added once an optimizer step, where batches and processes do not matter.
    """

    name = "l1_sparse"
    title = "l1-sparse"
    paper = "Jia et al. 2023, arXiv 2304.04934"
    bibtex = bibliography.JIA_2023
    needs_full_weights = True
    hyperparameters = L1SparseHyperparameters
    hp: L1SparseHyperparameters

    @override
    @torch.no_grad()
    def on_pre_optimizer_step(self, parameters: Parameters, progress: float, scale: float) -> dict[str, float]:
        """Add `gamma_t sign(w)` to the gradient; the log has the penalty as `l1_penalty`, apart from the loss."""
        gamma, norm = self.hp.gamma * (1 - progress), 0.0
        for p in parameters.values():
            penalty_grad = gamma * scale * p.sign()
            p.grad = penalty_grad if p.grad is None else p.grad.add_(penalty_grad)
            norm += float(p.abs().sum(dtype=torch.float64))
        return {"l1_penalty": gamma * norm}


@dataclass(frozen=True)
class SSDHyperparameters:
    """Of `SSD`."""

    alpha: float = hyperparameter(
        10.0, "alpha, how many times more a damped weight matters to forget samples", above=0
    )
    lambda_: float = hyperparameter(1.0, "lambda, damping: the smaller, the nearer to zero", at_least=0)


class SSD(Method):
    """Damp `w` to `min(lambda F_D / F_f, 1) w` where `F_f > alpha F_D` (Foster et al. 2024, arXiv 2308.07707).

    Selective synaptic dampening takes no optimizer step. F_f and F_D: the mean squared gradient of a sample's loss
    over the forget samples, and over all (forget and retain) samples: of every sample, where public code squares the
    gradients of batches. alpha 10, lambda 1. As `F_D >= |D_f| / |D| F_f`, no weight can be damped where the forget
    samples are a tenth of all or more: that is refused. The target is not used.
    """

    name = "ssd"
    title = "SSD"
    paper = "Foster et al. 2024, arXiv 2308.07707"
    bibtex = bibliography.FOSTER_2024
    converges_at_target = True
    raises_forget_loss = False
    is_iterative = False
    needs_full_weights = True
    needs_retain_pass = True
    hyperparameters = SSDHyperparameters
    hp: SSDHyperparameters

    def __init__(self, settings: MethodSettings, info: RunInfo, hyperparameters: object | None = None):
        super().__init__(settings, info, hyperparameters)
        total = info.forget_samples + info.retain_samples
        if self.hp.alpha * info.forget_samples >= total:
            raise ValueError(
                f"method: ssd damps weights that matter over {self.hp.alpha:g} times more to forget_ds than to all "
                f"samples, which no weight can where it holds {info.forget_samples} of {total} samples; give more "
                "retain samples, or use another method"
            )

    @override
    @torch.no_grad()
    def on_train_begin(self, calibration: CalibrationPass) -> None:
        """Damp the weights."""
        forget, retain = (self._squared_gradients(calibration, dataset) for dataset in ("forget", "retain"))
        forget_samples, samples = self.info.forget_samples, self.info.forget_samples + self.info.retain_samples
        for name, p in calibration.gradients.parameters.items():
            forget_fisher = forget[name] / forget_samples
            fisher = (forget[name] + retain[name]) / samples
            damped = (self.hp.lambda_ * fisher / forget_fisher).clamp(max=1.0)
            p.mul_(torch.where(forget_fisher > self.hp.alpha * fisher, damped, 1.0).to(p.dtype))

    @staticmethod
    def _squared_gradients(calibration: CalibrationPass, dataset: Literal["forget", "retain"]) -> dict[str, Tensor]:
        """The sums of squared gradients over a dataset and all processes."""
        sums = squared_gradients(calibration.gradients, calibration.batches(dataset))
        return {name: calibration.sum_over_processes(s) for name, s in sums.items()}
