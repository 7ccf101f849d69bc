"""Data and tiny models for `equivalence.py`: the same in every source tree."""

import copy
import itertools
import random
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import datasets
import numpy as np
import tokenizers
import torch
import transformers as tf

from hf_unlearn import split_forget_retain

SEED = 0
PAD, BOS, EOS, MASK, VOCABULARY, LABELS = 0, 1, 2, 3, 40, 3
FORGET, RETAIN, UNSEEN, TEST = 12, 24, 30, 110
STEPS, BATCH = 3, 4
# Training until a model knows what it was trained on better than the rest. A third of the forget dataset is left out:
# with losses on both sides of the target, a target that has changed shows in the weights.
PASSES, RATE, KNOWN = 3, 2e-3, 8
# Weights larger than usual: predictions that differ between samples.
SPREAD = 0.1

Sample = dict[str, torch.Tensor]


class Data(NamedTuple):
    """The datasets of a case; `test` is unseen, too, and sets no target."""

    forget: Any
    retain: Any
    unseen: Any
    test: Any

    def three(self, suffix: str = "_ds") -> dict[str, Any]:
        """Forget, retain and unseen dataset by name."""
        return {f"{name}{suffix}": getattr(self, name) for name in ("forget", "retain", "unseen")}


def tokens(length: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(4, VOCABULARY, (length,), generator=generator)


def label(generator: torch.Generator) -> torch.Tensor:
    return torch.randint(LABELS, (), generator=generator)


def image(i: int, generator: torch.Generator) -> Sample:
    return {"pixel_values": torch.randn(3, 16, 16, generator=generator), "labels": label(generator)}


def words(i: int, generator: torch.Generator) -> Sample:
    """Inputs of a text model, seven to ten tokens."""
    ids = tokens(10 - i % 4, generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def classified_words(i: int, generator: torch.Generator) -> Sample:
    return words(i, generator) | {"labels": label(generator)}


def answer(i: int, generator: torch.Generator) -> Sample:
    """A question of three tokens, which has no loss, and an answer."""
    sample = words(i, generator)
    return sample | {"labels": torch.cat([torch.full((3,), -100), sample["input_ids"][3:]])}


def masked_words(i: int, generator: torch.Generator) -> Sample:
    sample = words(i, generator)
    hidden = torch.zeros_like(sample["input_ids"], dtype=torch.bool)
    hidden[1::3] = True
    labels = sample["input_ids"].masked_fill(~hidden, -100)
    return sample | {"input_ids": sample["input_ids"].masked_fill(hidden, MASK), "labels": labels}


def tagged_words(i: int, generator: torch.Generator) -> Sample:
    sample = words(i, generator)
    return sample | {"labels": torch.randint(LABELS, sample["input_ids"].shape, generator=generator)}


def spans(i: int, generator: torch.Generator) -> Sample:
    places = torch.randint(7, (2,), generator=generator).sort().values
    return words(i, generator) | {"start_positions": places[0], "end_positions": places[1]}


def several_labels(i: int, generator: torch.Generator) -> Sample:
    return words(i, generator) | {"labels": torch.randint(2, (LABELS,), generator=generator).float()}


def numbers(i: int, generator: torch.Generator) -> Sample:
    return words(i, generator) | {"labels": torch.randn((), generator=generator)}


def speech(i: int, generator: torch.Generator) -> Sample:
    features = torch.randn(8, 40, generator=generator)
    return {"input_features": features, "labels": tokens(6 - i % 3, generator)}


def waveform(i: int, generator: torch.Generator) -> Sample:
    return {"input_values": torch.randn(400, generator=generator), "labels": tokens(6 - i % 3, generator)}


BLOCKS: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SPECIAL: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}


def vit() -> Any:
    config = tf.ViTConfig(
        **BLOCKS, image_size=16, patch_size=8, num_labels=LABELS, hidden_dropout_prob=0.1, initializer_range=SPREAD
    )
    return tf.ViTForImageClassification(config)


def gpt2() -> Any:
    config = tf.GPT2Config(**SPECIAL, n_positions=32, n_embd=16, n_layer=2, n_head=2, initializer_range=SPREAD)
    return tf.GPT2LMHeadModel(config)


def bert(cls: str = "BertForSequenceClassification", **settings: Any) -> Any:
    settings = {"num_labels": LABELS, **settings}
    config = tf.BertConfig(**BLOCKS, **SPECIAL, max_position_embeddings=32, initializer_range=SPREAD, **settings)
    return getattr(tf, cls)(config)


def whisper() -> Any:
    config = tf.WhisperConfig(
        **SPECIAL, num_mel_bins=8, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_source_positions=20,
        max_target_positions=32, decoder_start_token_id=BOS, suppress_tokens=None, begin_suppress_tokens=None,
        dropout=0.1, init_std=SPREAD, apply_spec_augment=True, mask_time_prob=0.1,
    )  # fmt: skip
    return tf.WhisperForConditionalGeneration(config)


def wav2vec2() -> Any:
    config = tf.Wav2Vec2Config(
        **BLOCKS, vocab_size=VOCABULARY, pad_token_id=PAD, conv_dim=(16, 16), conv_kernel=(10, 3), conv_stride=(5, 2),
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, feat_extract_norm="layer",
        do_stable_layer_norm=True, ctc_zero_infinity=True,
    )  # fmt: skip
    return tf.Wav2Vec2ForCTC(config)


MODELS: dict[str, tuple[Callable[[], Any], Callable[[int, torch.Generator], Sample]]] = {
    "vit": (vit, image),
    "gpt2": (gpt2, answer),
    "bert": (bert, classified_words),
    "whisper": (whisper, speech),
}
# Further heads, each with one method that descends a loss and one that combines gradients.
HEADS: dict[str, tuple[Callable[[], Any], Callable[[int, torch.Generator], Sample]]] = {
    "bert-masked-lm": (partial(bert, "BertForMaskedLM"), masked_words),
    "bert-tokens": (partial(bert, "BertForTokenClassification"), tagged_words),
    "bert-spans": (partial(bert, "BertForQuestionAnswering", num_labels=2), spans),
    "bert-several-labels": (partial(bert, problem_type="multi_label_classification"), several_labels),
    "bert-regression": (partial(bert, num_labels=1), numbers),
    "wav2vec2-ctc": (wav2vec2, waveform),
}


@cache
def samples(name: str) -> Data:
    """Random samples for a model, as lists of dicts of tensors."""
    generator = torch.Generator().manual_seed(SEED + 1)
    draw = (MODELS | HEADS)[name][1]
    made = [draw(i, generator) for i in range(FORGET + RETAIN + UNSEEN + TEST)]
    ends = np.cumsum([0, FORGET, RETAIN, UNSEEN, TEST])
    return Data(*(made[start:end] for start, end in itertools.pairwise(ends)))


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def fit(model: Any, dataset: list[Sample]) -> Any:
    """Train a model without this library, one sample a step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    model.eval()
    for _ in range(PASSES):
        for sample in dataset:
            model(**{key: value[None] for key, value in sample.items()}).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return model


@cache
def _trained(name: str, with_forget: bool) -> Any:
    seed_all(SEED if with_forget else SEED + 1)
    data = samples(name)
    return fit((MODELS | HEADS)[name][0](), [*(data.forget[:KNOWN] if with_forget else []), *data.retain])


def original(name: str) -> Any:
    """A new copy of the model that was trained on most of the forget dataset and on the retain dataset."""
    return copy.deepcopy(_trained(name, True))


def retrained(name: str) -> Any:
    """A new copy of the model that was trained on the retain dataset alone, from other weights."""
    return copy.deepcopy(_trained(name, False))


def as_dataset(dataset: list[Sample], **columns: list) -> datasets.Dataset:
    made = datasets.Dataset.from_list([{key: value.tolist() for key, value in sample.items()} for sample in dataset])
    for name, values in columns.items():
        made = made.add_column(name, values)
    return made


def as_datasets(data: Data) -> Data:
    """The same samples as `datasets.Dataset`s, with a column that the model does not read."""
    return Data(*(as_dataset(each, speaker=[f"speaker {i % 3}" for i in range(len(each))]) for each in data))


def one_class(name: str) -> Data:
    """A class to forget, as `split_forget_retain` makes it from a `datasets.Dataset`."""
    data = samples(name)
    forget, retain = split_forget_retain(as_dataset([*data.forget, *data.retain]), column="labels", values=[0])
    return Data(forget, retain, as_dataset(data.unseen), as_dataset(data.test))


def one_speaker(name: str) -> Data:
    """A group to forget."""
    data = samples(name)
    everything = as_datasets(data._replace(forget=[*data.forget, *data.retain]))
    forget, retain = split_forget_retain(everything.forget, column="speaker", values=["speaker 1"])
    return everything._replace(forget=forget, retain=retain)


def few(name: str) -> Data:
    """Few samples to forget, beside which SSD can damp weights at all."""
    data = samples(name)
    return data._replace(forget=data.forget[:2], retain=[*data.forget[2:], *data.retain])


def other_answers(dataset: list[Sample]) -> list[Sample]:
    """The alternative dataset: the same questions, the answers backwards."""
    made = []
    for sample in dataset:
        labels = torch.where(sample["labels"] == -100, -100, sample["labels"].flip(0))
        labels = torch.where((labels == -100) & (sample["labels"] != -100), EOS, labels)
        inputs = (
            {"input_ids": torch.where(labels == -100, sample["input_ids"], labels)} if "input_ids" in sample else {}
        )
        made.append({**sample, **inputs, "labels": labels})
    return made


def word_tokenizer() -> Any:
    vocabulary = {"<pad>": PAD, "<s>": BOS, "</s>": EOS, "<mask>": MASK} | {f"w{i}": i for i in range(4, VOCABULARY)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<mask>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return tf.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<mask>")
