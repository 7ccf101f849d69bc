"""Forgetting inside the model: a layer's output on forget samples is steered to a random direction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from hf_unlearn.losses import Head
from hf_unlearn.losses.functional import IGNORED
from hf_unlearn.losses.head import Batch
from hf_unlearn.methods import bibliography
from hf_unlearn.methods.base import Method
from hf_unlearn.methods.hyperparameters import hyperparameter
from hf_unlearn.models.original import OriginalModel
from hf_unlearn.targets import ForgetTarget, Objective

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class Steering(Objective):
    """`mean_t |h_t - w_t|^2 / d` of a sample, h_t: a layer's output at position t.

    w_t is the original's own output, or, with a direction u, `scale |original's output| u`. Positions are those of the
    attention mask, of the labels (encoder-decoders, whose decoder is looked at), or all, whichever the output has.

    Args:
        original_model: the frozen original.
        layer: number of the layer, from 0.
        scale: of the steering.
        seed: of the direction: entries uniform in [0, 1), brought to length 1. None: no steering.
    """

    hidden_states = True
    teacher_passes = 1

    def __init__(self, original_model: OriginalModel | None, layer: int, scale: float = 0.0, seed: int | None = None):
        assert original_model is not None
        self.original_model, self.layer, self.scale, self.seed = original_model, layer, scale, seed

    @override
    def scores(self, outputs: Any, batch: Batch, head: Head, index: Tensor) -> tuple[Tensor, Tensor]:
        states = self._layer_output(outputs)  # shape: [n, positions, width]
        goal = self._layer_output(self.original_model(**head.inputs(batch), output_hidden_states=True))
        if self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed)
            direction = torch.rand(goal.shape[-1], generator=generator, dtype=torch.float64)
            direction = (direction / direction.norm()).to(goal)
            goal = self.scale * goal.norm(dim=-1, keepdim=True) * direction
        mask = _position_mask(batch, states)  # shape: [n, positions]
        distances = (states - goal).square().mean(-1) * mask
        return distances.sum(1) / mask.sum(1).clamp_min(1), head.losses(outputs, batch).detach()

    def _layer_output(self, outputs: Any) -> Tensor:
        """The layer's output [samples, positions, width], float32 or better."""
        hidden_states = getattr(outputs, "hidden_states", None)
        if hidden_states is None:
            hidden_states = outputs.decoder_hidden_states
        state = hidden_states[self.layer + 1]  # the first is the input of layer 0
        state = state.flatten(2).mT if state.dim() == 4 else state
        return state if state.dtype == torch.float64 else state.float()


def _position_mask(batch: Batch, states: Tensor) -> Tensor:
    """1 where a position counts, [samples, positions]."""
    mask, labels = batch.get("attention_mask"), batch.get("labels")
    if mask is not None and mask.shape == states.shape[:2]:
        return mask.to(states)
    if labels is not None and labels.shape == states.shape[:2]:
        return (labels != IGNORED).to(states)
    return torch.ones_like(states[..., 0])


@dataclass(frozen=True)
class RMUHyperparameters:
    """Of `RMU`; the paper's alpha is the retain weight."""

    scale: float = hyperparameter(5.0, "c, steering over the norm of the original's own output", above=0)
    depth: float = hyperparameter(
        7 / 32, "number of the steered layer, as a share of all layers", at_least=0, at_most=1
    )
    layers: int = hyperparameter(3, "layers that train, up to the steered one", at_least=1)


class RMU(Method):
    """Steer a layer's output on forget samples to a random direction, keep it on retain samples (Li et al. 2024).

    WMDP, arXiv 2403.03218, representation misdirection: descend `|h - c u|^2` on forget samples and
    `alpha |h - h_ref|^2` on retain samples, u a random unit vector, means over positions and width; alpha 1200
    (`retain_weight` 1200 / 1201). The layer is the paper's 7 of 32 in proportion, counted from 0; what trains are the
    weights of that layer and of the two before it (the paper: their MLPs' output matrices), or the adapter there. c is
    5 times the norm of the original's own output, as in adaptive RMU (Huu-Tien et al. 2024, arXiv 2408.06223): the
    paper's numbers belong to single models. The loss has a minimum, but not at the target: training stops at the
    target.
    """

    name = "rmu"
    title = "RMU"
    paper = "Li et al. 2024, arXiv 2403.03218"
    bibtex = bibliography.LI_2024
    needs_original_model = True
    default_retain_weight = 1200 / 1201
    hyperparameters = RMUHyperparameters
    hp: RMUHyperparameters
    _frozen: Sequence[nn.Parameter] = ()

    @classmethod
    @override
    def check_model(cls, model: PreTrainedModel | PeftModel) -> None:
        """Refuse a model without one stack of layers."""
        layers_of(model)

    @override
    def on_init_end(self, model: PreTrainedModel | PeftModel, added_adapter: bool) -> None:
        """Freeze all other layers for the run, and keep the original of those that train."""
        layers = layers_of(model)
        self.layer = min(round(self.hp.depth * len(layers)), len(layers) - 1)
        trained = layers[max(0, self.layer + 1 - self.hp.layers) : self.layer + 1]
        trained_ids = {id(p) for p in nn.ModuleList(trained).parameters()}
        self._frozen = [p for p in model.parameters() if p.requires_grad and id(p) not in trained_ids]
        for p in self._frozen:
            p.requires_grad_(False)
        super().on_init_end(model, added_adapter)

    @override
    def on_train_end(self) -> None:
        """Let the other layers train again."""
        for p in self._frozen:
            p.requires_grad_(True)

    @override
    def objective(self, target: ForgetTarget, original: Tensor | None) -> Objective:
        """The distance from the direction; the target only says when to stop."""
        return Steering(self.original_model, self.layer, self.hp.scale, self.settings.seed)

    @override
    def retain_objective(self) -> Objective:
        """The distance from the original."""
        return Steering(self.original_model, self.layer)


def layers_of(model: PreTrainedModel | PeftModel) -> list[nn.Module]:
    """The layers whose outputs are the model's hidden states, of an encoder-decoder the decoder's.

    Raises:
        ValueError: the configuration does not say how many there are, or no list of modules has that many.
    """
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    depth = getattr(base.config.get_text_config(decoder=True), "num_hidden_layers", None)
    stacks = {name: m for name, m in base.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth}
    # T5's blocks and Swin's stages hold lists of their own: the outermost are meant.
    outermost = [n for n in stacks if not any(n.startswith(f"{other}.") for other in stacks)]
    if base.config.is_encoder_decoder:
        outermost = [n for n in outermost if "decoder" in n]
    if len(outermost) != 1:
        raise ValueError(
            f"method: rmu steers one of a model's layers, and {type(base).__name__} has {len(outermost) or 'no'} "
            f"lists of as many modules as its configuration has layers ({depth}); use another method"
        )
    return list(stacks[outermost[0]])
