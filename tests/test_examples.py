"""The examples: their Hub path on local folders and parquet files, and what their `--tiny` path is built from."""

import importlib
import inspect
import io
import math
import string
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import torch
import transformers as tf
from PIL import Image
from tiny import BOS, EOS, PAD, make
from tokenizers import Tokenizer, models, pre_tokenizers

from hf_unlearn.collate import default_collator

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
SHARED = ROOT.parent / "shared" / "data"
STEPS = 2
RATE = 8000  # half of what the extractors want, so that the examples have to resample

# The dataset numbers its classes in another order than the model does.
ROWS_NAMES, MODEL_NAMES = ["cat", "bird", "ant"], ["ant", "bird", "cat"]
NAMED = {"id2label": dict(enumerate(MODEL_NAMES)), "label2id": {name: i for i, name in enumerate(MODEL_NAMES)}}
SPECIAL = {"<pad>": PAD, "<s>": BOS, "</s>": EOS, "[UNK]": 3}
WORDS = ["who", "wrote", "the", "book", "one", "two", "ann", "bob", ":", "?", "."]


# ---- a model with its processor, and rows with the columns of the example's Hub dataset ---------------------------


def named(name):
    model, _ = make(name)
    model.config.id2label, model.config.label2id = NAMED["id2label"], NAMED["label2id"]
    return model


def labels(count):
    return [i % len(ROWS_NAMES) for i in range(count)], datasets.ClassLabel(names=ROWS_NAMES)


def sounds(count, rng):
    """WAV files of 25 to 32 ms: a tone of its own for every row, with noise."""
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
    rows = datasets.Dataset.from_dict({n: c[0] if isinstance(c, tuple) else c for n, c in columns.items()})
    return rows.cast(datasets.Features({**rows.features, **features}))


def vit():
    return named("vit"), tf.ViTImageProcessor(size={"height": 32, "width": 32})


def vit_rows(count, rng):
    files = []
    for _ in range(count):
        pixels = rng.integers(0, 256, size=(40, 36), dtype=np.uint8)
        Image.fromarray(pixels).save(file := io.BytesIO(), format="PNG")
        files.append({"bytes": file.getvalue(), "path": None})
    return table(image=(files, datasets.Image()), labels=labels(count))


def audio_classification():
    return named("hubert"), tf.Wav2Vec2FeatureExtractor(sampling_rate=2 * RATE)


def audio_classification_rows(count, rng):
    return table(audio=sounds(count, rng), label=labels(count))


def text_classification():
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    return named("bert"), tf.BertTokenizer(vocab=vocabulary, pad_token="<pad>", model_max_length=16)


def text_classification_rows(count, rng):
    return table(text=texts(count, rng), label=labels(count))


def text():
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*SPECIAL, *WORDS])}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "[UNK]"}
    template = "{{ bos_token }}{{ messages[0]['content'] }} : "
    tokenizer = tf.PreTrainedTokenizerFast(tokenizer_object=words, chat_template=template, **special)
    return make("llama")[0], tokenizer


def text_rows(count, rng):
    return table(question=texts(count, rng), answer=texts(count, rng))


def whisper():
    special = ["<pad>", "<|startoftranscript|>", "<|endoftext|>", "<|notimestamps|>"]
    vocabulary = {piece: i for i, piece in enumerate([*special, "Ġ", *string.ascii_lowercase])}
    tokenizer = tf.WhisperTokenizer(vocab=vocabulary, merges=[], pad_token="<pad>", extra_special_tokens=special[1:])
    extractor = tf.WhisperFeatureExtractor(feature_size=8, hop_length=400, chunk_length=1)
    return make("whisper")[0], tf.WhisperProcessor(extractor, tokenizer)


def whisper_rows(count, rng):
    words = np.array(["ONE", "TWO", "NINE"])
    said = [" ".join(words[rng.integers(0, 3, size=2)]) for _ in range(count)]
    return table(audio=sounds(count, rng), text=said, speaker_id=[(1272, 84, 251)[i % 3] for i in range(count)])


HUB = {
    "vit": (vit, vit_rows),
    "audio_classification": (audio_classification, audio_classification_rows),
    "text_classification": (text_classification, text_classification_rows),
    "text": (text, text_rows),
    "whisper": (whisper, whisper_rows),
}


# ---- the Hub path -------------------------------------------------------------------------------------------------


