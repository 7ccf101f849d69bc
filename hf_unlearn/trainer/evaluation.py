"""What `UnlearningTrainer` measures: the statistics and metrics of its datasets, `evaluate`, `audit`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase, Seq2SeqTrainer
from transformers.trainer_utils import EvalLoopOutput
from typing_extensions import Unpack, override

from hf_unlearn.auditing.audit import TRANSCRIBING, AuditOptions, audit
from hf_unlearn.auditing.dataset_metrics import dataset_metrics
from hf_unlearn.auditing.extraction import EXTRACTED_IN_RUNS, EXTRACTED_SAMPLES, can_extract, with_extraction
from hf_unlearn.auditing.statistics import SampleStatistics, collect_statistics
from hf_unlearn.auditing.subject import RETAIN_SAMPLES
from hf_unlearn.auditing.text_metrics import perplexity
from hf_unlearn.auditing.transcription import TRANSCRIBED_IN_RUNS, TRANSCRIBED_SAMPLES, with_word_errors
from hf_unlearn.data.collator import columns_read
from hf_unlearn.data.columns import LABELS, is_transformed
from hf_unlearn.data.finite import refuse_losses
from hf_unlearn.data.pairing import PairedDataset, StreamedPairs
from hf_unlearn.data.randomness import unchanged_randomness
from hf_unlearn.data.splitting import select, subsample
from hf_unlearn.data.types import AnyDataset
from hf_unlearn.losses.head import LANGUAGE_KINDS
from hf_unlearn.methods import CalibrationPass, Method
from hf_unlearn.models.types import Model, inner_model
from hf_unlearn.per_sample import PerSampleGradients
from hf_unlearn.per_sample.loop import batch_size
from hf_unlearn.report.audit_report import AuditReport
from hf_unlearn.targets import TargetKind
from hf_unlearn.trainer.arguments import UnlearningArguments
from hf_unlearn.trainer.cost import CostCounter, RunCost, training_epochs
from hf_unlearn.trainer.draws import TAKEN, Draw, draw_counts, draw_samples
from hf_unlearn.trainer.pace import Pace, planned_steps
from hf_unlearn.trainer.processes import zero_stage
from hf_unlearn.trainer.setup import RunSetup


class EvaluationMixin(Seq2SeqTrainer):
    """A `Trainer` that has the forget, retain and unseen datasets of an unlearning run, and measures them.

    Args:
        args: as in `Trainer`.
        setup: the run's head, request and datasets.
        **kwargs: as in `Trainer`.
    """

    model: Model  # narrower than in `Trainer`
    method: Method
    target_kind: TargetKind
    _pairs: PairedDataset  # of the run, once it has begun
    _draws: dict[str, Draw]  # likewise
    pace: Pace | None = None  # likewise

    def __init__(self, *, args: UnlearningArguments, setup: RunSetup, **kwargs: Any):
        self.args: UnlearningArguments = args
        self.head, self.request = setup.head, setup.request
        self.forget_ds, self.retain_ds = setup.forget_ds, setup.retain_ds
        self.retain_stream = setup.retain_stream
        self.unseen_ds, self.alternative_ds = setup.unseen_ds, setup.alternative_ds
        self.general_ds, self.forgotten_labels = setup.general_ds, setup.forgotten_labels
        # Of the metrics that the next evaluation loop adds; None where it adds none.
        self._unlearning_prefix: str | None = None
        self.cost = CostCounter()
        super().__init__(args=args, **kwargs)

    # ---- metrics ----

    def unlearning_metrics(self) -> dict[str, float]:
        """Loss and accuracy on forget, retain, unseen and general samples, and membership inference.

        Causal language models are asked for some forget samples as well (`forget_rouge_l_recall`,
        `forget_exact_match`, ...), and recognisers transcribe some samples of every dataset (`forget_wer`, ...).
        """
        return self._metrics_of(self._dataset_statistics())

    @override
    @unchanged_randomness()
    def evaluate(  # type: ignore[override]
        self,
        eval_dataset: AnyDataset | dict[str, AnyDataset] | str | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        **gen_kwargs: Any,
    ) -> dict[str, float]:
        """Evaluate on `eval_dataset` as `Trainer` does; without one, the unlearning metrics are added.

        They join the metrics of the trainer's own evaluation dataset (of several, of the first), and are all there is
        where it has none: callbacks are told once an evaluation either way.
        """
        if eval_dataset is None:
            self._unlearning_prefix = metric_key_prefix
        # A dict is evaluated entry by entry; without an entry there is nothing that `Trainer` would tell callbacks of.
        alone: Any = self.forget_ds if eval_dataset is None and not self.eval_dataset else eval_dataset
        try:
            return super().evaluate(alone, ignore_keys, metric_key_prefix, **gen_kwargs)
        finally:
            self._unlearning_prefix = None

    @override
    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """As `Trainer`'s; a loader that `evaluation_loop` does not read is not kept for later evaluations."""
        if self._measures_alone:
            return self.get_test_dataloader(eval_dataset)
        return super().get_eval_dataloader(eval_dataset)

    @property
    def _measures_alone(self) -> bool:
        """Whether an evaluation is going on that has no dataset but those of unlearning."""
        return self._unlearning_prefix is not None and not self.eval_dataset

    @override
    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As `Trainer`'s; the first one of an evaluation has the unlearning metrics beside its own, and their time."""
        measures_alone, prefix, self._unlearning_prefix = self._measures_alone, self._unlearning_prefix, None
        if measures_alone:
            num_samples = sum(map(len, self._measured_datasets().values()))
            output = EvalLoopOutput(np.empty(0), label_ids=None, metrics={}, num_samples=num_samples)
        else:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
            num_samples = output.num_samples or 0
            self._count_measured(num_samples)
            if self.args.predict_with_generate and not prediction_loss_only:
                self._count_generated(num_samples // self.accelerator.num_processes)
        if prefix is None:
            return output
        added = {f"{prefix}_{name}": value for name, value in self.unlearning_metrics().items()}
        return output._replace(metrics={**(output.metrics or {}), **added})

    def audit(self, unseen_ds: AnyDataset | None = None, **options: Unpack[AuditOptions]) -> AuditReport:
        """The audit of the model as it is now; see `hf_unlearn.audit`.

        Args:
            unseen_ds: samples that were never trained on and set no target. Without them the trainer's `unseen_ds` is
                taken, and a note says that it set the target.
            **options: `original`, `retrained`, `shadows`, `relearning`, ..., as in `hf_unlearn.audit`.
        """
        settings: AuditOptions = {
            "request": self.request, "data_collator": self.data_collator, "seed": self.args.seed,
            "batch_size": self.args.measuring_batch_size, "training": self.state.log_history,
            "training_passes": self._training_passes,
        }  # fmt: skip
        if self._transcribes or self._continues_text:
            settings["processing_class"] = self.processing_class  # type: ignore[typeddict-item]
        if self.general_ds is not None:
            settings["general_ds"] = self._readable(self.general_ds)
        group_column = options.get("group_column")
        if group_column is not None:
            settings["data_collator"] = self._flat_collator()  # the model does not read the column
        report = audit(
            self.model,
            forget_ds=self._readable(self.forget_ds, group_column),
            retain_ds=self._readable(self.retain_ds, group_column),
            unseen_ds=self._readable(self.unseen_ds if unseen_ds is None else unseen_ds, group_column),
            **(settings | options),
        )
        if unseen_ds is None:
            report.notes.append(
                "The unseen samples set the target of forgetting: samples that did not would say more."
            )
        return replace(report, about={"method": self.args.method, **report.about})

    def _metrics_of(self, statistics: dict[str, SampleStatistics]) -> dict[str, float]:
        classes: list[int] = []
        if self.request == "class" and statistics["forget"].labels is not None:
            classes = statistics["forget"].labels.unique().tolist()
        metrics = dataset_metrics(statistics, classes)
        if "general" in statistics and self.head.kind in LANGUAGE_KINDS:
            metrics["general_perplexity"] = perplexity([statistics["general"].losses.numpy()])
        return metrics

    @property
    def _tokenizer(self) -> Any:
        """The tokenizer of the processing class; None where there is none."""
        tokenizer = getattr(self.processing_class, "tokenizer", self.processing_class)
        return tokenizer if isinstance(tokenizer, PreTrainedTokenizerBase) else None

    @property
    def _transcribes(self) -> bool:
        """Whether what the model says can be judged in words: its tokens may be right, and the sentence a loop.

        Recognisers of speech always, other models from text to text with `predict_with_generate`.
        """
        hears = self.model.main_input_name in ("input_features", "input_values") or self.args.predict_with_generate
        can_tell = self._tokenizer is not None and find_spec("jiwer") is not None and not self._is_sharded
        return hears and can_tell and self.head.kind in TRANSCRIBING

    @property
    def _continues_text(self) -> bool:
        """Whether the model can be asked for its answers."""
        return not self._is_sharded and can_extract(self.model, self.head.kind, self._tokenizer)

    @unchanged_randomness()
    def _with_words(
        self, statistics: dict[str, SampleStatistics], measured: Mapping[str, AnyDataset], for_audit: bool
    ) -> dict[str, SampleStatistics]:
        """The statistics, with what the model says of some samples, in words: of as many as an audit, or fewer."""
        readable = {name: self._readable(dataset) for name, dataset in measured.items()}
        options = (self._flat_collator(), self.args.eval_batch_size, self.args.seed)
        if self._transcribes:
            limits = {"max_length": self.args.generation_max_length, "num_beams": self.args.generation_num_beams}
            limits = {name: value for name, value in limits.items() if value is not None}
            samples = TRANSCRIBED_SAMPLES if for_audit else TRANSCRIBED_IN_RUNS
            for dataset in readable.values():
                self._count_generated(min(len(dataset), samples))
            return dict(with_word_errors(statistics, self.model, readable, self._tokenizer, *options, limits, samples))
        if self._continues_text:
            asked = {"forget": readable["forget"]}
            samples = EXTRACTED_SAMPLES if for_audit else EXTRACTED_IN_RUNS
            self.cost.add("measuring", 2 * min(len(readable["forget"]), samples))  # written, and looked at
            return dict(with_extraction(statistics, self.model, asked, self._tokenizer, *options, samples))
        return statistics

    # ---- what measuring costs ----

    def _count_measured(self, samples: int) -> None:
        """Count a dataset that the processes share."""
        self.cost.add("measuring", samples / self.accelerator.num_processes)

    def _count_generated(self, samples: int) -> None:
        """Count samples that this process generates."""
        self.cost.add("measuring", samples * (self.args.generation_num_beams or 1))

    def _run_cost(self) -> RunCost:
        """What the run has cost until now; all processes call it."""
        return RunCost.of(self.cost.totals(), self._training_passes, self.method.info.retain_samples)

    @property
    def _training_passes(self) -> float | None:
        """Passes over the dataset that training the model took; None where nobody says."""
        return self.args.training_passes or training_epochs(inner_model(self.model).config._name_or_path)

    # ---- statistics of samples ----

    def _named_datasets(self) -> dict[str, AnyDataset]:
        named = {"forget": self.forget_ds, "retain": self.retain_ds}
        others = {"unseen": self.unseen_ds, "general": self.general_ds}
        return named | {name: dataset for name, dataset in others.items() if dataset is not None}

    def _measured_datasets(self) -> dict[str, AnyDataset]:
        return self._named_datasets() | {"retain": subsample(self.retain_ds, RETAIN_SAMPLES, self.args.seed)}

    def _draw_samples(self) -> dict[str, Draw]:
        """The samples that are measured before and after a run: few beside those of its steps."""
        per_step = self._pairs.forget_per_step + self._pairs.retain_per_step
        steps = planned_steps(math.ceil(len(self.forget_ds) / self._pairs.forget_per_step))
        taken = TAKEN * steps if self.args.has_default_steps else min(steps, max(1, self.state.max_steps))
        counts = draw_counts(3 * taken * per_step, sets_target=self.target_kind != "masked_class")
        if self.target_kind == "masked_class" or self.method.needs_original_losses:
            counts["forget"] = len(self.forget_ds), counts["forget"][1]
        sizes = {name: len(dataset) for name, dataset in self._named_datasets().items()}
        return draw_samples(sizes, counts, self.args.seed)

    def _dataset_statistics(
        self, numbers: Mapping[str, list[int]] | None = None, for_audit: bool = False
    ) -> dict[str, SampleStatistics]:
        """Of the forget dataset, of at most 2,000 retain samples, and of unseen and general ones where there are any.

        Args:
            numbers: of samples, by the names of the datasets: those alone.
            for_audit: whether with the scores of attacks and words of as many samples as an audit has.
        """
        if numbers is None:
            measured = self._measured_datasets()
        else:
            named = self._named_datasets()
            measured = {name: select(named[name], of_dataset) for name, of_dataset in numbers.items()}
        statistics = {
            name: self._collect_statistics(dataset, f"Measuring {name} samples", for_audit)
            for name, dataset in measured.items()
        }
        return self._with_words(statistics, measured, for_audit)

    def _metrics_before(self, statistics: Mapping[str, SampleStatistics]) -> dict[str, float]:
        """The metrics of the samples that are measured again at the end."""
        chosen = {}
        for name, draw in self._draws.items():
            after = set(draw.after)
            chosen[name] = statistics[name].select(torch.tensor([number in after for number in draw.before]))
        return self._metrics_of(chosen)

    @unchanged_randomness()
    def _collect_statistics(
        self, dataset: AnyDataset, description: str = "Measuring", scores: bool = False
    ) -> SampleStatistics:
        """Per-sample statistics of the model as it is now on a dataset of single samples."""
        self._count_measured(len(dataset))
        return collect_statistics(
            self._forward_model,
            self._readable(dataset),
            head=self.head,
            collator=self._flat_collator(),
            accelerator=self.accelerator,
            batch_size=self.args.measuring_batch_size,
            description=description,
            scores=scores,
            tokenizer=self._tokenizer if self._continues_text else None,  # as an audit has it
            log_probs=self.request == "class",  # the target is made of them
        )

    def _refuse_unmeasurable(self, statistics: Mapping[str, SampleStatistics]) -> None:
        """Refuse samples that have no finite loss under the original model."""
        for name, dataset in self._named_datasets().items():
            refuse_losses(f"{name}_ds", dataset, statistics[name].losses, self._draws[name].before)

    def refuse_samples_without_loss(self, first_step: int, last_step: int) -> None:
        """Refuse samples of a part of the run that have no finite loss under the weights as they are now.

        Raises:
            ValueError: the first of them, by dataset and number.
        """
        forget, retain = self._pairs.numbers(first_step, last_step + 1)
        for name, dataset, numbers in (("forget_ds", self.forget_ds, forget), ("retain_ds", self.retain_ds, retain)):
            if numbers:
                losses = self._collect_statistics(select(dataset, numbers)).losses
                refuse_losses(name, dataset, losses, numbers)

    @property
    def _stream_readers(self) -> int:
        """Parts of the retain stream that are read apart."""
        assert self.retain_stream is not None
        return self.retain_stream.count_readers(self.accelerator.num_processes, self.args.dataloader_num_workers)

    def _stream_states(self) -> dict[int, dict[str, Any]]:
        """Where the retain stream is, on all processes, which all call it; empty where there is none."""
        if not isinstance(self._pairs, StreamedPairs):
            return {}
        for states in gather_object([self._pairs.states]):
            self._pairs.remember(states.items())
        return self._pairs.states

    def _calibration_pass(self) -> CalibrationPass:
        """What a method may measure before the first step; every process has its own samples, and none comes twice."""
        named: dict[str, Any] = {
            "forget": self.forget_ds,
            "retain": self.retain_ds,
            "alternative": self.alternative_ds,
        }
        collator = self._flat_collator()

        def batches(name: str) -> Iterator[Any]:
            dataset = self._readable(named[name])
            share = Subset(
                dataset, range(self.accelerator.process_index, len(dataset), self.accelerator.num_processes)
            )
            args = self.args
            size = args.effective_retain_batch_size if name == "retain" else args.per_device_train_batch_size
            loader = DataLoader(share, batch_size=size, collate_fn=collator)
            for batch in tqdm(loader, desc=f"Calibrating on {name} samples", delay=1.0, leave=False):
                yield self._prepare_inputs(batch)

        def losses(batch: Any) -> torch.Tensor:
            self.cost.add("calibration", batch_size(batch), gradient=torch.is_grad_enabled())
            return self.head.losses(self.head.run(self.model, batch), batch)

        return CalibrationPass(
            gradients=PerSampleGradients(self.model.eval(), losses, self.args.per_sample_engine),
            batches=batches,
            losses=lambda name: self._collect_statistics(named[name], f"Measuring {name} samples").losses,
            sum_over_processes=lambda tensor: self.accelerator.reduce(tensor, "sum"),
        )

    # ---- what the model reads ----

    def _flat_collator(self) -> Callable:
        """The collator of single samples, without the columns that the model does not read."""
        return EvaluationMixin._get_collator_with_removed_columns(self, self.data_collator)

    @override
    def _set_signature_columns_if_needed(self) -> None:
        """As `Trainer`'s, with the columns that the default collator makes labels of."""
        super()._set_signature_columns_if_needed()
        names: Any = self._signature_columns
        self._signature_columns: Any = list(dict.fromkeys([*names, *columns_read(self.model)]))

    @cached_property
    def _collator_makes_inputs(self) -> bool:
        """Whether the samples hold no input of the model: the collator gets all of them, as an image and a label."""
        self._set_signature_columns_if_needed()
        return not set(self.forget_ds[0]) & set(self._signature_columns) - set(LABELS)

    @override
    def _get_collator_with_removed_columns(self, data_collator: Callable, description: str | None = None) -> Callable:
        if self._collator_makes_inputs:
            return data_collator
        return super()._get_collator_with_removed_columns(data_collator, description)

    @override
    def _remove_unused_columns(self, dataset: Any, description: str | None = None) -> Any:
        """As `Trainer`'s; stored columns that a transform or the collator makes inputs of stay."""
        if is_transformed(dataset) or self._collator_makes_inputs:
            return dataset
        return super()._remove_unused_columns(dataset, description)

    def _readable(self, dataset: Any, extra_column: str | None = None) -> Any:
        """A dataset without the columns that the model does not read, but for `extra_column`."""
        if not isinstance(dataset, datasets.Dataset):
            return dataset
        columns = self._remove_unused_columns(dataset).column_names
        if extra_column is not None and extra_column in dataset.column_names and extra_column not in columns:
            return dataset.select_columns([*columns, extra_column])
        return self._remove_unused_columns(dataset)

    @property
    def _is_sharded(self) -> bool:
        """Whether the weights are spread over processes."""
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    @property
    def _is_partitioned(self) -> bool:
        """Whether the weights are, or will be, those of ZeRO-3: empty but when they are used."""
        return self.is_deepspeed_enabled and zero_stage(self.accelerator) == 3

    @property
    def _forward_model(self) -> Any:
        """The model for passes without gradient: the wrapped one only where its weights are sharded."""
        return self.model_wrapped if self._is_sharded else self.model
