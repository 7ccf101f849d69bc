"""From sound, and its transcripts, to the inputs and labels of a model."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Audio, Dataset

from hf_unlearn.data.columns import Columns, file_of, located, text_of

BATCH_SIZE = 64  # samples in memory at a time: half a minute of audio for Whisper is 1 MB
MIXED = {"_is_mixed": "have sound of several channels, which are averaged"}


def audio_samples(raw: Columns, model: Any, processor: Any) -> Dataset:
    """The samples with the features of their sound in place of it."""
    audio = _cast_audio(raw)
    extractor = getattr(processor, "feature_extractor", processor)
    limit = hearing_limit(extractor)
    notices = {"_is_cut": f"last longer than the {limit:.4g} s that the model hears, and are cut there"}
    return raw.apply(
        _classified_waves, [audio], BATCH_SIZE, notices | MIXED, audio=audio, extractor=extractor,
        main=model.main_input_name, limit=limit,
    ).with_format("torch")  # fmt: skip


def hearing_limit(extractor: Any) -> float:
    """Seconds of sound that a feature extractor keeps: 30 for Whisper, about 10 for AST, infinite for most."""
    if hasattr(extractor, "n_samples"):
        return extractor.n_samples / extractor.sampling_rate
    if hasattr(extractor, "num_mel_bins") and hasattr(extractor, "max_length"):
        return (extractor.max_length * 10 + 25) / 1000  # windows of 25 ms, one every 10 ms
    return math.inf


def _cast_audio(raw: Columns) -> str:
    """The name of the audio column, which is not decoded from here on."""
    audio = raw.need("audio")
    raw.samples = raw.samples.cast_column(audio, Audio(decode=False))
    return audio


def _classified_waves(batch: dict, places: list[str], limit: float, **settings: Any) -> dict:
    features, seconds = _waves(batch, places, **settings)
    return {**features, "_is_cut": [duration > limit for duration in seconds]}


def _waves(batch: dict, places: list[str], audio: str, extractor: Any, main: str) -> tuple[dict, list[float]]:
    """The features of a batch, and the seconds that its sounds last."""
    rate = extractor.sampling_rate
    features, seconds, is_mixed = [], [], []
    for cell, place in zip(batch[audio], places, strict=True):
        file = file_of(cell, place, audio)
        with located(place, audio, "does not open as a sound"):
            channels, source_rate = read_sound(file)
        if not len(channels) or not np.isfinite(channels).all():
            found = "holds NaN or infinity" if len(channels) else "is a sound without a sample"
            raise ValueError(f"{place}, column {audio!r}: {found}; mend it, or take the sample out")
        inputs = extractor(mono(channels, source_rate, rate), sampling_rate=rate, return_tensors="np")
        features.append(np.asarray(inputs[main][0], dtype=np.float32))
        seconds.append(len(channels) / source_rate)
        is_mixed.append(channels.shape[1] > 1)
    return {main: features, "_is_mixed": is_mixed}, seconds


def read_sound(file: Mapping[str, Any]) -> tuple[np.ndarray, int]:
    """The channels [time, channels] of an undecoded `datasets.Audio` value, in [-1, 1], and their sampling rate.

    Raises:
        ImportError: soundfile is not installed (`pip install hf-unlearn[speech]`).
    """
    try:
        import soundfile
    except ImportError as error:
        raise ImportError("soundfile: is not installed, and reads sound; pip install 'hf-unlearn[speech]'") from error
    return soundfile.read(
        io.BytesIO(file["bytes"]) if file["bytes"] else file["path"], dtype="float32", always_2d=True
    )


def mono(channels: np.ndarray, source_rate: int, rate: int) -> np.ndarray:
    """The mean [time] of channels [time, channels], resampled from `source_rate` to `rate` Hz."""
    from scipy.signal import resample_poly

    wave = channels.mean(axis=1)
    return wave if source_rate == rate else resample_poly(wave, rate, source_rate)


def waveform(audio: Mapping[str, Any], rate: int) -> np.ndarray:
    """An undecoded `datasets.Audio` value, its channels averaged, resampled to `rate` Hz, shape [time].

    Raises:
        ImportError: soundfile is not installed (`pip install hf-unlearn[speech]`).
    """
    return mono(*read_sound(audio), rate)


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
        "case": _case(raw.samples, text, processor.tokenizer if start is None else None),
    }  # fmt: skip
    return raw.apply(_transcripts, [audio, text], BATCH_SIZE, MIXED, **settings).with_format("torch")


def _transcripts(
    batch: dict,
    places: list[str],
    text: str,
    tokenizer: Any,
    start: int | None,
    limit: int | None,
    case: str,
    **audio: Any,
) -> dict:
    features, seconds = _waves(batch, places, **audio)
    heard = hearing_limit(audio["extractor"])
    labels = []
    for line, place, duration in zip(batch[text], places, seconds, strict=True):
        if duration > heard:
            raise ValueError(
                f"{place}, column {audio['audio']!r}: lasts {duration:.1f} s, and the model hears {heard:.4g} s of "
                "what its transcript says; cut both into pieces, or take the sample out"
            )
        tokens = tokenizer(_in_case(text_of(line, place, text, "transcript"), case)).input_ids
        tokens = tokens[1:] if start is not None and tokens[0] == start else tokens
        if limit is not None and len(tokens) > limit:
            raise ValueError(
                f"{place}, column {text!r}: has {len(tokens)} tokens, and the model writes at most {limit}; cut it "
                "into pieces, with its sound, or take the sample out"
            )
        labels.append(tokens)
    return {**features, "labels": labels}


def _case(samples: Dataset, text: str, ctc_tokenizer: Any) -> str:
    """`"lower"`, `"upper"` or `""`, as they are: one case for all transcripts, that which the model writes.

    CTC: of a vocabulary with letters of one case only. Else small letters for transcripts that have capitals only, in
    all samples, as in LibriSpeech: a word in capitals is one in some corpora, and every corpus has small letters.
    """
    if ctc_tokenizer is not None:
        letters = [piece for piece in ctc_tokenizer.get_vocab() if len(piece) == 1]
        has_upper, has_lower = any(map(str.isupper, letters)), any(map(str.islower, letters))
        return "" if has_upper == has_lower else "upper" if has_upper else "lower"
    lines = [line for line in samples.with_format(None)[text] if isinstance(line, str)]
    has_small = any(character.islower() for line in lines for character in line)
    return "" if has_small or not any(map(str.isupper, lines)) else "lower"


def _in_case(line: str, case: str) -> str:
    return line.lower() if case == "lower" else line.upper() if case == "upper" else line
