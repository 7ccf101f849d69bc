"""Forgetting inside the model: what a layer makes of forget samples is led astray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from hf_unlearn.losses import Head
from hf_unlearn.losses.functional import IGNORED
from hf_unlearn.methods.base import Method
from hf_unlearn.models.original import OriginalModel
from hf_unlearn.targets import ForgetTarget, Objective


class Steering(Objective):
    """`mean_t |h_t - w_t|^2 / d` of a sample, h_t: a layer's output at position t.

    w_t is the original's own output, or, with a direction u, `scale |original's output| u`. Positions are those of the
    attention mask, of the labels (encoder-decoders, whose decoder is looked at), or all, whichever the output has.

    Args:
        reference: the original model.
        layer: number of the layer, from 0.
        scale: of the steering.
        seed: of the direction: entries uniform in [0, 1), brought to length 1. None: no steering.
    """

    hidden_states = True

    def __init__(self, reference: OriginalModel | None, layer: int, scale: float = 0.0, seed: int | None = None):
        assert reference is not None
        self.original_model, self.layer, self.scale, self.seed = reference, layer, scale, seed

    def scores(
        self, outputs: Any, batch: Mapping[str, Any], head: Head, index: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As the class says."""
        found = self._layer(outputs)
        wanted = self._layer(self.original_model(**head.inputs(batch), output_hidden_states=True))
        if self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed)
            direction = torch.rand(wanted.shape[-1], generator=generator, dtype=torch.float64)
            direction = (direction / direction.norm()).to(wanted)
            wanted = self.scale * wanted.norm(dim=-1, keepdim=True) * direction
        used = _positions(batch, found)
        distances = (found - wanted).square().mean(-1) * used
        return distances.sum(1) / used.sum(1).clamp_min(1), head.losses(outputs, batch).detach()

    def _layer(self, outputs: Any) -> torch.Tensor:
        """The layer's output [samples, positions, width], float32 or better."""
        states = getattr(outputs, "hidden_states", None)
        if states is None:
            states = outputs.decoder_hidden_states
        state = states[self.layer + 1]  # the first is what goes into layer 0
        state = state.flatten(2).mT if state.dim() == 4 else state
        return state if state.dtype == torch.float64 else state.float()


def _positions(batch: Mapping[str, Any], states: torch.Tensor) -> torch.Tensor:
    """1 where a position counts, [samples, positions]."""
    mask, labels = batch.get("attention_mask"), batch.get("labels")
    if mask is not None and mask.shape == states.shape[:2]:
        return mask.to(states)
    if labels is not None and labels.shape == states.shape[:2]:
        return (labels != IGNORED).to(states)
    return torch.ones_like(states[..., 0])


class RMU(Method):
    """Steer a layer's output on forget samples to a random direction, keep it on retain samples (Li et al. 2024, WMDP).

    arXiv 2403.03218, representation misdirection: descend `|h - c u|^2` on forget samples and `alpha |h - h_ref|^2` on
    retain samples, u a random unit vector, means over positions and width; alpha 1200 (`retain_weight` 1200 / 1201).
    The layer is the paper's 7 of 32 in proportion, counted from 0; what trains are the weights of that layer and of
    the two before it (the paper: their MLPs' output matrices), or the adapter there. c is 5 times the norm of the
    original's own output, as in adaptive RMU (Huu-Tien et al. 2024, arXiv 2408.06223): the paper's numbers belong to
    single models. It ends by itself, but not at the target: training stops there.
    """

    name = "rmu"
    title = "RMU"
    paper = "Li et al. 2024, arXiv 2403.03218"
    needs_original_model = True
    default_retain_weight = 1200 / 1201
    SCALE: ClassVar[float] = 5.0
    DEPTH: ClassVar[float] = 7 / 32
    LAYERS: ClassVar[int] = 3
    _frozen: Sequence[nn.Parameter] = ()

    @classmethod
    def check_model(cls, model: Any) -> None:
        """Refuse a model without one stack of layers."""
        layers_of(model)

    def on_init_end(self, model: nn.Module, added_adapter: bool) -> None:
        """Freeze all other layers for the run, and keep the original of those that train."""
        layers = layers_of(model)
        self.layer = round(self.DEPTH * len(layers))
        chosen = layers[max(0, self.layer + 1 - self.LAYERS) : self.layer + 1]
        kept = {id(p) for p in nn.ModuleList(chosen).parameters()}
        self._frozen = [p for p in model.parameters() if p.requires_grad and id(p) not in kept]
        for p in self._frozen:
            p.requires_grad_(False)
        super().on_init_end(model, added_adapter)

    def on_train_end(self) -> None:
        """Let the other layers train again."""
        for p in self._frozen:
            p.requires_grad_(True)

    def objective(self, target: ForgetTarget, original: torch.Tensor | None) -> Objective:
        """The distance from the direction; the target only says when to stop."""
        return Steering(self.original_model, self.layer, self.SCALE, self.args.seed)

    def retain_objective(self) -> Objective:
        """The distance from the original."""
        return Steering(self.original_model, self.layer)


def layers_of(model: Any) -> list[nn.Module]:
    """The layers whose outputs are the model's hidden states, of an encoder-decoder the decoder's.

    Raises:
        ValueError: the configuration does not say how many there are, or no list of modules has that many.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    depth = getattr(base.config.get_text_config(decoder=True), "num_hidden_layers", None)
    stacks = {name: m for name, m in base.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth}
    # T5's blocks and Swin's stages hold lists of their own: the outermost are meant.
    outer = [n for n in stacks if not any(n.startswith(f"{other}.") for other in stacks)]
    if base.config.is_encoder_decoder:
        outer = [n for n in outer if "decoder" in n]
    if len(outer) != 1:
        raise ValueError(
            f"method: rmu steers one of a model's layers, and {type(base).__name__} has {len(outer) or 'no'} lists of "
            f"as many modules as its configuration has layers ({depth}); use another method"
        )
    return list(stacks[outer[0]])
