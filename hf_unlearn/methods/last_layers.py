"""Training the last layers again, on retain samples alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from typing_extensions import override

from hf_unlearn.data.randomness import unchanged_randomness
from hf_unlearn.methods import bibliography
from hf_unlearn.methods.ascent import Finetune
from hf_unlearn.methods.base import CalibrationPass
from hf_unlearn.methods.hyperparameters import hyperparameter
from hf_unlearn.models.resetting import fresh_weights
from hf_unlearn.models.types import inner_model

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LastLayersHyperparameters:
    """Of `CFk` and `EUk`."""

    k: int = hyperparameter(2, "k, last layers that train: the head is one, a block of the body is one", at_least=1)


class CFk(Finetune):
    """Descend `L_r` on the last k layers, and leave the others (Goel et al. 2022, arXiv 2201.06640, CF-k).

    Catastrophic forgetting of the last layers: what is forgotten is what they forget. Layers are counted from the end:
    what comes after the last block of the body (norm, head) is the first, then block by block. A head that shares its
    weight with the embedding stays with it. k is 2 here; the paper compares several.
    """

    name = "cf_k"
    title = "CF-k"
    paper = "Goel et al. 2022, arXiv 2201.06640"
    bibtex = bibliography.GOEL_2022
    needs_full_weights = True
    hyperparameters = LastLayersHyperparameters
    hp: LastLayersHyperparameters

    _frozen: Sequence[nn.Parameter] = ()

    @override
    def check_layers(self, model: PreTrainedModel | PeftModel) -> None:
        """Refuse more layers than the model has."""
        last_layers(inner_model(model), self.hp.k)

    @override
    def on_init_end(self, model: PreTrainedModel | PeftModel, added_adapter: bool) -> None:
        """Freeze all layers but the last."""
        super().on_init_end(model, added_adapter)
        self._model = inner_model(model)
        last = last_layers(self._model, self.hp.k)
        self._frozen = [p for name, p in self._model.named_parameters() if p.requires_grad and name not in last]
        for p in self._frozen:
            p.requires_grad_(False)

    @override
    def on_train_end(self) -> None:
        """Let all layers train again."""
        for p in self._frozen:
            p.requires_grad_(True)
        self._frozen = ()


class EUk(CFk):
    """Train the last k layers from a fresh initialisation by `L_r` (Goel et al. 2022, arXiv 2201.06640, EU-k).

    Exact unlearning of the last layers; the others, which saw the forget samples, stay as they are. Layers as in
    `cf_k`; the initialisation is drawn with the run's seed.
    """

    name = "eu_k"
    title = "EU-k"
    resets_weights = True

    @override
    @torch.no_grad()
    def on_train_begin(self, calibration: CalibrationPass) -> None:
        """Initialise the layers that train."""
        with unchanged_randomness():
            fresh = fresh_weights(self._model, self.settings.seed)
        for name, p in self._model.named_parameters():
            if p.requires_grad:
                p.copy_(fresh[name])


def last_layers(model: nn.Module, k: int) -> set[str]:
    """The names of the parameters of the last k layers; see `CFk`.

    Raises:
        ValueError: the model has fewer than k layers.
    """
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and not name.endswith("experts")
    }
    innermost = [name for name in lists if not any(other.startswith(f"{name}.") for other in lists)]
    blocks = [f"{name}.{number}." for name in innermost for number in range(len(lists[name]))]
    if not blocks or k > len(blocks) + 1:
        raise ValueError(
            f"method_kwargs: k of {type(model).__name__} can be 1 to {len(blocks) + 1}, its layers; got {k}"
        )
    names = [name for name, _ in model.named_parameters()]
    after = max(number for number, name in enumerate(names) if name.startswith(blocks[-1])) + 1
    chosen = tuple(blocks[len(blocks) - k + 1 :])
    return {*names[after:], *(name for name in names if chosen and name.startswith(chosen))}
