"""The head of a model: the inputs it needs, the loss and the correct predictions of each sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PretrainedConfig

from hf_unlearn.losses import functional
from hf_unlearn.losses.images import own_captions, unpadded_images, unstacked_captions
from hf_unlearn.losses.labelled import LabelledOutputs, run_labelled

Batch: TypeAlias = Mapping[str, Any]
PerSampleLoss: TypeAlias = Callable[[Any, Batch], Tensor]
HeadKind: TypeAlias = Literal[
    "single_label", "multi_label", "regression", "token", "causal_lm", "masked_lm", "seq2seq_lm", "ctc",
    "question_answering", "multiple_choice", "contrastive", "segmentation", "custom",
]  # fmt: skip

KIND_OF_PROBLEM_TYPE: dict[str, HeadKind] = {
    "regression": "regression",
    "single_label_classification": "single_label",
    "multi_label_classification": "multi_label",
}
LANGUAGE_KINDS: tuple[HeadKind, ...] = ("causal_lm", "seq2seq_lm", "masked_lm")
# Kinds of head that score a sample on several tokens, and the size of a token-loss profile.
TOKEN_KINDS: tuple[HeadKind, ...] = (*LANGUAGE_KINDS, "token")
PROFILE_SIZE = 8


def classification_kind(config: PretrainedConfig, labels: Tensor | None = None) -> HeadKind:
    """The kind of a classifier, by the rule of transformers (ForSequenceClassificationLoss).

    The config's `problem_type` decides; if it is not set, a single output means regression, integer labels (or no
    labels at hand) mean a single label, and any other dtype several labels. Unlike transformers, this does not write
    the answer into the config. The rule also holds for audio classifiers whose own loss ignores `problem_type`
    (wav2vec2, Whisper).
    """
    if config.problem_type is not None:
        return KIND_OF_PROBLEM_TYPE[config.problem_type]
    if config.num_labels == 1:
        return "regression"
    return "single_label" if labels is None or labels.dtype in (torch.long, torch.int) else "multi_label"


@dataclass(frozen=True)
class Head:
    """The head of one model; made by `head_of`.

    Losses are those of the outputs that they are given: call the model in eval mode for losses without dropout and
    SpecAugment.

    Attributes:
        kind: `"single_label"`, `"multi_label"`, `"regression"`, `"token"`, `"causal_lm"`, `"masked_lm"`,
            `"seq2seq_lm"`, `"ctc"`, `"question_answering"`, `"multiple_choice"`, `"contrastive"` (an image among
            captions), `"segmentation"` or `"custom"`. A classifier whose config leaves
            `problem_type` open has kind `"single_label"`, and its labels decide batch by batch: see `kind_for`.
        model: the model, without the wrapper of its adapters: a `PreTrainedModel`, or any module for kind `"custom"`.
            Only its config and its helper methods are used.
        per_sample_loss: the user's own function, for kind `"custom"`.
    """

    kind: HeadKind
    model: Any = field(repr=False)
    per_sample_loss: PerSampleLoss | None = field(default=None, repr=False)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The entries of a batch that hold its labels; none for kind `"custom"`, which may use any entry."""
        if self.kind == "custom":
            return ()
        return ("start_positions", "end_positions") if self.kind == "question_answering" else ("labels",)

    def kind_for(self, batch: Batch) -> HeadKind:
        """The kind of head for the labels of this batch.

        It is `kind`, except for a classifier whose config leaves `problem_type` open: see `classification_kind`.
        """
        if self.kind in KIND_OF_PROBLEM_TYPE.values():
            return classification_kind(self.model.config, batch["labels"])
        return self.kind

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """The arguments of the model's forward for a collated batch, which is not changed.

        Labels are left out, or the model would compute its own loss as well (over the whole vocabulary, for a
        language model). A seq2seq model gets the `decoder_input_ids` that it would have made from the labels, unless
        the batch brings decoder inputs. A model that takes images one after another gets them like this (see
        `hf_unlearn.losses.images`). Kind `"custom"` gets the whole batch.

        Raises:
            ValueError: decoder inputs are needed and the config has no start token or no padding token.
        """
        inputs = {name: value for name, value in batch.items() if name not in self.label_names}
        if self.kind in LANGUAGE_KINDS:
            inputs = unpadded_images(self.model, inputs)
        if self.kind == "contrastive":
            inputs = unstacked_captions(inputs)
        if self.kind == "seq2seq_lm" and not {"decoder_input_ids", "decoder_inputs_embeds"} & inputs.keys():
            decoder_input_ids = _decoder_input_ids(self.model, batch["labels"])
            inputs["decoder_input_ids"] = decoder_input_ids
            if self.model.config.model_type == "encoder-decoder":
                # EncoderDecoderModel alone also makes the mask, when it makes the inputs.
                mask = (decoder_input_ids != self.model.config.pad_token_id).long()
                inputs.setdefault("decoder_attention_mask", mask)
        return inputs

    def run(self, model: Any, batch: Batch, *, logits: bool = False, **extra: Any) -> Any:
        """Run a model on a collated batch, for `losses`, `correct`, `token_loss_profiles` and `decisions`.

        A language model gives its predictions at the labelled positions alone (`LabelledOutputs`), and for losses the
        logits of the batch are not even formed together, where the model allows it.

        Args:
            model: this head's, or one like it (a teacher, the same in a wrapper).
            batch: not changed.
            logits: whether logits (`decisions`) will be asked for; without, they are computed again where they are.
            extra: further arguments of the model's forward.

        Returns:
            What the model returned; of a language model `hf_unlearn.losses.labelled.LabelledOutputs`.

        Raises:
            ValueError: as `inputs`.
        """
        inputs = self.inputs(batch)
        if self.kind not in LANGUAGE_KINDS:
            return model(**inputs, **extra)
        return run_labelled(model, inputs, _position_labels(self.kind, batch["labels"]), logits, **extra)

    def losses(self, outputs: Any, batch: Batch) -> Tensor:
        """The loss of each sample, in nats (in squared units of the target for regression).

        Args:
            outputs: what `run` returned, or the model for `inputs(batch)`.
            batch: the collated batch, labels included.

        Returns:
            Shape `[batch]`, differentiable; float64 where the model computes in float64, else float32.

        Raises:
            ValueError: labels and logits do not line up, or `per_sample_loss` did not return one number a sample.
        """
        if isinstance(outputs, LabelledOutputs):
            return functional.labelled_mean(*self.position_losses(outputs, batch))
        match self.kind_for(batch):
            case "multi_label":
                return functional.multi_label_losses(outputs.logits, batch["labels"])
            case "regression":
                return functional.regression_losses(outputs.logits, batch["labels"])
            case "ctc":
                return _ctc_losses(self.model, outputs, batch)
            case "custom":
                return _custom_losses(self.per_sample_loss, outputs, batch)
            case kind:
                return functional.token_losses(*_decisions(self.model, kind, outputs, batch))

    def position_losses(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """The cross-entropy of every choice in `decisions`, for the same kinds of head.

        Returns:
            Losses `[batch, n]`, 0 where there is no label, and labels `[batch, n]`, -100 where there is none.
        """
        if isinstance(outputs, LabelledOutputs):
            return outputs.position_losses, outputs.labels.to(outputs.position_losses.device)
        logits, labels = self.decisions(outputs, batch)
        return functional.position_losses(logits, labels), labels.to(logits.device)

    def label_counts(self, batch: Batch) -> Tensor:
        """How many labels of each sample are scored, of heads that score a sample on several tokens: `[batch]`."""
        return (_position_labels(self.kind, batch["labels"]) != functional.IGNORED).sum(dim=1)

    def is_possible(self, batch: Batch) -> Tensor:
        """Whether each sample can have its labels at all: under CTC, a transcript needs a frame for every token.

        It needs one more between two equal tokens. Others have a loss of infinity, or of 0 by `ctc_zero_infinity`.

        Returns:
            Shape `[batch]`, bool.
        """
        if self.kind != "ctc":
            values = next(iter(batch.values()))
            return torch.ones(len(values), dtype=torch.bool, device=values.device)
        labels = batch["labels"]
        labelled = (labels != functional.IGNORED) & (labels != self.model.config.pad_token_id)
        repeated = labelled[:, 1:] & (labels[:, 1:] == labels[:, :-1])
        return labelled.sum(dim=1) + repeated.sum(dim=1) <= _ctc_frames(self.model, batch).to(labels.device)

    def token_loss_profiles(self, outputs: Any, batch: Batch) -> Tensor | None:
        """The sorted mean token losses of each sample's eighths; None for heads that score a sample once.

        Returns:
            Shape `[batch, 8]`, see `hf_unlearn.losses.functional.token_loss_profiles`; its mean is the sample's loss.
        """
        if self.kind not in TOKEN_KINDS:
            return None
        return functional.profiles_of(*self.position_losses(outputs, batch), PROFILE_SIZE)

    def decisions(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Every choice of one class out of many that a sample is scored on.

        Not for kinds `"multi_label"`, `"regression"`, `"ctc"` and `"custom"`.

        Returns:
            Logits `[batch, n, classes]`, and labels `[batch, n]`, -100 where there is none. n counts positions; with
            the outputs of `run`, of a language model, labelled ones.
        """
        return _decisions(self.model, self.kind_for(batch), outputs, batch)

    def correct(self, outputs: Any, batch: Batch) -> Tensor:
        """The share of correct predictions in each sample, in [0, 1]; NaN where no prediction is right or wrong.

        Single label, multiple choice and contrastive: 0 or 1. Multi-label: share of the labels whose probability is
        on the right side of one half. Tokens, pixels and language models: share of the labelled ones that the largest
        logit predicts. Question answering: mean of start and end. NaN: regression, CTC, custom losses, and samples
        with no label.

        Returns:
            Shape `[batch]`, float32.
        """
        if isinstance(outputs, LabelledOutputs):
            return functional.labelled_share(outputs.correct, outputs.labels)
        match self.kind_for(batch):
            case "multi_label":
                return functional.multi_label_accuracy(outputs.logits, batch["labels"])
            case "regression" | "ctc" | "custom":
                values = next(iter(batch.values()))
                return torch.full((len(values),), torch.nan, device=values.device)
            case kind:
                return functional.token_accuracy(*_decisions(self.model, kind, outputs, batch))


def _decisions(model: Any, kind: HeadKind, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits [batch, n, classes] and labels [batch, n] of every choice of one class that a sample is scored on."""
    if isinstance(outputs, LabelledOutputs):
        return outputs.logits, outputs.labels
    if kind == "question_answering":
        logits = torch.stack((outputs.start_logits, outputs.end_logits), dim=1)
        # The rule of transformers: negative positions are the first token, positions past the text are left out.
        length = logits.shape[-1]
        positions = torch.stack((batch["start_positions"].view(-1), batch["end_positions"].view(-1)), dim=1)
        labels = positions.clamp(0, length)
        labels = labels.masked_fill(labels == length, functional.IGNORED)
    elif kind == "segmentation":
        logits, labels = _pixels(outputs.logits, batch["labels"], model.config.semantic_loss_ignore_index)
    elif kind == "contrastive":
        logits, labels = own_captions(outputs.logits_per_image).unsqueeze(1), batch["labels"].view(-1, 1)
    elif kind in ("single_label", "multiple_choice"):
        logits, labels = outputs.logits.unsqueeze(1), batch["labels"].view(-1, 1)
    else:
        logits, labels = outputs.logits, _position_labels(kind, batch["labels"])
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"labels: found {list(labels.shape)} labels for {list(logits.shape[:-1])} predictions of a {kind} head; "
            "give each prediction its label (-100 for none), or pass per_sample_loss"
        )
    return logits, labels


def _pixels(logits: Tensor, labels: Tensor, ignored: int) -> tuple[Tensor, Tensor]:
    """Logits [batch, pixels, classes] at the size of the labels, as the model's own loss has them, and labels."""
    labels = labels.to(logits.device)
    logits = functional.at_least_float32(logits)
    logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    return logits.flatten(2).transpose(1, 2), labels.flatten(1).masked_fill(
        labels.flatten(1) == ignored, functional.IGNORED
    )


def _position_labels(kind: HeadKind, labels: Tensor) -> Tensor:
    """The label [batch, positions] of the prediction at each position, -100 for none."""
    # The labels are shifted rather than the logits, which would be copied.
    return F.pad(labels, (0, 1), value=functional.IGNORED)[:, 1:] if kind == "causal_lm" else labels


def _decoder_input_ids(model: Any, labels: Tensor) -> Tensor:
    """The labels shifted to the right behind the start token, as the model does it. Shape [batch, tokens]."""
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        # Cloned because FSMT writes into the labels that it is given.
        return model.prepare_decoder_input_ids_from_labels(labels=labels.clone())
    start, padding = model.config.decoder_start_token_id, model.config.pad_token_id
    if start is None or padding is None:
        raise ValueError(
            f"model: config.decoder_start_token_id is {start} and config.pad_token_id is {padding}; "
            "set both, decoder_input_ids are made with them"
        )
    shifted = labels.roll(1, dims=1)
    shifted[:, 0] = start
    return shifted.masked_fill(shifted == functional.IGNORED, padding)


def _ctc_losses(model: Any, outputs: Any, batch: Batch) -> Tensor:
    """The losses [batch] of a CTC head, by the numbers of frames that the model's feature extractor makes."""
    config, frames = model.config, _ctc_frames(model, batch)
    return functional.ctc_losses(
        outputs.logits,
        batch["labels"],
        frames,
        blank=config.pad_token_id,
        reduction=config.ctc_loss_reduction,
        zero_infinity=config.ctc_zero_infinity,
    )


def _ctc_frames(model: Any, batch: Batch) -> Tensor:
    """The number of frames [batch] that a CTC model has for each sample."""
    if batch.get("attention_mask") is not None:
        lengths = batch["attention_mask"].sum(-1)
    else:
        features = batch[model.main_input_name]
        lengths = torch.full((len(features),), features.shape[1], device=features.device)
    return model._get_feat_extract_output_lengths(lengths).long()


def _custom_losses(per_sample_loss: PerSampleLoss | None, outputs: Any, batch: Batch) -> Tensor:
    """The losses [batch] of the user's own function, checked."""
    assert per_sample_loss is not None
    losses = per_sample_loss(outputs, batch)
    size = len(next(iter(batch.values())))
    if losses.shape != (size,):
        raise ValueError(
            f"per_sample_loss: found a result of shape {list(losses.shape)} for {size} samples; "
            "return one loss a sample, shape [batch]"
        )
    return functional.at_least_float32(losses)
