"""Does the forgotten data come back when the model is trained a little? Curves, and what to read off them.

An unlearned model that gives the data back after ten steps has hidden it, not forgotten it. A model retrained without
the data can learn it too: compare with its curve.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch.utils.data import ConcatDataset
from tqdm.auto import tqdm

from hf_unlearn.auditing.recovery import plain_copy
from hf_unlearn.auditing.statistics import collect_statistics
from hf_unlearn.data.collator import Collator, readable_collator
from hf_unlearn.data.splitting import select, subsample
from hf_unlearn.data.types import AnyDataset
from hf_unlearn.losses import head_of, label_problem
from hf_unlearn.models.types import Model

Curve: TypeAlias = dict[str, list[float]]

# Of a model of up to a million weights; larger ones are trained more slowly, as people fine-tune them.
LEARNING_RATE = 3e-4
# Samples that a point of a curve is measured on: enough for half a point of accuracy.
MEASURED_SAMPLES = 2000


def relearn(
    model: Model,
    forget_ds: AnyDataset,
    *,
    samples: int = 16,
    retain_ds: AnyDataset | None = None,
    steps: int = 50,
    learning_rate: float | None = None,
    batch_size: int = 64,
    seed: int = 0,
    measure_every: int = 5,
    data_collator: Collator | None = None,
    measured_ds: AnyDataset | None = None,
    measured_samples: int = MEASURED_SAMPLES,
) -> Curve:
    """Train a copy on a few forget samples, and measure how the rest of the forget dataset comes back.

    All weights of the copy train with AdamW (no weight decay, constant learning rate, gradients clipped to norm 1), in
    float32 or better, and in eval mode: no dropout, normalisation statistics frozen. A `PeftModel` is merged first.
    The same arguments give the same curve, bitwise on a CPU.

    When a whole class was forgotten, the samples to train on are all of that class, and a few steps teach any model to
    answer it to everything, a retrained one too: give retain samples beside them.

    Source: relearn time of Golatkar et al. 2020 (arXiv 1911.04933) and Tarun et al. 2023 (arXiv 2111.08947).

    Args:
        model: any model with a head; it stays as it is.
        forget_ds: the forget dataset, samples ready for the model.
        samples: forget samples to train on, drawn with `seed`.
        retain_ds: retain samples to train on beside them, all of these.
        steps: optimizer steps.
        learning_rate: default: 3e-4, times `sqrt(1e6 / weights)` for models of more than a million weights.
        batch_size: samples of a training batch.
        seed: of the samples that are drawn, and of their order.
        measure_every: steps between two measurements; before the first step and after the last is always measured.
        data_collator: samples to batch; default: `readable_collator(model)`.
        measured_ds: samples to measure instead of the forget samples that are not trained on.
        measured_samples: how many of them at most, drawn with `seed`.

    Returns:
        `steps`; `forget_loss`, in nats; `forget_accuracy`, in [0, 1], left out where the head has none: means over the
        measured samples, one number for each entry of `steps`; `forget_loss_error`, the standard error of the loss by
        the chance of these samples.

    Raises:
        ValueError: too few forget samples to train on `samples` and measure others; a number out of its range; a label
            that the head cannot use; a model that cannot be copied without its adapter (`plain_copy`).
    """
    training = _Training(steps, learning_rate, batch_size, seed, measure_every, data_collator, measured_samples)
    count = len(forget_ds)
    if measured_ds is None and count < 2:
        raise ValueError(f"forget_ds: has {count} samples; give two or more, one to train on and one to measure")
    max_samples = count - (measured_ds is None)
    if not 1 <= samples <= max_samples:
        raise ValueError(
            f"samples: found {samples} of {count} forget samples; give 1 to {max_samples}, the rest is measured"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    if measured_ds is None:
        measured_ds = select(forget_ds, sorted(order[samples:]))
    train_ds = select(forget_ds, sorted(order[:samples]))
    if retain_ds is not None:
        train_ds = cast(AnyDataset, ConcatDataset([train_ds, retain_ds]))  # type: ignore[list-item]
    return _curve(model, train_ds, measured_ds, training, "Relearning")


def finetune(
    model: Model,
    retain_ds: AnyDataset,
    forget_ds: AnyDataset,
    *,
    steps: int = 50,
    learning_rate: float | None = None,
    batch_size: int = 64,
    seed: int = 0,
    measure_every: int = 5,
    data_collator: Collator | None = None,
    measured_samples: int = MEASURED_SAMPLES,
) -> Curve:
    """Train a copy on retain samples, and measure whether the forget dataset comes back without being shown.

    This is what a user does who adapts the unlearned model to other data. Training, arguments and result as in
    `relearn`; here `forget_ds` is measured, and every step takes `batch_size` samples of `retain_ds`.

    Raises:
        ValueError: as in `relearn`; also for an empty dataset.
    """
    training = _Training(steps, learning_rate, batch_size, seed, measure_every, data_collator, measured_samples)
    for name, dataset in (("retain_ds", retain_ds), ("forget_ds", forget_ds)):
        if len(dataset) == 0:
            raise ValueError(f"{name}: is empty; give at least one sample")
    return _curve(model, retain_ds, forget_ds, training, "Fine-tuning")


def relearn_time(curve: Mapping[str, list[float]], threshold: float) -> int | None:
    """The first measured step at which the forget accuracy is at least `threshold`; None if it never is.

    For a curve without accuracies, the first step at which the forget loss is at most `threshold`. A common threshold
    is the original model's own value, or a few points less. The quotient of this time and that of a retrained model
    is the anamnesis index of Chundawat et al. 2023 (arXiv 2201.05629): 1 is best, near 0 the data was only hidden.

    Raises:
        ValueError: a threshold outside [0, 1] for accuracies.

    Examples:
        >>> curve = {"steps": [0, 5, 10], "forget_loss": [4.0, 1.0, 0.1], "forget_accuracy": [0.0, 0.5, 0.9]}
        >>> relearn_time(curve, 0.5)
        5
    """
    accuracies = curve.get("forget_accuracy")
    if accuracies is None:
        reached = [loss <= threshold for loss in curve["forget_loss"]]
    elif 0 <= threshold <= 1:
        reached = [accuracy >= threshold for accuracy in accuracies]
    else:
        raise ValueError(f"threshold: found {threshold} for a curve of accuracies; give a number in [0, 1]")
    return next((int(step) for step, passed in zip(curve["steps"], reached, strict=True) if passed), None)


def relearn_advantage(curve: Mapping[str, list[float]], retrained: Mapping[str, list[float]]) -> dict[str, float]:
    """How much better a model relearns than a model that never saw the forget dataset: 0 or less is best.

    The mean over the measured steps after the first (step 0, before training, says how far the model forgot, not how
    fast it remembers), so that, unlike for a relearn time, no threshold has to be chosen.

    Args:
        curve: of the model, from `relearn` or `finetune`.
        retrained: of the retrained model, measured with the same arguments.

    Returns:
        `relearn_loss_advantage`: how much lower the forget loss is, in nats; `relearn_accuracy_advantage`: how much
        higher the forget accuracy is, in points of 100, where both curves have one.

    Raises:
        ValueError: the curves have different steps, or none after the first.

    Examples:
        >>> hidden = {"steps": [0, 5, 10], "forget_loss": [9.0, 1.0, 0.5], "forget_accuracy": [0.0, 0.75, 1.0]}
        >>> retrained = {"steps": [0, 5, 10], "forget_loss": [9.0, 5.0, 2.5], "forget_accuracy": [0.0, 0.25, 0.5]}
        >>> relearn_advantage(hidden, retrained)
        {'relearn_loss_advantage': 3.0, 'relearn_accuracy_advantage': 50.0}
    """
    if curve["steps"] != retrained["steps"] or len(curve["steps"]) < 2:
        raise ValueError(
            f"retrained: its steps {retrained['steps']} and the curve's {curve['steps']} cannot be compared; "
            "measure both with the same arguments"
        )

    def mean_difference(name: str) -> float:
        return sum(a - b for a, b in zip(curve[name][1:], retrained[name][1:], strict=True)) / (len(curve[name]) - 1)

    advantages = {"relearn_loss_advantage": -mean_difference("forget_loss")}
    if "forget_accuracy" in curve and "forget_accuracy" in retrained:
        advantages["relearn_accuracy_advantage"] = 100 * mean_difference("forget_accuracy")
    return advantages


@dataclass(frozen=True)
class _Training:
    """The settings of a training run of a copy; see `relearn`."""

    steps: int
    learning_rate: float | None
    batch_size: int
    seed: int
    measure_every: int
    data_collator: Collator | None
    measured_samples: int

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "measure_every", "measured_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise ValueError(f"learning_rate: must be above 0, got {self.learning_rate}")


def _curve(
    model: Model, train_ds: AnyDataset, measured_ds: AnyDataset, training: _Training, description: str
) -> Curve:
    """Train a copy of `model` on `train_ds`, and measure it on `measured_ds` on the way."""
    collator = training.data_collator or readable_collator(model)
    accelerator = Accelerator()
    trained = _trainable_copy(model).to(accelerator.device)
    head = head_of(trained)
    weights = list(trained.parameters())
    rate = training.learning_rate or LEARNING_RATE * min(1.0, (1e6 / sum(w.numel() for w in weights)) ** 0.5)
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
    measured_ds = subsample(measured_ds, training.measured_samples, training.seed)
    curve: Curve = {"steps": [], "forget_loss": [], "forget_loss_error": [], "forget_accuracy": []}

    def measure(step: int) -> None:
        statistics = collect_statistics(
            trained, measured_ds, head=head, collator=collator, accelerator=accelerator,
            batch_size=None,
        )  # fmt: skip
        curve["steps"].append(step)
        losses = statistics.losses.double()
        curve["forget_loss"].append(float(losses.mean()))
        curve["forget_loss_error"].append(float(losses.std()) / len(losses) ** 0.5 if len(losses) > 1 else 0.0)
        curve["forget_accuracy"].append(float(statistics.correct.double().nanmean()))

    measure(0)
    batches = tqdm(
        _batches(len(train_ds), training), desc=description, total=training.steps, unit="step", delay=1.0,
        leave=False, disable=not accelerator.is_main_process,
    )  # fmt: skip
    # Every process trains on the same samples, so the copies stay equal without communication.
    for step, indices in enumerate(batches, start=1):
        batch = send_to_device(collator([train_ds[i] for i in indices]), accelerator.device)
        if problem := label_problem(head, batch):
            raise ValueError(problem)
        trained.eval()
        head.losses(head.run(trained, batch), batch).mean().backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % training.measure_every == 0 or step == training.steps:
            measure(step)
    if any(accuracy != accuracy for accuracy in curve["forget_accuracy"]):
        del curve["forget_accuracy"]
    return curve


def _trainable_copy(model: Model) -> Any:
    copied = plain_copy(model).requires_grad_(True)
    if copied.dtype in (torch.float16, torch.bfloat16):
        copied.float()  # the steps of a small learning rate are lost in the rounding of half precision
    return copied


def _batches(count: int, training: _Training) -> Iterator[list[int]]:
    """Sample indices of every step: shuffled passes over `count` samples, one after the other."""
    generator = torch.Generator().manual_seed(training.seed)
    size = min(training.batch_size, count)
    waiting: list[int] = []
    for _ in range(training.steps):
        if len(waiting) < size:
            waiting += torch.randperm(count, generator=generator).tolist()
        yield waiting[:size]
        waiting = waiting[size:]
