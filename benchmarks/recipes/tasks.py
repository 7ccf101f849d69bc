"""The tasks of the recipes: small models from scratch on real data, a minute of training each.

Data and models are those of the examples; `data` is the folder with the parquet files.
"""

import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch.utils.data import DataLoader
from transformers import ResNetConfig, ResNetForImageClassification, set_seed

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import audio_classification
import text
import text_classification
import vit
import whisper

from hf_unlearn import split_forget_retain
from hf_unlearn.auditing.attacks import logistic_attack
from hf_unlearn.auditing.dataset_metrics import transcribe, word_error_rate
from hf_unlearn.auditing.measuring import gap, signals_of
from hf_unlearn.data.collator import readable_collator
from hf_unlearn.comparing import Task
from hf_unlearn.data.splitting import sample_rows
from hf_unlearn.demo import TRAINING, digits_data, digits_model

UNKNOWN = ("I don't know.", "I have no information about that.", "That is not something I know.")
NAMES = ("train", "unseen", "test")


class Digits(Task):
    """A ViT of 103 k weights on scikit-learn's digits: 997 training rows."""

    training: ClassVar = {**TRAINING, "num_train_epochs": 40}
    build = staticmethod(digits_model)

    def load(self):
        return digits_data(self.seed)


class DigitsResNet(Digits):
    """A ResNet of 79 k weights on the same digits: convolutions and BatchNorm, which refuses a batch of one row."""

    training: ClassVar = {**Digits.training, "dataloader_drop_last": True}

    def build(self, seed):
        set_seed(seed)
        sizes = {"embedding_size": 32, "hidden_sizes": [32, 64], "depths": [1, 1], "layer_type": "basic"}
        return ResNetForImageClassification(ResNetConfig(num_channels=1, num_labels=10, **sizes))


class Fashion(Task):
    """A ViT of 307 k weights on 6,000 rows of Fashion-MNIST."""

    training = vit.TRAINING
    build = staticmethod(vit.tiny_model)

    def load(self, data):
        return dict(zip(NAMES, vit.tiny_data(data, self.seed), strict=True))


class Banking(Task):
    """A BERT of 0.6 M weights on Banking77: 10,003 training rows, or its first `intents`, up to `tokens` long."""

    training = text_classification.TRAINING
    build = staticmethod(text_classification.tiny_model)

    def load(self, data, intents=77, tokens=64):
        self.processor = text_classification.tiny_tokenizer(data)
        sets = text_classification.tiny_data(data, self.seed)
        return {name: self.some(rows, intents, tokens) for name, rows in zip(NAMES, sets, strict=True)}

    def some(self, rows, intents, tokens):
        short = np.array([len(ids) <= tokens for ids in rows["input_ids"]])
        return rows.select(np.flatnonzero(short & (np.array(rows["label"]) < intents)))


class SpokenDigits(Task):
    """An audio spectrogram transformer of 0.3 M weights on 2,000 spoken digits."""

    training = audio_classification.TRAINING
    build = staticmethod(audio_classification.tiny_model)

    def load(self, data):
        self.processor = audio_classification.tiny_extractor()
        return dict(zip(NAMES, audio_classification.tiny_data(data, self.seed), strict=True))


class Tofu(Task):
    """A Llama of 1.2 M weights on 40 authors of TOFU; the target comes from 20 authors never trained on."""

    training = text.TRAINING
    build = staticmethod(text.tiny_model)

    def load(self, data):
        self.processor = text.tiny_tokenizer(data)
        return dict(zip(NAMES, text.tiny_data(data, self.seed), strict=True))

    def alternatives(self, forget):
        """The same questions, and that the answer is not known."""
        answers = [self.processor(f"{answer}</s>", add_special_tokens=False).input_ids for answer in UNKNOWN]
        rows = []
        for number, row in enumerate(forget):
            question = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100]
            answer = answers[number % len(answers)]
            labels = [-100] * len(question) + answer
            rows.append({**row, "input_ids": question + answer, "labels": labels})
        return rows


