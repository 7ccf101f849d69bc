"""What follows from the trainer's arguments, worked out and checked before the model is touched."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import datasets
from torch import Tensor
from transformers.training_args import OptimizerNames

from hf_unlearn.data.collator import columns_read
from hf_unlearn.data.general import GeneralData, general_samples
from hf_unlearn.data.splitting import resolve_request
from hf_unlearn.data.streaming import RetainStream, open_stream
from hf_unlearn.data.types import AnyDataset, RequestKind, StreamedDataset
from hf_unlearn.data.validation import check_alternatives, check_classes, check_datasets
from hf_unlearn.losses import Head, head_of
from hf_unlearn.methods import METHODS, Method, RunInfo
from hf_unlearn.models.types import Model, ProcessingClass
from hf_unlearn.targets import TargetKind, resolve_kind
from hf_unlearn.trainer.arguments import UnlearningArguments
from hf_unlearn.trainer.output_folder import refuse_original_folder

PerSampleLoss = Callable[[Any, Mapping[str, Any]], Tensor]


@dataclass(frozen=True)
class RunSetup:
    """A run, before its model is touched.

    Attributes:
        head: of the model.
        request: `"samples"`, `"class"` or `"group"`.
        target_kind: which forgetting target the request gets; see `hf_unlearn.targets.resolve_kind`.
        method: the method, with its hyper-parameters.
        forget_ds: the samples to forget, as the others.
        retain_ds: the samples to keep; of a stream its head.
        retain_stream: the stream that they come from, or None.
        unseen_ds: samples that were never trained on, or None.
        alternative_ds: other answers to the forget samples, or None.
        general_ds: samples of general ability, as they are measured, or None.
        forgotten_labels: of a request of a class and samples with several labels, or None.
    """

    head: Head
    request: RequestKind
    target_kind: TargetKind
    method: Method
    forget_ds: AnyDataset
    retain_ds: AnyDataset
    unseen_ds: AnyDataset | None
    alternative_ds: AnyDataset | None
    general_ds: AnyDataset | None = None
    forgotten_labels: list[int] | None = None
    retain_stream: RetainStream | None = None


def check_arguments(
    args: UnlearningArguments,
    model: object,
    model_init: object,
    forget_ds: object,
    retain_ds: object,
    compute_loss_func: object,
    optimizers: tuple[object, object],
    optimizer_cls_and_kwargs: object,
) -> None:
    """Refuse what is missing, or does not go together.

    Raises:
        ValueError: one line that names the argument, what was found and what to do.
        TypeError: `args` is of another class.
    """
    if not isinstance(args, UnlearningArguments):
        raise TypeError(f"args: expected UnlearningArguments, got {type(args).__name__}; it takes the same settings")
    for name, dataset in (("forget_ds", forget_ds), ("retain_ds", retain_ds)):
        if dataset is None:
            raise ValueError(f"{name}: is missing; split_forget_retain makes both datasets from the training dataset")
    if compute_loss_func is not None:
        raise ValueError("compute_loss_func: unlearning needs a loss for every sample; pass per_sample_loss instead")
    if model is None and model_init is None:
        raise ValueError("model: is missing; give a model, the name of a checkpoint, or model_init")
    if optimizer_cls_and_kwargs is not None and optimizers[0] is not None:
        raise ValueError("optimizer_cls_and_kwargs: optimizers is given as well; give one of them")


def check_reset(args: UnlearningArguments, method: Method) -> None:
    """Refuse a way back, or depth, where no target says where the forget losses should end again.

    Raises:
        ValueError: one line that names the argument.
    """
    if not args.is_deep:
        return
    given = "reset" if args.depth is None else "depth"
    if not method.converges_at_target:
        raise ValueError(
            f"{given}: {method.name} is stopped at its target, where a reset alone puts it; use nabla_tau or orthograd"
        )
    if not method.info.has_target:
        raise ValueError(f"{given}: needs a target that says where to end; give unseen_ds")


def check_sharpness(args: UnlearningArguments, method: Method, sharded: bool) -> None:
    """Refuse smoothed forgetting where there is no forget gradient of the step to take twice.

    Args:
        args: of the run.
        method: of the run.
        sharded: whether weights are spread over processes (FSDP, DeepSpeed).

    Raises:
        ValueError: one line that says why.
    """
    if not args.sharpness_radius:
        return
    # Older releases of transformers say gradient_checkpointing.
    kwargs = getattr(args, "activation_checkpointing_kwargs", None) or args.gradient_checkpointing_kwargs
    problem = None
    if method.is_gradient_surgery:
        problem = f"{method.name} combines gradients; use a method that descends a loss"
    elif not method.raises_forget_loss:
        problem = f"{method.name} descends nothing on forget samples; use a method that does"
    elif sharded:
        problem = "weights are spread over processes (FSDP, DeepSpeed), and cannot be moved as a whole; use DDP"
    elif args.optim in (OptimizerNames.LOMO, OptimizerNames.ADALOMO):
        problem = f"{OptimizerNames(args.optim).value} takes its steps within a backward pass; use another optim"
    elif isinstance(kwargs, Mapping) and kwargs.get("use_reentrant"):
        problem = "use_reentrant=True hides the layers from the gradient of forget samples; use use_reentrant=False"
    if problem:
        raise ValueError(f"sharpness_radius: {problem}, or sharpness_radius=0")


def check_stream(args: UnlearningArguments, is_stream: bool) -> None:
    """Refuse what a stream of retain samples does not allow, and what is said of one where there is none.

    Raises:
        ValueError: one line that names the argument.
    """
    method = METHODS[args.method]
    if not is_stream:
        if args.retain_samples is not None:
            raise ValueError("retain_samples: is the length of a stream, and retain_ds is none; leave it out")
    elif method.needs_retain_pass:
        raise ValueError(
            f"method: {method.name} measures all of retain_ds before the first step, and it is a stream; load it "
            "whole (streaming=False), or use another method"
        )
    elif method.needs_retain_count and args.retain_samples is None:
        raise ValueError(
            f"retain_samples: is missing; {method.name} has its weights and passes by the number of retain samples, "
            "which a stream does not say"
        )


def resolve_setup(
    model: Model,
    args: UnlearningArguments,
    *,
    forget_ds: AnyDataset,
    retain_ds: AnyDataset | StreamedDataset,
    unseen_ds: AnyDataset | None,
    alternative_ds: AnyDataset | None,
    general_ds: GeneralData | None,
    processing_class: ProcessingClass | None,
    per_sample_loss: PerSampleLoss | None,
) -> RunSetup:
    """Head, request, target and method of a run; the datasets are checked against them.

    Raises:
        ValueError: one line that names the argument, what was found and what to do.
    """
    refuse_original_folder(str(args.output_dir), model)
    head, method_class = head_of(model, per_sample_loss), METHODS[args.method]
    method_class.check_head(head.kind)
    method_class.check_model(model)
    check_stream(args, isinstance(retain_ds, datasets.IterableDataset))
    stream = open_stream(retain_ds, forget_ds, columns_read(model))
    # Wherever samples have numbers, the head stands for a stream.
    numbered_ds = cast(AnyDataset, retain_ds) if stream is None else stream.head
    check_datasets(forget_ds, numbered_ds, unseen_ds, columns_read(model), head.kind)
    check_alternatives(args.method, method_class.needs_alternative_ds, forget_ds, alternative_ds)
    request: RequestKind = resolve_request(args.request, forget_ds, numbered_ds, head.kind)
    target_kind = resolve_kind(
        args.forget_target, request=request, head_kind=head.kind, has_unseen=unseen_ds is not None
    )
    if stream is not None and target_kind == "masked_class":
        stream.leave_out_classes(forget_ds)
        numbered_ds = stream.head
    forgotten_labels = check_classes(forget_ds, numbered_ds) if target_kind == "masked_class" else None
    retain_samples = len(numbered_ds) if stream is None else args.retain_samples or math.inf
    info = RunInfo(len(forget_ds), retain_samples, has_target=target_kind != "none")
    method = method_class(args, info)
    method.check_layers(model)
    check_reset(args, method)
    check_sharpness(args, method, sharded=False)
    if general_ds is not None:
        general_ds = general_samples(general_ds, model, head.kind, processing_class, args.seed)
    return RunSetup(
        head, request, target_kind, method, forget_ds, numbered_ds, unseen_ds, alternative_ds, general_ds,
        forgotten_labels, stream,
    )  # fmt: skip
