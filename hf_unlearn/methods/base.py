"""The base of all methods: which losses are descended and with what weights, or how gradients are combined."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias

from peft import PeftModel
from torch import Tensor, nn

from hf_unlearn.methods.hyperparameters import NoHyperparameters, make_hyperparameters
from hf_unlearn.models.original import OriginalModel
from hf_unlearn.per_sample import PerSampleGradients
from hf_unlearn.per_sample.loop import Batch
from hf_unlearn.targets import ForgetTarget, Objective

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Parameters: TypeAlias = Mapping[str, nn.Parameter]


class MethodSettings(Protocol):
    """The settings that methods read; `UnlearningArguments` has them among its own."""

    @property
    def seed(self) -> int:
        """Of everything that a method draws."""

    @property
    def method_kwargs(self) -> Any:
        """The method's own hyper-parameters, a mapping of name to value; None for the defaults."""

    @property
    def retain_weight(self) -> float | None:
        """Weight of the retain loss in [0, 1]; None for the method's default."""

    @property
    def forget_target(self) -> object:
        """Name of the forgetting target, a number, or a sample of losses."""

    @property
    def forgetting_loss(self) -> str:
        """Of gradient surgery: a name in `FORGETTING_LOSSES`."""

    @property
    def projection(self) -> str:
        """Of OrthoGrad: `"gradient"` or `"update"`."""


@dataclass(frozen=True)
class RunInfo:
    """What a method may derive its defaults from.

    Attributes:
        forget_samples: size of the forget dataset.
        retain_samples: size of the retain dataset; infinite for a stream of which nobody says how long it is.
        has_target: whether the run has a forgetting target.
    """

    forget_samples: int
    retain_samples: float
    has_target: bool = True


@dataclass(frozen=True)
class CalibrationPass:
    """What a method may measure once, before the first step.

    Attributes:
        gradients: per-sample gradients of the model's losses.
        batches: this process's share of the samples of `"forget"` or `"retain"`, in batches.
        losses: of every sample of `"forget"`, `"retain"` or `"alternative"`, in the order of the dataset, on the CPU.
        sum_over_processes: sums a tensor over processes.
    """

    gradients: PerSampleGradients
    batches: Callable[[Literal["forget", "retain"]], Iterable[Batch]]
    losses: Callable[[Literal["forget", "retain", "alternative"]], Tensor]
    sum_over_processes: Callable[[Tensor], Tensor]


# Ascent without a target does not end by itself: at equal weights, thirty steps cost a small ViT a third of its retain
# accuracy, at this weight less than a point (benchmarks/README.md).
RETAIN_WEIGHT_WITHOUT_TARGET = 0.9


# A run takes a few dozen steps, and the forget gradient turns round within a few of them: with Adam's usual 0.9 the
# run goes on for ten after the target is reached (benchmarks/README.md, "The pace").
SHORT_MEMORY: Mapping[str, Any] = {"adam_beta1": 0.6}


