"""Preprocessing: from the raw columns of a dataset to a model's inputs and labels."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Audio, ClassLabel, Dataset, Features, Image, List, Value
from transformers import PreTrainedModel

from hf_unlearn.data.collator import inner_model
from hf_unlearn.data.columns import ROLES, Columns
from hf_unlearn.losses import head_of
from hf_unlearn.models.types import Model, ProcessingClass

logger = logging.getLogger(__name__)
CLASSIFIERS = ("single_label", "multi_label", "regression")
INPUTS = {"pixel_values": "image", "input_ids": "text", "input_values": "audio", "input_features": "audio"}
# Samples in memory at a time: an image of 224 x 224 is 0.6 MB, half a minute of audio for Whisper 1 MB.
BATCH_SIZE = 64
TEXT_BATCH_SIZE = 1000


def prepare(
    samples: Dataset,
    model: Model,
    processor: ProcessingClass | None,
    *,
    columns: Mapping[str, str] | None = None,
) -> Dataset:
    """Preprocess samples for `model`; samples that have its main input already are returned unchanged.

    | head | columns needed | columns made |
    |---|---|---|
    | image classifier | image, label | `pixel_values`, `label` |
    | audio classifier | audio, label | `input_values` or `input_features`, `label` |
    | text classifier | text (and `text_pair`, if `columns` names it), label | `input_ids`, ..., `label` |
    | causal language model | prompt and completion, messages, or text | `input_ids`, `labels` |
    | text to text | prompt and completion | `input_ids`, ..., `labels` |
    | CTC, Whisper | audio, text | `input_values` or `input_features`, `labels` |

    Other columns (a speaker, an author) are kept for the forget request. Class names are matched with those of the
    model: class numbers change if the model orders its classes differently.

    The loss of a causal model is on the completion (labels are -100 before it) and on the end token; of plain text, on
    all tokens. A question with its answer, and messages, are formatted with the tokenizer's chat template; questions
    without a template as `Question: ...\\nAnswer: ...`; a prompt with its completion is concatenated unchanged. The
    loss of messages is on the last one. Text is truncated to the limit of tokenizer and model. Audio is resampled, and
    its first channel is used.

    Args:
        samples: the samples, from `hf_unlearn.data.loading.load_samples` or any `datasets.Dataset`.
        model: the model, for its head, its configuration and its main input.
        processor: tokenizer, image processor, feature extractor, or a processor that combines two of them.
        columns: role (`"image"`, `"audio"`, `"text"`, `"text_pair"`, `"label"`, `"prompt"`, `"completion"`,
            `"messages"`) to the name of the column in `samples`, where that is not the usual one.

    Returns:
        The samples, streamed to the cache of `datasets`: only one batch is in memory, and a second call reads the
        cache.

    Raises:
        ValueError: a column is missing, the model has no class of that name, or its head is not supported.
    """
    base = inner_model(model)
    main = base.main_input_name
    if main in samples.column_names:
        return samples
    if processor is None:
        raise ValueError(f"processor: is missing, and the samples hold no {main}; give what makes {main} of them")
    if len(samples) == 0:
        raise ValueError("samples: the dataset is empty; give at least one sample")
    if unknown := set(columns or ()) - set(ROLES):
        raise ValueError(f"columns: {sorted(unknown)} is no role of a column; use {[*ROLES]}")
    return _preprocess(Columns(samples.with_format(None), dict(columns or {})), base, processor)


def _preprocess(raw: Columns, base: PreTrainedModel, processor: ProcessingClass) -> Dataset:
    kind, modality = head_of(base).kind, INPUTS.get(base.main_input_name)
    if kind in CLASSIFIERS and modality is not None:
        raw.samples = _with_labels(raw, base.config, kind)
        preprocess = {"image": _image_samples, "audio": _audio_samples, "text": _text_samples}[modality]
        return preprocess(raw, base, processor)
    if modality == "audio" and kind in ("ctc", "seq2seq_lm"):
        return _speech_samples(raw, base, processor)
    if modality == "text" and kind in ("causal_lm", "seq2seq_lm"):
        return (_causal_samples if kind == "causal_lm" else _text_to_text_samples)(raw, base, processor)
    raise ValueError(
        f"samples: cannot be prepared for {type(base).__name__}; give samples that have {base.main_input_name} "
        "and its labels"
    )


def label_settings(samples: Dataset, columns: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Settings of a model's configuration for the classes that the label column names; empty if it names none.

    Args:
        samples: as for `prepare`.
        columns: as for `prepare`.

    Examples:
        >>> emotions = List(ClassLabel(names=["joy", "fear"]))
        >>> settings = label_settings(Dataset.from_dict({"label": [[0, 1]]}, Features({"label": emotions})))
        >>> settings["label2id"], settings["problem_type"]
        ({'joy': 0, 'fear': 1}, 'multi_label_classification')
    """
    feature = samples.features.get(Columns(samples, dict(columns or {})).find("label"))
    problem_type = {"problem_type": "multi_label_classification"} if isinstance(feature, List) else {}
    feature = feature.feature if isinstance(feature, List) else feature
    if not isinstance(feature, ClassLabel):
        return {}
    id2label = dict(enumerate(feature.names))
    return {"id2label": id2label, "label2id": {name: i for i, name in id2label.items()}, **problem_type}


