"""What `UnlearningTrainer` measures: signals of its sets, their metrics, and `evaluate`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import datasets
import torch
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm
from transformers import Seq2SeqTrainer
from transformers.training_args import ParallelMode

from hf_unlearn.auditing.audit import audit
from hf_unlearn.auditing.dataset_metrics import dataset_metrics, transcribe, word_error_rate
from hf_unlearn.auditing.statistics import SampleStatistics, collect_statistics
from hf_unlearn.data.splitting import subsample
from hf_unlearn.losses import Head
from hf_unlearn.methods import CalibrationPass
from hf_unlearn.per_sample import PerSampleGradients
from hf_unlearn.per_sample.bare import reached
from hf_unlearn.report.audit_report import AuditReport
from hf_unlearn.trainer.arguments import UnlearningArguments

# Samples of the retain dataset that the metrics look at: enough for half a point of accuracy.
METRIC_SAMPLES = 2000


class EvaluationMixin(Seq2SeqTrainer):
    """A `Trainer` that knows the forget, retain and unseen datasets, and measures them."""

    args: UnlearningArguments
    model: Any
    head: Head
    request: str
    forget_ds: Any
    retain_ds: Any
    unseen_ds: Any
    alternative_ds: Any

    def _collect_statistics(self, dataset: Any, description: str = "Measuring") -> SampleStatistics:
        """Per-sample signals of the model as it is now on a dataset of flat samples."""
        return collect_statistics(
            self._runner,
            self._readable(dataset),
            head=self.head,
            collator=self.data_collator if isinstance(dataset, datasets.Dataset) else self._flat_collator(),
            accelerator=self.accelerator,
            batch_size=self.args.eval_batch_size,
            description=description,
            log_probs=self.request == "class",  # the target is made of them
        )

    def _dataset_statistics(self) -> dict[str, SampleStatistics]:
        """SampleStatistics of the forget dataset, of at most 2,000 samples of the retain dataset, and of the unseen dataset where given."""
        return {
            name: self._collect_statistics(samples, f"Measuring {name} samples")
            for name, samples in self._sets().items()
        }

    def _calibration_pass(self) -> CalibrationPass:
        """What a method may look at before the first step; every process has its own samples, and none comes twice."""
        sets = {"forget": self.forget_ds, "retain": self.retain_ds, "alternative": self.alternative_ds}
        collator = self._flat_collator()

        def batches(name: str) -> Iterator[Any]:
            samples = self._readable(sets[name])
            own = range(self.accelerator.process_index, len(samples), self.accelerator.num_processes)
            share = Subset(samples, own)
            size = self.args.retain_samples if name == "retain" else self.args.per_device_train_batch_size
            loader = DataLoader(share, batch_size=size, collate_fn=collator)
            for batch in tqdm(loader, desc=f"Surveying {name} samples", delay=1.0, leave=False):
                yield self._prepare_inputs(batch)

        def losses(batch: Any) -> torch.Tensor:
            return self.head.losses(self.model(**self.head.inputs(batch)), batch)

        gradients = PerSampleGradients(self.model.eval(), losses, self.args.per_sample_engine)
        return CalibrationPass(
            gradients=gradients,
            batches=batches,
            losses=lambda name: self._collect_statistics(sets[name], f"Measuring {name} samples").losses,
            sum_over_processes=lambda tensor: self.accelerator.reduce(tensor, "sum"),
        )

    def _unused_parameters(self) -> set[str]:
        """Parameters that train and on which no loss depends (a mask token), by a forward pass of one forget sample."""
        batch = self._prepare_inputs(self._flat_collator()([self._readable(self.forget_ds)[0]]))
        trainable = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        with torch.enable_grad(), self.compute_loss_context_manager():
            losses = self.head.losses(self.model.eval()(**self.head.inputs(batch)), batch)
        return trainable.keys() - reached(losses, trainable)

    def _configure_ddp(self) -> None:
        """Tell DDP whether parameters go unused: it fails where it waits for one, warns where it looks in vain."""
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        together = self.args.parallel_mode == ParallelMode.DISTRIBUTED and not sharded
        if together and self.args.ddp_find_unused_parameters is None:
            self.accelerator.ddp_handler.find_unused_parameters = bool(self._unused_parameters())

    def unlearning_metrics(self) -> dict[str, float]:
        """Forget, retain and unseen loss and accuracy, membership inference, and word error rates of speech models."""
        return self._metrics(self._dataset_statistics())

    def audit(self, unseen_ds: Any = None, **kwargs: Any) -> AuditReport:
        """The audit of the model as it is now; see `hf_unlearn.audit`.

        Args:
            unseen_ds: samples that were never trained on and set no target. Without them `unseen_ds` is taken, and a note
                says that it set the target.
            **kwargs: `original`, `retrained`, `shadows`, `relearning`, ..., as in `hf_unlearn.audit`.
        """
        settings: dict[str, Any] = {
            "request": self.request, "data_collator": self.data_collator, "seed": self.args.seed,
            "batch_size": self.args.eval_batch_size, "training": self.state.log_history,
        }  # fmt: skip
        if self.args.predict_with_generate:
            settings["processing_class"] = self.processing_class
        sets = {
            "forget_ds": self.forget_ds,
            "retain_ds": self.retain_ds,
            "unseen_ds": self.unseen_ds if unseen_ds is None else unseen_ds,
        }
        column = kwargs.get("group_column")
        if column is not None:
            settings["data_collator"] = self._flat_collator()  # the model does not read the column
        readable: dict[str, Any] = {
            name: samples if samples is None else self._readable(samples, column) for name, samples in sets.items()
        }
        report = audit(self.model, **readable, **settings | kwargs)
        if unseen_ds is None:
            report.notes.append(
                "The unseen samples set the target of forgetting: samples that did not would say more."
            )
        return replace(report, about={"method": self.args.method, **report.about})

    def _sets(self) -> dict[str, Any]:
        sets = {"forget": self.forget_ds, "retain": subsample(self.retain_ds, METRIC_SAMPLES)}
        return sets | ({} if self.unseen_ds is None else {"unseen": self.unseen_ds})

    def _metrics(self, signals: dict[str, SampleStatistics]) -> dict[str, float]:
        classes: list[int] = []
        if self.request == "class" and signals["forget"].labels is not None:
            classes = signals["forget"].labels.unique().tolist()
        found = dataset_metrics(signals, classes)
        if self.args.predict_with_generate and self.processing_class is not None:
            for name, samples in self._sets().items():
                found[f"{name}_wer"] = word_error_rate(*zip(*self._transcripts(samples), strict=True))
        return found

    def _transcripts(self, dataset: Any) -> list[tuple[str, str]]:
        tokenizer = getattr(self.processing_class, "tokenizer", self.processing_class)
        limits = {"max_length": self.args.generation_max_length, "num_beams": self.args.generation_num_beams}
        loader = self.get_test_dataloader(dataset)
        pairs = transcribe(self.model.eval(), loader, tokenizer, {k: v for k, v in limits.items() if v is not None})
        return self.accelerator.gather_for_metrics(pairs, use_gather_object=True)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval", **kwargs
    ) -> dict[str, float]:
        """Evaluate on `eval_dataset` as `Trainer` does; without one, the unlearning metrics are added."""
        metrics: dict[str, float] = {}
        if eval_dataset is not None or self.eval_dataset:
            metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix, **kwargs)
        if eval_dataset is None:
            found = {f"{metric_key_prefix}_{name}": value for name, value in self.unlearning_metrics().items()}
            self.log(found)
            metrics.update(found)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _flat_collator(self) -> Any:
        """The collator of single samples, without the columns that the model does not read."""
        return Seq2SeqTrainer._get_collator_with_removed_columns(self, self.data_collator)

    def _readable(self, dataset: Any, also: str | None = None) -> Any:
        """Without the columns that the model does not read, but for the one that is asked for."""
        if not isinstance(dataset, datasets.Dataset):
            return dataset
        found = self._remove_unused_columns(dataset)
        if also is None or also in found.column_names or also not in dataset.column_names:
            return found
        return dataset.select_columns([*found.column_names, also])

    @property
    def _runner(self) -> Any:
        """The model for passes without gradient: the wrapped one only where its weights are sharded."""
        return self.model_wrapped if self.is_fsdp_enabled or self.is_deepspeed_enabled else self.model
