"""`UnlearningTrainer`: a `transformers.Trainer` whose loss and optimizer step make a model forget."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from accelerate.utils import send_to_device
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    set_seed,
)
from transformers.trainer_utils import TrainOutput
from transformers.training_args import ParallelMode
from typing_extensions import override

from hf_unlearn.data.collator import default_collator, readable_collator
from hf_unlearn.data.general import GeneralData
from hf_unlearn.data.pairing import PairCollator, PairedDataset, PairSampler, StreamedPairs
from hf_unlearn.data.types import AnyDataset, StreamedDataset
from hf_unlearn.hub.chain import refuse_forgotten
from hf_unlearn.hub.record import check_goes_on, given_record
from hf_unlearn.methods import SurgeryMethod
from hf_unlearn.models.adapter_checks import gradient_flags, remove_adapter
from hf_unlearn.models.adapters import adapted, wants_adapter
from hf_unlearn.models.eval_mode import EvalMode
from hf_unlearn.models.finite import check_finite_weights, check_not_offloaded
from hf_unlearn.models.loading import load_model
from hf_unlearn.models.precision import train_in_float32
from hf_unlearn.models.quantization import check_not_quantized, check_takes_adapter
from hf_unlearn.models.types import Model, ProcessingClass
from hf_unlearn.per_sample import PerSampleGradients
from hf_unlearn.per_sample.graph_parameters import reachable_parameters
from hf_unlearn.report.tables import print_metrics
from hf_unlearn.targets import Objective, make_target
from hf_unlearn.trainer.arguments import UnlearningArguments
from hf_unlearn.trainer.beginning import check_base
from hf_unlearn.trainer.callbacks import EndingCallback, StepCallback, TargetStoppingCallback, order_callbacks
from hf_unlearn.trainer.checkpointing import UnlearningState
from hf_unlearn.trainer.cost import CostCounter, warn_of_cost
from hf_unlearn.trainer.defaults import resolve_defaults
from hf_unlearn.trainer.guard import DivergenceGuard
from hf_unlearn.trainer.loss_step import LossStep, copy_weights, trainable_parameters
from hf_unlearn.trainer.memory import MemoryPrediction, warn_of_memory
from hf_unlearn.trainer.outcome import Outcome, outcome_of
from hf_unlearn.trainer.processes import check_processes, check_rules
from hf_unlearn.trainer.searching import SearchingMixin
from hf_unlearn.trainer.setup import PerSampleLoss, check_arguments, check_sharpness, resolve_setup
from hf_unlearn.trainer.smoothed_step import SmoothedStep
from hf_unlearn.trainer.surgery_step import SurgeryStep

logger = logging.getLogger(__name__)


class UnlearningTrainer(SearchingMixin):
    """Makes a trained model forget `forget_ds` and keep `retain_ds`.

    Everything `transformers.Trainer` accepts still works: callbacks, optimizers, compute_metrics, resume, hub
    arguments, accelerate, logging integrations. What is measured is in `trainer.evaluation`, what is saved in
    `trainer.checkpointing`, what is pushed in `trainer.hub`, how long a run goes in `trainer.pacing`; one optimizer
    step is in `trainer.loss_step` and, for methods that combine gradients, in `trainer.surgery_step`.

        forget_ds, retain_ds = split_forget_retain(train_ds, column="label", values=[3])
        trainer = UnlearningTrainer(model, forget_ds, retain_ds, unseen_ds=unseen_ds)
        trainer.train()
        trainer.push_to_hub("me/model-that-forgot")

    Args:
        model: a model of transformers, a `PeftModel`, or the name of a checkpoint, which trains in float32 where all
            of its weights train. A model that you have loaded keeps its dtype. A quantised one gets an adapter, and is
            dequantised when it is saved.
        forget_ds: the samples to forget, ready for the model, as `Trainer` wants them.
        retain_ds: the samples to keep, or a part of them; also a stream, a `datasets.IterableDataset` of any length.
        args: `hf_unlearn.UnlearningArguments`.
        unseen_ds: samples of the same kind that the model was never trained on. They set the forgetting target, and
            nothing else. For a group (a speaker, an author): samples of *other* groups, never trained on.
        alternative_ds: for `idk_dpo`: sample by sample the forget dataset, with the answer to give instead ("I don't
            know").
        general_ds: what the model knows beside these datasets, and should still know: a dataset ready for the model;
            for causal language models also a text file, or texts. At most 64 samples are measured before and after.
        base_model: what `model` was fine-tuned from: a model, the name of a checkpoint, or `"auto"`, the checkpoint
            that its configuration names. With `UnlearningArguments(reset=)` the weights go back towards it before the
            first step. Default: a fresh initialisation, as of a model that was trained from scratch.
        after: the record (`unlearning.json`, its path or its content) that was saved with `model`, where it has
            forgotten other samples before: the new record then follows it, and samples that an earlier request has
            forgotten are refused in the other datasets. See `continue_with`.
        eval_dataset: for evaluation, as in `Trainer`; a dict of datasets, too.
        data_collator: samples to batch; default: `hf_unlearn.data.collator.readable_collator`.
        processing_class: tokenizer, image processor, feature extractor or processor.
        peft_config: `"auto"` (a LoRA adapter for methods that combine gradients, none otherwise), a `PeftConfig`, or
            None.
        per_sample_loss: `f(outputs, batch) -> [batch]` in place of the head's own loss.
        model_init: makes the model, in place of `model`; as in `Trainer`, as are the arguments below.
        compute_loss_func: refused: unlearning needs a loss for every sample, which is `per_sample_loss`.
        compute_metrics: metrics of predictions on `eval_dataset`.
        callbacks: more callbacks.
        optimizers: an optimizer and a scheduler.
        optimizer_cls_and_kwargs: class and arguments of the optimizer.
        preprocess_logits_for_metrics: what `compute_metrics` gets of the logits.

    Attributes:
        memory: what the first step of the last run was predicted to take; None before it, and of sharded weights.

    Raises:
        ValueError: one line that names the argument, what was found and what to do.
    """

    memory: MemoryPrediction | None = None

    def __init__(
        self,
        # Model
        model: Model | str | None = None,
        # Datasets
        forget_ds: AnyDataset | None = None,
        retain_ds: AnyDataset | StreamedDataset | None = None,
        args: UnlearningArguments | None = None,
        *,
        unseen_ds: AnyDataset | None = None,
        alternative_ds: AnyDataset | None = None,
        general_ds: GeneralData | None = None,
        base_model: PreTrainedModel | str | None = None,
        after: Mapping[str, Any] | str | Path | None = None,
        eval_dataset: AnyDataset | dict[str, AnyDataset] | None = None,
        data_collator: Callable[[list[Any]], Mapping[str, Any]] | None = None,
        processing_class: ProcessingClass | None = None,
        # PEFT
        peft_config: PeftConfig | Literal["auto"] | None = "auto",
        # As in Trainer
        per_sample_loss: PerSampleLoss | None = None,
        model_init: Callable[..., PreTrainedModel] | None = None,
        compute_loss_func: None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, Any]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LRScheduler | None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None = None,
    ):
        args = UnlearningArguments() if args is None else copy.copy(args)
        # What a further request is trained with; the arguments before this one's defaults are in them.
        self._given = {
            "args": copy.copy(args), "unseen_ds": unseen_ds, "general_ds": general_ds, "base_model": base_model,
            "eval_dataset": eval_dataset, "data_collator": data_collator, "processing_class": processing_class,
            "peft_config": peft_config, "per_sample_loss": per_sample_loss, "compute_metrics": compute_metrics,
            "callbacks": callbacks, "optimizers": optimizers, "optimizer_cls_and_kwargs": optimizer_cls_and_kwargs,
            "preprocess_logits_for_metrics": preprocess_logits_for_metrics,
        }  # fmt: skip
        check_arguments(
            args, model, model_init, forget_ds, retain_ds, compute_loss_func, optimizers, optimizer_cls_and_kwargs
        )
        self.after = None if after is None else given_record(after)
        assert forget_ds is not None and retain_ds is not None
        self.peft_config, self.model_init = peft_config, model_init  # type: ignore[assignment]
        # Everything is checked before the model is touched; with model_init, on a model that is dropped afterwards.
        first_model = self._first_model(model)
        check_not_offloaded(first_model)
        if not isinstance(first_model, PeftModel):
            check_takes_adapter(first_model)
        check_finite_weights(first_model)
        if self.after is not None:
            check_goes_on(self.after, first_model)
            refuse_forgotten(self.after, {"retain_ds": retain_ds, "unseen_ds": unseen_ds})
        setup = resolve_setup(
            first_model, args, forget_ds=forget_ds, retain_ds=retain_ds, unseen_ds=unseen_ds,
            alternative_ds=alternative_ds, general_ds=general_ds, processing_class=processing_class,
            per_sample_loss=per_sample_loss,
        )  # fmt: skip
        self.method, self.target_kind = setup.method, setup.target_kind
        adds_adapter = wants_adapter(first_model, peft_config, self.method.lora_by_default)
        if not isinstance(first_model, PeftModel) and self.method.needs_full_weights:
            check_not_quantized(first_model, "model", f"cannot be trained, which {args.method} does")
        if not isinstance(first_model, PeftModel) and not adds_adapter:
            check_not_quantized(first_model, "model", "cannot be trained", "leave peft_config out, for an adapter")
        if isinstance(model, str) and not adds_adapter:
            train_in_float32(cast(PreTrainedModel, first_model), model)
        # Before the model gets its adapter: a refused model is left as it was.
        self.method.check_weights(adapter=adds_adapter, sharded=False)
        self._reset_share = args.reset_share(setup.request, base_model is not None)
        self._base = (
            check_base(first_model, base_model, args.seed, peft_config if adds_adapter else None)
            if self._reset_share
            else None
        )
        # `Trainer` seeds, too, but after a fresh adapter has drawn its weights.
        set_seed(args.seed)
        trains = gradient_flags(first_model)
        first_model = adapted(first_model, peft_config, self.method.lora_by_default)
        resolve_defaults(
            args,
            self.method,
            setup.head.kind,
            first_model,
            self._reset_share,
            is_stream=setup.retain_stream is not None,
        )
        self._eval_mode = EvalMode()
        # A loss of the user's own may read columns that the model does not.
        make_collator = readable_collator if per_sample_loss is None else default_collator
        super().__init__(
            model=None if model is None else first_model, args=args, setup=setup, added_adapter=adds_adapter,
            data_collator=data_collator or make_collator(first_model, processing_class),
            # An empty dict rather than None: `eval_strategy="steps"` has the unlearning metrics to show.
            eval_dataset={} if eval_dataset is None else eval_dataset, processing_class=processing_class,
            model_init=model_init, compute_metrics=compute_metrics, callbacks=callbacks, optimizers=optimizers,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )  # fmt: skip
        self.optimizer_cls_and_kwargs = optimizer_cls_and_kwargs  # `Seq2SeqTrainer` does not pass it on
        check_processes(
            self.accelerator, first_model, self.method, sharded=self._is_sharded, adds_adapter=adds_adapter,
            goes_back=bool(self._reset_share),
        )  # fmt: skip
        check_sharpness(args, self.method, self._is_sharded)
        if self._is_sharded and self.method.is_gradient_surgery:
            self._check_rules(first_model)
        # A batch of pairs carries no top-level labels, and compute_loss gives means over the step.
        self.model_accepts_loss_kwargs, self.loss_is_scaled_for_ga = False, False
        # The default adapter has no need of it.
        if isinstance(first_model, PeftModel) and not (adds_adapter and peft_config == "auto"):
            try:
                self._rehearse(first_model)
            except ValueError:
                if adds_adapter:
                    remove_adapter(first_model.get_base_model(), trains)
                raise
        self.guard = DivergenceGuard(self)
        self.add_callback(self.guard)
        self.add_callback(TargetStoppingCallback(self, self.guard))

    # ---- the model ----

    def _first_model(self, model: Model | str | None) -> Model:
        """The model, loaded or made by `model_init`; of a compiled one what it was compiled from."""
        loaded: Any = load_model(model) if isinstance(model, str) else model
        if loaded is None:
            loaded = Trainer.call_model_init(self)
        return getattr(loaded, "_orig_mod", loaded)  # torch_compile=True is there for the loss methods

    @override
    def call_model_init(self, trial: Any = None) -> Model:
        """A new model, adapted as the first one was; the method compares with this one from now on."""
        made: Any = super().call_model_init(trial)
        model = adapted(made, self.peft_config, self.method.lora_by_default)
        if getattr(self, "is_in_train", False):  # `Trainer.__init__` makes a model before it is complete itself
            self._init_method(model)
            self._original_weights = copy_weights(model)
        return model

    def _init_method(self, model: Any) -> None:
        """Give the method the original model, where it will train."""
        self.method.on_init_end(
            model.to(self.args.device) if self.place_model_on_device else model, self.added_adapter
        )
        if self.method.original_model is not None:
            self.method.original_model.autocast = self.accelerator.autocast

    @override
    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """None for gradient surgery: weight decay would undo the projection."""
        return [] if self.method.is_gradient_surgery else super().get_decay_parameter_names(model)

    def _check_rules(self, model: Any) -> None:
        """Refuse gradient surgery on weights that are about to be spread, where it would not be exact."""

        def losses(batch: Any) -> Tensor:
            return self.head.losses(self.head.run(model, batch), batch)

        samples = self._readable(self.forget_ds)
        batch = self._flat_collator()([samples[i] for i in range(min(2, len(samples)))])
        batch = send_to_device(batch, next(model.parameters()).device)
        check_rules(self.method, PerSampleGradients(model.eval(), losses, "hooks"), batch)

    # ---- data ----

    @override
    def get_train_dataloader(self) -> DataLoader:
        """The stock loader over pairs; the pairs follow the batch size that the loader has."""
        batches = self.args.gradient_accumulation_steps * self.accelerator.num_processes
        scale = self._train_batch_size / self.args.per_device_train_batch_size  # DataParallel, auto_find_batch_size
        forget_ds, alternative_ds = self._readable(self.forget_ds), self._readable(self.alternative_ds)
        settings: dict[str, int] = {
            "forget_per_step": self._train_batch_size * batches,
            "retain_per_step": max(1, round(self.args.effective_retain_batch_size * scale)) * batches,
            "seed": self.args.data_seed if self.args.data_seed is not None else self.args.seed,
        }
        if self.retain_stream is None:
            self._pairs = PairedDataset(forget_ds, self._readable(self.retain_ds), alternative_ds, **settings)
        else:
            settings |= {"steps": max(1, self.args.max_steps), "readers": self._stream_readers}
            self._pairs = StreamedPairs(forget_ds, self.retain_stream, alternative_ds, **settings)
        self.train_dataset = self._pairs
        return super().get_train_dataloader()

    @override
    def _get_train_sampler(self, train_dataset: Any = None) -> PairSampler:
        return PairSampler(len(train_dataset), lambda: int((self.state.epoch or 0.0) + 1e-6))

    @override
    def _get_collator_with_removed_columns(self, data_collator: Callable, description: str | None = None) -> Callable:
        collator = super()._get_collator_with_removed_columns(data_collator, description)
        return PairCollator(collator) if description == "Training" else collator

    # ---- the step ----

    @override
    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, None]:
        """All batches of the next step, looked at before the first is used where the objective needs it."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if isinstance(self._pairs, StreamedPairs):
            self._pairs.remember(batch.pop("stream") for batch in batches)
        if batches:
            self._remeasure_target()
            self._set_mode()
            with self.compute_loss_context_manager():
                on_device = [self._prepare_inputs(batch) for batch in batches]
                if self.memory is None and not self._is_sharded:
                    self.memory = self._predict_memory(on_device[0], len(on_device))
                self.step.prepare_step(self._forward_model, on_device, self._retain_weight())
        return batches, None

    @override
    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The method's loss on a batch of pairs; on a flat batch (evaluation) the model's own, as in `Trainer`."""
        if not _is_paired(inputs):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self._set_mode()
        return self.step.loss(model, inputs, self._retain_weight(), is_last=self.accelerator.sync_gradients)

    @override
    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """As `Trainer`'s; when the step's gradient is whole, the method may change it, and the guard looks at it."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.guard.add_loss(loss)
        if self.accelerator.sync_gradients:
            parameters = trainable_parameters(self.model)
            self.step.record(**self.method.on_pre_optimizer_step(parameters, self._progress(), self.step.loss_scale))
            self.guard.check_step(parameters, self.step.retain_losses, self.state.global_step)
            self._observe_step()
        return loss

    def _predict_memory(self, inputs: Any, num_batches: int) -> MemoryPrediction:
        """What the first step will take, said before it is taken; all processes call it."""
        self.step.num_batches = num_batches
        # Of weights that train the audit has the original ones, and the guard the last good ones.
        copies = 2 + (self.method.original_model is not None and not self.added_adapter)
        prediction = self.step.predict_memory(self.model, inputs, self.optimizer, copies)
        if self.is_world_process_zero():
            logger.info(prediction.sentence)
            warn_of_memory(prediction, self.args.device)
        return prediction

    def _set_mode(self) -> None:
        if self.method.trains_in_eval_mode:
            self._eval_mode.apply(self.model)
        else:
            self.model.train()

    def _retain_weight(self) -> float:
        return self.method.retain_weight(self._progress(), self.state.global_step)

    def _progress(self) -> float:
        """The share of the run that is done, in [0, 1]."""
        return self.state.global_step / max(1, self.state.max_steps)

    @override
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with forget and retain loss, target, retain weight and the method's own metrics beside the loss."""
        if "loss" in logs and self.is_in_train:
            logs = {**logs, **self.step.pop_log()}
            if self.target is not None and self.target.value is not None:
                logs["target"] = self.target.value
        super().log(logs, start_time)

    # ---- the run ----

    @override
    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Unlearn; prints the metrics before and after, and how the run ended. See `Trainer.train`.

        The metrics that it returns say how the run ended, too: `target_reached`, `forget_loss_above_target`,
        `diverged` and, as `<name>_before`, those of the original model; see `trainer.outcome`.

        Raises:
            ValueError: samples without a finite loss, before the first step or, of retain samples that are not
                measured before, at the step; one line. No weights of that step are left in the model.
            RuntimeError: the run has diverged, and its weights are spread over processes.
        """
        if resume_from_checkpoint and not self.method.is_iterative:
            raise ValueError(f"resume_from_checkpoint: {self.args.method} takes no steps, there is nothing to resume")
        self._read_hyperparameters()
        self.pace, self._has_begun, self.memory = None, False, None
        checkpoint = self._resolve_checkpoint(resume_from_checkpoint)
        self.cost = CostCounter()
        try:
            if self.model_init is None:
                # The weights of a checkpoint come later, and are not those of the original.
                self._init_method(self.model)
                if not self._is_sharded:  # those are not in their place yet
                    self._keep_original_weights()
            output = super().train(checkpoint, trial, ignore_keys_for_eval)
        finally:
            self._eval_mode.restore()
            self.method.on_train_end()
        self._warn_of_skipped()
        outcome = cast(Outcome, self.outcome)
        output.metrics.update({**outcome.after, **outcome.metrics()})
        if self.is_world_process_zero() and not self.args.disable_tqdm:
            print_metrics({"before": outcome.before, "after": outcome.after}, f"{self.method.title} ({self.request})")
            print(outcome.sentence)
        return output

    def _end_run(self) -> None:
        """Measure the model that the run leaves, and log it as part of the run."""
        self.outcome = outcome = self._judge_ending()
        metrics = {**outcome.after, **outcome.metrics()}
        self.log({f"final_{name}": value for name, value in metrics.items() if not name.endswith("_before")})

    def _judge_ending(self) -> Outcome:
        """How the run ended, by the metrics of the model that it leaves; a destroyed one is not left."""
        steps, before = self.state.global_step, self.unlearning_state.metrics_before
        drawn = {name: draw.after for name, draw in self._draws.items()}
        statistics = self._dataset_statistics(drawn)
        metrics = self._metrics_of(statistics)
        if self.guard.reason is None and not self.guard.accepts(metrics):
            self.guard.put_back(steps)
            statistics = self._dataset_statistics(drawn)
            metrics = self._metrics_of(statistics)
        return outcome_of(
            target=self.unlearning_state.target, request=self.request, steps=steps,
            is_iterative=self.method.is_iterative, before=before, after=metrics,
            forget_losses=statistics["forget"].losses, reason=self.guard.reason, cost=self._run_cost(),
        )  # fmt: skip

    def _warn_of_skipped(self) -> None:
        """Say how many samples to forget came along in the retain stream; all processes call it."""
        self._stream_states()
        if isinstance(self._pairs, StreamedPairs) and self._pairs.skipped and self.is_world_process_zero():
            logger.warning(
                f"retain_ds: samples to forget came along in the stream {self._pairs.skipped} times, and were not "
                "trained on; a model that is trained on the stream again would learn them"
            )

    def _warn_of_cost(self) -> None:
        """Before the first step: say so where the run would cost more than retraining, by what is planned."""
        pairs = self._pairs
        last_step = self._pace.planned_steps if self._pace.stops else self.state.max_steps
        last_step = min(last_step, self.state.max_steps)
        weights = (self.method.retain_weight(step / last_step, step) for step in range(last_step))
        batches = self.args.gradient_accumulation_steps
        steps = self.step.planned_passes(weights, pairs.forget_per_step, pairs.retain_per_step, batches)
        warn_of_cost(self._run_cost(), steps)

    def _read_hyperparameters(self) -> None:
        """Those of the arguments, which may be others than when the trainer was made."""
        self.method.hp = self.args.hyperparameters

    @override
    def _prepare_for_training(self, max_steps: int, train_dataloader: DataLoader, resume_from_checkpoint: Any) -> Any:
        """Once model and optimizer are in place: what is known of the original model, and the step made of it."""
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        self._read_hyperparameters()  # a search over them has set the arguments
        self.guard.begin(self.state.global_step)
        if resume_from_checkpoint is None:
            if self._is_sharded and self.model_init is None:
                self._keep_original_weights()
            self._unlearning_state = self._measure_original()
        else:
            self._unlearning_state = UnlearningState.load(resume_from_checkpoint)
            self.cost.resume(self._unlearning_state.cost, self.accelerator)
            self._draws = self._draw_samples()
            if isinstance(self._pairs, StreamedPairs):
                self._pairs.remember(self._unlearning_state.stream.items())
            self.method.load_state_dict(self._unlearning_state.method)
            self._check_original()
        self.step = self._make_step()
        state = self.unlearning_state
        if state.retain_after_reset is not None and not self._is_sharded:
            self.guard.fall_back_to(self._original_weights)
        self.step.latest_scores, self.step.score_ages = state.latest_scores, state.score_ages
        self.pace = self._make_pace(max_steps)
        if not self.state.global_step:  # the schedule was made before the pace
            self._set_rate()
        if not self.state.global_step:
            self._warn_of_cost()
        order_callbacks(
            self.callback_handler.callbacks, StepCallback(self.step, self.method), EndingCallback(self._end_run)
        )
        return prepared

    def _make_step(self) -> LossStep:
        objective = self._objective()
        if self.args.sharpness_radius:
            return SmoothedStep(
                self.method, self.head, self.accelerator, objective, self.cost,
                model=self.model, radius=self.args.sharpness_radius,
            )  # fmt: skip
        if not self.method.is_gradient_surgery:
            return LossStep(self.method, self.head, self.accelerator, objective, self.cost)
        return SurgeryStep(
            cast(SurgeryMethod, self.method),
            self.head,
            self.accelerator,
            objective,
            self.cost,
            model=self.model,
            engine=self.args.per_sample_engine,
            per_tensor=self.args.projection_scope == "tensor",
            cache=self.args.gram_cache,
        )

    def _objective(self) -> Objective:
        state = self.unlearning_state
        return self.method.objective(state.target, state.original_losses)

    def _remeasure_target(self) -> None:
        """Measure a target from unseen data again, where the method asks for it."""
        if self.target_kind not in ("mean", "distribution") or not isinstance(self.args.forget_target, str):
            return
        if self.method.remeasures_target(self.state.global_step, self.state.max_steps, self._pairs.forget_per_step):
            unseen_ds: Any = self.unseen_ds  # there is one, or the target would be another
            statistics = {"unseen": self._collect_statistics(unseen_ds, "Measuring the target")}
            target = make_target(self.target_kind, self.args.forget_target, self.args.hinge, statistics)
            self.unlearning_state.target = self._pace.target = target
            self.step.objective = self._objective()

    @override
    def _hp_search_setup(self, trial: Any) -> None:
        """As `Trainer`'s, which makes the accelerator of a trial: once the run has its model."""
        super()._hp_search_setup(trial)
        self._configure_ddp()

    def _configure_ddp(self) -> None:
        """Tell DDP whether parameters go unused: it fails where it waits for one, warns where it looks in vain."""
        is_ddp = self.args.parallel_mode == ParallelMode.DISTRIBUTED and not self._is_sharded
        if is_ddp and self.args.ddp_find_unused_parameters is None:
            self.accelerator.ddp_handler.find_unused_parameters = bool(self._unused_parameters())

    def _unused_parameters(self) -> set[str]:
        """Parameters that train and on which no loss depends (a mask token), by a forward pass of one sample."""
        batch = self._prepare_inputs(self._flat_collator()([self._readable(self.forget_ds)[0]]))
        parameters = trainable_parameters(self.model)
        with torch.enable_grad(), self.compute_loss_context_manager():
            losses = self.head.losses(self.head.run(self.model.eval(), batch), batch)
        return parameters.keys() - reachable_parameters(losses, parameters)


def _is_paired(inputs: Any) -> bool:
    # BatchEncoding and BatchFeature, which collators of transformers give, are no dicts.
    return isinstance(inputs.get("forget"), Mapping) and isinstance(inputs.get("retain"), Mapping)