# ---- labels ----------------------------------------------------------------------------------------------------


def _with_labels(raw: Columns, config: Any, kind: str) -> Dataset:
    """The samples with their labels in the column `label`, with the class numbers of the model."""
    column, samples = raw.need("label"), raw.samples
    if column != "label":
        if "label" in samples.column_names:
            raise ValueError(f"columns: label is {column!r}, but there is another column 'label'; remove one of them")
        samples = samples.rename_column(column, "label")
    feature, dtype = samples.features["label"], getattr(samples.features["label"], "dtype", "")
    if kind == "multi_label" and isinstance(feature, List):
        return _with_indicators(samples, config.num_labels)
    if kind != "single_label":
        return samples
    names = [config.id2label[i] for i in range(config.num_labels)]
    has_names = names != [f"LABEL_{i}" for i in range(config.num_labels)]
    if isinstance(feature, ClassLabel):
        return _aligned(samples, names) if has_names else samples
    if "string" in dtype or ("int" in dtype and has_names):
        valid = set(names) if "string" in dtype else set(range(len(names)))
        if unknown := sorted(set(samples.unique("label")) - valid, key=str):
            raise ValueError(f"label: the model has no class {unknown[0]!r}; its classes are {names[:8]}")
        return samples.cast_column("label", ClassLabel(names=names))
    return samples


def _aligned(samples: Dataset, names: list[str]) -> Dataset:
    """The samples with the class numbers that belong to `names`, if these include the names of their own classes."""
    sample_names = samples.features["label"].names
    if sample_names == names:
        return samples
    if {name.lower() for name in sample_names} <= {name.lower() for name in names}:
        return samples.align_labels_with_mapping({name: i for i, name in enumerate(names)}, "label")
    logger.warning(
        f"label: the class names of the samples ({', '.join(sample_names[:4])}, ...) are not those of the model "
        f"({', '.join(names[:4])}, ...); the class numbers are used unchanged"
    )
    return samples


def _with_indicators(samples: Dataset, classes: int) -> Dataset:
    """Lists of class numbers as zeros and ones [classes]; samples that have such indicators already are unchanged."""
    if isinstance(samples.features["label"].feature, Value) and "float" in samples.features["label"].feature.dtype:
        return samples

    def indicators(batch: dict) -> dict:
        return {"label": [np.isin(range(classes), numbers).astype(np.float32) for numbers in batch["label"]]}

    features = Features({**samples.features, "label": List(Value("float32"))})
    return samples.map(indicators, batched=True, features=features, desc="Preparing labels")


# ---- images and audio --------------------------------------------------------------------------------------------


def _image_samples(raw: Columns, model: Any, processor: Any) -> Dataset:
    image = raw.need("image")
    if not isinstance(raw.samples.features[image], Image) or not raw.samples.features[image].decode:
        raw.samples = raw.samples.cast_column(image, Image())
    settings = {
        "image": image,
        "processor": getattr(processor, "image_processor", processor),
        "mode": "L" if getattr(model.config, "num_channels", 3) == 1 else "RGB",
    }
    return raw.apply(_pixels, [image], BATCH_SIZE, **settings).with_format("torch")


