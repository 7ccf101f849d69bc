"""Settings that follow from method, model and data; benchmarks/README.md has what was tried."""

from __future__ import annotations

import logging
import math
from typing import cast

from peft import PeftModel
from torch import nn

from hf_unlearn.auditing.budget import EPOCHS
from hf_unlearn.losses.head import TOKEN_KINDS
from hf_unlearn.methods import Method, RunInfo
from hf_unlearn.models.types import Model, inner_model
from hf_unlearn.trainer.arguments import UnlearningArguments
from hf_unlearn.trainer.cost import training_epochs
from hf_unlearn.trainer.pace import planned_steps

logger = logging.getLogger(__name__)

# Forget samples of a step; a sample of many tokens is many decisions.
STEP_SIZE, STEP_SIZE_OF_TOKENS, LEAST_STEP_SIZE = 32, 16, 4
# The planned steps take no more than this part of the sample passes of training again.
LARGEST_SHARE = 0.15
# A pass over the forget dataset takes so many steps at least: that many looks at every sample are what a target needs.
LEAST_PASS = 4
MAX_PLANS, MAX_STEPS = 2.5, 240
# Without a target an unbounded ascent has to end somewhere: a few steps, and a warning that says so.
STEPS_WITHOUT_TARGET = 30
ADAPTER_LEARNING_RATE = 2e-3
# Of a run that has to bring back what a reset took, and of one that is to be deep: steps, their forget and retain
# samples, the rate as a multiple of the method's own, and the weight of retain samples.
DEEP_STEPS, RESET_STEP_SIZE, RESET_RATE, RESET_RETAIN_WEIGHT = 80, 64, 10 / 3, 0.85


