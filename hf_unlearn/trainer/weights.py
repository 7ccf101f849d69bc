"""The weights of a run: where they are, whether they are saved as they were trained, and their hashes."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import send_to_device
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import override

from hf_unlearn.auditing.statistics import SampleStatistics
from hf_unlearn.data.hashing import weights_hash
from hf_unlearn.hub.record import adapter_state, base_state
from hf_unlearn.hub.release_files import ADAPTER_WEIGHTS, is_weight_file
from hf_unlearn.models.rehearsal import check_outputs, rehearse
from hf_unlearn.models.sharding import load_plain
from hf_unlearn.models.types import inner_model
from hf_unlearn.trainer.checkpointing import CheckpointingMixin
from hf_unlearn.trainer.loss_step import copy_weights, put_weights

logger = logging.getLogger(__name__)


class WeightsMixin(CheckpointingMixin):
    """A `Trainer` that saves no weights but those it has trained, and knows which files they are in."""

    def __init__(self, **kwargs: Any):
        self._saved_names: list[str] = []  # what the last save has written
        self._original_weights: dict[str, Tensor] = {}
        super().__init__(**kwargs)

    @property
    def _inner_model(self) -> PreTrainedModel:
        """The model inside its adapter."""
        return inner_model(self.model)

    @property
    def _trains_users_adapter(self) -> bool:
        """Whether the model came with an adapter of the user's: that adapter held the data, and is what is saved."""
        return isinstance(self.model, PeftModel) and not self.added_adapter

    @property
    def _weights_kind(self) -> Literal["merged", "adapter"]:
        return "adapter" if self._trains_users_adapter else "merged"

    def _hash_original_weights(self) -> str | None:
        """The hash of the original weights; None where ZeRO-3 has them. All processes call it.

        A second run of the same trainer goes on from the weights of the first; the original stays what it was.
        """
        if self._unlearning_state is not None and self.model_init is None:
            return self._unlearning_state.original_hash
        if self._is_partitioned:
            return None
        return weights_hash(adapter_state(self.model) if self._trains_users_adapter else base_state(self.model))  # type: ignore[arg-type]

    def _keep_original_weights(self) -> None:
        """Copy what will train: an audit measures the original model when it is asked for."""
        if not self._original_weights and not self._is_partitioned:
            self._original_weights = copy_weights(self.model)

    def _original_statistics(self) -> dict[str, SampleStatistics] | None:
        """What an audit compares with, of the original model; None where its weights are not known."""
        if not self._original_weights:
            if self._is_partitioned:
                logger.warning("audit: does not compare with the original model, whose weights ZeRO-3 has not kept")
            return None
        now = copy_weights(self.model)
        try:
            put_weights(self.model, self._original_weights)
            return self._dataset_statistics(for_audit=True)
        finally:
            put_weights(self.model, now)

    def _saved_weights(self, folder: Path) -> Mapping[str, Tensor]:
        """The weights that a user will load: read back from the folder, which shows that they can be."""
        if isinstance(self.model, PeftModel) and self._trains_users_adapter:
            return load_file(folder / ADAPTER_WEIGHTS) if self._is_sharded else adapter_state(self.model)
        saved = load_plain(self._inner_model, str(folder))
        if not self._is_sharded:
            check_outputs(saved, self.model, self._first_outputs, "saved and loaded")
        return saved.state_dict()

    def _rehearse(self, model: PeftModel) -> None:
        """Refuse an adapter that cannot be saved as it was trained; sharded weights are only compared at the end."""
        if not self._is_sharded:
            rehearse(model, self._first_outputs, added=self.added_adapter)

    @override
    def _merged(self, adapted: PeftModel) -> PreTrainedModel:
        plain = super()._merged(adapted)
        check_outputs(plain, adapted, self._first_outputs, "merged")
        return plain

    @torch.no_grad()
    def _first_outputs(self, model: Any) -> Tensor:
        """The outputs of a model in eval mode on the first forget and the first retain sample, flat."""
        collator, outputs = self._flat_collator(), []
        device = next(model.parameters()).device
        for dataset in (self.forget_ds, self.retain_ds):
            batch = send_to_device(collator([self._readable(dataset)[0]]), device)
            made = model.eval()(**self.head.inputs(batch))
            losses = self.head.losses(made, batch)  # refuses outputs that do not line up with the labels
            logits = [value for value in made.values() if torch.is_tensor(value)] if isinstance(made, Mapping) else []
            outputs += [value.float().flatten().cpu() for value in logits or [losses]]
        return torch.cat(outputs)

    @override
    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # `Trainer` pickles its arguments beside the model, and the token with them.
        token, self.args.hub_token = self.args.hub_token, None
        try:
            if self._saves_checkpoint:
                super()._save(output_dir, state_dict)
            else:
                self._save_apart(Path(output_dir or str(self.args.output_dir)), state_dict)
        finally:
            self.args.hub_token = token

    def _save_apart(self, folder: Path, state_dict: dict | None) -> None:
        """Save to a folder of its own, then move the files: which are of this save is known, and none is half written.

        Weights of an earlier model that this one does not replace would be loaded in its place: they are removed.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as temporary:
            super()._save(temporary, state_dict)
            saved = sorted(path.relative_to(temporary) for path in Path(temporary).rglob("*") if path.is_file())
            for path in saved:
                (folder / path).parent.mkdir(exist_ok=True)
                os.replace(Path(temporary) / path, folder / path)
        self._saved_names = [path.as_posix() for path in saved]
        stale = {name for name in os.listdir(folder) if is_weight_file(name)} - {*self._saved_names, ADAPTER_WEIGHTS}
        for name in stale if any(is_weight_file(name) for name in {*self._saved_names} - {ADAPTER_WEIGHTS}) else ():
            (folder / name).unlink()
