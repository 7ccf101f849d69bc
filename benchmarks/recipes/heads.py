"""Heads that few trainers know, on data made here: segmentation, an image among captions, images and text, choices.

Every model is small and newly initialised. Pictures are scikit-learn's digits under noise, so that some are learned by
heart; facts are drawn at random, so that all of them are.
"""

from typing import Any, ClassVar

import numpy as np
from datasets import Array2D, Array3D, ClassLabel, Dataset, Features, List, Value
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    CLIPConfig,
    CLIPModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    set_seed,
)

from hf_unlearn.comparing import Task
from hf_unlearn.data.splitting import subsample

SIZES = {"train": 400, "unseen": 250, "test": 250}
BLOCKS = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPECIAL = ("<pad>", "<start>", "<image>", "</s>")
PAD, START, IMAGE, END = range(4)


def vocabulary(*texts: str) -> dict[str, int]:
    """The words of texts, numbered after the special tokens."""
    words = dict.fromkeys((*SPECIAL, *" ".join(texts).split()))
    return {word: number for number, word in enumerate(words)}


class Pictures(Task):
    """400 of scikit-learn's digits under noise. A subclass says what a model sees of one, and what of it is a label.

    A digit can be forgotten, `digit=3`. No unseen picture has a digit that was never trained on, so the forgetting
    target comes from retain pictures that are labelled with the forgotten digit.
    """

    noise: ClassVar = 0.5  # its deviation; pixels go from -1 to 1
    columns: ClassVar[dict[str, Any]]

    def load(self):
        generator = np.random.default_rng(self.seed)
        self.ink, self.digits = load_digits(return_X_y=True)
        self.ink = self.ink.reshape(-1, 8, 8)  # from 0 to 16
        self.pixels = (self.ink / 8 - 1 + generator.normal(0, self.noise, self.ink.shape)).astype(np.float32)
        datasets_by_name, rest = {}, np.arange(len(self.pixels))
        for name, size in SIZES.items():
            chosen, rest = train_test_split(rest, train_size=size, stratify=self.digits[rest], random_state=self.seed)
            datasets_by_name[name] = self.samples(chosen, self.digits[chosen], generator)
        return datasets_by_name

    def samples(self, numbers, digits, generator):
        """A dataset of the pictures with these numbers, labelled with these digits."""
        samples = [
            {**self.sample(number, digit, generator), "digit": digit, "picture": number}
            for number, digit in zip(numbers, digits, strict=True)
        ]
        features = Features({**self.columns, "digit": ClassLabel(num_classes=10), "picture": Value("int64")})
        return Dataset.from_list(samples, features).with_format("torch")

    def sample(self, number, digit, generator):
        """What a model gets of a picture that is labelled with a digit."""
        raise NotImplementedError

    def target(self, forget, shadows):
        if not forget.startswith("digit="):
            return super().target(forget, shadows)
        digit, retain_ds = int(forget.partition("=")[2]), subsample(self.split(forget)[1], SIZES["unseen"])
        numbers = retain_ds["picture"][:].numpy()
        return {"unseen_ds": self.samples(numbers, np.full(len(numbers), digit), np.random.default_rng(self.seed))}


class Segmentation(Pictures):
    """A Segformer: every pixel of ink in a picture of 24 x 24 is of the digit there, every other one of no digit."""

    noise = 0.3
    training: ClassVar = {"num_train_epochs": 30, "learning_rate": 3e-3, "per_device_train_batch_size": 16}
    columns: ClassVar = {"pixel_values": Array3D((1, 24, 24), "float32"), "labels": Array2D((24, 24), "int64")}

    def build(self, seed):
        set_seed(seed)
        config = SegformerConfig(
            num_channels=1, num_encoder_blocks=3, depths=[1, 1, 1], sr_ratios=[4, 2, 1], hidden_sizes=[16, 32, 64],
            patch_sizes=[3, 3, 3], strides=[2, 2, 2], num_attention_heads=[1, 2, 4], mlp_ratios=[2, 2, 2],
            decoder_hidden_size=32, num_labels=11, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            classifier_dropout_prob=0.0, drop_path_rate=0.0, initializer_range=0.1,
        )  # fmt: skip
        return SegformerForSemanticSegmentation(config)

    def sample(self, number, digit, generator):
        """The digit, twice as large, somewhere on an empty picture; its faint pixels have no class."""
        picture, labels = generator.normal(-1, self.noise, (24, 24)).astype(np.float32), np.full((24, 24), 10)
        top, left = generator.integers(0, 9, 2)
        place = slice(top, top + 16), slice(left, left + 16)
        picture[place] = self.pixels[number].repeat(2, 0).repeat(2, 1)
        ink = self.ink[number].repeat(2, 0).repeat(2, 1)
        labels[place] = np.select([ink > 8, ink > 0], [digit, 255], 10)
        return {"pixel_values": picture[None], "labels": labels}