def resolve_defaults(
    args: UnlearningArguments,
    method: Method,
    head_kind: str,
    model: nn.Module,
    reset_share: float = 0.0,
    is_stream: bool = False,
) -> None:
    """Fill in the arguments that were left to method, model and data, and say which are not followed.

    Args:
        args: changed in place.
        method: has the sizes of the datasets.
        head_kind: of the model's head.
        model: as it will train, with its adapter.
        reset_share: how far its weights go back before the first step.
        is_stream: whether the retain dataset is a stream, of which an epoch is the whole run.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if rounding := {str(p.dtype) for p in trainable if p.dtype.itemsize < 4}:
        logger.warning(
            f"model: what trains is {' and '.join(sorted(rounding))}, in which small steps are lost to rounding; load "
            "it with dtype=torch.float32, and set bf16=True for speed"
        )
    args.chooses_learning_rate = args.learning_rate is None and args.has_default_schedule and method.info.has_target
    args.calibrates_learning_rate = args.chooses_learning_rate and not args.is_deep
    if args.learning_rate is None:
        args.learning_rate = ADAPTER_LEARNING_RATE if isinstance(model, PeftModel) else method.learning_rate
        args.learning_rate *= RESET_RATE if reset_share and not isinstance(model, PeftModel) else 1.0
    if reset_share and args.retain_weight is None:
        args.retain_weight = RESET_RETAIN_WEIGHT
    batches_per_step = args.gradient_accumulation_steps * args.world_size * max(1, args.n_gpu)
    # DeepSpeed has read its batch size from the arguments when they were made.
    if args.has_default_batch_size and not args.deepspeed:
        known_passes = training_epochs(inner_model(cast(Model, model)).config._name_or_path)
        args.default_batch_sizes = default_batch_sizes(
            head_kind, method.info, batches_per_step, args.training_passes or known_passes or EPOCHS
        )
        if reset_share:
            sizes = (method.info.forget_samples, method.info.retain_samples)
            forget, retain = (max(1, math.ceil(min(RESET_STEP_SIZE, size) / batches_per_step)) for size in sizes)
            args.default_batch_sizes = forget, retain
        args.per_device_train_batch_size = args.default_batch_sizes[0]
    forget_per_step = args.per_device_train_batch_size * batches_per_step
    retain_per_step = args.effective_retain_batch_size * batches_per_step
    if args.has_default_steps:
        args.max_steps = method.default_steps(forget_per_step) or default_steps(
            method, forget_per_step, retain_per_step
        )
        if args.is_deep:
            args.max_steps = max(args.max_steps, DEEP_STEPS)
    elif is_stream and args.max_steps <= 0:
        args.max_steps = steps_of_epochs(method, args.num_train_epochs or 0.0, forget_per_step, retain_per_step)
    if not method.info.has_target and args.forget_target == "auto" and method.raises_forget_loss:
        if args.has_default_steps:
            args.max_steps = STEPS_WITHOUT_TARGET
        logger.warning(
            "No unseen_ds: there is no loss that the forget dataset should end with, so the forget loss is raised for "
            f"a fixed budget of {args.max_steps} steps, which may forget too little or too much. Give unseen_ds."
        )
    if not method.is_iterative:
        args.max_steps, args.num_train_epochs = -1, 0
    if args.weight_decay and method.is_gradient_surgery:
        logger.info("Weight decay is off: it would move the weights inside the span that the projection protects")


def default_batch_sizes(
    head_kind: str, info: RunInfo, batches_per_step: int, training_passes: float = EPOCHS
) -> tuple[int, int]:
    """Forget and retain samples of one batch on one device.

    A step takes 32 forget samples or, of many tokens each, 16, but no more than a quarter of the forget dataset, nor
    so many that the planned steps cost more than 0.15 of training again; four at least; and as many retain samples; a
    batch one at least.

    Args:
        head_kind: of the model's head.
        info: has the sizes of the datasets.
        batches_per_step: batches of an optimizer step, over all devices.
        training_passes: passes over the retain dataset that training again takes.

    Examples:
        >>> info = RunInfo(forget_samples=20, retain_samples=4000)
        >>> default_batch_sizes("single_label", info, 1), default_batch_sizes("causal_lm", info, 2)
        ((5, 5), (3, 3))
        >>> default_batch_sizes("single_label", RunInfo(forget_samples=2, retain_samples=4000), 1)
        (2, 4)
    """
    limit = STEP_SIZE_OF_TOKENS if head_kind in TOKEN_KINDS else STEP_SIZE
    affordable = LARGEST_SHARE * training_passes * info.retain_samples / (2 * planned_steps(LEAST_PASS))
    size = max(LEAST_STEP_SIZE, min(limit, math.ceil(info.forget_samples / LEAST_PASS), int(min(affordable, limit))))
    forget, retain = (
        max(1, math.ceil(min(size, samples) / batches_per_step))
        for samples in (info.forget_samples, info.retain_samples)
    )
    return forget, retain


def default_steps(method: Method, forget_per_step: int, retain_per_step: int) -> int:
    """The steps after which a run ends that has not reached its target: 2.5 times those in which it should.

    A method that lets forget samples fade takes its passes over the larger dataset, at most 240 steps.

    Args:
        method: has the sizes of the datasets.
        forget_per_step: forget samples of an optimizer step, over all processes and accumulated batches.
        retain_per_step: retain samples of one.

    Examples:
        >>> from types import SimpleNamespace
        >>> info = RunInfo(forget_samples=2000, retain_samples=4000)
        >>> default_steps(SimpleNamespace(raises_forget_loss=True, info=info), 64, 64)
        80
    """
    forget_pass = math.ceil(method.info.forget_samples / forget_per_step)
    if method.raises_forget_loss:
        return math.ceil(MAX_PLANS * planned_steps(forget_pass))
    return math.ceil(min(method.passes * _larger_pass(method, forget_per_step, retain_per_step), MAX_STEPS))


def steps_of_epochs(method: Method, epochs: float, forget_per_step: int, retain_per_step: int) -> int:
    """The steps of so many passes over the larger dataset, or over the forget dataset beside an unknown stream.

    Args:
        method: as of `default_steps`, as the last two.
        epochs: passes.
        forget_per_step: forget samples of an optimizer step.
        retain_per_step: retain samples of one.
    """
    larger = _larger_pass(method, forget_per_step, retain_per_step)
    return math.ceil(
        epochs * (math.ceil(method.info.forget_samples / forget_per_step) if math.isinf(larger) else larger)
    )


def _larger_pass(method: Method, forget_per_step: int, retain_per_step: int) -> float:
    """Steps of a pass over the larger dataset: whole ones, or infinitely many."""
    passes = (method.info.forget_samples / forget_per_step, method.info.retain_samples / retain_per_step)
    return max(n if math.isinf(n) else math.ceil(n) for n in passes)
