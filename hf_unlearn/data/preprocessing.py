"""From samples as they stand on the Hub to samples ready for a model."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Array2D, Array3D, Audio, ClassLabel, Dataset, Features, Image, List, Value

from hf_unlearn.losses import head_of

logger = logging.getLogger(__name__)
CLASSIFIERS = ("single_label", "multi_label", "regression")
INPUTS = {"pixel_values": "image", "input_ids": "text", "input_values": "audio", "input_features": "audio"}
# The usual names of a column, by what it is; the first one found is taken.
USUAL = {
    "image": ("image", "img"),
    "audio": ("audio", "file", "path"),
    "text": ("text", "sentence", "transcription", "transcript", "normalized_text"),
    "label": ("label", "labels"),
    "prompt": ("prompt", "question", "source", "document"),
    "completion": ("completion", "answer", "target", "summary"),
    "messages": ("messages",),
}
# Samples in memory at a time: an image of 224 x 224 is 0.6 MB, half a minute of sound for Whisper 1 MB.
BATCH = 64
TEXT_BATCH = 1000


def prepare(samples: Dataset, model: Any, processor: Any, *, columns: Mapping[str, str] | None = None) -> Dataset:
    """Samples as `model` takes them, made by `processor`; samples that hold the model's main input are left alone.

    | head | samples bring | samples get |
    |---|---|---|
    | image classifier | image, label | `pixel_values`, `label` |
    | audio classifier | audio, label | `input_values` or `input_features`, `label` |
    | text classifier | text (and `text_pair`, if `columns` names it), label | `input_ids`, ..., `label` |
    | causal language model | prompt and completion, messages, or text | `input_ids`, `labels` |
    | text to text | prompt and completion | `input_ids`, ..., `labels` |
    | CTC, Whisper | audio, text | `input_values` or `input_features`, `labels` |

    Columns that are not used up (a speaker, an author) stay, for the forget request. Class names are matched with
    those of the model: numbers change where the model counts its classes in another order.

    The loss of a causal model is on the completion (labels are -100 before it) and on the end token; of text alone, on
    all of it. A question and its answer, and messages, are written by the tokenizer's chat template; questions without
    one as `Question: ...\\nAnswer: ...`; a prompt and its completion as they are. The loss of messages is on the last.
    Text longer than tokenizer and model allow is cut. Sound is resampled, its first channel taken.

    Args:
        samples: the samples, from `hf_unlearn.data.loading.load_samples` or any `datasets.Dataset`.
        model: the model, for its head, its configuration and its main input.
        processor: tokenizer, image processor, feature extractor, or the processor that holds two of them.
        columns: what a column is (`"image"`, `"audio"`, `"text"`, `"text_pair"`, `"label"`, `"prompt"`,
            `"completion"`, `"messages"`) to its name in `samples`, where that is not the usual one.

    Returns:
        The samples, streamed to the cache of `datasets`: nothing but a batch is in memory, and a second call reads it.

    Raises:
        ValueError: a column is missing, the model has no class of that name, or a head that this cannot prepare for.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    main = base.main_input_name
    if main in samples.column_names:
        return samples
    if processor is None:
        raise ValueError(f"processor: is missing, and the samples hold no {main}; give what makes {main} of them")
    if len(samples) == 0:
        raise ValueError("samples: are none; give at least one sample")
    unknown = set(columns or ()) - {*USUAL, "text_pair"}
    if unknown:
        raise ValueError(f"columns: {sorted(unknown)} is nothing that is looked for; use {[*USUAL, 'text_pair']}")
    kind, modality = head_of(base).kind, INPUTS.get(main)
    found = _Columns(samples.with_format(None), dict(columns or {}))
    if kind in CLASSIFIERS and modality is not None:
        found.samples = _labelled(found, base.config, kind)
        make = {"image": _image_samples, "audio": _audio_samples, "text": _text_samples}[modality]
        return make(found, base, processor)
    if modality == "audio" and kind in ("ctc", "seq2seq_lm"):
        return _spoken_samples(found, base, processor)
    if modality == "text" and kind in ("causal_lm", "seq2seq_lm"):
        return (_causal_samples if kind == "causal_lm" else _translated_samples)(found, base, processor)
    raise ValueError(
        f"samples: cannot be prepared for {type(base).__name__}; bring samples that hold {main} and its labels"
    )