class Method:
    """Base of all methods.

    A step descends the loss `retain_weight * retain_objective + (1 - retain_weight) * objective`, of which the first
    is the mean retain loss unless the method overrides it. A subclass overrides what differs; see `methods/ascent.py`
    for the smallest ones.

    The trainer calls these hooks, which are named like those of `TrainerCallback`:

    - `on_init_end`: the trainer has been built, and neither a step been taken nor a checkpoint been loaded;
    - `on_train_begin`: before the first step, with a calibration pass; not in a resumed run;
    - `remeasures_target`: at the beginning of a step, whether the target is measured again;
    - `on_pre_optimizer_step`: after the backward pass, before gradients are clipped;
    - `on_optimizer_step`: after the optimizer's step;
    - `on_train_end`: after the last step;
    - `state_dict`, `load_state_dict`: when a checkpoint is saved, and in a resumed run in place of `on_train_begin`.

    Args:
        settings: of the run.
        info: sizes and kind of the data.
        hyperparameters: an instance of the method's own dataclass; default: made of `settings.method_kwargs`.

    Attributes:
        name: the name in `METHODS` and in `UnlearningArguments(method=)`.
        title: the name in tables and cards.
        paper: author, year and identifier.
        bibtex: the paper's entry; empty where there is no paper.
        hyperparameters: the dataclass of the method's hyper-parameters (`UnlearningArguments(method_kwargs=)`).
        converges_at_target: whether the forgetting loss ends at its minimum; the other methods are stopped at the
            target.
        raises_forget_loss: whether the forget loss is raised, rather than left to fade.
        is_iterative: whether there are optimizer steps; otherwise `on_train_begin` is all that happens.
        is_gradient_surgery: whether the method combines gradients (`combine`) rather than descending a loss.
        lora_by_default: whether `peft_config="auto"` adds an adapter.
        resets_weights: whether `on_train_begin` takes weights back to where retain samples have to be learned again.
        needs_alternative_ds: whether the trainer needs an `alternative_ds`.
        needs_original_model: whether the original model is called at every step; see `OriginalModel`.
        needs_original_losses: whether the objective needs the original's loss on every forget sample.
        needs_full_weights: whether the method needs every weight and its whole gradient: no adapter that the trainer
            adds, no sharded weights.
        needs_retain_pass: whether all retain samples are measured before the first step, which no stream allows.
        needs_retain_count: whether defaults follow the number of retain samples.
        head_kinds: the kinds of head (`Head.kind`) that are supported; empty for all.
        learning_rate: default for all weights of a small model; see `UnlearningArguments`.
        passes: over the larger dataset, of a method that lets forget samples fade; see `hf_unlearn.trainer.defaults`.
        default_retain_weight: where no `retain_weight` is given; at least 0.9 where there is no target.
        default_arguments: values of arguments of the trainer that are not given.
        trains_in_eval_mode: whether steps are taken in eval mode, without dropout.
        hp: the hyper-parameters of this instance.
        original_model: the frozen original, after `on_init_end`, of methods that need it.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    bibtex: ClassVar[str] = ""
    hyperparameters: ClassVar[type] = NoHyperparameters
    converges_at_target: ClassVar[bool] = False
    raises_forget_loss: ClassVar[bool] = True
    is_iterative: ClassVar[bool] = True
    is_gradient_surgery: ClassVar[bool] = False
    lora_by_default: ClassVar[bool] = False
    resets_weights: ClassVar[bool] = False
    needs_alternative_ds: ClassVar[bool] = False
    needs_original_model: ClassVar[bool] = False
    needs_original_losses: ClassVar[bool] = False
    needs_full_weights: ClassVar[bool] = False
    needs_retain_pass: ClassVar[bool] = False
    needs_retain_count: ClassVar[bool] = False
    head_kinds: ClassVar[tuple[str, ...]] = ()
    learning_rate: ClassVar[float] = 3e-4
    passes: ClassVar[int] = 4
    default_retain_weight: ClassVar[float] = 0.5
    default_arguments: ClassVar[Mapping[str, Any]] = {}
    trains_in_eval_mode: ClassVar[bool] = True
    hp: Any  # an instance of `hyperparameters`; subclasses declare which

    def __init__(self, settings: MethodSettings, info: RunInfo, hyperparameters: object | None = None):
        self.settings, self.info = settings, info
        if hyperparameters is None:
            hyperparameters = self.check_hyperparameters(settings.method_kwargs or {})
        self.hp = hyperparameters
        self.original_model: OriginalModel | None = None

    @classmethod
    def check_hyperparameters(cls, method_kwargs: Mapping[str, Any]) -> Any:
        """Refuse hyper-parameters that the method does not have, or values that they cannot take.

        Args:
            method_kwargs: hyper-parameter to value.

        Returns:
            An instance of `hyperparameters`.

        Raises:
            ValueError: an unknown name, or a value that is not finite or out of range; one line.
            TypeError: a value that is no number; one line.
        """
        return make_hyperparameters(cls.hyperparameters, cls.name, method_kwargs)

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
    def check_model(cls, model: PreTrainedModel | PeftModel) -> None:
        """Refuse a model that the method does not support; by default one with an adapter, where weights are reset.

        Raises:
            ValueError: one line that names the method and the model.
        """
        if cls.resets_weights and isinstance(model, PeftModel):
            raise ValueError(
                f"model: {cls.name} initialises weights themselves again, and this model has an adapter beside them; "
                "merge it (merge_and_unload)"
            )

    def check_layers(self, model: PreTrainedModel | PeftModel) -> None:
        """Refuse hyper-parameters that the layers of the model do not fit.

        Raises:
            ValueError: one line that names the hyper-parameter.
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
                f"method: {cls.name} {what}, which is not supported for weights spread over processes (FSDP, "
                f"DeepSpeed); use DDP{'' if cls.needs_full_weights else ', or give a peft_config'}"
            )

    def on_init_end(self, model: PreTrainedModel | PeftModel, added_adapter: bool) -> None:
        """Keep what is needed of the original model, before a step is taken or a checkpoint is loaded.

        Args:
            model: the original, unwrapped.
            added_adapter: whether all that trains is an adapter that the trainer added.
        """
        if self.needs_original_model:
            self.original_model = OriginalModel(model, added_adapter)

    def on_train_begin(self, calibration: CalibrationPass) -> None:
        """Measure what is needed, before the first step; not in a resumed run, which has `state_dict`."""

    def on_train_end(self) -> None:
        """Undo what `on_init_end` did to the model."""

    def on_pre_optimizer_step(self, parameters: Parameters, progress: float, scale: float) -> dict[str, float]:
        """Change `grad` of the parameters, after the backward pass of the whole step and before clipping.

        Args:
            parameters: name to trainable parameter.
            progress: share of steps done, in [0, 1].
            scale: what the gradients are multiplied with, for half precision.

        Returns:
            Metrics for the log.
        """
        return {}

    def on_optimizer_step(self, parameters: Parameters) -> None:
        """Change the parameters after the optimizer's step."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs of the method: tensors, numbers and containers of them."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""

    def objective(self, target: ForgetTarget, original: Tensor | None) -> Objective:
        """What is descended on the forget dataset.

        Args:
            target: the forgetting target of the request.
            original: losses [samples of the forget dataset] under the original model.
        """
        return target

    def retain_objective(self) -> Objective:
        """What is descended on the retain dataset: a mean over samples; the mean loss unless overridden."""
        return Objective()

    def retain_weight(self, progress: float, step: int = 0) -> float:
        """Weight of the retain loss in [0, 1].

        Args:
            progress: share of steps done, in [0, 1].
            step: number of steps done.
        """
        if self.settings.retain_weight is not None:
            return self.settings.retain_weight
        minimum = 0.0 if self.info.has_target else RETAIN_WEIGHT_WITHOUT_TARGET
        return max(self.default_retain_weight, minimum)

    def default_steps(self, forget_per_step: int) -> int | None:
        """The number of steps where none is given, of a form that is as published; None: see `trainer.defaults`.

        Args:
            forget_per_step: forget samples of a step.
        """
        return None

    def remeasures_target(self, step: int, max_steps: int, forget_per_step: int) -> bool:
        """Whether a target from unseen data is measured again before a step.

        Args:
            step: its number, from 0.
            max_steps: number of steps of the run.
            forget_per_step: forget samples of a step.
        """
        return False


class SequenceMethod(Method):
    """Base of the methods for heads that give a sequence a probability, token after token, with their own defaults.

    They have no target of their own. On TOFU (benchmarks/README.md) three times the rate costs `npo` and `ceu` more
    than 20 points of retain accuracy within five steps, and a retain weight of 0.7 costs `npo` as many.
    """

    head_kinds = ("causal_lm", "seq2seq_lm")
    learning_rate = 1e-3
    default_retain_weight = 0.9
