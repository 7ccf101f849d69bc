"""The tasks of the recipes: small models trained from scratch on real data, in a minute each.

Data and models are those of the examples (examples/_tiny.py); `data` is the folder with the parquet files.
"""

import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch.utils.data import DataLoader
from transformers import ResNetConfig, ResNetForImageClassification, set_seed

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import _tiny

from hf_unlearn import split_forget_retain
from hf_unlearn.auditing.attacks import logistic_attack
from hf_unlearn.auditing.measuring import average_gap, statistics_of
from hf_unlearn.auditing.transcription import transcribe, word_error_rate
from hf_unlearn.comparing import Task
from hf_unlearn.data.collator import readable_collator
from hf_unlearn.data.splitting import subsample
from hf_unlearn.demo import TRAINING, digits_data, digits_model

UNKNOWN = ("I don't know.", "I have no information about that.", "That is not something I know.")
NAMES = ("train", "unseen", "test")


class Digits(Task):
    """A ViT of 103 k weights on scikit-learn's digits: 997 training samples."""

    training: ClassVar = {**TRAINING, "num_train_epochs": 40}
    build = staticmethod(digits_model)

    def load(self):
        return digits_data(self.seed)


class DigitsResNet(Digits):
    """A ResNet of 79 k weights on the same digits: convolutions and BatchNorm, which refuses a batch of one sample."""

    training: ClassVar = {**Digits.training, "dataloader_drop_last": True}

    def build(self, seed):
        set_seed(seed)
        sizes = {"embedding_size": 32, "hidden_sizes": [32, 64], "depths": [1, 1], "layer_type": "basic"}
        return ResNetForImageClassification(ResNetConfig(num_channels=1, num_labels=10, **sizes))


class Fashion(Task):
    """A ViT of 307 k weights on 6,000 samples of Fashion-MNIST."""

    training = _tiny.Vit.training
    build = staticmethod(_tiny.Vit.model)

    def load(self, data):
        return dict(zip(NAMES, _tiny.Vit.data(data, self.seed), strict=True))


class Banking(Task):
    """A BERT of 0.6 M weights on Banking77: 10,003 training samples, or its first `intents`, up to `tokens` long."""

    training = _tiny.TextClassifier.training
    build = staticmethod(_tiny.TextClassifier.model)

    def load(self, data, intents=77, tokens=64):
        self.processor = _tiny.TextClassifier.processor(data)
        datasets_by_name = zip(NAMES, _tiny.TextClassifier.data(data, self.seed), strict=True)
        return {name: self.select(samples, intents, tokens) for name, samples in datasets_by_name}

    def select(self, samples, intents, tokens):
        is_short = np.array([len(ids) <= tokens for ids in samples["input_ids"]])
        return samples.select(np.flatnonzero(is_short & (np.array(samples["label"]) < intents)))


class SpokenDigits(Task):
    """An audio spectrogram transformer of 0.3 M weights on 2,000 spoken digits."""

    training = _tiny.AudioClassifier.training
    build = staticmethod(_tiny.AudioClassifier.model)

    def load(self, data):
        self.processor = _tiny.AudioClassifier.processor()
        return dict(zip(NAMES, _tiny.AudioClassifier.data(data, self.seed), strict=True))


class Tofu(Task):
    """A Llama of 1.2 M weights on 40 authors of TOFU; the target comes from 20 authors never trained on."""

    training = _tiny.Text.training
    build = staticmethod(_tiny.Text.model)

    def load(self, data):
        self.processor = _tiny.Text.processor(data)
        return dict(zip(NAMES, _tiny.Text.data(data, self.seed), strict=True))

    def alternatives(self, forget_ds):
        """The same questions, answered by one of `UNKNOWN`."""
        answers = [self.processor(f"{answer}</s>", add_special_tokens=False).input_ids for answer in UNKNOWN]
        samples = []
        for number, sample in enumerate(forget_ds):
            question = [
                token for token, label in zip(sample["input_ids"], sample["labels"], strict=True) if label == -100
            ]
            answer = answers[number % len(answers)]
            labels = [-100] * len(question) + answer
            samples.append({**sample, "input_ids": question + answer, "labels": labels})
        return samples


