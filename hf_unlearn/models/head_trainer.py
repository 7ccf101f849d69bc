"""A plain `Trainer` for every head that has per-sample losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Trainer
from typing_extensions import override

from hf_unlearn.losses.detection import head_of, kind_of
from hf_unlearn.losses.images import unpadded_images
from hf_unlearn.models.types import inner_model


class HeadTrainer(Trainer):
    """A plain `transformers.Trainer`, also where a model does not take samples as the default collator puts them.

    A model that compares images with captions has a loss of whole batches alone, and its forward takes no labels: its
    loss here is the mean one of images among their own captions. Qwen-VL and its relatives take images one after
    another; see `hf_unlearn.losses.images`. Every other model trains as it does with `Trainer`.

    Args:
        model: the model.
        *args: as of `Trainer`, as are all others.
        **kwargs: the same.
    """

    def __init__(self, model: Any, *args: Any, **kwargs: Any):
        self.compares_captions = kind_of(inner_model(model)) == "contrastive"
        self.base = inner_model(model)
        if self.compares_captions:
            kwargs["compute_loss_func"] = self._caption_loss
        super().__init__(model, *args, **kwargs)
        if self.compares_captions:
            self.label_names = ["labels"]  # not in the signature of forward, so that they would be dropped

    @override
    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if self.compares_captions:
            inputs = {**head_of(self.base).inputs(inputs), "labels": inputs["labels"]}
        else:
            inputs = unpadded_images(self.base, inputs)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _caption_loss(self, outputs: Any, labels: Tensor, num_items_in_batch: int | Tensor | None = None) -> Tensor:
        """The mean loss over the samples of a step, of which a batch may be a part."""
        losses = head_of(self.base).losses(outputs, {"labels": labels})
        if num_items_in_batch is None:
            return losses.mean()
        return losses.sum() / torch.as_tensor(num_items_in_batch, device=losses.device)