def _pixels(batch: dict, image: str, processor: Any, mode: str) -> dict:
    images = [picture.convert(mode) for picture in batch[image]]
    return {"pixel_values": processor(images, return_tensors="np").pixel_values}


def _audio_samples(raw: Columns, model: Any, processor: Any) -> Dataset:
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


def _speech_samples(raw: Columns, model: Any, processor: Any) -> Dataset:
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


# ---- text ------------------------------------------------------------------------------------------------------


def _limit(tokenizer: Any, config: Any) -> int:
    """The maximum number of tokens of both tokenizer and model."""
    return min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or 10**9)


def _text_samples(raw: Columns, model: Any, processor: Any) -> Dataset:
    strings = [name for name, feature in raw.samples.features.items() if getattr(feature, "dtype", "") == "string"]
    text = raw.find("text") or (strings[0] if len(strings) == 1 else raw.need("text"))
    used = [text, *([raw.given["text_pair"]] if "text_pair" in raw.given else [])]
    return raw.apply(
        _tokens, used, TEXT_BATCH_SIZE, names=used, tokenizer=processor, limit=_limit(processor, model.config)
    )


def _tokens(batch: dict, names: list[str], tokenizer: Any, limit: int) -> dict:
    return dict(tokenizer(*(batch[name] for name in names), truncation=True, max_length=limit))


def _causal_samples(raw: Columns, model: Any, processor: Any) -> Dataset:
    tokenizer = getattr(processor, "tokenizer", processor)
    if raw.find("messages"):
        used = [raw.need("messages")]
    elif raw.find("prompt"):
        used = [raw.need("prompt"), raw.need("completion")]
    else:
        used = [raw.need("text")]
    if raw.find("messages") and not tokenizer.chat_template:
        raise ValueError("processor: the tokenizer has no chat template to write messages with; set chat_template")
    is_question = used[0] == "question"
    limit = _limit(tokenizer, model.config)
    settings = {"names": used, "tokenizer": tokenizer, "limit": limit, "is_question": is_question}
    return raw.apply(_completions, used, TEXT_BATCH_SIZE, **settings)


def _completions(batch: dict, names: list[str], tokenizer: Any, limit: int, is_question: bool) -> dict:
    columns: dict[str, list] = {"input_ids": [], "labels": []}
    for values in zip(*(batch[name] for name in names), strict=True):
        prompt, completion = _prompt_and_completion(values, tokenizer, is_question)
        columns["input_ids"].append((prompt + completion)[:limit])
        columns["labels"].append(([-100] * len(prompt) + completion)[:limit])
    return columns


def _prompt_and_completion(values: tuple, tokenizer: Any, is_question: bool) -> tuple[list[int], list[int]]:
    """The tokens of a sample without loss, and those with loss."""
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    if len(values) == 1 and isinstance(values[0], str):
        tokens = tokenizer(values[0]).input_ids
        return [], tokens if tokens[-1:] == end else tokens + end
    if len(values) == 1:
        *history, last = values[0]
        values = (history, last["content"])
    prompt, completion = (
        value if isinstance(value, str) or i == 0 else value[-1]["content"] for i, value in enumerate(values)
    )
    if is_question and tokenizer.chat_template:
        prompt = [{"role": "user", "content": prompt}]
    elif is_question:
        # The space belongs to the answer: one token with its first word, as in running text.
        prompt, completion = f"Question: {prompt}\nAnswer:", f" {completion}"
    is_chat = not isinstance(prompt, str)
    if is_chat:
        prompt = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    tokens = tokenizer(prompt, add_special_tokens=not is_chat).input_ids
    tokens = tokens[:-1] if tokens[-1:] == end else tokens
    return tokens, tokenizer(completion, add_special_tokens=False).input_ids + end


def _text_to_text_samples(raw: Columns, model: Any, processor: Any) -> Dataset:
    tokenizer = getattr(processor, "tokenizer", processor)
    used = [raw.need("prompt"), raw.need("completion")]
    return raw.apply(
        _text_to_text, used, TEXT_BATCH_SIZE, names=used, tokenizer=tokenizer, limit=_limit(tokenizer, model.config)
    )


def _text_to_text(batch: dict, names: list[str], tokenizer: Any, limit: int) -> dict:
    source, target = (batch[name] for name in names)
    return dict(tokenizer(source, text_target=target, truncation=True, max_length=limit))
