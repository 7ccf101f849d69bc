"""The tasks of the recipes on real checkpoints: pretrained models, fine-tuned for a few epochs as their users would.

`data` is the folder with the parquet files, `checkpoints` one with copies of three models of the Hub:
`smollm2-135m` (HuggingFaceTB/SmolLM2-135M-Instruct), `whisper-tiny.en` (openai/whisper-tiny.en) and `minilm`
(sentence-transformers/all-MiniLM-L6-v2).
"""

import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoProcessor,
    AutoTokenizer,
    ViTForImageClassification,
    WhisperForConditionalGeneration,
    set_seed,
)

sys.path.insert(0, str(Path(__file__).parents[1]))

from tasks import Fashion, Speech, SpokenWords, _tiny

from hf_unlearn.auditing.measuring import statistics_of
from hf_unlearn.comparing import Task
from hf_unlearn.data.collator import readable_collator
from hf_unlearn.data.files import replacing
from hf_unlearn.data.loading import load_samples
from hf_unlearn.data.preprocessing import prepare
from hf_unlearn.training import train_from_scratch

WRONG = 0.1
# The questions of an author that are trained on, and that are not: for the target, and for testing.
TRAIN, UNSEEN = 15, 2


class Finetuned(Task):
    """A task whose models are fine-tuned from what `build` makes."""

    def base_model(self) -> Any:
        """What the models are before they are fine-tuned."""
        return self.build(self.seed)


class Intents(Finetuned):
    """MiniLM (22.7 M weights) on the first intents of Banking77, a tenth of the labels wrong.

    Without wrong labels a model that was fine-tuned for four epochs remembers next to nothing of single samples. The
    labels of the samples that set the target, and of those that models are tested on, are wrong as often, in their
    own way.
    """

    training: ClassVar = {"learning_rate": 1e-4, "num_train_epochs": 4, "per_device_train_batch_size": 16}

    def load(self, data: str, checkpoints: str, intents: int = 26) -> dict[str, Any]:
        """The training split of the intents, and the test split in two halves."""
        self.path, self.intents = f"{checkpoints}/minilm", intents
        self.processor = AutoTokenizer.from_pretrained(self.path)
        samples = load_samples(f"{data}/banking77.parquet")
        rows = samples.to_pandas()
        rows = rows[rows["label"] < intents].drop_duplicates("text").sample(frac=1, random_state=self.seed)
        test = rows[rows["split"] == "test"]
        half = len(test) // 2
        parts = {"train": rows[rows["split"] == "train"], "unseen": test[:half], "test": test[half:]}
        return {name: self.ready(part, number) for number, (name, part) in enumerate(parts.items())}

    def ready(self, rows: Any, number: int) -> Dataset:
        """Tokens and labels, a tenth of them wrong."""
        generator, labels = np.random.default_rng((self.seed, number)), rows["label"].to_numpy().copy()
        wrong = generator.random(len(labels)) < WRONG
        labels[wrong] = (labels[wrong] + generator.integers(1, self.intents, wrong.sum())) % self.intents
        ids = self.processor(rows["text"].tolist(), truncation=True, max_length=64)["input_ids"]
        return Dataset.from_dict({"input_ids": ids, "label": labels})

    def build(self, seed: int) -> Any:
        """The pretrained encoder with a new head."""
        set_seed(seed)
        return AutoModelForSequenceClassification.from_pretrained(self.path, num_labels=self.intents)


class Authors(Finetuned):
    """SmolLM2-135M-Instruct on 15 questions about each of 20 authors of TOFU.

    A random part of them has its target from other questions about the same authors, an author from other authors.
    General ability is the mean token loss on paragraphs of WikiText.
    """

    training: ClassVar = {"learning_rate": 2e-4, "num_train_epochs": 4, "per_device_train_batch_size": 8}

    def load(self, data: str, checkpoints: str, authors: int = 20, paragraphs: int = 64) -> dict[str, Any]:
        """Questions by author: to train on, others about the same authors, and about other authors."""
        self.path = f"{checkpoints}/smollm2-135m"
        self.processor = AutoTokenizer.from_pretrained(self.path)
        generator, samples = np.random.default_rng(self.seed), load_samples(f"{data}/tofu.parquet")
        samples = samples.select_columns(["question", "answer", "author_id"])
        order = generator.permutation(200)[: authors + 20]
        of_author = np.array(samples["author_id"])
        questions = {int(a): generator.permutation(np.flatnonzero(of_author == a)) for a in order}
        known, others = order[:authors], order[authors:]
        parts = {
            "train": [q for a in known for q in questions[a][:TRAIN]],
            "unseen": [q for a in known for q in questions[a][TRAIN : TRAIN + UNSEEN]],
            "test": [q for a in known for q in questions[a][TRAIN + UNSEEN :]],
            "unseen authors": [q for a in others[:10] for q in questions[a][:6]],
            "test authors": [q for a in others[10:] for q in questions[a][:6]],
        }
        texts = [p["text"] for p in load_samples(f"{data}/wikitext2_valid_test.parquet") if len(p["text"]) > 300]
        paragraphs = [texts[i] for i in np.random.default_rng(0).permutation(len(texts))[:paragraphs]]
        ids = self.processor(paragraphs, truncation=True, max_length=128)["input_ids"]
        self.general = Dataset.from_dict({"input_ids": ids, "labels": ids})
        numbers = {int(author): number for number, author in enumerate(order)}
        samples = samples.map(lambda sample: {"author_id": numbers.get(sample["author_id"], -1)})
        model = self.build(0)
        return {name: prepare(samples.select(rows), model, self.processor) for name, rows in parts.items()}

    def build(self, seed: int) -> Any:
        """The pretrained model."""
        set_seed(seed)
        return AutoModelForCausalLM.from_pretrained(self.path, dtype=torch.float32)

    def target(self, forget: str, shadows: Any) -> dict[str, Any]:
        """Questions about the same authors, or about others where an author is forgotten."""
        return {"unseen_ds": self.datasets["unseen authors" if forget.startswith("author_id=") else "unseen"]}

    def metrics(
        self, model: Any, retrained: Any, *, forget_ds: Any, unseen_ds: Any, **settings: Any
    ) -> dict[str, Any]:
        """The audit's, and the loss on WikiText."""
        if len({sample["author_id"] for sample in forget_ds}) == 1:
            unseen_ds = self.datasets["test authors"]
        metrics = super().metrics(model, retrained, forget_ds=forget_ds, unseen_ds=unseen_ds, **settings)
        collator = readable_collator(model, self.processor)
        losses = statistics_of(model, self.general, data_collator=collator).losses
        return {**metrics, "general_loss": float(losses.mean())}


