"""Every setting, in one place, validated before any work is done."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Set
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import torch
import yaml
from transformers import Seq2SeqTrainingArguments
from transformers.trainer_utils import HubStrategy, SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames
from typing_extensions import override

from hf_unlearn.data.types import RequestKind
from hf_unlearn.losses.head import PROFILE_SIZE
from hf_unlearn.methods import METHODS
from hf_unlearn.names import did_you_mean
from hf_unlearn.targets import FORGET_TARGETS, Hinge

BATCH_SIZE = 64
# Not given: the method's own (`Method.default_arguments`), or else that of `DEFAULTS`.
METHODS_OWN: Any = None
DEFAULTS = {
    "forgetting_loss": "nabla_tau", "projection_scope": "global", "forget_target": "auto", "hinge": "squared",
    "lr_scheduler_type": "constant",
    **{
        name: Seq2SeqTrainingArguments.__dataclass_fields__[name].default
        for name in ("optim", "adam_beta1", "max_grad_norm")
    },
}  # fmt: skip
OUTPUT_DIR = "unlearned"
# How far a model that was trained from scratch goes back to be deep (benchmarks/README.md, "Depth").
DEEP_RESET = 0.5


def _hyperparameters_help() -> str:
    """The hyper-parameters of every method that has some, with their defaults."""
    defaults = {name: asdict(method.check_hyperparameters({})) for name, method in METHODS.items()}
    return "; ".join(
        f"{name} {', '.join(f'{key}={value:g}' for key, value in values.items())}"
        for name, values in defaults.items()
        if values
    )


@dataclass
class UnlearningArguments(Seq2SeqTrainingArguments):
    """The arguments of `hf_unlearn.UnlearningTrainer`: those of `TrainingArguments`, and what unlearning adds.

    > Parameters that control the method

    Args:
        method: a name in `hf_unlearn.methods.METHODS`: `"nabla_tau"` (default), `"orthograd"`, `"grad_diff"`, ...;
            the method catalogue of the documentation lists them all.
        method_kwargs: hyper-parameters of the method by name, as a dict, or as JSON or YAML text on the command line:
            `{"beta": 0.2}`. Default: the method's own values.
        forgetting_loss: for gradient surgery: which loss makes the forget gradient; `"nabla_tau"` (default),
            `"grad_ascent"` (as OrthoGrad's paper), `"grad_diff"`.
        retain_weight: weight of the retain loss in [0, 1], the forgetting loss gets the rest. Default: the method's.
        retain_batch_size: retain samples a device in every batch; default: `per_device_train_batch_size`, which counts
            the forget samples, where that is given.
        sharpness_radius: rho of smoothed forgetting: the forget gradient is taken at the weights moved by this length
            along it, see `hf_unlearn.trainer.smoothed_step` (Fan et al. 2025, arXiv 2502.05374; their code has 0.01).
            Default: 0, at the weights themselves. For methods that descend a loss; forget samples count twice.
        projection: of OrthoGrad: `"gradient"` (the paper's): the forget gradient is projected; `"update"`: the
            optimizer's step is corrected, so that no retain sample's loss rises to first order.
        projection_scope: `"global"` (default, the paper's): one span of retain gradients over all tensors; `"tensor"`:
            one for each tensor, which protects more.

    > Parameters that control the target

    Args:
        request: `"samples"`, `"class"` or `"group"`; default: what `split_forget_retain` left on the datasets, else
            `"samples"`.
        forget_target: `"auto"` (default: follows the request), `"distribution"`, `"masked_class"`, `"mean"` (of the
            unseen losses), `"none"`, a number (tau), or a list of losses of samples never trained on (of samples of
            many tokens: their token-loss profiles, see `hf_unlearn.losses.Head.token_loss_profiles`).
        hinge: `"squared"` (default), `"linear"` or `"two_sided"`, with `forget_target="mean"` or a number.
        stop_at_target: stop when the forget losses of the last steps are at the target, and for methods that would end
            by themselves the retain loss is back. Default: where no number of steps is given, and always for methods
            that would not end by themselves.

    > Parameters that control how deep is forgotten

    Args:
        reset: how far the weights go back before the first step, towards weights that never saw the data (the
            trainer's `base_model`, or a fresh initialisation): a share in [0, 1], of which 0 is none and 1 is training
            again. Default: `"auto"`, as far as `depth` says. Where it is given, 0 too, it wins.
        depth: `"retrained"`: aim at the depth of a retrained model, at a higher price: 80 steps at the method's full
            rate, and half of the way back where samples or groups are forgotten and there is no `base_model`. Default:
            None, a run as short as losses allow.

    > Parameters that say what training cost

    Args:
        training_passes: passes over the training dataset that training the model took (epochs), for the run's cost
            beside that of retraining, on as many samples as `retain_ds` has. Default: read from `trainer_state.json`,
            where the model was loaded from a folder of `Trainer`.
        retain_samples: how many samples a `retain_ds` has that is a stream. Default: not known, nor is the cost of
            retraining.

    > Parameters that control the gradient engine

    Args:
        per_sample_engine: `"auto"` (hooks where every trainable layer has a rule, else the loop, with a warning),
            `"hooks"`, or `"loop"`.
        gram_cache: what happens to the recorded retain samples of a step: `"keep"` them until its end, `"recompute"`
            (run them again, in chunks: slower, in less memory), or `"auto"` (by the free memory, said in the log).

    > Defaults that differ from `TrainingArguments`

    Forms that are as published (`nabla_tau_images`, `nabla_tau_text`, `orthograd_adam`) have their own; see
    `Method.default_arguments`. All others:

    `learning_rate` (the method's own, calibrated in the first steps where there is a target), `max_steps` (until the
    target is reached, 2.5 times the planned sixteen steps or one pass over the forget dataset at most; one of
    `num_train_epochs` is one pass over the larger dataset, with a stream of unknown length over the forget dataset),
    `per_device_train_batch_size` and `retain_batch_size` (32, with heads that score a sample on many tokens 16, but no
    more than a quarter of the forget dataset or 4; with a DeepSpeed config among the arguments always 64),
    `per_device_eval_batch_size` (64; of language models, fewer are measured together where their logits would take
    more than 256 MiB), `adam_beta1` (0.6 with ∇τ and with gradient surgery),
    `lr_scheduler_type` (held, then falling to a tenth at the target; see `hf_unlearn.trainer.pace`),
    `output_dir` ("unlearned"; where it has the files of another run "unlearned-2", and so on),
    `logging_steps` (10), `save_strategy` ("no", "steps" where `save_steps` is given), `logging_nan_inf_filter` (False:
    divergence must show),
    `ddp_find_unused_parameters` (by a forward pass of one sample: whether the model has parameters without use),
    `metric_for_best_model` with `load_best_model_at_end` ("target_distance": the distance of the mean forget loss to
    the target plus the rise of the retain loss; `Trainer`'s, the loss, is best where least is forgotten),
    `hub_strategy` ("end", the only one: with `push_to_hub=True` the model is pushed when `save_model()` is called,
    private unless `hub_private_repo=False`, and no checkpoint ever is).

    Raises:
        ValueError: one line that names the argument, what was found and what to do.
    """

    method: str = field(default="nabla_tau", metadata={"help": f"Unlearning method, one of {sorted(METHODS)}."})
    method_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": f"Hyper-parameters of the method, as JSON or YAML: {_hyperparameters_help()}."}
    )
    forgetting_loss: Literal["nabla_tau", "grad_ascent", "grad_diff"] = field(
        default=METHODS_OWN, metadata={"help": "Loss whose gradient a surgery method combines with others."}
    )
    retain_weight: float | None = field(default=None, metadata={"help": "Weight of the retain loss in [0, 1]."})
    retain_batch_size: int | None = field(default=None, metadata={"help": "Retain samples per device and batch."})
    sharpness_radius: float = field(default=0.0, metadata={"help": "Radius of sharpness-aware forgetting."})
    projection: Literal["gradient", "update"] = field(default="gradient", metadata={"help": "What is projected."})
    projection_scope: Literal["global", "tensor"] = field(
        default=METHODS_OWN, metadata={"help": "Span of the projection."}
    )
    request: RequestKind | None = field(default=None, metadata={"help": "Kind of forget request."})
    # HfArgumentParser takes the second type of a union with None: the command line gives text.
    forget_target: float | str | list[float] | list[list[float]] | None = field(
        default=METHODS_OWN, metadata={"help": f"One of {FORGET_TARGETS}, or a number."}
    )
    hinge: Hinge = field(default=METHODS_OWN, metadata={"help": "Hinge of the mean target."})
    stop_at_target: bool | None = field(default=None, metadata={"help": "Stop when the target is reached."})
    reset: float | str | None = field(
        default="auto", metadata={"help": "Share of the way back before the first step."}
    )
    depth: Literal["retrained"] | None = field(default=None, metadata={"help": "How deep is forgotten."})
    training_passes: float | None = field(
        default=None, metadata={"help": "Epochs that training the model took; default: from its trainer_state.json."}
    )
    retain_samples: int | None = field(
        default=None, metadata={"help": "Samples of a retain dataset that is a stream; default: not known."}
    )
    per_sample_engine: Literal["auto", "hooks", "loop"] = field(default="auto", metadata={"help": "Gradient engine."})
    gram_cache: Literal["auto", "keep", "recompute"] = field(
        default="auto", metadata={"help": "What happens to recorded retain samples."}
    )

    learning_rate: float | None = field(default=None, metadata={"help": "Default: the method's own."})  # type: ignore[assignment]
    num_train_epochs: float | None = field(default=None, metadata={"help": "Passes over the larger dataset."})  # type: ignore[assignment]
    per_device_train_batch_size: int = field(default=None, metadata={"help": "Forget samples a device."})  # type: ignore[assignment]
    per_device_eval_batch_size: int = field(default=None, metadata={"help": "Samples per device when measuring."})  # type: ignore[assignment]
    lr_scheduler_type: SchedulerType | str = field(default=METHODS_OWN, metadata={"help": "Learning rate schedule."})
    optim: OptimizerNames | str = field(default=METHODS_OWN, metadata={"help": "Optimizer."})
    adam_beta1: float = field(default=METHODS_OWN, metadata={"help": "Share of the gradients before in Adam's step."})
    max_grad_norm: float = field(default=METHODS_OWN, metadata={"help": "Norm to clip gradients to."})
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps."})
    save_strategy: SaveStrategy | str = field(  # type: ignore[assignment]
        default=None, metadata={"help": "When to save checkpoints: no, or steps where save_steps is given."}
    )
    save_steps: float = field(default=None, metadata={"help": "Save every so many steps."})  # type: ignore[assignment]
    hub_strategy: HubStrategy | str = field(default="end", metadata={"help": "Only end: push when saving the model."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide NaN losses from the log."})

    @override
    def __post_init__(self):
        self._check_types()
        self._check_method()
        self._resolve_unset()
        super().__post_init__()
        self.forget_target = _parse_target(self.forget_target)
        self.reset = _parse_share(self.reset)
        self._check_values()
        self._check_combinations()

    def _resolve_unset(self) -> None:
        """Defaults that `TrainingArguments` needs at once; the trainer fits them to method, model and data."""
        defaults = {**DEFAULTS, **METHODS[self.method].default_arguments}
        # Then the rate follows the run, see `hf_unlearn.trainer.pace`.
        self.has_default_schedule = (
            self.lr_scheduler_type is None and "lr_scheduler_type" not in METHODS[self.method].default_arguments
        )
        # The trainer sets them, where neither rate nor schedule is given: the rate is chosen, and follows the losses.
        self.chooses_learning_rate = self.calibrates_learning_rate = False
        for name, value in defaults.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        self.has_default_output_dir = self.output_dir is None
        if self.output_dir is None:
            self.output_dir = OUTPUT_DIR
        self.has_default_steps = self.max_steps <= 0 and self.num_train_epochs is None
        # Forget and retain samples of a batch that nobody has asked for.
        self.default_batch_sizes: tuple[int, int] | None = None
        if self.per_device_train_batch_size is None:
            self.default_batch_sizes = (BATCH_SIZE, BATCH_SIZE)
            self.per_device_train_batch_size = BATCH_SIZE
        self._leaves_eval_batch_size = self.per_device_eval_batch_size is None
        if self.per_device_eval_batch_size is None:
            self.per_device_eval_batch_size = BATCH_SIZE
        if self.num_train_epochs is None:
            self.num_train_epochs = 3.0  # unused: max_steps overrides it, which the trainer sets by the data
        if str(getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type)) == "cosine_with_min_lr":
            self.lr_scheduler_kwargs = self.lr_scheduler_kwargs or {"min_lr_rate": 0.1}
        if self.save_strategy is None:
            self.save_strategy = "no" if self.save_steps is None else "steps"
        if self.save_steps is None:
            self.save_steps = 500  # `Trainer`'s
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model = "target_distance"  # `Trainer`'s, the loss, is best where least is forgotten
        metric = (self.metric_for_best_model or "").removeprefix("eval_")
        if metric in ("gap", "target_distance") and self.greater_is_better is None:
            self.greater_is_better = False  # Trainer takes everything that is not called a loss for a score

    def _check_types(self) -> None:
        for name, (number_type, low) in NUMBERS.items():
            value = getattr(self, name)
            if value is None:
                continue
            is_number = isinstance(value, Integral if number_type is int else Real) and not isinstance(value, bool)
            if not is_number:
                what = "a whole number" if number_type is int else "a number"
                raise TypeError(f"{name}: must be {what}, got {value!r}; give it without quotes (1.0e-4 in YAML)")
            if low is not None and value < low:  # nan is refused below, as not finite
                raise ValueError(f"{name}: must be at least {low}, got {value}")
        if self.stop_at_target is not None and not isinstance(self.stop_at_target, bool):
            raise TypeError(f"stop_at_target: must be True, False or None, got {self.stop_at_target!r}")

    def _check_method(self) -> None:
        if self.method not in METHODS:
            suggestion = did_you_mean(self.method, METHODS)
            raise ValueError(f"method: unknown value {self.method!r}, use one of {sorted(METHODS)}{suggestion}")
        if self.deepspeed and METHODS[self.method].is_gradient_surgery:
            raise ValueError(
                f"deepspeed: {self.method} writes the gradients itself, which ZeRO does not allow; use DDP or FSDP2, "
                "or a method that descends a loss"
            )
        self.method_kwargs = _parse_method_kwargs(self.method_kwargs)
        _ = self.hyperparameters  # refuses what the method does not have

    def _check_values(self) -> None:
        for name, value in vars(self).items():
            # An infinite max_grad_norm measures the norm and clips nothing.
            if isinstance(value, float) and not (math.isfinite(value) or (name == "max_grad_norm" and value > 0)):
                raise ValueError(f"{name}: must be a finite number, got {value}")
        if isinstance(self.forget_target, list) and not np.isfinite(self.forget_target).all():
            raise ValueError("forget_target: holds nan or infinity; give finite losses")
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                names = sorted(choice for choice in choices if choice is not None)
                raise ValueError(f"{name}: unknown value {value!r}, use one of {names}{did_you_mean(value, names)}")
        if isinstance(self.forget_target, str) and self.forget_target not in FORGET_TARGETS:
            raise ValueError(
                f"forget_target: unknown value {self.forget_target!r}, use one of {sorted(FORGET_TARGETS)}"
                f"{did_you_mean(self.forget_target, FORGET_TARGETS)}"
            )
        if self.retain_weight is not None and not 0 <= self.retain_weight <= 1:
            raise ValueError(f"retain_weight: must lie in [0, 1], got {self.retain_weight}")
        if self.training_passes is not None and self.training_passes <= 0:
            raise ValueError(f"training_passes: must be above 0, got {self.training_passes}; leave it out if unknown")

    def _check_combinations(self) -> None:
        if self.label_smoothing_factor:
            raise ValueError(
                "label_smoothing_factor: must be 0 while unlearning, got "
                f"{self.label_smoothing_factor}; smoothed losses cannot be compared with the target"
            )
        # Older releases of transformers say gradient_checkpointing.
        kwargs = getattr(self, "activation_checkpointing_kwargs", None) or self.gradient_checkpointing_kwargs
        if METHODS[self.method].is_gradient_surgery and isinstance(kwargs, Mapping) and kwargs.get("use_reentrant"):
            raise ValueError(
                f"activation_checkpointing_kwargs: use_reentrant=True hides the layers from {self.method}, which "
                "needs the gradient of every sample; use use_reentrant=False"
            )
        if self.push_to_hub and self.hub_strategy != HubStrategy.END:
            raise ValueError(
                f'hub_strategy: must be "end", got {str(HubStrategy(self.hub_strategy).value)!r}, which uploads '
                "checkpoints that still hold the data"
            )

    def take_as_given(self, names: Set[str]) -> None:
        """Check settings that were set since these arguments were made, and let no default stand in for them.

        A trainer that was left rate, schedule or number of steps chooses them by the losses of its run.

        Args:
            names: what was set.

        Raises:
            ValueError: a value is not valid; one line.
            TypeError: a value is of a wrong type; one line.
        """
        self._check_types()
        self._check_method()
        self._check_values()
        self._check_combinations()
        if "lr_scheduler_type" in names:
            self.has_default_schedule = False
        if names & {"learning_rate", "lr_scheduler_type"}:
            self.chooses_learning_rate = self.calibrates_learning_rate = False
        if names & {"max_steps", "num_train_epochs"}:
            self.has_default_steps = False
        if "num_train_epochs" in names and "max_steps" not in names:
            self.max_steps = -1

    @property
    def hyperparameters(self) -> Any:
        """An instance of the method's `Method.hyperparameters`: `method_kwargs` over the defaults."""
        return METHODS[self.method].check_hyperparameters(_parse_method_kwargs(self.method_kwargs) or {})

    @property
    def is_deep(self) -> bool:
        """Whether more than losses is aimed at: the weights go back, or the depth of a retrained model."""
        return self.depth == "retrained" or self.reset not in ("auto", 0.0)

    def reset_share(self, request: RequestKind, has_base_model: bool) -> float:
        """The share in [0, 1] of the way that the weights go back before the first step.

        A class is as deep without; towards what a model was fine-tuned from it did not pay (benchmarks/README.md).

        Args:
            request: what is forgotten.
            has_base_model: whether it is known what the model was fine-tuned from.
        """
        if isinstance(self.reset, float):
            return self.reset
        gains = self.depth == "retrained" and request != "class" and not has_base_model
        return DEEP_RESET if gains else 0.0

    @property
    def has_default_batch_size(self) -> bool:
        """Whether the batch size is still the default: one may be set later, too."""
        sizes = self.default_batch_sizes
        return sizes is not None and self.per_device_train_batch_size == sizes[0]

    @property
    def measuring_batch_size(self) -> int | None:
        """Samples that a device measures together; None where nobody has said how many."""
        is_default = self._leaves_eval_batch_size and self.per_device_eval_batch_size == BATCH_SIZE
        return None if is_default else self.eval_batch_size

    @property
    def effective_retain_batch_size(self) -> int:
        """Retain samples a device in every batch."""
        if self.retain_batch_size is not None:
            return self.retain_batch_size
        if self.default_batch_sizes is not None and self.has_default_batch_size:
            return self.default_batch_sizes[1]
        return self.per_device_train_batch_size


def _choices() -> dict[str, tuple[str | None, ...]]:
    """The values of every setting that is annotated with a Literal."""
    hints = get_type_hints(UnlearningArguments)
    choices: dict[str, tuple[str | None, ...]] = {}
    for name in UnlearningArguments.__annotations__:
        members = (hints[name], *get_args(hints[name]))
        if literal := next((member for member in members if get_origin(member) is Literal), None):
            choices[name] = get_args(literal) + ((None,) if type(None) in members else ())
    return choices


CHOICES = _choices()
# Settings that are numbers: their type, and the least that makes sense; below it, a default or an error far away.
NUMBERS: dict[str, tuple[type, int | None]] = {
    "retain_weight": (float, None),
    "retain_batch_size": (int, 1),
    "sharpness_radius": (float, 0),
    "training_passes": (float, None),
    "retain_samples": (int, 1),
    "learning_rate": (float, 0),
    "weight_decay": (float, 0),
    "max_steps": (int, -1),
    "num_train_epochs": (float, 0),
    "per_device_train_batch_size": (int, 1),
    "per_device_eval_batch_size": (int, 1),
    "gradient_accumulation_steps": (int, 1),
    "seed": (int, 0),
}


def _parse_method_kwargs(value: Any) -> dict[str, Any] | None:
    """Hyper-parameters by name; text, from the command line, as JSON or YAML."""
    if isinstance(value, str):
        try:
            value = _parse_text(value)
        except yaml.YAMLError as error:
            raise ValueError(
                f'method_kwargs: {value!r} is neither JSON nor YAML; write it as {{"beta": 0.1}}'
            ) from error
    if value is not None and not (isinstance(value, Mapping) and all(isinstance(name, str) for name in value)):
        raise TypeError(
            f"method_kwargs: expected names and values, got {value!r}; give a dict such as {{'beta': 0.1}}"
        )
    return None if value is None else dict(value)


def _parse_text(text: str) -> Any:
    with suppress(json.JSONDecodeError):
        return json.loads(text)  # first: to YAML, 1e-4 is a text
    return yaml.safe_load(text)


def _parse_share(value: Any) -> float | str:
    """A share, also as a string, from the command line; or "auto"."""
    if value is None or value == "auto":
        return "auto"
    try:
        share = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError) as error:
        raise ValueError(f'reset: must be "auto" or a share in [0, 1], got {value!r}') from error
    if not 0 <= share <= 1:
        raise ValueError(f'reset: must be "auto" or a share in [0, 1], got {value!r}')
    return share


def _parse_target(value: Any) -> Any:
    """A name, a number (also as a string, from the command line), a list of losses or of token-loss profiles."""
    if value is None:
        return "auto"
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
            f"forget_target: a sample of losses has shape [samples], one of token-loss profiles [samples, "
            f"{PROFILE_SIZE}], got {list(losses.shape)}"
        )
    return losses.tolist()