def load(name, monkeypatch):
    """An example as a module; they import each other from their own folder."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module(name)


# Example, method, what to forget, training rows; the column of the ready rows that tells which rows these are, what
# it holds there (classes as the model numbers them), and their number.
RUNS = [
    ("vit", "nabla_tau", "cat", 12, "label", {2}, 4),
    ("vit", "orthograd", "ant", 12, "label", {0}, 4),
    ("audio_classification", "nabla_tau", "cat", 12, "label", {2}, 4),
    ("text_classification", "nabla_tau", "cat", 12, "label", {2}, 4),
    ("text", "nabla_tau", "1", 30, "author_id", {1}, 10),
    ("text", "orthograd", "1", 30, "author_id", {1}, 10),
    ("whisper", "nabla_tau", "1272", 12, "speaker", {"1272"}, 4),
]


# Trainer asks for pinned memory unless told use_cpu; the examples take whatever device there is.
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator:UserWarning")
@pytest.mark.parametrize(
    ("name", "method", "value", "count", "column", "found", "size"), RUNS, ids=[f"{run[0]}-{run[1]}" for run in RUNS]
)
def test_hub_path(name, method, value, count, column, found, size, tmp_path, monkeypatch, capsys):
    build, make_rows = HUB[name]
    model, processor = build()
    base, out = tmp_path / "base", tmp_path / "forgot"
    model.save_pretrained(base)
    processor.save_pretrained(base)
    make_rows(count, np.random.default_rng(0)).to_parquet(tmp_path / "train.parquet")
    make_rows(10, np.random.default_rng(1)).to_parquet(tmp_path / "unseen.parquet")

    example = load(name, monkeypatch)
    trainers = []

    class Kept(example.UnlearningTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            trainers.append(self)

    monkeypatch.setattr(example, "UnlearningTrainer", Kept)
    monkeypatch.setattr("hf_unlearn.arguments.DEFAULT_STEPS", STEPS)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    files = {"dataset": "train.parquet", "unseen": "unseen.parquet"}
    options = {"model": base, **files, "forget": value, "method": method, "output": out}
    monkeypatch.setattr(sys, "argv", [name, *(f"--{key}={setting}" for key, setting in options.items())])
    example.main()

    (trainer,) = trainers
    forget, retain = trainer.forget_ds.with_format(None), trainer.retain_ds.with_format(None)
    assert set(forget[column]) == found and not set(retain[column]) & found
    assert (len(forget), len(retain), len(trainer.unseen_ds)) == (size, count - size, 10)
    assert trainer.state.global_step == STEPS

    forgot, loading = type(model).from_pretrained(out, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert forgot.config.architectures == [type(model).__name__]
    assert type(forgot.config) is type(model.config)
    assert type(type(processor).from_pretrained(out)) is type(processor)
    before, after = model.state_dict(), forgot.state_dict()
    assert before.keys() == after.keys()
    assert all(weights.isfinite().all() for weights in after.values())
    assert any(not torch.equal(before[key], after[key]) for key in before)
    assert list(out.glob("*.safetensors")) and not list(out.rglob("*adapter*"))
    assert not (tmp_path / "out").exists()  # --output was obeyed, nothing went to the default
    if name == "text":  # the loss is on answers
        assert all(row.index(EOS) == len(row) - 1 and row[:3] == [-100] * 3 for row in forget["labels"])
    if name == "whisper":
        heard = set(" ".join(processor.tokenizer.batch_decode(forget["labels"][:], skip_special_tokens=True)).split())
        assert heard == {"one", "two", "nine"} and not any(BOS in row for row in forget["labels"])
        printed = capsys.readouterr().out
        assert all(printed.count(f"'{speaker}': ") == 2 for speaker in (84, 251, 1272))  # before and after


# ---- the examples as files, and their own tiny data and models ----------------------------------------------------


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_fits_on_a_page(path):
    assert len(path.read_text().splitlines()) < 100


@pytest.mark.shared
@pytest.mark.parametrize("name", sorted(HUB))
def test_tiny_path_starts(name, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    example = load(name, monkeypatch)
    model, (train, unseen, test) = example.tiny_model().eval(), example.tiny_data(str(SHARED))
    assert len(train) > len(unseen) > 0 and len(test) > 0
    read = {*inspect.signature(model.forward).parameters, "label"}
    columns = [column for column in train.column_names if column in read]
    for rows in (train, unseen, test):
        batch = rows.select_columns(columns).select(range(4))
        with torch.no_grad():
            outputs = model(**default_collator(model)(list(batch)))
        assert len(outputs.logits) == 4 and math.isfinite(outputs.loss)
