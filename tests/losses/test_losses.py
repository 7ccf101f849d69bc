"""Per-sample losses beside the models' own, over tiny models of many architectures."""

import copy
import doctest

import numpy as np
import pytest
import torch
import transformers as hf
from packaging import version
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import nn
from torch.testing import assert_close

from hf_unlearn.losses import Head, detection, head_of, label_problem
from hf_unlearn.losses.functional import token_loss_profiles, token_losses

VOCAB, CLASSES, SAMPLES, LENGTH = 23, 5, 4, 7
TEXT = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BERT = {**TEXT, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
GPT2 = {**TEXT, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
BART = {
    **TEXT, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 32,
}  # fmt: skip
T5 = {**TEXT, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
WHISPER = {
    **BART, "num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 16, "decoder_start_token_id": 1,
}  # fmt: skip
WAV2VEC2 = {
    **BERT, "conv_dim": (16, 16), "conv_kernel": (10, 3), "conv_stride": (5, 2), "feat_extract_norm": "layer",
    "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip


def text():
    ids = torch.randint(3, VOCAB, (SAMPLES, LENGTH))
    mask = torch.ones_like(ids)
    ids[1, 4:], mask[1, 4:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def sound(length=150):
    mask = torch.ones(SAMPLES, length, dtype=torch.long)
    mask[1, 100:] = 0
    return {"input_values": torch.randn(SAMPLES, length) * mask, "attention_mask": mask}


def pixels():
    return {"pixel_values": torch.randn(SAMPLES, 3, 32, 32)}


def choices():
    """Each sample a question with five answers."""
    ids = torch.randint(3, VOCAB, (SAMPLES, CLASSES, LENGTH))
    mask = torch.ones_like(ids)
    ids[1, :, 4:], mask[1, :, 4:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def regions():
    """A class for every pixel, 255 for none."""
    labels = torch.randint(0, CLASSES, (SAMPLES, 32, 32))
    labels[:, :20] = 255
    return {"labels": labels}


def features():
    return {"input_features": torch.randn(SAMPLES, 8, 20)}


def classes():
    return {"labels": torch.randint(0, CLASSES, (SAMPLES,))}


def tokens(highest=VOCAB, even=False):
    """Labels of 6, 2, 3 and 4 tokens at different places, or of 4 in each sample."""
    labels = torch.full((SAMPLES, LENGTH), -100)
    spans = [(1, 5), (0, 4), (2, 6), (3, 7)] if even else [(1, 7), (0, 2), (2, 5), (3, 7)]
    for sample, (start, stop) in enumerate(spans):
        labels[sample, start:stop] = torch.randint(3, highest, (stop - start,))
    return {"labels": labels}


def causal_tokens(even=False):
    labels = tokens(even=even)["labels"]
    if even:  # the first position is never predicted
        labels[1] = labels[1].roll(1)
    return {"labels": labels}


def answers():
    return {"start_positions": torch.tensor([0, 1, 2, 3]), "end_positions": torch.tensor([3, 1, 5, 6])}


def transcriptions():
    labels = torch.randint(1, VOCAB, (SAMPLES, 5))
    labels[0, 3:], labels[2, 1:] = -100, -100
    return {"labels": labels}


def many():
    return {"labels": torch.randint(0, 2, (SAMPLES, CLASSES)).float()}


def case(cls, config, inputs, labels, kind, **settings):
    return cls, config, inputs, labels, kind, settings


PER_SAMPLE = {
    "vit": case(hf.ViTForImageClassification, hf.ViTConfig, pixels, classes, "single_label", **BERT, image_size=32,
                patch_size=16, num_labels=CLASSES),
    "vit, multi-label": case(hf.ViTForImageClassification, hf.ViTConfig, pixels, many, "multi_label", **BERT,
                             image_size=32, patch_size=16, num_labels=CLASSES),
    "resnet": case(hf.ResNetForImageClassification, hf.ResNetConfig, pixels, classes, "single_label", embedding_size=8,
                   hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=CLASSES),
    "bert": case(hf.BertForSequenceClassification, hf.BertConfig, text, classes, "single_label", **BERT,
                 num_labels=CLASSES),
    "bert, multi-label": case(hf.BertForSequenceClassification, hf.BertConfig, text, many, "multi_label", **BERT,
                              num_labels=CLASSES),
    "bert, regression": case(hf.BertForSequenceClassification, hf.BertConfig, text,
                             lambda: {"labels": torch.randn(SAMPLES)}, "regression", **BERT, num_labels=1),
    "bert, regression of several": case(hf.BertForSequenceClassification, hf.BertConfig, text,
                                        lambda: {"labels": torch.randn(SAMPLES, 2)}, "regression", **BERT,
                                        num_labels=2, problem_type="regression"),
    "distilbert": case(hf.DistilBertForSequenceClassification, hf.DistilBertConfig, text, classes, "single_label",
                       **TEXT, dim=16, n_layers=1, n_heads=2, hidden_dim=16, num_labels=CLASSES),
    "gpt2, classification": case(hf.GPT2ForSequenceClassification, hf.GPT2Config, text, classes, "single_label",
                                 **GPT2, num_labels=CLASSES),
    "llama, classification": case(hf.LlamaForSequenceClassification, hf.LlamaConfig, text, classes, "single_label",
                                  **BERT, num_labels=CLASSES),
    "wav2vec2, classification": case(hf.Wav2Vec2ForSequenceClassification, hf.Wav2Vec2Config, sound, classes,
                                     "single_label", **WAV2VEC2, num_labels=CLASSES),
    "whisper, classification": case(hf.WhisperForAudioClassification, hf.WhisperConfig, features, classes,
                                    "single_label", **WHISPER, num_labels=CLASSES),
    "bert, answers": case(hf.BertForQuestionAnswering, hf.BertConfig, text, answers, "question_answering", **BERT),
    "distilbert, answers": case(hf.DistilBertForQuestionAnswering, hf.DistilBertConfig, text, answers,
                                "question_answering", **TEXT, dim=16, n_layers=1, n_heads=2, hidden_dim=16),
    "t5, answers": case(hf.T5ForQuestionAnswering, hf.T5Config, text, answers, "question_answering", **T5),
    "bert, choices": case(hf.BertForMultipleChoice, hf.BertConfig, choices, classes, "multiple_choice", **BERT),
    "segformer": case(hf.SegformerForSemanticSegmentation, hf.SegformerConfig, pixels, regions, "segmentation",
                      hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 1, 1],
                      decoder_hidden_size=8, num_labels=CLASSES),
    "mobilenet, pixels": case(hf.MobileNetV2ForSemanticSegmentation, hf.MobileNetV2Config, pixels, regions,
                              "segmentation", depth_multiplier=0.1, image_size=32, num_labels=CLASSES),
    "wav2vec2": case(hf.Wav2Vec2ForCTC, hf.Wav2Vec2Config, sound, transcriptions, "ctc", **WAV2VEC2,
                     ctc_loss_reduction="mean"),
    "hubert": case(hf.HubertForCTC, hf.HubertConfig, sound, transcriptions, "ctc", **WAV2VEC2,
                   ctc_loss_reduction="mean"),
    "wav2vec2-bert, no mask": case(hf.Wav2Vec2BertForCTC, hf.Wav2Vec2BertConfig,
                                   lambda: {"input_features": torch.randn(SAMPLES, 20, 8)}, transcriptions, "ctc",
                                   **BERT, feature_projection_input_dim=8, ctc_loss_reduction="mean"),
}  # fmt: skip
PER_TOKEN = {
    "bert, tokens": case(hf.BertForTokenClassification, hf.BertConfig, text, lambda **k: tokens(CLASSES, **k), "token",
                         **BERT, num_labels=CLASSES),
    "bert, masked": case(hf.BertForMaskedLM, hf.BertConfig, text, tokens, "masked_lm", **BERT),
    "distilbert, masked": case(hf.DistilBertForMaskedLM, hf.DistilBertConfig, text, tokens, "masked_lm", **TEXT,
                               dim=16, n_layers=1, n_heads=2, hidden_dim=16),
    "xlm, masked": case(hf.XLMWithLMHeadModel, hf.XLMConfig, text, tokens, "masked_lm", n_words=VOCAB, emb_dim=16,
                        n_layers=1, n_heads=2, pad_index=0),
    "gpt2": case(hf.GPT2LMHeadModel, hf.GPT2Config, text, causal_tokens, "causal_lm", **GPT2),
    "llama": case(hf.LlamaForCausalLM, hf.LlamaConfig, text, causal_tokens, "causal_lm", **BERT),
    "bert, causal": case(hf.BertLMHeadModel, hf.BertConfig, text, causal_tokens, "causal_lm", **BERT, is_decoder=True),
    "t5": case(hf.T5ForConditionalGeneration, hf.T5Config, text, tokens, "seq2seq_lm", **T5),
    "bart": case(hf.BartForConditionalGeneration, hf.BartConfig, text, tokens, "seq2seq_lm", **BART),
    "marian": case(hf.MarianMTModel, hf.MarianConfig, text, tokens, "seq2seq_lm", **BART, decoder_start_token_id=0),
    "m2m100": case(hf.M2M100ForConditionalGeneration, hf.M2M100Config, text, tokens, "seq2seq_lm", **BART,
                   decoder_start_token_id=2),
    "whisper": case(hf.WhisperForConditionalGeneration, hf.WhisperConfig, features, tokens, "seq2seq_lm", **WHISPER),
}  # fmt: skip
ALL = {**PER_SAMPLE, **PER_TOKEN}


def build(cls, config, inputs, labels, _, settings, **label_settings):
    torch.manual_seed(0)
    model = cls(config(**settings)).eval()
    for weight in model.parameters():
        if weight.ndim > 1:  # far from the tiny initial weights, so that no two samples have the same loss
            nn.init.normal_(weight, std=0.3)
    return model, {**inputs(), **labels(**label_settings)}


def score(model, batch):
    head = head_of(model)
    return head.losses(model(**head.inputs(batch)), batch)


def own_loss(model, batch):
    """The model's own loss; it writes into the config, so on a copy."""
    return copy.deepcopy(model)(**batch).loss


def close(actual, expected):
    assert_close(actual, expected, rtol=1e-6, atol=1e-6, check_dtype=False)


def token_counts(model, batch):
    labels = batch["labels"][:, 1:] if head_of(model).kind == "causal_lm" else batch["labels"]
    return (labels != -100).sum(1)


@pytest.mark.parametrize("name", ALL)
def test_kind_and_each_rows_loss_is_the_models_own_on_that_row_alone(name):
    model, batch = build(*ALL[name])
    before = {key: value.clone() for key, value in batch.items()}
    problem_type = model.config.problem_type
    losses = score(model, batch)
    assert head_of(model).kind_for(batch) == ALL[name][4]
    assert losses.shape == (SAMPLES,) and losses.dtype == torch.float32
    assert losses.std() > 0.05
    assert model.config.problem_type == problem_type
    for key, value in before.items():
        assert torch.equal(batch[key], value), key
    for sample in range(SAMPLES):
        close(losses[sample], own_loss(model, {key: value[sample : sample + 1] for key, value in batch.items()}))


@pytest.mark.parametrize("name", PER_SAMPLE)
def test_mean_and_gradient_are_the_models_own(name):
    model, batch = build(*PER_SAMPLE[name])
    mean = score(model, batch).mean()
    close(mean, own_loss(model, batch))
    compare_gradients(model, batch, mean)


@pytest.mark.parametrize("name", PER_TOKEN)
def test_mean_is_the_models_own_when_rows_have_as_many_tokens(name):
    model, batch = build(*PER_TOKEN[name], even=True)
    assert token_counts(model, batch).tolist() == [4] * SAMPLES
    mean = score(model, batch).mean()
    close(mean, own_loss(model, batch))
    compare_gradients(model, batch, mean)


@pytest.mark.parametrize("name", PER_TOKEN)
def test_token_weighted_mean_is_the_models_own_otherwise(name):
    model, batch = build(*PER_TOKEN[name])
    losses, counts = score(model, batch), token_counts(model, batch)
    assert len(counts.unique()) > 1
    close((losses * counts).sum() / counts.sum(), own_loss(model, batch))
    assert abs(losses.mean() - own_loss(model, batch)) > 1e-4


def test_a_profile_hides_nothing_and_keeps_its_precision():
    logits, labels = torch.randn(2, 5, VOCAB, dtype=torch.float64), torch.full((2, 5), 3)
    labels[0, 1] = -100
    assert_close(token_loss_profiles(logits, labels, 8).mean(1), token_losses(logits, labels), rtol=1e-14, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        profile = token_loss_profiles(logits.float(), labels, 8)
    assert torch.equal(profile, token_loss_profiles(logits.float(), labels, 8)) and profile.dtype == torch.float32
    logits[0, 0, 3] = -torch.inf
    assert token_loss_profiles(logits, labels, 8).mean(1).isfinite().tolist() == [False, True]


@pytest.mark.parametrize("name", ALL)
def test_a_profile_is_a_loss_spread_over_its_tokens(name):
    """Against numpy: every token's loss as many times as there are shares, sorted, cut into shares."""
    model, batch = build(*ALL[name])
    head = head_of(model)
    outputs = model(**head.inputs(batch))
    profiles = head.token_loss_profiles(outputs, batch)
    if name not in PER_TOKEN:
        assert profiles is None
        return
    assert profiles.shape == (SAMPLES, 8) and bool((profiles.diff(dim=1) >= 0).all())
    close(profiles.mean(1), head.losses(outputs, batch))
    logits, labels = head.decisions(outputs, batch)
    for sample, profile in zip(range(SAMPLES), profiles.detach().numpy(), strict=True):
        labelled = labels[sample] != -100
        losses = (
            -logits[sample, labelled]
            .log_softmax(-1)
            .gather(1, labels[sample, labelled, None])
            .flatten()
            .detach()
            .numpy()
        )
        np.testing.assert_allclose(profile, np.repeat(np.sort(losses), 8).reshape(8, -1).mean(1), rtol=1e-5, atol=1e-8)


def compare_gradients(model, batch, loss):
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    model_gradients = torch.autograd.grad(model(**batch).loss, parameters, allow_unused=True)
    assert sum(g is not None and g.abs().max() > 0 for g in gradients) > len(parameters) / 2
    for a, b in zip(gradients, model_gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_half_precision_is_lifted_and_float64_stays(name, dtype):
    model, batch = build(*ALL[name])
    expected = score(model, batch)
    model = model.to(dtype)
    batch = {key: value.to(dtype) if value.is_floating_point() else value for key, value in batch.items()}
    losses = score(model, batch)
    assert losses.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    tolerance = 1e-4 if dtype == torch.float64 else 0.1
    assert_close(losses, expected, rtol=tolerance, atol=tolerance, check_dtype=False)


@pytest.mark.parametrize("name", ALL)
def test_the_model_computes_no_loss_of_its_own(name):
    model, batch = build(*ALL[name])
    inputs = head_of(model).inputs(batch)
    assert not {"labels", "start_positions", "end_positions"} & inputs.keys()
    assert model(**inputs).loss is None


def test_decoder_inputs_that_the_batch_brings_are_kept():
    model, batch = build(*PER_TOKEN["bart"])
    head = head_of(model)
    decoder_input_ids = torch.randint(3, VOCAB, (SAMPLES, LENGTH))
    batch["decoder_input_ids"] = decoder_input_ids
    assert head.inputs(batch)["decoder_input_ids"] is decoder_input_ids
    close(score(model, batch)[:1], own_loss(model, {k: v[:1] for k, v in batch.items()})[None])
    batch["decoder_inputs_embeds"] = torch.randn(SAMPLES, LENGTH, 16)
    del batch["decoder_input_ids"]
    assert "decoder_input_ids" not in head.inputs(batch)


def test_labels_survive_a_model_that_writes_into_them():
    config = hf.FSMTConfig(
        langs=["en", "de"], src_vocab_size=VOCAB, tgt_vocab_size=VOCAB, d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
        pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    batch = {**text(), **tokens()}
    before = batch["labels"].clone()
    head_of(hf.FSMTForConditionalGeneration(config)).inputs(batch)
    assert torch.equal(batch["labels"], before)


def test_decoder_inputs_need_start_and_padding_token():
    model, batch = build(*PER_TOKEN["whisper"])
    model.config.pad_token_id = None
    with pytest.raises(ValueError, match=r"decoder_start_token_id is 1 and config\.pad_token_id is None; set"):
        head_of(model).inputs(batch)


@pytest.mark.filterwarnings("ignore:Version v4.12.0 introduces:FutureWarning")
def test_a_composite_model_scores_by_its_decoder():
    encoder = hf.BertConfig(**{**BERT, "vocab_size": 99})
    decoder = hf.BertConfig(**BERT, is_decoder=True, add_cross_attention=True)
    config = hf.EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    model, batch = hf.EncoderDecoderModel(config).eval(), {**text(), **tokens(even=True)}
    close(score(model, batch).mean(), own_loss(model, batch))
    batch["labels"][0, 1] = VOCAB
    assert f"found {VOCAB}" in label_problem(head_of(model), batch)


def test_an_open_problem_type_is_decided_by_each_batch_and_never_written():
    model, batch = build(*PER_SAMPLE["bert"])
    head = head_of(model)
    assert head.kind == "single_label"
    several = {**batch, **many()}
    assert head.kind_for(batch) == "single_label" and head.kind_for(several) == "multi_label"
    for labelled in (batch, several):
        outputs = model(**head.inputs(labelled))
        head.losses(outputs, labelled), head.correct(outputs, labelled)
    assert model.config.problem_type is None
    model(**several)  # the model itself writes "multi_label_classification"
    assert head.kind_for(several) == "multi_label"


@pytest.mark.parametrize("name", ["bert, tokens", "bert, masked", "gpt2", "t5", "whisper"])
def test_a_sample_without_labels_has_loss_zero_and_no_gradient(name):
    model, batch = build(*PER_TOKEN[name])
    batch["labels"][2] = -100
    head = head_of(model)
    outputs = model(**head.inputs(batch))
    losses, correct = head.losses(outputs, batch), head.correct(outputs, batch)
    assert losses[2] == 0 and losses[[0, 1, 3]].min() > 0
    assert correct.isnan().tolist() == [False, False, True, False]
    profiles = head.token_loss_profiles(outputs, batch)
    assert torch.equal(profiles[2], torch.zeros(8))
    for numbers in (losses, profiles):
        gradient = torch.autograd.grad(numbers.sum(), outputs.logits, retain_graph=True)[0]
        assert gradient.isfinite().all() and gradient[2].abs().max() == 0


def test_an_answer_outside_the_text_is_left_out():
    model, batch = build(*PER_SAMPLE["bert, answers"])
    expected = score(model, batch)
    batch["start_positions"][0] = batch["end_positions"][0] = 99
    losses = score(model, batch)
    assert losses[0] == 0
    assert torch.equal(losses[1:], expected[1:])
    close(losses.sum() / 3, own_loss(model, batch))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    "padding",
    [
        -100,
        pytest.param(
            0,
            marks=pytest.mark.skipif(
                version.parse(hf.__version__) < version.parse("5.21"),
                reason="before transformers 5.21 the model took padding with the blank for targets",
            ),
        ),
    ],
)
def test_ctc_follows_the_config(reduction, padding):
    model, batch = build(*PER_SAMPLE["wav2vec2"])
    model.config.ctc_loss_reduction = reduction
    batch["labels"][batch["labels"] == -100] = padding
    batch["labels"][3] = padding  # an empty transcription is a target
    losses = score(model, batch)
    assert losses[3] > 0
    close(losses.mean() if reduction == "mean" else losses.sum(), own_loss(model, batch))
    del batch["attention_mask"]
    losses = score(model, batch)
    close(losses.mean() if reduction == "mean" else losses.sum(), own_loss(model, batch))


def test_ctc_zero_infinity():
    model, batch = build(*PER_SAMPLE["wav2vec2"])
    batch["labels"] = torch.randint(1, VOCAB, (SAMPLES, 40))
    batch["labels"][1:, 3:] = -100
    assert score(model, batch).isinf().tolist() == [True, False, False, False]
    model.config.ctc_zero_infinity = True
    losses = score(model, batch)
    assert losses[0] == 0
    close(losses.mean(), own_loss(model, batch))
    gradients = torch.autograd.grad(losses.sum(), model.lm_head.weight)
    assert gradients[0].isfinite().all()


def as_output(**values):
    return hf.utils.ModelOutput(**values)


def test_correct_by_hand():
    bert = {"bert": PER_SAMPLE["bert"], "qa": PER_SAMPLE["bert, answers"], "token": PER_TOKEN["bert, tokens"]}
    head = {name: head_of(build(*spec)[0]) for name, spec in bert.items()}
    one = torch.eye(CLASSES)

    correct = head["bert"].correct(as_output(logits=one[[0, 3]]), {"labels": torch.tensor([0, 1])})
    assert correct.tolist() == [1, 0]

    logits = torch.tensor([[1.0, 1, -1, -1, 1], [-1, -1, -1, -1, -1]])
    labels = torch.tensor([[1.0, 0, 0, 0, 1], [1, 1, 1, 1, 1]])
    correct = head["bert"].correct(as_output(logits=logits), {"labels": labels})
    assert_close(correct, torch.tensor([0.8, 0]))

    labels = torch.tensor([[0, 1, 2, -100], [4, -100, -100, -100]])
    output = as_output(logits=one[torch.tensor([[0, 1, 4, 4], [4, 0, 0, 0]])])
    assert_close(head["token"].correct(output, {"labels": labels}), torch.tensor([2 / 3, 1]))

    causal = head_of(build(*PER_TOKEN["gpt2"])[0])
    output = as_output(logits=one[torch.tensor([[1, 2, 4, 4], [3, 0, 0, 0]])])
    labels = torch.tensor([[0, 1, 2, -100], [4, 4, 0, 1]])
    assert_close(causal.correct(output, {"labels": labels}), torch.tensor([1, 1 / 3]))

    output = as_output(start_logits=one[[0, 1]], end_logits=one[[2, 3]])
    batch = {"start_positions": torch.tensor([0, 0]), "end_positions": torch.tensor([3, 4])}
    assert head["qa"].correct(output, batch).tolist() == [0.5, 0]


@pytest.mark.parametrize("name", ["bert, regression", "wav2vec2"])
def test_correct_is_nan_where_nothing_can_be_right(name):
    model, batch = build(*PER_SAMPLE[name])
    head = head_of(model)
    correct = head.correct(model(**head.inputs(batch)), batch)
    assert correct.shape == (SAMPLES,) and correct.isnan().all()


@pytest.mark.parametrize("name", ["vit", "resnet", "gpt2", "t5", "whisper", "wav2vec2"])
def test_peft_models(name):
    model, batch = build(*ALL[name])
    expected = score(model, batch)
    targets = {"resnet": ["convolution"], "gpt2": ["c_attn"], "t5": ["q", "v"]}.get(name, ["q_proj", "v_proj"])
    model = get_peft_model(model, LoraConfig(target_modules=targets, fan_in_fan_out=name == "gpt2")).eval()
    head = head_of(model)
    assert head.kind == ALL[name][4]
    losses = head.losses(model(**head.inputs(batch)), batch)
    close(losses, expected)  # a fresh adapter changes nothing
    losses.sum().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for n, p in model.named_parameters() if "lora_B" in n)


def test_labels_that_do_not_line_up_are_refused():
    model, batch = build(*PER_TOKEN["gpt2"])
    model = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    with pytest.raises(ValueError, match=r"labels: found \[4, 7\] labels for \[4, 10\] predictions of a causal"):
        score(model, batch)


@pytest.mark.parametrize(
    ("cls", "config"),
    [
        (hf.BertModel, hf.BertConfig(**BERT)),
        (hf.BertForNextSentencePrediction, hf.BertConfig(**BERT)),
        (hf.BartForCausalLM, hf.BartConfig(**BART)),
        (hf.PPLCNetForImageClassification, hf.PPLCNetConfig(scale=0.25, class_expand=8)),
        (hf.XLNetLMHeadModel, hf.XLNetConfig(vocab_size=VOCAB, d_model=16, n_layer=1, n_head=2, d_inner=16)),
        (hf.XLNetForQuestionAnswering, hf.XLNetConfig(vocab_size=VOCAB, d_model=16, n_layer=1, n_head=2, d_inner=16)),
        (hf.SegformerForSemanticSegmentation, hf.SegformerConfig(
            hidden_sizes=[8] * 4, decoder_hidden_size=8, num_labels=1)),
        (hf.ParakeetForCTC, hf.ParakeetCTCConfig(
            vocab_size=VOCAB, encoder_config={"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16})),
        (hf.LxmertForQuestionAnswering, hf.LxmertConfig(
            vocab_size=VOCAB, hidden_size=16, intermediate_size=16, num_attention_heads=2, l_layers=1, x_layers=1,
            r_layers=1)),
    ],
)  # fmt: skip
def test_models_without_a_per_sample_loss_are_refused(cls, config):
    model = cls(config)
    with pytest.raises(ValueError, match=f"model: .* formed for {cls.__name__}; pass per_sample_loss") as error:
        head_of(model)
    assert "\n" not in str(error.value)


def test_diffusers_are_refused_by_name():
    unet = type("UNet2DModel", (nn.Module,), {"__module__": "diffusers.models.unets.unet_2d"})()
    with pytest.raises(ValueError, match=r"^model: UNet2DModel is a model of diffusers, whose loss depends on"):
        head_of(unet)


def test_a_plain_module_is_refused():
    with pytest.raises(ValueError, match="for Linear; pass per_sample_loss"):
        head_of(nn.Linear(2, 2))


def test_a_users_own_loss():
    def twice(outputs, batch):
        return 2 * nn.functional.cross_entropy(outputs.logits, batch["labels"], reduction="none")

    model, batch = build(*PER_SAMPLE["vit"])
    head = head_of(model, per_sample_loss=twice)
    assert head.kind == head.kind_for(batch) == "custom"
    assert head.inputs(batch).keys() == batch.keys()
    outputs = model(**head.inputs(batch))
    close(head.losses(outputs, batch), 2 * score(model, batch))
    assert head.correct(outputs, batch).isnan().all()
    assert label_problem(head, {**batch, "labels": torch.tensor([-7])}) is None
    half = head_of(model, lambda outputs, batch: twice(outputs, batch).half())
    assert half.losses(outputs, batch).dtype == torch.float32


def test_a_users_own_loss_must_return_one_number_a_sample():
    model, batch = build(*PER_SAMPLE["vit"])
    head = head_of(model, per_sample_loss=lambda outputs, batch: outputs.loss)
    with pytest.raises(ValueError, match=r"per_sample_loss: found a result of shape \[\] for 4 samples"):
        head.losses(model(**head.inputs(batch)), batch)


class Renamed(hf.ViTForImageClassification):
    """A user's subclass, known by the class it extends."""


class RemoteForCausalLM(hf.LlamaPreTrainedModel):
    """A class that transformers does not list, known by its loss type."""

    def __init__(self, config):
        super().__init__(config)
        self.head = nn.Linear(config.hidden_size, config.vocab_size)


def test_classes_that_transformers_does_not_list():
    vit = Renamed(hf.ViTConfig(**BERT, image_size=32, patch_size=16))
    assert head_of(vit).kind == "single_label"
    assert head_of(RemoteForCausalLM(hf.LlamaConfig(**BERT))).kind == "causal_lm"


def test_head_shows_its_kind_only():
    model, _ = build(*PER_SAMPLE["vit"])
    assert repr(head_of(model)) == "Head(kind='single_label')"
    assert head_of(model) == Head("single_label", model)


PROBLEMS = [
    ("vit", {"labels": torch.tensor([0, 1, 5, 2])}, "labels: found 5; give class labels, integers in [0, 5)"),
    ("vit", {"labels": torch.tensor([0, 1, -100, 2])}, "labels: found -100; give class labels, integers in [0, 5)"),
    ("vit", {}, "labels: found only pixel_values; a single_label head needs labels"),
    ("bert", {"labels": torch.ones(4)}, "labels: found torch.float32 of shape [4]; a multi-label head needs shape "
     "[batch, 5] and values in [0, 1] (integers for a single label)"),
    ("bert", {"labels": torch.full((4, 5), 2.0)}, "labels: found 2.0; a multi-label head needs shape [batch, 5] and "
     "values in [0, 1]"),
    ("bert, regression", {"labels": torch.tensor([0, 1, torch.nan, 2])}, "labels: found nan; give finite numbers"),
    ("bert, tokens", {"labels": torch.tensor([[-100, 4], [5, 0]])},
     "labels: found 5; give -100 or token labels, integers in [0, 5)"),
    ("bert, masked", {"labels": torch.tensor([[-100, -1]])},
     "labels: found -1; give -100 or token ids, integers in [0, 23)"),
    ("gpt2", {"labels": torch.tensor([[-100, 23]])}, "labels: found 23; give -100 or token ids, integers in [0, 23)"),
    ("gpt2", {"labels": torch.ones(4, 7)}, "labels: found torch.float32; give -100 or token ids, integers in [0, 23)"),
    ("whisper", {"labels": torch.tensor([[23, 1]])}, "labels: found 23; give -100 or token ids, integers in [0, 23)"),
    ("wav2vec2", {"labels": torch.tensor([[23, 1]])}, "labels: found 23; give -100 or token ids, integers in [0, 23)"),
    ("bert, answers", {"start_positions": torch.tensor([0, 1]), "end_positions": torch.tensor([2, -1])},
     "end_positions: found -1; give token positions, integers in [0, inf)"),
    ("bert, answers", {"start_positions": torch.tensor([0, 99]), "end_positions": torch.tensor([2, 99])},
     "start_positions: sample 1 of a batch has nothing to score; give positions in the text, or 0 for both where it "
     "has no answer"),
    ("gpt2", {"labels": torch.tensor([[1, 2], [3, -100]])},
     "labels: sample 1 of a batch has nothing to score; take it out of the dataset"),
    ("bert, tokens", {"labels": torch.tensor([[-100, -100], [-100, 3]])},
     "labels: sample 0 of a batch has nothing to score; take it out of the dataset"),
    ("bert, choices", {"labels": torch.tensor([0, 1, 5, 2])},
     "labels: found 5; give the number of the right choice, integers in [0, 5)"),
    ("segformer", {"labels": torch.full((4, 32, 32), 5)},
     "labels: found 5; give class labels of pixels (255 for none), integers in [0, 5)"),
    ("segformer", {"labels": torch.tensor([0, 1])},
     "labels: found shape [2]; a segmentation head needs [batch, height, width]"),
    ("segformer", {"labels": torch.full((2, 8, 8), 255)},
     "labels: sample 0 of a batch has nothing to score; take it out of the dataset"),
    ("bert, answers", {"end_positions": torch.tensor([1])},
     "start_positions: found only input_ids, attention_mask, end_positions; a question_answering head needs "
     "start_positions"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "labels", "message"), PROBLEMS)
def test_label_problem_names_the_value(name, labels, message):
    model, batch = build(*ALL[name])
    head = head_of(model)
    inputs = {key: value for key, value in batch.items() if key not in head.label_names}
    assert label_problem(head, {**inputs, **labels}) == message


@pytest.mark.parametrize("name", ALL)
def test_good_labels_have_no_problem(name):
    model, batch = build(*ALL[name])
    assert label_problem(head_of(model), batch) is None


def test_docstring_example():
    assert doctest.testmod(detection) == (0, 9)
