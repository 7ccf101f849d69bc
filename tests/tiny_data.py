"""Tiny processors to go with the tiny models, and samples as they stand on the Hub: images, sound, text."""

import io
import string

import datasets
import numpy as np
import soundfile
import transformers as tf
from PIL import Image
from tiny import BOS, EOS, PAD, make
from tokenizers import Tokenizer, models, pre_tokenizers

RATE = 8000  # half of what the extractors want, so that sound has to be resampled

# The dataset numbers its classes in another order than the model does.
ROWS_NAMES, MODEL_NAMES = ["cat", "bird", "ant"], ["ant", "bird", "cat"]
NAMED = {"id2label": dict(enumerate(MODEL_NAMES)), "label2id": {name: i for i, name in enumerate(MODEL_NAMES)}}
SPECIAL = {"<pad>": PAD, "<s>": BOS, "</s>": EOS, "[UNK]": 3}
WORDS = ["who", "wrote", "the", "book", "one", "two", "ann", "bob", ":", "?", "."]


# ---- a model with its processor, and samples with the columns of the example's Hub dataset --------------------------


def named(name):
    model, _ = make(name)
    model.config.id2label, model.config.label2id = NAMED["id2label"], NAMED["label2id"]
    return model


def labels(count):
    return [i % len(ROWS_NAMES) for i in range(count)], datasets.ClassLabel(names=ROWS_NAMES)


def sounds(count, rng):
    """WAV files of 25 to 32 ms: another tone for every sample, with noise."""
    files = []
    for i in range(count):
        samples = np.sin(np.arange(200 + 28 * (i % 3)) * (0.1 + 0.02 * i)) + 0.1 * rng.normal(size=200 + 28 * (i % 3))
        soundfile.write(file := io.BytesIO(), 0.5 * samples, RATE, format="WAV")
        files.append({"bytes": file.getvalue(), "path": None})
    return files, datasets.Audio(sampling_rate=RATE)


def texts(count, rng):
    return [" ".join(rng.choice(WORDS, size=int(rng.integers(3, 7)))) for _ in range(count)]


def table(**columns):
    """A dataset from `name=values`, or `name=(values, feature)` where the type is not plain."""
    features = {name: column[1] for name, column in columns.items() if isinstance(column, tuple)}
    samples = datasets.Dataset.from_dict({n: c[0] if isinstance(c, tuple) else c for n, c in columns.items()})
    return samples.cast(datasets.Features({**samples.features, **features}))


def vit():
    return named("vit"), tf.ViTImageProcessor(size={"height": 32, "width": 32})


def vit_samples(count, rng):
    files = []
    for _ in range(count):
        pixels = rng.integers(0, 256, size=(40, 36), dtype=np.uint8)
        Image.fromarray(pixels).save(file := io.BytesIO(), format="PNG")
        files.append({"bytes": file.getvalue(), "path": None})
    return table(image=(files, datasets.Image()), labels=labels(count))


def audio_classification():
    return named("hubert"), tf.Wav2Vec2FeatureExtractor(sampling_rate=2 * RATE)


def audio_classification_samples(count, rng):
    return table(audio=sounds(count, rng), label=labels(count))


def text_classification():
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    return named("bert"), tf.BertTokenizer(vocab=vocabulary, pad_token="<pad>", model_max_length=16)


def text_classification_samples(count, rng):
    return table(text=texts(count, rng), label=labels(count))


def text():
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*SPECIAL, *WORDS])}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "[UNK]"}
    template = "{{ bos_token }}{{ messages[0]['content'] }} : "
    tokenizer = tf.PreTrainedTokenizerFast(tokenizer_object=words, chat_template=template, **special)
    return make("llama")[0], tokenizer


def text_samples(count, rng):
    return table(question=texts(count, rng), answer=texts(count, rng))


def whisper():
    special = ["<pad>", "<|startoftranscript|>", "<|endoftext|>", "<|notimestamps|>"]
    vocabulary = {piece: i for i, piece in enumerate([*special, "Ġ", *string.ascii_lowercase])}
    tokenizer = tf.WhisperTokenizer(vocab=vocabulary, merges=[], pad_token="<pad>", extra_special_tokens=special[1:])
    extractor = tf.WhisperFeatureExtractor(feature_size=8, hop_length=400, chunk_length=1)
    return make("whisper")[0], tf.WhisperProcessor(extractor, tokenizer)


def whisper_samples(count, rng):
    words = np.array(["ONE", "TWO", "NINE"])
    transcripts = [" ".join(words[rng.integers(0, 3, size=2)]) for _ in range(count)]
    return table(audio=sounds(count, rng), text=transcripts, speaker_id=[(1272, 84, 251)[i % 3] for i in range(count)])


HUB = {
    "vit": (vit, vit_samples),
    "audio_classification": (audio_classification, audio_classification_samples),
    "text_classification": (text_classification, text_classification_samples),
    "text": (text, text_samples),
    "whisper": (whisper, whisper_samples),
}