class Speech(Task):
    """A Whisper of 269 k weights on strings of spoken digits of six speakers.

    Nobody else is there to set the target, so it comes from the other five: each under a shadow model that never heard
    them, and that heard as many speakers as a retrained model does. All five, as speakers differ.
    """

    training = whisper.TRAINING
    build = staticmethod(whisper.tiny_model)
    shadows = tuple(f"shadow {number}" for number in range(1, 6))

    def load(self, data):
        self.processor = whisper.tiny_processor()
        train, _, test = whisper.tiny_data(data, self.seed, held_out="")
        return {"train": train, "test": test}

    def sides(self, name, forget):
        """The rows of the speaker that a shadow model never heard, and all others."""
        speakers = set(self.sets["train"]["speaker"]) - {forget.partition("=")[2]}
        unheard = sorted(speakers)[self.shadows.index(name)]
        return split_forget_retain(self.sets["train"], column="speaker", values=[unheard])

    def shadow_rows(self, name, forget):
        return self.sides(name, forget)[1]

    def target(self, forget, shadows):
        profiles = []
        for name, load in shadows.items():
            model, (unheard, _) = load(), self.sides(name, forget)
            profiles += signals_of(model, unheard, data_collator=self.collator(model)).profiles.tolist()
        return {"forget_target": profiles}

    def collator(self, model):
        return readable_collator(model, self.processor)

    def alike(self, rows, forget, retain):
        """Which rows are of the forgotten speaker."""
        return np.array(rows["speaker"]) == forget[0]["speaker"]

    def figures(self, model, reference, *, forget, retain, **settings):
        found = [self.heard(each, forget, retain) for each in (model, reference)]
        return {**found[0], "gap": gap(*found)}

    def heard(self, model, forget, retain):
        """Word error rates; membership inference against unseen utterances of the forgotten speaker or word.

        Against others it would measure the voice, or the word.
        """
        test = self.sets["test"]
        same = self.alike(test, forget, retain)
        sets = {"forget": forget, "retain": sample_rows(retain, 400), "unseen": test.select(np.flatnonzero(~same))}
        collator, found = self.collator(model), {}
        for name, rows in sets.items():
            loader = DataLoader(rows, batch_size=256, collate_fn=collator)
            batches = ({k: v.to(model.device) for k, v in batch.items()} for batch in loader)
            pairs = transcribe(model, batches, self.processor.tokenizer, {})
            found[f"{name}_wer"] = word_error_rate(*zip(*pairs, strict=True))
            found[f"{name}_loss"] = float(signals_of(model, rows, data_collator=collator).losses.mean())
        sides = (forget, test.select(np.flatnonzero(same)))
        losses = [signals_of(model, rows, data_collator=collator).losses.numpy() for rows in sides]
        return {**found, "mia_accuracy": logistic_attack(*losses).value}


class SpokenWords(Speech):
    """The same strings, and a word to forget, `word=seven`: every string in which it is heard, a third of them.

    Nothing unseen has the word to set the target. To a model that never met it, it is a label that never comes,
    whatever is heard: so the target comes from retain strings that are given it as the label of one of their words.
    """

    shadows = ()

    def word(self, forget):
        return self.processor.tokenizer.convert_tokens_to_ids(forget.partition("=")[2])

    def split(self, forget):
        train, word = self.sets["train"], self.word(forget)
        heard = [number for number, labels in enumerate(train["labels"]) if word in labels]
        return split_forget_retain(train, indices=heard, request="group")

    def target(self, forget, shadows):
        random, word = np.random.default_rng(self.seed), self.word(forget)
        others = set(self.processor.tokenizer.convert_tokens_to_ids(whisper.DIGITS))

        def misheard(row):
            labels = row["labels"].tolist()
            other = random.choice(sorted(others.intersection(labels)))
            return {"labels": [word if label == other else label for label in labels]}

        return {"unseen_ds": sample_rows(self.split(forget)[1], 400).map(misheard)}

    def alike(self, rows, forget, retain):
        """Which rows have a word that no retain row has."""
        kept = {label for row in retain for label in row["labels"].tolist()}
        return np.array([not kept.issuperset(labels.tolist()) for labels in rows["labels"]])