def label_settings(samples: Dataset, columns: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What a model's configuration should say of the classes that the label column names; nothing where it names none.

    Args:
        samples: as for `prepare`.
        columns: as for `prepare`.

    Examples:
        >>> samples = Dataset.from_dict({"label": [[0, 1]]}, Features({"label": List(ClassLabel(names=["joy", "fear"]))}))
        >>> label_settings(samples)["label2id"], label_settings(samples)["problem_type"]
        ({'joy': 0, 'fear': 1}, 'multi_label_classification')
    """
    feature = samples.features.get(_Columns(samples, dict(columns or {})).find("label"))
    several = {"problem_type": "multi_label_classification"} if isinstance(feature, List) else {}
    feature = feature.feature if isinstance(feature, List) else feature
    if not isinstance(feature, ClassLabel):
        return {}
    numbered = dict(enumerate(feature.names))
    return {"id2label": numbered, "label2id": {name: i for i, name in numbered.items()}, **several}


class _Columns:
    """Samples, and which of their columns is what."""

    def __init__(self, samples: Dataset, given: dict[str, str]):
        self.samples, self.given = samples, given
        for what, name in given.items():
            if name not in samples.column_names:
                raise ValueError(f"columns: there is no column {name!r} for {what}, only {samples.column_names}")

    def find(self, what: str) -> str | None:
        """The name of the column that is `what`: as given, of the usual name, or the only one of its type."""
        if what in self.given:
            return self.given[what]
        names = [name for name in USUAL.get(what, ()) if name in self.samples.column_names]
        kinds = {"image": Image, "audio": Audio, "label": ClassLabel}
        typed = [n for n, feature in self.samples.features.items() if isinstance(feature, kinds.get(what, ()))]
        return names[0] if names else typed[0] if len(typed) == 1 else None

    def need(self, what: str) -> str:
        name = self.find(what)
        if name is None:
            raise ValueError(
                f"columns: none of {self.samples.column_names} is known as {what}; say which, as {what}=its name"
            )
        return name

    def apply(self, convert: Callable, used: Sequence[str], batch: int, **settings: Any) -> Dataset:
        """`convert` on batches of the samples, without the columns that are used up."""
        first = convert(self.samples[:1], **settings)  # also settles the tokenizer, whose state names the cache
        kept = {name: feature for name, feature in self.samples.features.items() if name not in used}
        made = {name: _feature(values[0]) for name, values in first.items()}
        return self.samples.map(
            convert, batched=True, batch_size=batch, writer_batch_size=batch, remove_columns=list(used),
            features=Features(kept | made), fn_kwargs=settings, desc="Preparing samples",
        )  # fmt: skip


def _feature(value: Any) -> Any:
    if np.ndim(value) == 1:
        return List(Value("float32" if isinstance(value, np.ndarray) else "int64"))
    # Features of sound may be as long as the sound is, along their first axis.
    return Array3D(value.shape, "float32") if value.ndim == 3 else Array2D((None, value.shape[1]), "float32")


# ---- labels ----------------------------------------------------------------------------------------------------


def _labelled(found: _Columns, config: Any, kind: str) -> Dataset:
    """The samples with their labels in the column `label`, numbered as the model numbers its classes."""
    column, samples = found.need("label"), found.samples
    if column != "label":
        if "label" in samples.column_names:
            raise ValueError(f"columns: label is {column!r}, but there is another column 'label'; remove one of them")
        samples = samples.rename_column(column, "label")
    feature, dtype = samples.features["label"], getattr(samples.features["label"], "dtype", "")
    if kind == "multi_label" and isinstance(feature, List):
        return _several(samples, config.num_labels)
    if kind != "single_label":
        return samples
    names = [config.id2label[i] for i in range(config.num_labels)]
    named = names != [f"LABEL_{i}" for i in range(config.num_labels)]
    if isinstance(feature, ClassLabel):
        if not named or feature.names == names:
            return samples
        if {name.lower() for name in feature.names} <= {name.lower() for name in names}:
            return samples.align_labels_with_mapping({name: i for i, name in enumerate(names)}, "label")
        logger.warning(
            f"label: the classes of the samples ({', '.join(feature.names[:4])}, ...) are not called as the model's "
            f"({', '.join(names[:4])}, ...); their numbers are taken as they are"
        )
    elif "string" in dtype or ("int" in dtype and named):
        known = set(names) if "string" in dtype else set(range(len(names)))
        strange = sorted(set(samples.unique("label")) - known, key=str)
        if strange:
            raise ValueError(f"label: the model has no class {strange[0]!r}; its classes are {names[:8]}")
        return samples.cast_column("label", ClassLabel(names=names))
    return samples


def _several(samples: Dataset, classes: int) -> Dataset:
    """Lists of class numbers as zeros and ones [classes]; samples that hold one number a class already stay."""
    if isinstance(samples.features["label"].feature, Value) and "float" in samples.features["label"].feature.dtype:
        return samples

    def spread(batch: dict) -> dict:
        return {"label": [np.isin(range(classes), each).astype(np.float32) for each in batch["label"]]}

    made = Features({**samples.features, "label": List(Value("float32"))})
    return samples.map(spread, batched=True, features=made, desc="Preparing labels")


# ---- images and sound --------------------------------------------------------------------------------------------


def _image_samples(found: _Columns, model: Any, processor: Any) -> Dataset:
    image = found.need("image")
    if not isinstance(found.samples.features[image], Image) or not found.samples.features[image].decode:
        found.samples = found.samples.cast_column(image, Image())
    settings = {
        "image": image,
        "processor": getattr(processor, "image_processor", processor),
        "mode": "L" if getattr(model.config, "num_channels", 3) == 1 else "RGB",
    }
    return found.apply(_pixels, [image], BATCH, **settings).with_format("torch")


def _pixels(batch: dict, image: str, processor: Any, mode: str) -> dict:
    return {"pixel_values": processor([each.convert(mode) for each in batch[image]], return_tensors="np").pixel_values}


def _audio_samples(found: _Columns, model: Any, processor: Any) -> Dataset:
    audio = _undecoded(found)
    extractor = getattr(processor, "feature_extractor", processor)
    return found.apply(
        _sounds, [audio], BATCH, audio=audio, extractor=extractor, main=model.main_input_name
    ).with_format("torch")


def _undecoded(found: _Columns) -> str:
    audio = found.need("audio")
    found.samples = found.samples.cast_column(audio, Audio(decode=False))
    return audio


def _sounds(batch: dict, audio: str, extractor: Any, main: str) -> dict:
    rate = extractor.sampling_rate
    heard = [extractor(waveform(cell, rate), sampling_rate=rate, return_tensors="np") for cell in batch[audio]]
    return {main: [np.asarray(each[main][0], dtype=np.float32) for each in heard]}


def waveform(audio: Mapping[str, Any], rate: int) -> np.ndarray:
    """The samples of an undecoded `datasets.Audio` cell: its first channel, resampled to `rate` Hz, shape [samples].

    Raises:
        ImportError: when soundfile is not installed (`pip install hf-unlearn[speech]`).
    """
    import soundfile
    from scipy.signal import resample_poly

    source = io.BytesIO(audio["bytes"]) if audio["bytes"] else audio["path"]
    samples, found = soundfile.read(source, dtype="float32", always_2d=True)
    return samples[:, 0] if found == rate else resample_poly(samples[:, 0], rate, found)


def _spoken_samples(found: _Columns, model: Any, processor: Any) -> Dataset:
    if not (hasattr(processor, "feature_extractor") and hasattr(processor, "tokenizer")):
        raise ValueError(
            f"processor: a {type(processor).__name__} cannot both hear and write; give a processor that has a feature "
            "extractor and a tokenizer"
        )
    audio, text = _undecoded(found), found.need("text")
    # The model puts its start token before the labels itself.
    start = model.config.decoder_start_token_id if model.config.is_encoder_decoder else None
    limit = getattr(model.config, "max_target_positions", None) if start is not None else None
    settings = {
        "audio": audio, "extractor": processor.feature_extractor, "main": model.main_input_name,
        "text": text, "tokenizer": processor.tokenizer, "start": start, "limit": limit,
    }  # fmt: skip
    return found.apply(_transcripts, [audio, text], BATCH, **settings).with_format("torch")


def _transcripts(batch: dict, text: str, tokenizer: Any, start: int | None, limit: int | None, **sound: Any) -> dict:
    labels = [tokenizer(_cased(line, tokenizer, start is None)).input_ids for line in batch[text]]
    labels = [sample[1:] if start is not None and sample[0] == start else sample for sample in labels]
    return {**_sounds(batch, **sound), "labels": [sample[:limit] for sample in labels]}


def _cased(line: str, tokenizer: Any, letters: bool) -> str:
    """A transcript in capitals as the recogniser writes: in its own letters (CTC), else in small ones."""
    if letters:
        known = tokenizer.get_vocab()
        return line.upper() if "A" in known and "a" not in known else line.lower() if "A" not in known else line
    return line.lower() if line.isupper() else line


# ---- text ------------------------------------------------------------------------------------------------------


def _limit(tokenizer: Any, config: Any) -> int:
    """The most tokens that both tokenizer and model take."""
    return min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or 10**9)


def _text_samples(found: _Columns, model: Any, processor: Any) -> Dataset:
    words = [name for name, feature in found.samples.features.items() if getattr(feature, "dtype", "") == "string"]
    text = found.find("text") or (words[0] if len(words) == 1 else found.need("text"))
    used = [text, *([found.given["text_pair"]] if "text_pair" in found.given else [])]
    return found.apply(
        _tokens, used, TEXT_BATCH, names=used, tokenizer=processor, limit=_limit(processor, model.config)
    )


def _tokens(batch: dict, names: list[str], tokenizer: Any, limit: int) -> dict:
    return dict(tokenizer(*(batch[name] for name in names), truncation=True, max_length=limit))


def _causal_samples(found: _Columns, model: Any, processor: Any) -> Dataset:
    tokenizer = getattr(processor, "tokenizer", processor)
    if found.find("messages"):
        used = [found.need("messages")]
    elif found.find("prompt"):
        used = [found.need("prompt"), found.need("completion")]
    else:
        used = [found.need("text")]
    if found.find("messages") and not tokenizer.chat_template:
        raise ValueError("processor: the tokenizer has no chat template to write messages with; set chat_template")
    asked = used[0] == "question"
    settings = {"names": used, "tokenizer": tokenizer, "limit": _limit(tokenizer, model.config), "asked": asked}
    return found.apply(_exchanges, used, TEXT_BATCH, **settings)


def _exchanges(batch: dict, names: list[str], tokenizer: Any, limit: int, asked: bool) -> dict:
    made: dict[str, list] = {"input_ids": [], "labels": []}
    for values in zip(*(batch[name] for name in names), strict=True):
        before, after = _exchange(values, tokenizer, asked)
        made["input_ids"].append((before + after)[:limit])
        made["labels"].append(([-100] * len(before) + after)[:limit])
    return made


def _exchange(values: tuple, tokenizer: Any, asked: bool) -> tuple[list[int], list[int]]:
    """The tokens of a sample without loss, and those with it."""
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    if len(values) == 1 and isinstance(values[0], str):
        tokens = tokenizer(values[0]).input_ids
        return [], tokens if tokens[-1:] == end else tokens + end
    if len(values) == 1:
        *before, last = values[0]
        values = (before, last["content"])
    prompt, completion = (
        value if isinstance(value, str) or i == 0 else value[-1]["content"] for i, value in enumerate(values)
    )
    if asked and tokenizer.chat_template:
        prompt = [{"role": "user", "content": prompt}]
    elif asked:
        # The blank belongs to the answer: as one token with its first word, as everywhere in running text.
        prompt, completion = f"Question: {prompt}\nAnswer:", f" {completion}"
    written = not isinstance(prompt, str)
    if written:
        prompt = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    tokens = tokenizer(prompt, add_special_tokens=not written).input_ids
    tokens = tokens[:-1] if tokens[-1:] == end else tokens
    return tokens, tokenizer(completion, add_special_tokens=False).input_ids + end


def _translated_samples(found: _Columns, model: Any, processor: Any) -> Dataset:
    tokenizer = getattr(processor, "tokenizer", processor)
    used = [found.need("prompt"), found.need("completion")]
    return found.apply(
        _translations, used, TEXT_BATCH, names=used, tokenizer=tokenizer, limit=_limit(tokenizer, model.config)
    )


def _translations(batch: dict, names: list[str], tokenizer: Any, limit: int) -> dict:
    source, target = (batch[name] for name in names)
    return dict(tokenizer(source, text_target=target, truncation=True, max_length=limit))
