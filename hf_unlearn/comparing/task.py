"""What methods are compared on: data, a model and its training, and the meaning of a forget request."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import transformers
from transformers import (
    AutoConfig,
    AutoProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    set_seed,
)
from typing_extensions import override

from hf_unlearn.auditing.audit import audit
from hf_unlearn.data.collator import default_collator, readable_collator
from hf_unlearn.data.labels import label_settings
from hf_unlearn.data.loading import load_samples, parse_forget
from hf_unlearn.data.preprocessing import prepare
from hf_unlearn.data.splitting import split_forget_retain
from hf_unlearn.data.types import AnyDataset
from hf_unlearn.models.loading import load_model, load_whole
from hf_unlearn.models.types import Model, ProcessingClass
from hf_unlearn.training import train_from_scratch


class Task:
    """Data, a model and its training. Subclass it in a file of your own, and name the class in the configuration.

    A subclass implements `load` and `build`; everything else has a default.

    Attributes:
        training: settings of `TrainingArguments` for the original and the retrained models.
        shadows: names of shadow models, which `target` may use; see `shadow_samples`.
        processor: tokenizer, image processor, feature extractor or processor; None where samples need none.
        datasets: `"train"`, `"test"` (metrics only) and, if there is one, `"unseen"` (sets the forgetting target).

    Args:
        seed: of the run: of splits, models and training.
        **options: `options` of the configuration, for `load`.
    """

    training: ClassVar[Mapping[str, Any]] = {}
    shadows: ClassVar[tuple[str, ...]] = ()
    processor: ProcessingClass | None = None

    def __init__(self, seed: int, **options: Any):
        self.seed = seed
        self.datasets: dict[str, Any] = self.load(**options)

    def load(self, **options: Any) -> dict[str, Any]:
        """Load the datasets, ready for the model."""
        raise NotImplementedError

    def build(self, seed: int) -> PreTrainedModel:
        """Make the model as it is before training."""
        raise NotImplementedError

    def split(self, forget: str) -> tuple[AnyDataset, AnyDataset]:
        """Forget and retain dataset of an expression; see `hf_unlearn.data.loading.parse_forget`."""
        selection = parse_forget(forget, self.datasets["train"])
        if "fraction" in selection:
            selection["seed"] = self.seed
        return split_forget_retain(self.datasets["train"], **selection)

    def shadow_samples(self, name: str, forget: str) -> AnyDataset:
        """The samples that a shadow model is trained on.

        Args:
            name: one of `shadows`.
            forget: the forget expression of the request.
        """
        raise NotImplementedError

    def target(self, forget: str, shadows: Mapping[str, Callable[[], PreTrainedModel]]) -> dict[str, Any]:
        """What sets the forgetting target: `unseen_ds`, or settings such as `forget_target`.

        Args:
            forget: the forget expression of the request.
            shadows: name of a shadow model to a function that loads it.
        """
        return {"unseen_ds": self.datasets["unseen"]} if "unseen" in self.datasets else {}

    def base_model(self) -> PreTrainedModel | None:
        """What the original was fine-tuned from, for `UnlearningTrainer(base_model=)`; None where from scratch."""
        return None

    def alternatives(self, forget_ds: AnyDataset) -> AnyDataset | None:
        """The forget samples with other answers, for methods with `needs_alternative_ds`; None by default."""
        return None

    def train(self, samples: AnyDataset, seed: int) -> PreTrainedModel:
        """A model trained on samples with a plain `transformers.Trainer`."""
        model = self.build(seed)
        collator = default_collator(model, self.processor)
        with tempfile.TemporaryDirectory() as folder:
            train_from_scratch(model, samples, seed=seed, output_dir=folder, data_collator=collator, **self.training)
        return model.eval()

    def metrics(
        self,
        model: Model,
        retrained: PreTrainedModel,
        *,
        forget_ds: AnyDataset,
        retain_ds: AnyDataset,
        unseen_ds: AnyDataset,
        **settings: Any,
    ) -> dict[str, Any]:
        """Metrics of a model by name: its average `gap` to the retrained model and the audit's `verdict` among them.

        Args:
            model: the model that is measured.
            retrained: the model retrained without the forget dataset.
            forget_ds: the forget dataset.
            retain_ds: the retain dataset, all of it.
            unseen_ds: the dataset `"test"`.
            **settings: of `hf_unlearn.audit`.
        """
        reader = self.processor if isinstance(self.processor, PreTrainedTokenizerBase | ProcessorMixin) else None
        report = audit(
            model, forget_ds=forget_ds, retain_ds=retain_ds, unseen_ds=unseen_ds, retrained=retrained, seed=self.seed,
            processing_class=reader,
            data_collator=readable_collator(model, self.processor), **settings,
        )  # fmt: skip
        return {**report.metrics, "verdict": report.verdict["level"]}


class NamedTask(Task):
    """A checkpoint and a dataset, by their names on the Hub or on disk.

    Args:
        seed: of the run.
        base: base model: the checkpoint that training starts from, of the original and of retrained models.
        head: auto class of transformers that gives the base model its head, e.g. `"AutoModelForImageClassification"`,
            with the labels of the dataset's label column, if any. Default: the class that the base model was saved as.
        from_scratch: use the configuration of the base model with newly initialised weights.
        dataset: name of the dataset, as for `hf_unlearn.data.loading.load_samples`.
        train: split for training.
        test: split for metrics.
        unseen: split that sets the forgetting target; default: half of the test split.
        training: settings of `TrainingArguments`.
        columns: role to name of a column, as for `hf_unlearn.data.preprocessing.prepare`.
    """

    def __init__(
        self,
        seed: int,
        *,
        base: str,
        dataset: str,
        head: str | None = None,
        from_scratch: bool = False,
        train: str = "train",
        test: str = "test",
        unseen: str | None = None,
        training: Mapping[str, Any] | None = None,
        columns: Mapping[str, str] | None = None,
    ):
        self.base, self.head, self.from_scratch = base, head, from_scratch
        self.training, self.columns = training or {}, columns or {}  # type: ignore[misc]
        self.labels: dict[str, Any] = {}
        self.processor = AutoProcessor.from_pretrained(base)
        super().__init__(seed, dataset=dataset, train=train, test=test, unseen=unseen)

    @override
    def load(self, *, dataset: str, train: str, test: str, unseen: str | None) -> dict[str, Any]:  # type: ignore[override]
        names = {"train": train, "test": test} | ({"unseen": unseen} if unseen else {})
        samples = {name: load_samples(dataset, split) for name, split in names.items()}
        if self.head is not None:
            self.labels = label_settings(samples["train"], self.columns)
        model = self.build(self.seed)
        prepared = {name: prepare(ds, model, self.processor, columns=self.columns) for name, ds in samples.items()}
        if unseen is None:
            halves = prepared["test"].train_test_split(test_size=0.5, seed=self.seed)
            prepared |= {"unseen": halves["train"], "test": halves["test"]}
        return prepared

    @override
    def base_model(self) -> PreTrainedModel | None:
        return None if self.from_scratch else self.build(self.seed)

    @override
    def build(self, seed: int) -> PreTrainedModel:
        set_seed(seed)
        if self.head is None and not self.from_scratch:
            return load_model(self.base)
        config = AutoConfig.from_pretrained(self.base, **self.labels)
        cls = getattr(transformers, self.head or config.architectures[0])
        if self.from_scratch:
            return cls.from_config(config) if hasattr(cls, "from_config") else cls(config)
        return load_whole(cls, self.base, fresh_head=True, config=config)