class Captions(Pictures):
    """A CLIP: which of five captions, in any order, is the one of the picture?"""

    training: ClassVar = {"num_train_epochs": 30, "learning_rate": 1e-3, "per_device_train_batch_size": 32}
    columns: ClassVar = {
        "pixel_values": Array3D((1, 8, 8), "float32"), "input_ids": List(List(Value("int64"))),
        "labels": Value("int64"),
    }  # fmt: skip
    forms = ("a picture of a {}", "the digit {}", "a {} in ink", "somebody wrote a {}")
    words = vocabulary(*forms, *NAMES)

    def build(self, seed):
        set_seed(seed)
        text = {
            **BLOCKS, "num_hidden_layers": 2, "vocab_size": len(self.words), "max_position_embeddings": 8,
            "pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END,
        }  # fmt: skip
        vision = {**BLOCKS, "num_hidden_layers": 3, "image_size": 8, "patch_size": 2, "num_channels": 1}
        return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32))

    def sample(self, number, digit, generator):
        others = generator.choice([other for other in range(10) if other != digit], 4, replace=False)
        shown = generator.permutation([digit, *others])
        captions = [str(generator.choice(self.forms)).format(NAMES[other]) for other in shown]
        return {
            "pixel_values": self.pixels[number][None],
            "input_ids": [[START, *(self.words[word] for word in caption.split()), END] for caption in captions],
            "labels": int(np.flatnonzero(shown == digit)[0]),
        }


class Answers(Pictures):
    """A LLaVA: a picture, a question about it, and the digit in words."""

    training: ClassVar = {"num_train_epochs": 20, "learning_rate": 1e-3, "per_device_train_batch_size": 32}
    columns: ClassVar = {
        "pixel_values": Array3D((1, 8, 8), "float32"), "input_ids": List(Value("int64")),
        "labels": List(Value("int64")),
    }  # fmt: skip
    forms = ("which digit is this", "what did they write", "read the number")
    words = vocabulary(*forms, *NAMES)

    def build(self, seed):
        set_seed(seed)
        text = {
            **BLOCKS, "model_type": "llama", "num_hidden_layers": 2, "vocab_size": len(self.words),
            "max_position_embeddings": 32, "pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END,
        }  # fmt: skip
        vision = {
            **BLOCKS, "model_type": "clip_vision_model", "num_hidden_layers": 2, "image_size": 8, "patch_size": 2,
            "num_channels": 1, "projection_dim": 32,
        }  # fmt: skip
        config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=IMAGE, vision_feature_layer=-1)
        return LlavaForConditionalGeneration(config)

    def sample(self, number, digit, generator):
        question = [self.words[word] for word in str(generator.choice(self.forms)).split()]
        answer = [self.words[NAMES[digit]], END]
        prompt = [START, *[IMAGE] * 16, *question]
        return {
            "pixel_values": self.pixels[number][None], "input_ids": prompt + answer,
            "labels": [-100] * len(prompt) + answer,
        }  # fmt: skip


class Facts(Task):
    """A BERT of multiple choice: 400 of 1,200 facts about 240 people, each with four answers to choose from.

    Nothing about a fact follows from others: who was not trained on it guesses. A team of 24 people can be forgotten,
    `team=3`; the team is not said, so that the facts about others are as unknown as those.
    """

    training: ClassVar = {"num_train_epochs": 60, "learning_rate": 2e-3, "per_device_train_batch_size": 32}
    first = ("anna", "bruno", "clara", "david", "emma", "felix", "greta", "hugo", "ida", "jonas", "karla", "leo",
             "mara", "nils", "olga", "paul")  # fmt: skip
    last = ("adler", "bauer", "conrad", "dietz", "ernst", "frank", "graf", "huber", "jung", "klein", "lang", "maier",
            "noll", "otto", "peters")  # fmt: skip
    answers: ClassVar = {
        "town": "rome paris oslo cairo lima delhi tokyo quito", "pet": "cat dog bird fish horse goat frog mouse",
        "work": "baker judge nurse pilot smith tailor farmer poet",
        "fruit": "apple pear plum fig lemon grape melon kiwi", "sport": "chess golf judo polo rugby rowing ski yoga",
    }  # fmt: skip
    words = vocabulary(*first, *last, *answers, *answers.values())

    def load(self):
        generator = np.random.default_rng(self.seed)
        people = [(first, last) for first in self.first for last in self.last]
        samples = []
        for person, names in enumerate(people):
            for subject, answers in self.answers.items():
                choices = generator.choice(answers.split(), 4, replace=False)
                texts = [" ".join((*names, subject, choice)) for choice in choices]
                tokens = [[START, *(self.words[word] for word in text.split()), END] for text in texts]
                samples.append({"input_ids": tokens, "labels": int(generator.integers(4)), "team": person // 24})
        thirds = np.split(generator.permutation(len(samples)), 3)
        return {
            name: Dataset.from_list([samples[i] for i in third]).with_format("torch")
            for name, third in zip(SIZES, thirds, strict=True)
        }

    def build(self, seed):
        set_seed(seed)
        config = BertConfig(
            **BLOCKS, num_hidden_layers=2, vocab_size=len(self.words), max_position_embeddings=16, pad_token_id=PAD,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        return BertForMultipleChoice(config)
