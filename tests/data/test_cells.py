"""Cells that are empty, broken, of another type or too long: one line that names them, or counts them."""

import io
import logging

import datasets
import numpy as np
import pytest
import soundfile
import tiny_data
import torch
import transformers as tf
from datasets import Audio, Dataset, Features, Image, Value
from PIL import Image as Pillow
from tiny import make

from hf_unlearn.data.preprocessing import prepare

pytestmark = pytest.mark.usefixtures("cache")


def png(pixels, kind="PNG"):
    Pillow.fromarray(np.asarray(pixels)).save(file := io.BytesIO(), kind)
    return {"bytes": file.getvalue(), "path": None}


def wav(sound, rate=16000, **settings):
    soundfile.write(file := io.BytesIO(), np.asarray(sound), rate, format="WAV", **settings)
    return {"bytes": file.getvalue(), "path": None}


def pictures(cells, labels=None):
    features = Features({"image": Image(), "label": Value("int64")})
    return Dataset.from_dict({"image": cells, "label": [0] * len(cells) if labels is None else labels}, features)


def sounds(cells, texts=None, label=False):
    second = {"label": [0] * len(cells)} if label else {"text": texts or ["one two"] * len(cells)}
    file = {"bytes": Value("binary"), "path": Value("string")}
    features = Features({"audio": file, **({"label": Value("int64")} if label else {"text": Value("string")})})
    return Dataset.from_dict({"audio": cells, **second}, features).cast_column("audio", Audio(decode=False))


GREY = np.full((8, 8), 9, np.uint8)
QUIET = np.zeros(800, np.float32)
FILE = png(GREY)


