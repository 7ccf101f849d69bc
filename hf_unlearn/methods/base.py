"""What a method is: a small class that says which losses are descended and with what weights, or combines gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from hf_unlearn.models.original import OriginalModel
from hf_unlearn.per_sample import PerSampleGradients
from hf_unlearn.per_sample.loop import Batch
from hf_unlearn.targets import ForgetTarget, Objective

if TYPE_CHECKING:
    from hf_unlearn.trainer.arguments import UnlearningArguments


@dataclass(frozen=True)
class RunInfo:
    """What a method may derive its defaults from: sizes of the two sets, and whether the model reads text."""

    forget_samples: int
    retain_samples: int
    is_text: bool
    has_target: bool = True


@dataclass(frozen=True)
class CalibrationPass:
    """What a method may measure once, before the first step.

    Attributes:
        gradients: per-sample gradients of the model's losses.
        batches: this process's share of the samples of `"forget"` or `"retain"`, in batches.
        losses: of every sample of `"forget"`, `"retain"` or `"alternative"`, in the order of the set, on the CPU.
        sum_over_processes: sums a tensor over processes.
    """

    gradients: PerSampleGradients
    batches: Callable[[str], Iterable[Batch]]
    losses: Callable[[str], torch.Tensor]
    sum_over_processes: Callable[[torch.Tensor], torch.Tensor]


# Ascent without a target does not end by itself: at equal weights, thirty steps cost a small ViT a third of its retain
# accuracy, at this weight less than a point (benchmarks/README.md).
RETAIN_WEIGHT_WITHOUT_TARGET = 0.9


class Method:
    """Base of all methods.

    A step descends the loss `retain_weight * retain_objective + (1 - retain_weight) * objective`, of which the first
    is the mean retain loss unless the method says otherwise.
    A subclass says what differs; see `methods/ascent.py` for the smallest ones.

    Attributes:
        name: the name in `METHODS` and in `UnlearningArguments(method=)`.
        title: how tables and cards call it.
        paper: author, year and identifier.
        bounded: whether the forgetting loss ends by itself; the others are stopped at the target.
        ascends: whether the forget loss is raised, rather than left to fade.
        steps: whether there are optimizer steps; otherwise `survey` is all that happens.
        surgery: whether the method combines gradients (`combine`) rather than descending a loss.
        adapters: whether `peft_config="auto"` adds an adapter.
        alternatives: whether the trainer needs an `alternative_ds`.
        compares: whether the original model is asked at every step; see `OriginalModel`.
        whole: whether the method needs every weight and its gradient in hand: no adapter that the trainer adds, no
            sharded weights.
        heads: the kinds of head (`Head.kind`) that it works on; empty for all.
        learning_rate: default for all weights of a small model; see `UnlearningArguments`.
        passes, min_steps: default number of steps: passes over the larger set, and no fewer than; see
            `hf_unlearn.trainer.defaults`.
        default_retain_weight: where no `retain_weight` is given; at least 0.9 where there is no target.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    converges_at_target: ClassVar[bool] = False
    raises_forget_loss: ClassVar[bool] = True
    is_iterative: ClassVar[bool] = True
    is_gradient_surgery: ClassVar[bool] = False
    lora_by_default: ClassVar[bool] = False
    needs_alternative_ds: ClassVar[bool] = False
    needs_original_model: ClassVar[bool] = False
    needs_full_weights: ClassVar[bool] = False
    head_kinds: ClassVar[tuple[str, ...]] = ()
    learning_rate: ClassVar[float] = 3e-4
    passes: ClassVar[int] = 4
    min_steps: ClassVar[int] = 100
    default_retain_weight: ClassVar[float] = 0.5

    def __init__(self, args: UnlearningArguments, info: RunInfo):
        self.args, self.info = args, info
        self.original_model: OriginalModel | None = None

    @classmethod
    def check_head(cls, kind: str) -> None:
        """Refuse a kind of head that the method has no formula for.

        Raises:
            ValueError: one line that names the method and the head.
        """
        if cls.head_kinds and kind not in cls.head_kinds:
            raise ValueError(
                f"method: {cls.name} works on heads of kind {' or '.join(cls.head_kinds)}, got {kind}; use nabla_tau, "
                "orthograd or another method for all heads"
            )

    @classmethod
    def check_model(cls, model: Any) -> None:
        """Refuse a model that the method cannot find its way in.

        Raises:
            ValueError: one line that names the method and the model.
        """

    @classmethod
    def check_weights(cls, *, adapter: bool, sharded: bool) -> None:
        """Refuse weights that the method cannot work on.

        Args:
            adapter: whether the trainer adds the adapter that it trains.
            sharded: whether they are spread over processes (FSDP, DeepSpeed).

        Raises:
            ValueError: one line that names the method and what it cannot do.
        """
        if cls.needs_full_weights and adapter:
            raise ValueError(
                f"peft_config: {cls.name} works on the weights themselves, not on an adapter beside them; leave "
                "peft_config out"
            )
        if sharded and (cls.needs_full_weights or (cls.needs_original_model and not adapter)):
            what = "changes the weights itself" if cls.needs_full_weights else "needs a frozen copy of the model"
            raise ValueError(
                f"method: {cls.name} {what}, which is not available of weights spread over processes (FSDP, DeepSpeed); "
                f"use DDP{'' if cls.needs_full_weights else ', or give a peft_config'}"
            )

    def on_init_end(self, model: nn.Module, added_adapter: bool) -> None:
        """Take what is needed of the original model, before a step is taken or a checkpoint is loaded.

        Args:
            model: the original, unwrapped.
            added_adapter: whether all that trains is an adapter that the trainer added.
        """
        if self.needs_original_model:
            self.original_model = OriginalModel(model, added_adapter)

    def on_train_end(self) -> None:
        """Undo what `prepare` did to the model, after the run."""

    def on_train_begin(self, calibration: CalibrationPass) -> None:
        """Measure what is needed, before the first step; not in a resumed run, which has `state`."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs of the method: tensors, numbers and containers of them."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take `state` back."""

    def objective(self, target: ForgetTarget, original: torch.Tensor | None) -> Objective:
        """What is descended on the forget dataset.

        Args:
            target: what the trainer found for the request.
            original: losses [samples of the forget dataset] under the original model.
        """
        return target

    def retain_objective(self) -> Objective:
        """What is descended on the retain dataset: a mean over samples; the mean loss unless overridden."""
        return Objective()

    def retain_weight(self, progress: float, step: int = 0) -> float:
        """Weight of the retain loss in [0, 1]; `progress` in [0, 1] is the share of steps done, `step` how many."""
        if self.args.retain_weight is not None:
            return self.args.retain_weight
        least = 0.0 if self.info.has_target else RETAIN_WEIGHT_WITHOUT_TARGET
        return max(self.default_retain_weight, least)

    def remeasures_target(self, step: int, max_steps: int, forget_per_step: int) -> bool:
        """Whether a target from unseen data is measured again before step `step`, counted from 0, of `max_steps`."""
        return False

    def on_pre_optimizer_step(
        self, parameters: Mapping[str, nn.Parameter], progress: float, scale: float
    ) -> dict[str, float]:
        """Change `grad` of the parameters, when it is whole and before it is clipped.

        Args:
            parameters: name to trainable parameter.
            progress: share of steps done, in [0, 1].
            scale: what the gradients are multiplied with, for half precision.

        Returns:
            Metrics for the log.
        """
        return {}

    def on_optimizer_step(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Change the parameters after the optimizer's step."""


class SequenceMethod(Method):
    """Base of the methods for heads that give a sequence a probability, token after token, with their own defaults.

    They know no target. On TOFU (benchmarks/README.md) three times the rate costs `npo` and `ceu` more than 20 points
    of retain accuracy within five steps, and a retain weight of 0.7 costs `npo` as many.
    """

    head_kinds = ("causal_lm", "seq2seq_lm")
    learning_rate = 1e-3
    passes, min_steps = 2, 50
    default_retain_weight = 0.9
