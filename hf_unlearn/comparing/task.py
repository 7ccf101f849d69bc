"""What methods are compared on: data, a model and how it is trained, and what a request means."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import transformers
from transformers import AutoConfig, AutoProcessor, set_seed

from hf_unlearn.auditing.audit import audit
from hf_unlearn.data.collator import default_collator, readable_collator
from hf_unlearn.data.loading import load_samples, parse_forget
from hf_unlearn.data.preprocessing import label_settings, prepare
from hf_unlearn.data.splitting import split_forget_retain
from hf_unlearn.models.loading import load_model
from hf_unlearn.training import train_from_scratch


class Task:
    """Data, a model and how it is trained. Subclass it in a file of your own, and name that in the configuration.

    A subclass gives `load` and `build`; everything else has a default.

    Attributes:
        training: settings of `TrainingArguments` for the original and for retraining.
        shadows: names of further models, for the target; see `shadow_samples`.
        processor: tokenizer, image processor, feature extractor or processor; None where samples need none.
        sets: `"train"`, `"unseen"` (sets the forgetting target; may be missing) and `"test"` (only looked at).

    Args:
        seed: of the run: of splits, models and training.
        **options: `options` of the configuration, for `load`.
    """

    training: ClassVar[Mapping[str, Any]] = {}
    shadows: ClassVar[tuple[str, ...]] = ()
    processor: Any = None

    def __init__(self, seed: int, **options: Any):
        self.seed = seed
        self.sets: dict[str, Any] = self.load(**options)

    def load(self, **options: Any) -> dict[str, Any]:
        """The sets, ready for the model."""
        raise NotImplementedError

    def build(self, seed: int) -> Any:
        """The model as it is before training."""
        raise NotImplementedError

    def split(self, forget: str) -> tuple[Any, Any]:
        """Forget and retain dataset of an expression; see `hf_unlearn.data.loading.parse_forget`."""
        wanted = parse_forget(forget, self.sets["train"])
        if "fraction" in wanted:
            wanted["seed"] = self.seed
        return split_forget_retain(self.sets["train"], **wanted)

    def shadow_samples(self, name: str, forget: str) -> Any:
        """What a model of `shadows` is trained on."""
        raise NotImplementedError

    def target(self, forget: str, shadows: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
        """Where the forgetting target comes from: `unseen_ds`, or settings such as `forget_target`.

        Args:
            forget: the expression.
            shadows: name to a function that loads the trained model.
        """
        return {"unseen_ds": self.sets["unseen"]} if "unseen" in self.sets else {}

    def alternatives(self, forget: Any) -> Any:
        """The forget samples with other answers, for methods that want them; None where the task has none."""
        return None

    def train(self, samples: Any, seed: int) -> Any:
        """A model trained on samples with a plain `transformers.Trainer`."""
        model = self.build(seed)
        collator = default_collator(model, self.processor)
        with tempfile.TemporaryDirectory() as folder:
            train_from_scratch(model, samples, seed=seed, output_dir=folder, data_collator=collator, **self.training)
        return model.eval()

    def metrics(
        self, model: Any, retrained: Any, *, forget_ds: Any, retain_ds: Any, unseen_ds: Any, **settings: Any
    ) -> dict[str, Any]:
        """Flat metrics of a model, `gap` to the retrained model among them, and the audit's `verdict` where there is one.

        Args:
            model: what is measured.
            retrained: the model retrained without the forget samples.
            forget_ds: samples that were forgotten.
            retain_ds: samples that were kept: all of them.
            unseen_ds: the test dataset.
            **settings: of the audit.
        """
        report = audit(
            model, forget_ds=forget_ds, retain_ds=retain_ds, unseen_ds=unseen_ds, retrained=retrained, seed=self.seed,
            data_collator=readable_collator(model, self.processor), **settings,
        )  # fmt: skip
        return {**report.metrics, "verdict": report.verdict["level"]}


class NamedTask(Task):
    """A checkpoint and a dataset, by their names on the Hub or on disk.

    Args:
        seed: of the run.
        base: checkpoint that training begins from, for the original and for retraining.
        head: auto class of transformers that gives the base its head, e.g. `"AutoModelForImageClassification"`: with
            the labels of the dataset where it has a label column. Default: the class that the base was saved as.
        from_scratch: take the configuration of the base and fresh weights.
        dataset: name of the dataset, as `hf_unlearn.data.loading.load_samples` takes it.
        train: its split for training.
        test: its split that metrics are made on.
        unseen: its split that sets the forgetting target; default: half of the test split.
        training: settings of `TrainingArguments`.
        columns: what a column is to its name, as `hf_unlearn.data.preprocessing.prepare` takes it.
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

    def load(self, *, dataset: str, train: str, test: str, unseen: str | None) -> dict[str, Any]:  # type: ignore[override]
        """The splits, prepared for the model."""
        names = {"train": train, "test": test} | ({"unseen": unseen} if unseen else {})
        samples = {name: load_samples(dataset, split) for name, split in names.items()}
        if self.head is not None:
            self.labels = label_settings(samples["train"], self.columns)
        model = self.build(self.seed)
        sets = {name: prepare(each, model, self.processor, columns=self.columns) for name, each in samples.items()}
        if unseen is None:
            halves = sets["test"].train_test_split(test_size=0.5, seed=self.seed)
            sets |= {"unseen": halves["train"], "test": halves["test"]}
        return sets

    def build(self, seed: int) -> Any:
        """The base checkpoint with its head; or fresh weights of its configuration."""
        set_seed(seed)
        if self.head is None and not self.from_scratch:
            return load_model(self.base)
        config = AutoConfig.from_pretrained(self.base, **self.labels)
        cls = getattr(transformers, self.head or config.architectures[0])
        if self.from_scratch:
            return cls.from_config(config) if hasattr(cls, "from_config") else cls(config)
        return cls.from_pretrained(self.base, config=config, ignore_mismatched_sizes=True)
