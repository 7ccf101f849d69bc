"""Is the forgotten data still in the features, whatever the head predicts?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hf_unlearn.auditing.recovery import plain_copy
from hf_unlearn.data.collator import Collator, readable_collator
from hf_unlearn.data.splitting import subsample
from hf_unlearn.data.types import AnyDataset
from hf_unlearn.losses import Head, head_of, label_problem
from hf_unlearn.losses.head import Batch
from hf_unlearn.models.output_layer import output_layer
from hf_unlearn.models.types import Model

# Samples of a dataset that the probe uses at most.
PROBE_SAMPLES = 2000


def linear_probe(
    model: Model,
    forget_ds: AnyDataset,
    retain_ds: AnyDataset,
    unseen_ds: AnyDataset | None = None,
    *,
    batch_size: int = 64,
    seed: int = 0,
    data_collator: Collator | None = None,
    samples: int = PROBE_SAMPLES,
) -> dict[str, float]:
    """Accuracy of a logistic regression on the features that enter the head of a classifier.

    The probe is trained on one half of the forget and of the retain samples, and tested on the other half. A model of
    which only the head was changed has features as good as before. A model retrained without the data has useful
    features too: compare with its metrics. Classes weigh the same in the regression, whatever their sizes.

    Source: linear probes, Alain and Bengio 2016 (arXiv 1610.01644).

    Args:
        model: a model with a single-label head; it stays as it is. A `PeftModel` is merged first.
        forget_ds: the forget dataset, samples ready for the model. Of every dataset at most `samples` are used, drawn
            with `seed`.
        retain_ds: the retain dataset.
        unseen_ds: samples never trained on, for `probe_unseen_accuracy`: how good the features are on unseen data.
        batch_size: samples a batch.
        seed: of the halves.
        data_collator: samples to batch; default: `readable_collator(model)`.
        samples: of a dataset at most.

    Returns:
        `probe_forget_accuracy` and `probe_retain_accuracy` on the samples that the probe was not trained on, and with
        `unseen_ds` `probe_unseen_accuracy`; in [0, 1].

    Raises:
        ValueError: the head is not single-label, or there is no linear layer outside the body of the model; the forget
            or the retain dataset has less than two samples, or all samples are of one class.
    """
    kind = head_of(model).kind
    if kind != "single_label":
        raise ValueError(f"model: has a {kind} head; the probe needs one label a sample (single_label)")
    for name, dataset in (("forget_ds", forget_ds), ("retain_ds", retain_ds)):
        if len(dataset) < 2:
            raise ValueError(f"{name}: has {len(dataset)} samples; give two or more, half of them train the probe")
    datasets_by_name = {"forget": forget_ds, "retain": retain_ds, "unseen": unseen_ds}
    drawn = {name: subsample(ds, samples, seed) for name, ds in datasets_by_name.items() if ds is not None}
    features_by_name = _features(plain_copy(model), drawn, data_collator or readable_collator(model), batch_size)
    training, testing = {}, {}
    generator = np.random.default_rng(seed)
    for name, (features, labels) in features_by_name.items():
        order = generator.permutation(len(labels))
        half = 0 if name == "unseen" else len(labels) // 2
        training[name] = features[order[:half]], labels[order[:half]]
        testing[name] = features[order[half:]], labels[order[half:]]
    features, labels = (np.concatenate(parts) for parts in zip(*training.values(), strict=True))
    if len(np.unique(labels)) < 2:
        raise ValueError(
            f"retain_ds: all samples drawn for the probe are of class {labels[0]}; give samples of other classes"
        )
    probe = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    probe.fit(features, labels)
    return {f"probe_{name}_accuracy": float(probe.score(*samples)) for name, samples in testing.items()}


@torch.no_grad()
def _features(
    model: Any, datasets_by_name: Mapping[str, AnyDataset], collator: Collator, batch_size: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Features [n, width] and labels [n] of every dataset; every process goes through all samples."""
    accelerator = Accelerator()
    head = head_of(model)
    layer_inputs: list[torch.Tensor] = []
    model.to(accelerator.device).eval()
    output_layer(model).register_forward_pre_hook(lambda layer, inputs: layer_inputs.append(inputs[0]))
    features_by_name = {}
    for name, dataset in datasets_by_name.items():
        loader: DataLoader = DataLoader(dataset, batch_size=batch_size, collate_fn=collator)  # type: ignore[arg-type]
        features, labels = [], []
        quiet = not accelerator.is_main_process
        for batch in tqdm(loader, desc=f"Features of {name} samples", delay=1.0, leave=False, disable=quiet):
            batch = send_to_device(batch, accelerator.device)
            if problem := label_problem(head, batch):
                raise ValueError(problem)
            layer_inputs.clear()
            model(**head.inputs(batch))
            features.append(_sample_features(layer_inputs[-1], batch, head).double().cpu())
            labels.append(batch["labels"].flatten().cpu())
        features_by_name[name] = torch.cat(features).numpy(), torch.cat(labels).numpy()
    return features_by_name


def _sample_features(features: torch.Tensor, batch: Batch, head: Head) -> torch.Tensor:
    """Features [batch, width]; of a decoder, which scores all tokens, those of the last one that is not padding."""
    if features.ndim == 2:
        return features
    pad_id = head.model.config.get_text_config().pad_token_id
    if features.ndim != 3 or "input_ids" not in batch or pad_id is None:
        raise ValueError(
            f"model: the head of {type(head.model).__name__} gets {list(features.shape)} features for "
            f"{len(batch['labels'])} samples; the probe needs [samples, width]"
        )
    positions = torch.arange(features.shape[1], device=features.device)
    last = ((batch["input_ids"] != pad_id) * positions).argmax(-1)
    return features[torch.arange(len(features), device=features.device), last]