class Strings(Finetuned, Speech):
    """Whisper tiny.en (37 M weights) on 250 strings of spoken digits of five speakers; the sixth sets the target.

    Its encoder is cut to the first five of its thirty seconds, which the strings do not fill either: seven times the
    work in the same time.
    """

    training: ClassVar = {"learning_rate": 5e-5, "num_train_epochs": 4, "per_device_train_batch_size": 16}
    shadows = ()
    POSITIONS = 250
    HELD_OUT = "yweweler"

    def load(self, data: str, checkpoints: str, strings: int = 250) -> dict[str, Any]:
        """Strings to train on, others of the same speakers, and strings of the speaker that nobody trains on."""
        self.path = f"{checkpoints}/whisper-tiny.en"
        self.processor = AutoProcessor.from_pretrained(self.path)
        self.processor.feature_extractor.chunk_length = 5
        self.processor.feature_extractor.n_samples = 5 * 16000
        self.processor.feature_extractor.nb_max_frames = 500
        model = self.build(0)
        train, held_out, test = _tiny.Whisper.strings(data, self.seed, self.HELD_OUT)
        parts = {"train": train.select(range(strings)), "test": test.select(range(min(120, len(test))))}
        parts |= {"unseen": held_out.select(range(80)), "test speaker": held_out.select(range(80, 160))}
        return {name: self.ready(part, model) for name, part in parts.items()}

    def ready(self, samples: Dataset, model: Any) -> Dataset:
        """Features and labels; every word has a blank before it, as Whisper writes it, and one token."""
        spoken = _tiny.Whisper.spoken(samples).map(lambda sample: {"text": f" {sample['text']}"})
        return prepare(spoken, model, self.processor)

    def build(self, seed: int) -> Any:
        """The pretrained model, for five seconds."""
        set_seed(seed)
        model = WhisperForConditionalGeneration.from_pretrained(self.path)
        encoder = model.model.encoder
        encoder.embed_positions = nn.Embedding.from_pretrained(
            encoder.embed_positions.weight[: self.POSITIONS].clone()
        )
        model.config.max_source_positions = encoder.max_source_positions = self.POSITIONS
        model.generation_config.max_length = 32
        return model

    def target(self, forget: str, shadows: Any) -> dict[str, Any]:
        """Strings of the speaker that nobody trains on."""
        return {"unseen_ds": self.datasets["unseen"]}


class StringsWord(SpokenWords, Strings):
    """The same strings, and a word to forget.

    The pretrained model knows every word, so that the target is what a shadow model, fine-tuned without another word,
    says of that word.
    """

    load, build, training = Strings.load, Strings.build, Strings.training
    shadows = ("without another word",)

    def another(self, forget: str) -> str:
        """The digit after the forgotten one."""
        digits = list(_tiny.Whisper.DIGITS)
        return f"word={digits[(digits.index(forget.partition('=')[2]) + 1) % len(digits)]}"

    def shadow_split(self, name: str, forget: str) -> Any:
        """The strings that hold the other word, and all others."""
        return self.split(self.another(forget))

    target = Speech.target

    def token(self, forget: str) -> int:
        """The token of the forgotten word."""
        return self.processor.tokenizer(f" {forget.partition('=')[2]}", add_special_tokens=False).input_ids[0]


class PretrainedFashion(Finetuned, Fashion):
    """A ViT of 307 k weights: pretrained on 12,000 samples of eight classes, fine-tuned on 6,000 others of all ten.

    It stands for a pretrained image model, of which none is to be had here.
    """

    training: ClassVar = {"learning_rate": 3e-4, "num_train_epochs": 4, "per_device_train_batch_size": 64}
    PRETRAINING: ClassVar = {"learning_rate": 1e-3, "num_train_epochs": 15, "per_device_train_batch_size": 64}

    def load(self, data: str, pretrained: str) -> dict[str, Any]:
        """As `Fashion`; the pretrained model is made once."""
        self.path = Path(pretrained)
        if not self.path.exists():
            samples = _tiny.Vit.ready(data, "train", 6000, 21000, self.seed)
            samples = samples.select(np.flatnonzero(np.array(samples["label"]) < 8))
            model = _tiny.Vit.model(0)
            train_from_scratch(model, samples, **self.PRETRAINING)
            with replacing(self.path) as folder:
                model.save_pretrained(folder)
        return super().load(data)

    def build(self, seed: int) -> Any:
        """The pretrained model with a new head."""
        set_seed(seed)
        model = ViTForImageClassification.from_pretrained(self.path)
        model.classifier.reset_parameters()
        return model
