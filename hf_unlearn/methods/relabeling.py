"""Forgetting by training on labels that are wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from hf_unlearn.losses import Head
from hf_unlearn.losses.head import Batch
from hf_unlearn.methods import bibliography
from hf_unlearn.methods.base import Method
from hf_unlearn.targets import ForgetTarget, Objective


class WrongLabels(Objective):
    """Cross-entropy to a wrong label, the same one for a sample during the whole run.

    Args:
        draws: [samples of the forget dataset], uniform in [0, 1): which of the wrong labels, counted from the sample's
            own label, it gets.
    """

    def __init__(self, draws: Tensor):
        self.draws = draws

    @override
    def scores(self, outputs: Any, batch: Batch, head: Head, index: Tensor) -> tuple[Tensor, Tensor]:
        """The loss [n] of each sample's wrong label, and of its own."""
        if (kind := head.kind_for(batch)) != "single_label":
            raise ValueError(f"method: random_label needs one integer label a sample, but these labels are {kind}")
        labels, classes = batch["labels"].flatten(), outputs["logits"].shape[-1]
        offsets = 1 + (self.draws[index.cpu()] * (classes - 1)).long().to(labels.device)
        relabelled = {**batch, "labels": (labels + offsets) % classes}
        return head.losses(outputs, relabelled), head.losses(outputs, batch).detach()


class RandomLabel(Method):
    """Descend the cross-entropy to random wrong labels on the forget samples, and `L_r` (Graves et al. 2021).

    arXiv 2010.10981. A sample's label is drawn once, from the seed and the sample's number alone: batches, processes
    and resuming change nothing. The paper trains on both datasets as one; here the retain weight is 0.9. The loss of
    the wrong labels has a minimum, that of the sample's own label has none, so training stops at the target.
    """

    name = "random_label"
    learning_rate = 1e-4
    default_retain_weight = 0.9
    title = "random labels"
    paper = "Graves et al. 2021, arXiv 2010.10981"
    bibtex = bibliography.GRAVES_2021
    head_kinds = ("single_label",)

    @override
    def objective(self, target: ForgetTarget, original: Tensor | None) -> Objective:
        """The wrong labels; the target only says when to stop."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        return WrongLabels(torch.rand(self.info.forget_samples, dtype=torch.float64, generator=generator))