class Speech(Task):
    """A Whisper of 269 k weights on strings of spoken digits of six speakers.

    There is no seventh speaker to set the forgetting target, so it comes from the other five: the losses of each under
    a shadow model that was trained without this speaker, on as many speakers as a retrained model. All five are used,
    because speakers differ.
    """

    training = _tiny.Whisper.training
    build = staticmethod(_tiny.Whisper.model)
    shadows = tuple(f"shadow {number}" for number in range(1, 6))

    def load(self, data):
        self.processor = _tiny.Whisper.processor()
        train, _, test = _tiny.Whisper.data(data, self.seed, held_out="")
        return {"train": train, "test": test}

    def shadow_split(self, name, forget):
        """The samples of the speaker that a shadow model is trained without, and all others."""
        speakers = set(self.datasets["train"]["speaker"]) - {forget.partition("=")[2]}
        left_out = sorted(speakers)[self.shadows.index(name)]
        return split_forget_retain(self.datasets["train"], column="speaker", values=[left_out])

    def shadow_samples(self, name, forget):
        return self.shadow_split(name, forget)[1]

    def target(self, forget, shadows):
        profiles = []
        for name, load in shadows.items():
            model, (left_out, _) = load(), self.shadow_split(name, forget)
            profiles += statistics_of(model, left_out, data_collator=self.collator(model)).token_loss_profiles.tolist()
        return {"forget_target": profiles}

    def collator(self, model):
        return readable_collator(model, self.processor)

    def is_forgotten(self, samples, forget_ds, retain_ds):
        """Which samples are of the forgotten speaker."""
        return np.array(samples["speaker"]) == forget_ds[0]["speaker"]

    def metrics(self, model, retrained, *, forget_ds, retain_ds, **settings):
        metrics, retrained_metrics = (self.measure(measured, forget_ds, retain_ds) for measured in (model, retrained))
        return {**metrics, "gap": average_gap(metrics, retrained_metrics)}

    def measure(self, model, forget_ds, retain_ds):
        """Word error rates, losses, and membership inference.

        The unseen samples of membership inference are of the forgotten speaker, or hold the forgotten word: against
        others it would measure the voice, or the word.
        """
        test_ds, collator, metrics = self.datasets["test"], self.collator(model), {}
        is_forgotten = self.is_forgotten(test_ds, forget_ds, retain_ds)
        unseen_ds = test_ds.select(np.flatnonzero(~is_forgotten))
        datasets_by_name = {"forget": forget_ds, "retain": subsample(retain_ds, 400), "unseen": unseen_ds}
        for name, samples in datasets_by_name.items():
            loader = DataLoader(samples, batch_size=256, collate_fn=collator)
            batches = ({k: v.to(model.device) for k, v in batch.items()} for batch in loader)
            pairs = transcribe(model, batches, self.processor.tokenizer, {})
            metrics[f"{name}_wer"] = word_error_rate(*zip(*pairs, strict=True))
            metrics[f"{name}_loss"] = float(statistics_of(model, samples, data_collator=collator).losses.mean())
        attacked = (forget_ds, test_ds.select(np.flatnonzero(is_forgotten)))
        losses = [statistics_of(model, samples, data_collator=collator).losses.numpy() for samples in attacked]
        return {**metrics, "mia_accuracy": logistic_attack(*losses).value}


class SpokenWords(Speech):
    """The same strings, and a word to forget, `word=seven`: every string that holds it, a third of them.

    No unseen string holds the word. For a model that was trained without it, it is a label that never occurs, whatever
    is spoken; so the forgetting target comes from retain strings in which the label of one word is replaced by it.
    """

    shadows = ()

    def token(self, forget):
        """The token of the forgotten word."""
        return self.processor.tokenizer.convert_tokens_to_ids(forget.partition("=")[2])

    def split(self, forget):
        train_ds, token = self.datasets["train"], self.token(forget)
        indices = [index for index, labels in enumerate(train_ds["labels"]) if token in labels]
        return split_forget_retain(train_ds, indices=indices, request="group")

    def target(self, forget, shadows):
        generator, token = np.random.default_rng(self.seed), self.token(forget)
        digits = {self.token(f"word={word}") for word in _tiny.Whisper.DIGITS}

        def mislabel(sample):
            labels = sample["labels"].tolist()
            replaced = generator.choice(sorted(digits.intersection(labels)))
            return {"labels": [token if label == replaced else label for label in labels]}

        return {"unseen_ds": subsample(self.split(forget)[1], 400).map(mislabel)}

    def is_forgotten(self, samples, forget_ds, retain_ds):
        """Which samples hold a word that no retain sample holds."""
        retained = {label for sample in retain_ds for label in sample["labels"].tolist()}
        return np.array([not retained.issuperset(labels.tolist()) for labels in samples["labels"]])
