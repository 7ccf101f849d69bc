"""Settings that follow from method, model and data; benchmarks/README.md has what was tried."""

from __future__ import annotations

import logging
import math
from typing import Any

from peft import PeftModel

from hf_unlearn.losses.head import SEVERAL
from hf_unlearn.methods import Method, RunInfo, SurgeryMethod
from hf_unlearn.trainer.arguments import BATCH, UnlearningArguments

logger = logging.getLogger(__name__)

# A sample of many tokens is many decisions.
BATCH_OF_TOKENS = 16
MOST_STEPS = 240
FORGET_PASSES = 8
# Without a target an unbounded ascent has to end somewhere: a few steps, and a warning that says so.
STEPS_WITHOUT_TARGET = 30


def resolve_defaults(args: UnlearningArguments, method: Method, kind: str, model: Any) -> None:
    """Fill in the arguments that were left to method, model and data, and say which are not followed.

    Args:
        args: changed in place.
        method: has the sizes of the sets.
        kind: of the model's head.
        model: as it will train, with its adapter.
    """
    if rounding := {str(p.dtype) for p in model.parameters() if p.requires_grad and p.dtype.itemsize < 4}:
        logger.warning(
            f"model: what trains is {' and '.join(sorted(rounding))}, in which small steps are lost to rounding; load "
            "it with dtype=torch.float32, and set bf16=True for speed"
        )
    if args.learning_rate is None:
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        args.learning_rate = default_learning_rate(method, trainable, isinstance(model, PeftModel))
    batches = args.gradient_accumulation_steps * args.world_size * max(1, args.n_gpu)
    # DeepSpeed has read its batch size from the arguments when they were made.
    if args.default_batch and not args.deepspeed:
        args.batch = default_batches(kind, method.info, batches)
        args.per_device_train_batch_size = args.batch[0]
    if args.default_steps:
        args.max_steps = default_steps(
            method, args.per_device_train_batch_size * batches, args.retain_samples * batches
        )
    if not method.info.has_target and args.forget_target == "auto" and method.raises_forget_loss:
        if args.default_steps:
            args.max_steps = STEPS_WITHOUT_TARGET
        logger.warning(
            "No unseen_ds: there is no loss that the forget dataset should end with, so the forget loss is raised for "
            f"a fixed budget of {args.max_steps} steps, which may forget too little or too much. Give unseen_ds."
        )
    if args.weight_decay and isinstance(method, SurgeryMethod):
        logger.info("Weight decay is off: it would move the weights inside the span that the projection protects")


def default_batches(kind: str, setting: RunInfo, batches: int) -> tuple[int, int]:
    """Forget and retain samples of one batch on one device: 64 or, of many tokens each, 16.

    A step takes no more samples than the set has, but one a batch.

    Args:
        kind: of the model's head.
        setting: has the sizes of the sets.
        batches: batches of an optimizer step, over all devices.

    Examples:
        >>> samples = RunInfo(forget_samples=20, retain_samples=4000, is_text=True)
        >>> default_batches("single_label", samples, 1), default_batches("causal_lm", samples, 2)
        ((20, 64), (10, 16))
        >>> default_batches("single_label", samples, 3)
        (6, 64)
    """
    most = BATCH_OF_TOKENS if kind in SEVERAL else BATCH
    forget, retain = (
        min(most, max(1, samples // batches)) for samples in (setting.forget_samples, setting.retain_samples)
    )
    return forget, retain


def default_learning_rate(method: Method, trainable: int, adapter: bool) -> float:
    """2e-3 for an adapter; for all weights the method's own, smaller for more than a million of them.

    Args:
        method: the method.
        trainable: number of trainable weights.
        adapter: whether they are an adapter's.
    """
    return 2e-3 if adapter else method.learning_rate * min(1.0, (1e6 / trainable) ** 0.5)


def default_steps(method: Method, forget_per_step: int, retain_per_step: int) -> int:
    """The method's passes over the larger set or eight over the forget dataset, whichever is more; its least to 240.

    Args:
        method: the method; its setting has the sizes of the sets.
        forget_per_step: forget samples of an optimizer step, over all processes and accumulated batches.
        retain_per_step: retain samples of one.

    Examples:
        >>> from types import SimpleNamespace
        >>> samples = SimpleNamespace(forget_samples=100, retain_samples=4000)
        >>> default_steps(SimpleNamespace(passes=2, min_steps=50, info=samples), 64, 64)
        126
    """
    setting = method.info
    forget = math.ceil(setting.forget_samples / forget_per_step)
    larger = max(forget, math.ceil(setting.retain_samples / retain_per_step))
    return min(max(method.passes * larger, FORGET_PASSES * forget, method.min_steps), MOST_STEPS)
