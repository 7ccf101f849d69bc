"""`UnlearningTrainer`: a `transformers.Trainer` whose loss and optimizer step make a model forget."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers import set_seed
from transformers.trainer_utils import TrainOutput, get_last_checkpoint

from hf_unlearn.data.collator import columns_read, default_collator
from hf_unlearn.data.pairing import PairCollator, PairedDataset, PairSampler
from hf_unlearn.data.splitting import request_of
from hf_unlearn.data.validation import check_alternatives, check_classes, check_datasets
from hf_unlearn.losses import head_of
from hf_unlearn.methods import METHODS, RunInfo, SurgeryMethod
from hf_unlearn.models.adapters import add_adapter
from hf_unlearn.models.eval_mode import EvalMode
from hf_unlearn.models.loading import load_model
from hf_unlearn.report.tables import print_metrics
from hf_unlearn.targets import make_target, resolve_kind, restore_target
from hf_unlearn.trainer.arguments import UnlearningArguments
from hf_unlearn.trainer.callbacks import Conductor, TargetStoppingCallback
from hf_unlearn.trainer.checkpointing import STATE_FILE
from hf_unlearn.trainer.defaults import resolve_defaults
from hf_unlearn.trainer.hub import HubMixin
from hf_unlearn.trainer.loss_step import LossStep
from hf_unlearn.trainer.surgery_step import SurgeryStep


class UnlearningTrainer(HubMixin):
    """Makes a trained model forget `forget_ds` and keep `retain_ds`.

    Everything `transformers.Trainer` accepts still works: callbacks, optimizers, compute_metrics, resume, hub
    arguments, accelerate, logging integrations.

    Args:
        model: a model of transformers, a `PeftModel`, or the name of a checkpoint.
        forget_ds: the samples to forget, ready for the model, as `Trainer` wants them.
        retain_ds: the samples to keep, or a sample of them.
        args: `hf_unlearn.UnlearningArguments`.
        unseen_ds: samples of the same kind that the model was never trained on. They set the forgetting target, and
            nothing else. For a group (a speaker, an author): samples of *other* groups, never trained on.
        alternative_ds: for `idk_dpo`: sample by sample the forget dataset, with the answer to give instead ("I don't know").
        eval_dataset: for evaluation, as in `Trainer`.
        data_collator: samples to batch; default: `hf_unlearn.data.collator.default_collator`.
        processing_class: tokenizer, image processor, feature extractor or processor.
        peft_config: `"auto"` (a LoRA adapter for methods that combine gradients, none otherwise), a `PeftConfig`, or
            None.
        per_sample_loss: `f(outputs, batch) -> [batch]` in place of the head's own loss.
        **kwargs: as in `Trainer`.

    Raises:
        ValueError: one line that names the argument, what was found and what to do.
    """

    def __init__(
        self,
        model: Any = None,
        forget_ds: Any = None,
        retain_ds: Any = None,
        args: UnlearningArguments | None = None,
        *,
        unseen_ds: Any = None,
        alternative_ds: Any = None,
        eval_dataset: Any = None,
        data_collator: Any = None,
        processing_class: Any = None,
        peft_config: Any = "auto",
        per_sample_loss: Callable | None = None,
        **kwargs: Any,
    ):
        args = copy.copy(args) if args is not None else UnlearningArguments(output_dir="unlearned")
        if not isinstance(args, UnlearningArguments):
            raise ValueError(
                f"args: expected UnlearningArguments, got {type(args).__name__}; it takes the same settings"
            )
        for name, dataset in (("forget_ds", forget_ds), ("retain_ds", retain_ds)):
            if dataset is None:
                raise ValueError(f"{name}: is missing; split_forget_retain makes both sets from the training dataset")
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError(
                "compute_loss_func: unlearning needs a loss for every sample; pass per_sample_loss instead"
            )
        self.peft_config, self.added_adapter = peft_config, False
        self.method_class = METHODS[args.method]
        model_init = kwargs.get("model_init")
        if model is None and model_init is None:
            raise ValueError("model: is missing; give a model, the name of a checkpoint, or model_init")
        # Everything is checked before the model is touched; with model_init, on a model that is then let go.
        loaded = load_model(model) if isinstance(model, str) else model
        # A compiled model is unlearned as what it was compiled from; torch_compile=True is there for the loss methods.
        loaded = getattr(loaded, "_orig_mod", loaded)
        checked = loaded if loaded is not None or model_init is None else model_init()
        self.head = head_of(checked, per_sample_loss)
        self.method_class.check_head(self.head.kind)
        self.method_class.check_model(checked)
        check_datasets(forget_ds, retain_ds, unseen_ds, columns_read(checked))
        check_alternatives(args.method, self.method_class.needs_alternative_ds, forget_ds, alternative_ds)
        self.request = args.request or request_of(forget_ds) or "samples"
        self.target_kind = resolve_kind(
            args.forget_target, request=self.request, head_kind=self.head.kind, has_unseen=unseen_ds is not None
        )
        if self.target_kind == "masked_class":
            check_classes(forget_ds, retain_ds)
        text = checked.main_input_name == "input_ids"
        self.method = self.method_class(
            args, RunInfo(len(forget_ds), len(retain_ds), text, has_target=self.target_kind != "none")
        )
        # Before the model gets its adapter: a refused model is left as it was.
        self.method_class.check_weights(adapter=self._adds_adapter(checked), sharded=False)
        # `Trainer` seeds, too, but after a fresh adapter has drawn its weights.
        set_seed(args.seed)
        checked = self._adapt(checked)
        resolve_defaults(args, self.method, self.head.kind, checked)
        optimizer_cls_and_kwargs = kwargs.pop("optimizer_cls_and_kwargs", None)
        super().__init__(
            model=None if model is None else checked,
            args=args,
            data_collator=data_collator or default_collator(checked, processing_class),
            # An empty dict rather than None: `eval_strategy="steps"` has the forget and retain metrics to show.
            eval_dataset={} if eval_dataset is None else eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self.optimizer_cls_and_kwargs = optimizer_cls_and_kwargs
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        self.method_class.check_weights(adapter=self.added_adapter, sharded=sharded)
        # Our batches carry no top-level labels, and compute_loss gives means over the step.
        self.model_accepts_loss_kwargs, self.loss_is_scaled_for_ga = False, False
        self.forget_ds, self.retain_ds, self.unseen_ds = forget_ds, retain_ds, unseen_ds
        self.alternative_ds = alternative_ds
        self.step = self._make_step(self.model)
        self.target, self.metrics_before = None, {}
        self._resume_from: str | None = None
        self._checkpointing = False
        self._eval_mode = EvalMode()
        self.add_callback(Conductor(self))
        unbounded = not self.method.converges_at_target or self.target_kind == "none"
        if unbounded if args.stop_at_target is None else args.stop_at_target:
            self.add_callback(TargetStoppingCallback(self))

    # ---- the model ----

    def _adapt(self, model: Any) -> Any:
        """The model that is trained: with a fresh adapter where the method wants one or the user asked for one."""
        own = isinstance(model, PeftModel)
        if own and self.peft_config not in ("auto", None):
            raise ValueError("peft_config: the model already has an adapter; merge it first, or leave peft_config out")
        if self._adds_adapter(model):
            model = add_adapter(model, self.peft_config)
            self.added_adapter = True
        if not any(p.requires_grad for p in model.parameters()):
            advice = "load the adapter with is_trainable=True" if own else "unfreeze some, or give a peft_config"
            raise ValueError(f"model: all parameters are frozen, nothing can be unlearned; {advice}")
        return model

    def _adds_adapter(self, model: Any) -> bool:
        wanted = self.method_class.lora_by_default if self.peft_config == "auto" else self.peft_config is not None
        return wanted and not isinstance(model, PeftModel)

    def call_model_init(self, trial: Any = None) -> Any:
        """A new model, adapted as the first one was; the per-sample gradients and the original model follow it."""
        model = self._adapt(super().call_model_init(trial))
        if hasattr(self, "step"):
            self.step = self._make_step(model)
            self._prepare_method(model)
        return model

    def _prepare_method(self, model: Any) -> None:
        self.method.on_init_end(self._placed(model), self.added_adapter)
        if self.method.original_model is not None:
            self.method.original_model.autocast = self.accelerator.autocast

    def _placed(self, model: Any) -> Any:
        """On the device where it will train."""
        return model.to(self.args.device) if self.place_model_on_device else model

    def _make_step(self, model: Any) -> LossStep:
        if isinstance(self.method, SurgeryMethod):
            engine, per_tensor = self.args.per_sample_engine, self.args.projection_scope == "tensor"
            cache = self.args.gram_cache
            return SurgeryStep(self.method, self.head, self.accelerator, model, engine, per_tensor, cache)
        return LossStep(self.method, self.head, self.accelerator)

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """None for methods that combine gradients: weight decay would undo the projection."""
        return [] if isinstance(self.method, SurgeryMethod) else super().get_decay_parameter_names(model)

    # ---- data ----

    def get_train_dataloader(self) -> DataLoader:
        """The stock loader over pairs; the pairs follow the batch size that the loader has."""
        processes = self.accelerator.num_processes
        steps = self.args.gradient_accumulation_steps * processes
        scale = self._train_batch_size / self.args.per_device_train_batch_size  # DataParallel, auto_find_batch_size
        self.pairs = self.train_dataset = PairedDataset(
            self._readable(self.forget_ds),
            self._readable(self.retain_ds),
            self._readable(self.alternative_ds),
            forget_per_step=self._train_batch_size * steps,
            retain_per_step=max(1, round(self.args.retain_samples * scale)) * steps,
            seed=self.args.data_seed if self.args.data_seed is not None else self.args.seed,
        )
        return super().get_train_dataloader()

    def _get_train_sampler(self, train_dataset: Any = None) -> PairSampler:
        self.pair_sampler = PairSampler(len(train_dataset))
        return self.pair_sampler

    def _get_collator_with_removed_columns(self, data_collator: Callable, description: str | None = None) -> Callable:
        collator = super()._get_collator_with_removed_columns(data_collator, description)
        return PairCollator(collator) if description == "Training" else collator

    # ---- the step ----

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, None]:
        """All batches of the next step, looked at before the first is used where the objective needs it."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            self._remeasure_target()
            self._eval_mode.apply(self.model)
            with self.compute_loss_context_manager():
                prepared = [self._prepare_inputs(batch) for batch in batches]
                self.step.prepare_step(self._runner, prepared, self._retain_weight())
        return batches, None

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The method's loss on a batch of pairs; on a flat batch (evaluation) the model's own, as in `Trainer`."""
        if not _is_paired(inputs):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self._eval_mode.apply(self.model)
        return self.step.loss(model, inputs, self._retain_weight())

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """A loss and its backward pass, or the gradients of a method that writes them itself."""
        if not isinstance(self.step, SurgeryStep):
            loss = super().training_step(model, inputs, num_items_in_batch)
            if self.accelerator.sync_gradients:
                log = self.method.on_pre_optimizer_step(
                    self._trainable_parameters(), self._progress(), self.step.scale
                )
                self.step.note(**log)
            return loss
        self._eval_mode.apply(self.model)
        with self.compute_loss_context_manager():
            return self.step.gradients(
                self._prepare_inputs(inputs), self._retain_weight(), last=self.accelerator.sync_gradients
            )

    def _retain_weight(self) -> float:
        return self.method.retain_weight(self._progress(), self.state.global_step)

    def _progress(self) -> float:
        return self.state.global_step / max(1, self.state.max_steps)

    def _trainable_parameters(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that train, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with forget and retain loss, target, retain weight and the method's own metrics beside the loss."""
        if "loss" in logs:
            logs = {**logs, **self.step.drain()}
            if self.target is not None and self.target.value is not None:
                logs["target"] = self.target.value
        super().log(logs, start_time)

    # ---- the run ----

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Unlearn; prints the metrics before and after. See `Trainer.train`."""
        found = get_last_checkpoint(self.args.output_dir) if resume_from_checkpoint is True else resume_from_checkpoint
        self._resume_from = found or None
        if found and not self.method.is_iterative:
            raise ValueError(f"resume_from_checkpoint: {self.args.method} takes no steps, there is nothing to resume")
        if self.model_init is None:
            # The weights of a checkpoint come later, and are not those of the original.
            self._prepare_method(self.model)
        self._configure_ddp()
        try:
            if self.method.is_iterative:
                output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
            else:
                output = self._without_steps()
        finally:
            self._eval_mode.restore()
            self.method.on_train_end()
        after = self.unlearning_metrics()
        self.log({f"final_{name}": value for name, value in after.items()})
        output.metrics.update(after)
        if self.is_world_process_zero() and not self.args.disable_tqdm:
            print_metrics({"before": self.metrics_before, "after": after}, f"{self.method.title} ({self.request})")
        return output

    def _without_steps(self) -> TrainOutput:
        self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        return TrainOutput(0, 0.0, {})

    def _begin(self) -> None:
        """Measure the original model and set the target; a resumed run goes on with the ones it had."""
        if self._resume_from is not None:
            state = torch.load(os.path.join(self._resume_from, STATE_FILE), weights_only=True)
            self.target, self.metrics_before = restore_target(state["target"]), state["metrics_before"]
            self.original_losses, self.weights_before = state["original_losses"], state["weights_before"]
            self.retain_before = state["retain_before"]
            self.method.load_state_dict(state["method"])
            self._check_original()
        else:
            self._hash_original_weights()
            self.retain_before = None
            signals = self._dataset_statistics()
            self.original_losses = signals["forget"].losses
            self.target = make_target(self.target_kind, self.args.forget_target, self.args.hinge, signals)
            self.metrics_before = self._metrics(signals)
            self.method.on_train_begin(self._calibration_pass())
        self.step.start(self.target, self.original_losses)

    def _remeasure_target(self) -> None:
        """Measure a target from unseen data again, where the method asks for it."""
        if self.target_kind not in ("mean", "distribution") or not isinstance(self.args.forget_target, str):
            return
        if self.method.remeasures_target(self.state.global_step, self.state.max_steps, self.pairs.forget_per_step):
            signals = {"unseen": self._collect_statistics(self.unseen_ds, "Measuring the target")}
            self.target = make_target(self.target_kind, self.args.forget_target, self.args.hinge, signals)
            self.step.start(self.target, self.original_losses)


def _is_paired(inputs: Any) -> bool:
    return isinstance(inputs.get("forget"), dict) and isinstance(inputs.get("retain"), dict)
