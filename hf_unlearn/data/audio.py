"""From sound, and its transcripts, to the inputs and labels of a model."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Audio, Dataset

from hf_unlearn.data.columns import Columns

BATCH_SIZE = 64  # samples in memory at a time: half a minute of audio for Whisper is 1 MB


def audio_samples(raw: Columns, model: Any, processor: Any) -> Dataset:
    """The samples with the features of their sound in place of it."""
    audio = _cast_audio(raw)
    extractor = getattr(processor, "feature_extractor", processor)
    return raw.apply(
        _waves, [audio], BATCH_SIZE, audio=audio, extractor=extractor, main=model.main_input_name
    ).with_format("torch")


def _cast_audio(raw: Columns) -> str:
    """The name of the audio column, which is not decoded from here on."""
    audio = raw.need("audio")
    raw.samples = raw.samples.cast_column(audio, Audio(decode=False))
    return audio


def _waves(batch: dict, audio: str, extractor: Any, main: str) -> dict:
    rate = extractor.sampling_rate
    features = [extractor(waveform(sound, rate), sampling_rate=rate, return_tensors="np") for sound in batch[audio]]
    return {main: [np.asarray(inputs[main][0], dtype=np.float32) for inputs in features]}


def waveform(audio: Mapping[str, Any], rate: int) -> np.ndarray:
    """The first channel of an undecoded `datasets.Audio` value, resampled to `rate` Hz, shape [time].

    Raises:
        ImportError: soundfile is not installed (`pip install hf-unlearn[speech]`).
    """
    import soundfile
    from scipy.signal import resample_poly

    source = io.BytesIO(audio["bytes"]) if audio["bytes"] else audio["path"]
    wave, source_rate = soundfile.read(source, dtype="float32", always_2d=True)
    return wave[:, 0] if source_rate == rate else resample_poly(wave[:, 0], rate, source_rate)


def speech_samples(raw: Columns, model: Any, processor: Any) -> Dataset:
    """The samples of a recogniser: features in place of their sound, `labels` in place of their transcript."""
    if not (hasattr(processor, "feature_extractor") and hasattr(processor, "tokenizer")):
        raise ValueError(
            f"processor: a {type(processor).__name__} has no feature extractor or no tokenizer; give a processor that "
            "has both"
        )
    audio, text = _cast_audio(raw), raw.need("text")
    # The model itself puts its start token before the labels.
    start = model.config.decoder_start_token_id if model.config.is_encoder_decoder else None
    limit = getattr(model.config, "max_target_positions", None) if start is not None else None
    settings = {
        "audio": audio, "extractor": processor.feature_extractor, "main": model.main_input_name,
        "text": text, "tokenizer": processor.tokenizer, "start": start, "limit": limit,
    }  # fmt: skip
    return raw.apply(_transcripts, [audio, text], BATCH_SIZE, **settings).with_format("torch")


def _transcripts(batch: dict, text: str, tokenizer: Any, start: int | None, limit: int | None, **audio: Any) -> dict:
    labels = [tokenizer(_cased(line, tokenizer, start is None)).input_ids for line in batch[text]]
    labels = [sample[1:] if start is not None and sample[0] == start else sample for sample in labels]
    return {**_waves(batch, **audio), "labels": [sample[:limit] for sample in labels]}


def _cased(line: str, tokenizer: Any, is_ctc: bool) -> str:
    """A transcript in the case that the model writes: that of its vocabulary (CTC), else capitals in lower case."""
    if is_ctc:
        letters = tokenizer.get_vocab()
        return line.upper() if "A" in letters and "a" not in letters else line.lower() if "A" not in letters else line
    return line.lower() if line.isupper() else line
