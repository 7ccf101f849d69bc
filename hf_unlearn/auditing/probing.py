"""Is the forgotten data still in the features, whatever the head says about it?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from hf_unlearn.auditing.recovery import plain_copy
from hf_unlearn.data.collator import readable_collator
from hf_unlearn.data.splitting import subsample
from hf_unlearn.losses import Head, head_of, label_problem
from hf_unlearn.models.adapters import _outside_body

# Samples of a set that the probe looks at.
PROBE_SAMPLES = 2000


def linear_probe(
    model: Any,
    forget: Any,
    retain: Any,
    unseen: Any = None,
    *,
    batch_size: int = 64,
    seed: int = 0,
    data_collator: Callable | None = None,
) -> dict[str, float]:
    """Accuracy of a logistic regression on the features that enter the head of a classifier.

    The probe learns from one half of the forget and of the retain samples, and is tested on the other half. A model that
    only keeps its head from naming what it knows has features as good as before. A model retrained without the data
    has useful features too: compare with its metrics. Classes weigh the same in the regression, whatever their sizes.

    Source: linear probes, Alain and Bengio 2016 (arXiv 1610.01644).

    Args:
        model: a model with a single-label head; it stays as it is. A `PeftModel` is merged first.
        forget: the forget dataset, samples ready for the model. Of every set at most 2,000 samples, drawn with `seed`, are used.
        retain: samples that the model keeps.
        unseen: samples never trained on, for `probe_unseen_accuracy`: what the features know of data they never saw.
        batch_size: samples a batch.
        seed: of the halves.
        data_collator: samples to batch; default: `readable_collator(model)`.

    Returns:
        `probe_forget_accuracy` and `probe_retain_accuracy` on the samples that the probe did not see, and with `unseen`
        `probe_unseen_accuracy`; in [0, 1].

    Raises:
        ValueError: the head is not single-label, or no linear layer outside the body of the model; forget or retain
            set of less than two samples, or all samples of one class.
    """
    kind = head_of(model).kind
    if kind != "single_label":
        raise ValueError(f"model: has a {kind} head; the probe needs one label a sample (single_label)")
    for name, samples in (("forget", forget), ("retain", retain)):
        if len(samples) < 2:
            raise ValueError(f"{name}: has {len(samples)} samples; give two or more, half of them train the probe")
    sets = {"forget": forget, "retain": retain} | ({} if unseen is None else {"unseen": unseen})
    collator = data_collator or readable_collator(model)
    found = _features(
        plain_copy(model), {name: subsample(samples, PROBE_SAMPLES, seed) for name, samples in sets.items()},
        collator, batch_size,
    )  # fmt: skip
    training, testing = {}, {}
    generator = np.random.default_rng(seed)
    for name, (features, labels) in found.items():
        order = generator.permutation(len(labels))
        half = 0 if name == "unseen" else len(labels) // 2
        training[name] = features[order[:half]], labels[order[:half]]
        testing[name] = features[order[half:]], labels[order[half:]]
    features, labels = (np.concatenate(parts) for parts in zip(*training.values(), strict=True))
    if len(np.unique(labels)) < 2:
        raise ValueError(
            f"retain: all samples drawn for the probe are of class {labels[0]}; give samples of other classes"
        )
    probe = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    probe.fit(features, labels)
    return {f"probe_{name}_accuracy": float(probe.score(*samples)) for name, samples in testing.items()}


def output_layer(model: PreTrainedModel) -> nn.Linear:
    """The linear layer that makes the logits: the last one outside the body with an output for every label.

    Raises:
        ValueError: there is none.
    """
    heads = [model.get_submodule(name) for name in _outside_body(model)]
    labels = model.config.num_labels
    layers = [m for head in heads for m in head.modules() if isinstance(m, nn.Linear) and m.out_features == labels]
    if not layers:
        raise ValueError(
            f"model: {type(model).__name__} has no linear layer with {labels} outputs outside its body; "
            "the probe needs one to take the features from"
        )
    return layers[-1]


@torch.no_grad()
def _features(
    model: Any, sets: dict[str, Any], collator: Callable, batch_size: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Features [n, width] and labels [n] of every set; every process goes through all samples."""
    accelerator = Accelerator()
    head, entered = head_of(model), []
    model.to(accelerator.device).eval()
    output_layer(model).register_forward_pre_hook(lambda layer, inputs: entered.append(inputs[0]))
    found = {}
    for name, samples in sets.items():
        loader = DataLoader(samples, batch_size=batch_size, collate_fn=collator)
        features, labels = [], []
        quiet = not accelerator.is_main_process
        for batch in tqdm(loader, desc=f"Features of {name} samples", delay=1.0, leave=False, disable=quiet):
            batch = send_to_device(batch, accelerator.device)
            if problem := label_problem(head, batch):
                raise ValueError(problem)
            entered.clear()
            model(**head.inputs(batch))
            features.append(_one_a_sample(entered[-1], batch, head).double().cpu())
            labels.append(batch["labels"].flatten().cpu())
        found[name] = torch.cat(features).numpy(), torch.cat(labels).numpy()
    return found


def _one_a_sample(features: torch.Tensor, batch: dict[str, Any], head: Head) -> torch.Tensor:
    """Features [batch, width]; decoders score all tokens, and the last one that is not padding counts."""
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
