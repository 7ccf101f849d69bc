"""Initialising again the weights that tell forget and retain samples apart least, and learning retain samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from typing_extensions import override

from hf_unlearn.data.randomness import unchanged_randomness
from hf_unlearn.methods import bibliography
from hf_unlearn.methods.ascent import Finetune
from hf_unlearn.methods.base import CalibrationPass, Parameters
from hf_unlearn.methods.hyperparameters import hyperparameter
from hf_unlearn.methods.weights import MaskedMethod
from hf_unlearn.models.adapters import outside_body
from hf_unlearn.models.resetting import fresh_weights
from hf_unlearn.models.types import inner_model
from hf_unlearn.per_sample.fisher import loss_gradient

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class MSGHyperparameters:
    """Of `MSG`."""

    share: float = hyperparameter(0.3, "share of every layer's weights that are initialised again", above=0, at_most=1)
    slow: float = hyperparameter(0.1, "factor of the steps of the layer's other weights", at_least=0, at_most=1)


class MSG(MaskedMethod, Finetune):
    """Initialise the weights with the smallest `|g_r - g_f|` again, and descend `L_r` (Cadet et al. 2024, MSG).

    Masked small gradients, of arXiv 2410.01276 (an entry of the unlearning challenge of NeurIPS 2023 before). g_r and
    g_f: gradients of the mean losses of retain and forget samples at the original model. Where they are alike, descent
    on the ones and ascent on the others cancel, and the weight is taken to say nothing of what tells them apart. Of
    every linear and convolution layer outside the head the share with the smallest difference (0.3) is drawn anew,
    with the run's seed; the other weights of these layers then take a tenth of the optimizer's steps, all else whole
    ones.

    The authors' code does so with the convolutions of a ResNet, and takes as many retain as forget samples for g_r,
    here all. It scales gradients, which under SGD scales steps, and with Adam would do nothing.
    """

    name = "msg"
    title = "MSG"
    paper = "Cadet et al. 2024, arXiv 2410.01276"
    bibtex = bibliography.CADET_2024
    needs_full_weights = True
    resets_weights = True
    needs_retain_pass = True
    hyperparameters = MSGHyperparameters
    hp: MSGHyperparameters

    @override
    def on_init_end(self, model: PreTrainedModel | PeftModel, added_adapter: bool) -> None:
        """Remember the model."""
        super().on_init_end(model, added_adapter)
        self._model = inner_model(model)

    @override
    @torch.no_grad()
    def on_train_begin(self, calibration: CalibrationPass) -> None:
        """Choose weights, and initialise them again."""
        sums = {name: loss_gradient(calibration.gradients, calibration.batches(name)) for name in ("forget", "retain")}
        parameters = calibration.gradients.parameters
        with unchanged_randomness():
            fresh = fresh_weights(self._model, self.settings.seed)
        self.masks = {}
        for name in layer_weights(self._model):
            if name not in parameters:  # does not train
                continue
            forget, retain = (calibration.sum_over_processes(sums[dataset][name]) for dataset in ("forget", "retain"))
            difference = retain / self.info.retain_samples - forget / self.info.forget_samples
            self.masks[name] = mask = smallest(difference, self.hp.share)
            p = parameters[name]
            p.copy_(fresh[name].to(p).where(mask, p))

    @override
    @torch.no_grad()
    def on_pre_optimizer_step(self, parameters: Parameters, progress: float, scale: float) -> dict[str, float]:
        """Keep the weights of which some take small steps."""
        self._before = {name: parameters[name].detach().clone() for name in self.masks}
        return {}

    @override
    @torch.no_grad()
    def on_optimizer_step(self, parameters: Parameters) -> None:
        """Shorten the steps of the weights that were not initialised again."""
        for name, before in self._before.items():
            p = parameters[name]
            p.copy_(p.where(self.masks[name].to(p.device), before.lerp(p, self.hp.slow)))
        self._before = {}


def layer_weights(model: PreTrainedModel) -> list[str]:
    """The names of the weights of all linear and convolution layers outside the head."""
    layers = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | Conv1D
    names = [name for name, module in model.named_modules() if isinstance(module, layers)]
    return [f"{name}.weight" for name in names if name.split(".")[0] not in outside_body(model)]


def smallest(values: Tensor, share: float) -> Tensor:
    """Which entries are the share of all with the smallest absolute values: a mask of the shape of `values`.

    Examples:
        >>> smallest(torch.tensor([[3.0, -1.0], [0.5, -4.0]]), 0.5)
        tensor([[False,  True],
                [ True, False]])
    """
    mask = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    mask[values.abs().flatten().topk(round(share * values.numel()), largest=False).indices] = True
    return mask.view(values.shape)
