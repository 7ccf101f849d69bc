"""Every setting, in one place, validated before any work is done."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import Seq2SeqTrainingArguments
from transformers.trainer_utils import HubStrategy, SaveStrategy, SchedulerType

from hf_unlearn.data.splitting import REQUESTS
from hf_unlearn.losses.head import PROFILE_SIZE
from hf_unlearn.methods import FORGETTING_LOSSES, METHODS
from hf_unlearn.per_sample.basis import GRAM_CACHES
from hf_unlearn.per_sample.projection import SCOPES
from hf_unlearn.targets import FORGET_TARGETS, HINGES

PROJECTIONS = ("gradient", "update")
BATCH = 64


@dataclass
class UnlearningArguments(Seq2SeqTrainingArguments):
    """The arguments of `hf_unlearn.UnlearningTrainer`: those of `TrainingArguments`, and what unlearning adds.

    > Parameters that control the method

    Args:
        method: a name in `hf_unlearn.methods.METHODS`: `"nabla_tau"` (default), `"orthograd"`, `"grad_diff"`, ...;
            the README lists them all.
        forgetting_loss: for methods that combine gradients: which loss makes the forget gradient; `"nabla_tau"`
            (default), `"grad_ascent"` (as OrthoGrad's paper).
        retain_weight: weight of the retain loss in [0, 1], the forgetting loss gets the rest. Default: the method's.
        retain_batch_size: retain samples a device in every batch; default: `per_device_train_batch_size`, which counts
            the forget samples, where that is given.
        projection: of OrthoGrad: `"gradient"` (the paper's): the forget gradient is projected; `"update"`: the
            optimizer's step is corrected, so that no retain sample's loss rises to first order.
        projection_scope: `"global"` (default, the paper's): one span of retain gradients over all tensors; `"tensor"`:
            one for each tensor, which protects more.

    > Parameters that control the target

    Args:
        request: `"samples"`, `"class"` or `"group"`; default: what `split_forget_retain` left on the datasets, else
            `"samples"`.
        forget_target: `"auto"` (default: follows the request), `"distribution"`, `"masked_class"`, `"mean"` (as ∇τ was
            published), `"none"`, a number (tau), or a sequence of losses of samples never trained on (of samples of many
            tokens: their profiles, see `hf_unlearn.losses.Head.token_loss_profiles`).
        hinge: `"squared"` (as published) or `"linear"`, with `forget_target="mean"` or a number.
        stop_at_target: stop when the forget loss (for a class: accuracy) on a fixed sample of the forget dataset reaches
            the target, checked every few steps. Default: for methods that would not end by themselves.

    > Parameters that control the gradient engine

    Args:
        per_sample_engine: `"auto"` (hooks where every trainable layer has a rule, else the loop, with a warning),
            `"hooks"`, or `"loop"`.
        gram_cache: what happens to the recorded retain samples of a step: `"keep"` them until its end, `"recompute"`
            (run them again, in chunks: slower, in less memory), or `"auto"` (by the free memory, said in the log).

    > Defaults that differ from `TrainingArguments`

    `learning_rate` (method's own, smaller for larger models when all weights are trained), `max_steps` (two to four
    passes over the larger set, by the method, eight over the forget dataset, 240 at most; one of `num_train_epochs` is one
    pass over the larger),
    `per_device_train_batch_size` and `retain_batch_size` (64, with heads that score a sample on many tokens 16; no more
    samples a step than their set has; with a DeepSpeed config among the arguments always 64),
    `per_device_eval_batch_size` (64), `lr_scheduler_type` (cosine to a tenth),
    `logging_steps` (10), `save_strategy` ("no"), `logging_nan_inf_filter` (False: divergence must show),
    `ddp_find_unused_parameters` (by a forward pass of one sample: whether the model has parameters without use),
    `hub_strategy` ("end", the only one: with `push_to_hub=True` the model is pushed when `save_model()` is called,
    private unless `hub_private_repo=False`, and no checkpoint ever is).
    """

    method: str = field(default="nabla_tau", metadata={"help": f"Unlearning method, one of {sorted(METHODS)}."})
    forgetting_loss: str = field(default="nabla_tau", metadata={"help": "Loss whose gradient a surgery method bends."})
    retain_weight: float | None = field(default=None, metadata={"help": "Weight of the retain loss in [0, 1]."})
    retain_batch_size: int | None = field(default=None, metadata={"help": "Retain samples per device and batch."})
    projection: str = field(default="gradient", metadata={"help": f"What is projected, one of {PROJECTIONS}."})
    projection_scope: str = field(default="global", metadata={"help": f"Span of the projection, one of {SCOPES}."})
    request: str | None = field(default=None, metadata={"help": f"Kind of forget request, one of {REQUESTS}."})
    forget_target: str = field(default="auto", metadata={"help": f"One of {FORGET_TARGETS}, or a number."})
    hinge: str = field(default="squared", metadata={"help": f"Hinge of the mean target, one of {HINGES}."})
    stop_at_target: bool | None = field(default=None, metadata={"help": "Stop when the target is reached."})
    per_sample_engine: str = field(default="auto", metadata={"help": "auto, hooks or loop."})
    gram_cache: str = field(default="auto", metadata={"help": f"Recorded retain samples, one of {GRAM_CACHES}."})

    learning_rate: float | None = field(default=None, metadata={"help": "Default: the method's own."})  # type: ignore[assignment]
    num_train_epochs: float | None = field(default=None, metadata={"help": "Passes over the larger set."})  # type: ignore[assignment]
    per_device_train_batch_size: int = field(default=None, metadata={"help": "Forget samples a device."})  # type: ignore[assignment]
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Samples per device when measuring."})
    lr_scheduler_type: SchedulerType | str = field(
        default="cosine_with_min_lr", metadata={"help": "Learning rate schedule."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps."})
    save_strategy: SaveStrategy | str = field(default="no", metadata={"help": "When to save checkpoints."})
    hub_strategy: HubStrategy | str = field(default="end", metadata={"help": "Only end: push when saving the model."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide NaN losses from the log."})

    def __post_init__(self):
        """Resolve defaults and refuse what cannot work, one line each."""
        self.default_steps = self.max_steps <= 0 and self.num_train_epochs is None
        # Forget and retain samples of a batch that nobody has asked for; the trainer fits them to model and data.
        self.batch = (BATCH, BATCH) if self.per_device_train_batch_size is None else None
        if self.batch:
            self.per_device_train_batch_size = BATCH
        if self.num_train_epochs is None:
            self.num_train_epochs = 3.0  # unused: max_steps overrides it, which the trainer sets by the data
        if str(getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type)) == "cosine_with_min_lr":
            self.lr_scheduler_kwargs = self.lr_scheduler_kwargs or {"min_lr_rate": 0.1}
        if self.deepspeed and self.method in METHODS and METHODS[self.method].is_gradient_surgery:
            raise ValueError(
                f"deepspeed: {self.method} writes the gradients itself, and ZeRO lets nobody; use DDP or FSDP2, or a "
                "method that descends a loss"
            )
        if (self.metric_for_best_model or "").removeprefix("eval_") == "gap" and self.greater_is_better is None:
            self.greater_is_better = False  # Trainer takes everything that is not called a loss for a score
        super().__post_init__()
        self.forget_target = _parse_target(self.forget_target)
        _one_of("method", self.method, METHODS)
        _one_of("forgetting_loss", self.forgetting_loss, FORGETTING_LOSSES)
        _one_of("projection", self.projection, PROJECTIONS)
        _one_of("projection_scope", self.projection_scope, SCOPES)
        _one_of("hinge", self.hinge, HINGES)
        _one_of("per_sample_engine", self.per_sample_engine, ("auto", "hooks", "loop"))
        _one_of("gram_cache", self.gram_cache, GRAM_CACHES)
        if self.request is not None:
            _one_of("request", self.request, REQUESTS)
        if isinstance(self.forget_target, str):
            _one_of("forget_target", self.forget_target, FORGET_TARGETS)
        if self.retain_weight is not None and not 0 <= self.retain_weight <= 1:
            raise ValueError(f"retain_weight: must lie in [0, 1], got {self.retain_weight}")
        if self.retain_batch_size is not None and self.retain_batch_size < 1:
            raise ValueError(f"retain_batch_size: must be at least 1, got {self.retain_batch_size}")
        if self.label_smoothing_factor:
            raise ValueError(
                "label_smoothing_factor: must be 0 while unlearning, got "
                f"{self.label_smoothing_factor}; smoothed losses cannot be compared with the target"
            )
        # Older releases of transformers say gradient_checkpointing.
        new = getattr(self, "activation_checkpointing_kwargs", None)
        checkpointing: Any = new or self.gradient_checkpointing_kwargs or {}
        if checkpointing.get("use_reentrant") and METHODS[self.method].is_gradient_surgery:
            raise ValueError(
                f"activation_checkpointing_kwargs: use_reentrant=True hides the layers from {self.method}, which "
                "needs the gradient of every sample; use use_reentrant=False"
            )
        if self.push_to_hub and self.hub_strategy != HubStrategy.END:
            raise ValueError(
                f'hub_strategy: must be "end", got {str(HubStrategy(self.hub_strategy).value)!r}, which uploads '
                "checkpoints that still hold the data"
            )

    @property
    def default_batch(self) -> bool:
        """Whether the batch size is the default still: one may be set later, too."""
        return self.batch is not None and self.per_device_train_batch_size == self.batch[0]

    @property
    def retain_samples(self) -> int:
        """Retain samples a device in every batch."""
        default = self.batch[1] if self.batch and self.default_batch else self.per_device_train_batch_size
        return self.retain_batch_size or default


def _one_of(name: str, value: Any, known: Any) -> None:
    if value not in known:
        raise ValueError(f"{name}: unknown value {value!r}, use one of {sorted(known)}")


def _parse_target(value: Any) -> Any:
    """A name, a number (also as a string, from the command line), a list of losses or a list of loss profiles."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    if isinstance(value, (int, float)):
        return float(value)
    try:
        losses = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"forget_target: expected a name, a number, losses or loss profiles; {error}") from error
    if not losses.numel():
        raise ValueError("forget_target: an empty sample of losses says nothing; give at least one loss")
    if losses.shape[1:] not in ((), (PROFILE_SIZE,)):
        raise ValueError(
            f"forget_target: a sample of losses has shape [samples], one of loss profiles [samples, {PROFILE_SIZE}], got "
            f"{list(losses.shape)}"
        )
    return losses.tolist()
