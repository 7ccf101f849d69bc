"""Preprocessing: from the raw columns of a dataset to a model's inputs and labels."""

from __future__ import annotations

from collections.abc import Mapping

from datasets import Dataset
from transformers import PreTrainedModel

from hf_unlearn.data.audio import audio_samples, speech_samples
from hf_unlearn.data.chat import causal_samples
from hf_unlearn.data.columns import ROLES, Columns
from hf_unlearn.data.images import image_samples
from hf_unlearn.data.labels import with_labels
from hf_unlearn.data.text import text_samples, text_to_text_samples
from hf_unlearn.losses import head_of
from hf_unlearn.losses.images import takes_images
from hf_unlearn.models.types import Model, ProcessingClass, inner_model
from hf_unlearn.names import did_you_mean

CLASSIFIERS = ("single_label", "multi_label", "regression")
INPUTS = {"pixel_values": "image", "input_ids": "text", "input_values": "audio", "input_features": "audio"}


def prepare(
    samples: Dataset,
    model: Model,
    processor: ProcessingClass | None,
    *,
    columns: Mapping[str, str] | None = None,
    name: str = "samples",
) -> Dataset:
    """Preprocess samples for `model`; samples that have its main input already are returned unchanged.

    | head | columns needed | columns made |
    |---|---|---|
    | image classifier | image, label | `pixel_values`, `label` |
    | audio classifier | audio, label | `input_values` or `input_features`, `label` |
    | text classifier | text (and `text_pair`, if `columns` names it), label | `input_ids`, ..., `label` |
    | causal language model | prompt (and input) and completion, messages, or text | `input_ids`, `labels` |
    | text to text | prompt and completion | `input_ids`, ..., `labels` |
    | CTC, Whisper | audio, text | `input_values` or `input_features`, `labels` |

    Other columns (a speaker, an author) are kept for the forget request. Class names are matched with those of the
    model: class numbers change if the model orders its classes differently.

    The loss of a causal model is on the completion (labels are -100 before it) and on the end token; of plain text, on
    all tokens. Questions with answers, instructions (with an `input`) and messages are formatted with the tokenizer's
    chat template, and the answer ends as the template ends a turn; where a template writes today's date, it is
    always 26 July 2024. Questions without a template are written as `Question: ...\\nAnswer: ...`, instructions as in
    Alpaca; a prompt with its completion is concatenated unchanged. The loss of messages is on the last one, which must
    be an answer. Messages may have `role` and `content` or, as in ShareGPT, `from` and `value`; a content may be a
    list of parts of text.

    Nothing is cut in silence. Text is cut at the limit of tokenizer and model, sound of a classifier where the model
    stops listening: a line of the log says how many samples are. Refused are a prompt that leaves no room for the
    answer, and recordings and transcripts that are longer than a recogniser takes: it would be scored on words that
    it did not hear. Sound is resampled, its channels averaged; images of 16 bits are scaled to 8. Transcripts that
    are in capitals throughout are written in small letters for Whisper, and in the case of its vocabulary for CTC.

    Args:
        samples: the samples, from `hf_unlearn.data.loading.load_samples` or any `datasets.Dataset`.
        model: the model, for its head, its configuration and its main input.
        processor: tokenizer, image processor, feature extractor, or a processor that combines two of them.
        columns: role (`"image"`, `"audio"`, `"text"`, `"text_pair"`, `"label"`, `"prompt"`, `"completion"`,
            `"input"`, `"messages"`) to the name of the column in `samples`, where that is not the usual one.
        name: of the samples, for errors and the log.

    Returns:
        The samples, streamed to the cache of `datasets`: only one batch is in memory, and a second call reads the
        cache.

    Raises:
        ValueError: a column is missing, the model has no class of that name, its head is not supported, or a cell is
            empty, broken or too long: the message has the number of its sample and its column.
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
        role = min(map(str, unknown))
        raise ValueError(f"columns: {role!r} is no role of a column; use one of {[*ROLES]}{did_you_mean(role, ROLES)}")
    return _preprocess(Columns(samples.with_format(None), dict(columns or {}), name), base, processor)


def _preprocess(raw: Columns, base: PreTrainedModel, processor: ProcessingClass) -> Dataset:
    kind, modality = head_of(base).kind, INPUTS.get(base.main_input_name)
    if kind in CLASSIFIERS and modality is not None:
        raw.samples = with_labels(raw, base.config, kind)
        preprocess = {"image": image_samples, "audio": audio_samples, "text": text_samples}[modality]
        return preprocess(raw, base, processor)
    if modality == "audio" and kind in ("ctc", "seq2seq_lm"):
        return speech_samples(raw, base, processor)
    if kind == "causal_lm" and takes_images(base) and (image := raw.find("image")):
        raise ValueError(
            f"{raw.name}: column {image!r} holds images, and prepare reads text alone for {type(base).__name__}; give "
            "samples that its processor has made, one a sample (input_ids, pixel_values, labels)"
        )
    if modality == "text" and kind in ("causal_lm", "seq2seq_lm"):
        return (causal_samples if kind == "causal_lm" else text_to_text_samples)(raw, base, processor)
    raise ValueError(
        f"samples: cannot be prepared for {type(base).__name__}; give samples that have {base.main_input_name} "
        "and its labels"
    )