BROKEN = {
    "empty text": (tiny_data.text_classification, {"text": ["who", None], "label": [0, 1]}, "'text': is empty"),
    "blank text": (tiny_data.text_classification, {"text": ["who", " "], "label": [0, 1]}, "'text': is empty"),
    "no text": (tiny_data.text_classification, {"text": [4, 5], "label": [0, 1]}, "'text': holds 4"),
    "empty label": (tiny_data.text_classification, {"text": ["a", "b"], "label": [0, None]}, "'label': is empty"),
    "NaN label": (tiny_data.text_classification, {"text": ["a", "b"], "label": [0.0, np.nan]}, "'label': is nan"),
    "unlabelled": (tiny_data.text_classification, {"text": ["a", "b"], "label": [0, -1]}, "'label': is -1"),
    "empty answer": (tiny_data.text, {"question": ["a", "b"], "answer": ["c", None]}, "'answer': is empty"),
    "empty image": (tiny_data.vit, pictures([FILE, None]), "'image': is empty; give a file"),
    "image cut off": (
        tiny_data.vit, pictures([FILE, {**FILE, "bytes": FILE["bytes"][:40]}]),
        r"'image': does not open as an image \(.*\); mend it",
    ),
    "image gone": (
        tiny_data.vit, pictures([FILE, {"bytes": None, "path": "nowhere.png"}]), "'image': does not open as an image",
    ),
    "empty audio": (tiny_data.whisper, sounds([wav(QUIET), None]), "'audio': is empty"),
    "no sound": (tiny_data.whisper, sounds([wav(QUIET), {"bytes": b"x", "path": None}]), "'audio': does not open as"),
    "not a sample": (tiny_data.whisper, sounds([wav(QUIET), wav(QUIET[:0])]), "'audio': is a sound without a sample"),
    "NaN sound": (
        tiny_data.whisper, sounds([wav(QUIET), wav(QUIET + np.nan, subtype="FLOAT")]), "'audio': holds NaN or infinity"
    ),
    "empty transcript": (tiny_data.whisper, sounds([wav(QUIET)] * 2, ["a", None]), "'text': is empty; give a transcr"),
    "too long to hear": (
        tiny_data.whisper, sounds([wav(QUIET), wav(np.zeros(20000))]), "'audio': lasts 1.2 s, and the model hears 1 s"
    ),
    "too long to write": (
        tiny_data.whisper, sounds([wav(QUIET)] * 2, ["a", "one " * 200]), "'text': has .* tokens, and the model writes"
    ),
    "question too long": (
        tiny_data.text, {"question": ["a", "who " * 900], "answer": ["c", "d"]}, "'question': has 90. tokens, and the"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_cell_that_does_not_do_is_named(name):
    build, columns, message = BROKEN[name]
    model, processor = build()
    samples = columns if isinstance(columns, Dataset) else Dataset.from_dict(columns)
    index = 0 if name == "no text" else 1
    with pytest.raises(ValueError, match=f"^train: sample {index}, column {message}") as caught:
        prepare(samples, model, processor, name="train")
    assert "\n" not in str(caught.value)


def test_images_of_16_bits_keep_their_levels(caplog):
    model, processor = tiny_data.vit()
    ramp = np.tile(np.linspace(0, 1, 32), (32, 1))
    deep, flat = png((ramp * 65535).astype(np.uint16)), png((ramp * 65535 // 257).astype(np.uint8))
    with caplog.at_level(logging.WARNING, logger="hf_unlearn"):
        ready = prepare(pictures([flat, deep]), model, processor)
    assert (
        "samples: 1 of 2 samples have images of 16 bits a pixel, which are scaled to 8; the first is 1" in caplog.text
    )
    assert torch.equal(ready[0]["pixel_values"], ready[1]["pixel_values"])
    assert len(ready[1]["pixel_values"].unique()) == 32
    for values in ((ramp * 65535).astype(np.int32), ramp.astype(np.float32)):
        with pytest.raises(ValueError, match=r"^samples: sample 0, column 'image': the pixels are .*, whose white"):
            prepare(pictures([png(values, "TIFF")]), model, processor)


def test_frames_and_channels_and_sound_beyond_hearing_are_counted(caplog):
    model, processor = tiny_data.vit()
    frames = [Pillow.fromarray(GREY), Pillow.fromarray(GREY + 9)]
    frames[0].save(file := io.BytesIO(), "TIFF", save_all=True, append_images=frames[1:])
    with caplog.at_level(logging.WARNING, logger="hf_unlearn"):
        prepare(pictures([{"bytes": file.getvalue(), "path": None}, FILE]), model, processor)
        assert (
            "1 of 2 samples have images of several frames, of which the first is read; the first is 0" in caplog.text
        )
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        patches = {"num_mel_bins": 16, "max_length": 32, "patch_size": 8, "frequency_stride": 8, "time_stride": 8}
        ast = tf.ASTForAudioClassification(tf.ASTConfig(num_labels=3, **patches, **sizes))
        cells = [wav(np.zeros(n)) for n in (5519, 5521)]  # 32 windows of 25 ms, one every 10 ms; and the 33rd
        prepare(sounds(cells, label=True), ast, tf.ASTFeatureExtractor(num_mel_bins=16, max_length=32))
    assert "1 of 2 samples last longer than the 0.345 s that the model hears, and are cut there; the first is 1" in (
        caplog.text
    )
    caplog.clear()
    wave = np.sin(np.arange(800) / 9)
    hubert, extractor = tiny_data.audio_classification()
    stereo = sounds([wav(np.stack([wave, 0 * wave], 1)), wav(wave / 2)], label=True)
    with caplog.at_level(logging.WARNING, logger="hf_unlearn"):
        ready = prepare(stereo, hubert, extractor)
    assert "1 of 2 samples have sound of several channels, which are averaged; the first is 0" in caplog.text
    torch.testing.assert_close(ready[0]["input_values"], ready[1]["input_values"], atol=1e-3, rtol=0)


def test_whole_numbers_are_the_sound_that_floats_are():
    model, extractor = tiny_data.audio_classification()
    wave = np.sin(np.arange(800) / 9) / 2
    ready = prepare(sounds([wav(wave), wav((wave * 32767).astype(np.int16))], label=True), model, extractor)
    torch.testing.assert_close(ready[0]["input_values"], ready[1]["input_values"], atol=1e-3, rtol=0)


def test_text_that_is_cut_is_counted_also_from_the_cache(caplog, tmp_path):
    model, tokenizer = tiny_data.text_classification()
    limit = tokenizer.model_max_length
    Dataset.from_dict({"text": ["who"] * 3 + ["who " * 14, "who " * 15], "label": [0] * 5}).to_parquet(
        tmp_path / "a.parquet"
    )
    samples = datasets.load_dataset("parquet", data_files=str(tmp_path / "a.parquet"), split="train")
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="hf_unlearn"):
            ready = prepare(samples, model, tokenizer)
        assert f"1 of 5 samples are longer than the {limit} tokens that the model reads, and are cut" in caplog.text
        assert "the first is 4" in caplog.text and "_is_cut" not in ready.column_names
    t5, (_, words) = make("t5")[0], tiny_data.text()
    words.model_max_length = 4
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="hf_unlearn"):
        prepare(Dataset.from_dict({"document": ["who", "who " * 5], "summary": ["one " * 6, "two"]}), t5, words)
    assert "1 of 2 samples have more than 4 tokens in 'document', and are cut there; the first is 1" in caplog.text
    assert "1 of 2 samples have more than 4 tokens in 'summary', and are cut there; the first is 0" in caplog.text
    llama, words = tiny_data.text()
    words.model_max_length = 8
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="hf_unlearn"):
        ready = prepare(Dataset.from_dict({"text": ["who", "who " * 9]}), llama, words)
    assert "1 of 2 samples are longer than the 8 tokens" in caplog.text and len(ready[1]["input_ids"]) == 8


def test_roberta_reads_two_tokens_less_than_it_has_positions():
    config = tf.RobertaConfig(
        vocab_size=40, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=12, num_labels=3, pad_token_id=1,
    )  # fmt: skip
    model, (_, tokenizer) = tf.RobertaForSequenceClassification(config).eval(), tiny_data.text_classification()
    tokenizer.model_max_length = 1000
    ready = prepare(Dataset.from_dict({"text": ["who " * 30], "label": [0]}), model, tokenizer)
    assert len(ready[0]["input_ids"]) == 10
    model(torch.tensor([ready[0]["input_ids"]]))


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["He works at NASA.", "OK", "I", "USA"], ["He works at NASA.", "OK", "I", "USA"]),
        (["ONE TWO", "NINE"], ["one two", "nine"]),
        (["ONE", "1984"], ["one", "1984"]),
        (["安娜", "OK"], ["安娜", "ok"]),
    ],
)
def test_transcripts_keep_their_case_unless_all_are_in_capitals(texts, expected):
    from hf_unlearn.data.audio import _case, _in_case

    case = _case(Dataset.from_dict({"text": texts}), "text", None)
    assert [_in_case(text, case) for text in texts] == expected


def test_labels_of_other_kinds():
    model, tokenizer = tiny_data.text_classification()
    model.config.id2label = {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    ready = prepare(Dataset.from_dict({"text": ["who", "one"], "label": [True, False]}), model, tokenizer)
    assert ready["label"][:] == [1, 0]
    with pytest.raises(ValueError, match=r"^label: the model has no class 3; its"):
        prepare(Dataset.from_dict({"text": ["who", "one"], "label": [0, 3]}), model, tokenizer)
    model.config.problem_type = "multi_label_classification"
    ready = prepare(Dataset.from_dict({"text": ["who"], "label": [["LABEL_2", "LABEL_0"]]}), model, tokenizer)
    assert ready["label"][:] == [[1, 0, 1]]
    with pytest.raises(ValueError, match=r"^label: the model has no class 7; its"):
        prepare(Dataset.from_dict({"text": ["who"], "label": [[7]]}), model, tokenizer)
