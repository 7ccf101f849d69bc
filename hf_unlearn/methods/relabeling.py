"""Forgetting by training on labels that are wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hf_unlearn.losses import Head
from hf_unlearn.methods.base import Method
from hf_unlearn.targets import ForgetTarget, Objective


class WrongLabels(Objective):
    """Cross-entropy to a wrong label, the same one for a sample during the whole run.

    Args:
        draws: [samples of the forget dataset], uniform in [0, 1): which of the wrong labels, counted on from its own, a sample
            gets.
    """

    def __init__(self, draws: torch.Tensor):
        self.draws = draws

    def scores(
        self, outputs: Any, batch: Mapping[str, Any], head: Head, index: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss [n] of each sample's wrong label, and of its own."""
        if (kind := head.kind_for(batch)) != "single_label":
            raise ValueError(f"method: random_label needs one integer label a sample, but these labels are {kind}")
        labels, classes = batch["labels"].flatten(), outputs["logits"].shape[-1]
        places = 1 + (self.draws[index.cpu()] * (classes - 1)).long().to(labels.device)
        wrong = {**batch, "labels": (labels + places) % classes}
        return head.losses(outputs, wrong), head.losses(outputs, batch).detach()


class RandomLabel(Method):
    """Descend the cross-entropy to random wrong labels on the forget samples, and `L_r` (Graves et al. 2021).

    arXiv 2010.10981. A sample's label is drawn once, from the seed and the sample's number alone: batches, processes and
    resuming change nothing. The paper trains on both sets as one; here the retain weight is 0.9. What ends is the loss
    of the wrong labels, not that of the sample's own, so training stops at the target.
    """

    name = "random_label"
    learning_rate = 1e-4
    default_retain_weight = 0.9
    title = "random labels"
    paper = "Graves et al. 2021, arXiv 2010.10981"
    head_kinds = ("single_label",)

    def objective(self, target: ForgetTarget, original: torch.Tensor | None) -> Objective:
        """The wrong labels; the target only says when to stop."""
        generator = torch.Generator().manual_seed(self.args.seed)
        return WrongLabels(torch.rand(self.info.forget_samples, dtype=torch.float64, generator=generator))
