"""Predictions at labelled positions alone, beside all logits of the same models, in float64."""

import logging

import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from test_losses import BERT, GPT2, PER_TOKEN, TEXT, build, case, causal_tokens, text
from torch.testing import assert_close

from hf_unlearn.losses import cross_entropy, head_of
from hf_unlearn.losses.cross_entropy import linear_cross_entropy, residuals
from hf_unlearn.losses.head import LANGUAGE_KINDS
from hf_unlearn.losses.labelled import LabelledOutputs

GEMMA = {**BERT, "num_key_value_heads": 1, "head_dim": 8}


def causal(cls, config, **settings):
    return case(cls, config, text, causal_tokens, "causal_lm", **settings)


# How each model's predictions are to be taken: losses of its linear layer, or logits that it changes afterwards.
CHANGING = ("bart", "marian")
LOSSES = {name: built for name, built in PER_TOKEN.items() if built[4] in LANGUAGE_KINDS and name not in CHANGING} | {
    "qwen2": causal(hf.Qwen2ForCausalLM, hf.Qwen2Config, **BERT, num_key_value_heads=1),
    "opt": causal(hf.OPTForCausalLM, hf.OPTConfig, **TEXT, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                  ffn_dim=16, max_position_embeddings=16, word_embed_proj_dim=16),
    "gpt-neox": causal(hf.GPTNeoXForCausalLM, hf.GPTNeoXConfig, **BERT),
    "gptj": causal(hf.GPTJForCausalLM, hf.GPTJConfig, **GPT2, rotary_dim=4),
    "phi": causal(hf.PhiForCausalLM, hf.PhiConfig, **BERT),
    "gemma": causal(hf.GemmaForCausalLM, hf.GemmaConfig, **GEMMA),
}  # fmt: skip
LOGITS = {
    "bart": PER_TOKEN["bart"],
    "marian": PER_TOKEN["marian"],
    "gemma2": causal(hf.Gemma2ForCausalLM, hf.Gemma2Config, **GEMMA, final_logit_softcapping=2.0),
    "cohere": causal(hf.CohereForCausalLM, hf.CohereConfig, **BERT, logit_scale=0.3),
    # It lowers its logits to float32, which in float32 itself changes nothing.
    "mamba": causal(hf.MambaForCausalLM, hf.MambaConfig, **TEXT, hidden_size=16, num_hidden_layers=1, state_size=4),
    "granite": causal(hf.GraniteForCausalLM, hf.GraniteConfig, **BERT, logits_scaling=3.0),
}  # fmt: skip
ALL = {**LOSSES, **LOGITS}
quiet = pytest.mark.filterwarnings("ignore:.*:UserWarning")


def double(name):
    model, batch = build(*ALL[name])
    return model.double(), {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}


def gradients(model, losses):
    """Of a weighted sum: of a mean, a gradient that went to the wrong sample would be missed."""
    weights = torch.arange(1.0, len(losses) + 1).to(losses)
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.autograd.grad(losses, parameters, weights, allow_unused=True)


def assert_same(model, batch):
    """Losses, profiles, accuracies and gradients of `run` are those of all logits; returns the outputs of `run`."""
    head = head_of(model)
    full, outputs = model(**head.inputs(batch)), head.run(model, batch)
    assert isinstance(outputs, LabelledOutputs)
    losses, expected = head.losses(outputs, batch), head.losses(full, batch)
    assert_close(losses, expected, rtol=1e-6, atol=1e-6)
    for actual, reference in zip(gradients(model, losses), gradients(model, expected), strict=True):
        if reference is None:
            assert actual is None or not actual.any()
        else:
            assert_close(actual, reference, rtol=1e-5, atol=1e-8)
    with torch.no_grad():
        measured = head.run(model, batch)
        for function in (head.losses, head.token_loss_profiles, head.correct):
            assert_close(function(measured, batch), function(full, batch), rtol=1e-6, atol=1e-6, equal_nan=True)
        logits, labels = head.decisions(head.run(model, batch, logits=True), batch)
    all_logits, all_labels = head.decisions(full, batch)
    assert_close(logits[labels != -100], all_logits[all_labels != -100], rtol=1e-9, atol=1e-9)
    return outputs


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("chunk", [None, 50])
def test_losses_and_gradients_are_those_of_all_logits(name, chunk, monkeypatch):
    if chunk:
        monkeypatch.setattr(cross_entropy, "CHUNK", chunk)
    model, batch = double(name)
    outputs = assert_same(model, batch)
    assert (outputs.scorer is not None) == (name in LOSSES)
    assert outputs.labels.shape[1] < batch["labels"].shape[1]
    assert (
        not vars(model.get_output_embeddings()).get("forward") and not model.get_output_embeddings()._forward_pre_hooks
    )


@pytest.mark.parametrize("name", ["llama", "bert, masked", "gpt2", "opt", "whisper"])
def test_padding_on_the_left_and_samples_without_labels(name):
    model, batch = double(name)
    batch["labels"][2] = -100
    if "input_ids" in batch:
        batch["input_ids"][1], batch["attention_mask"][1] = (
            batch["input_ids"][1].flip(0),
            batch["attention_mask"][1].flip(0),
        )
        batch["labels"][1] = batch["labels"][1].flip(0)
    outputs = assert_same(model, batch)
    assert head_of(model).losses(outputs, batch)[2] == 0
    batch["labels"][:] = -100
    losses = head_of(model).losses(head_of(model).run(model, batch), batch)
    assert not losses.any() and losses.requires_grad
    assert all(g is None or not g.any() for g in gradients(model, losses))


@pytest.mark.parametrize("target", ["q_proj", "lm_head"])
@pytest.mark.parametrize("saved", [None, ["lm_head"]])
def test_adapters_on_the_output_layer_and_beside_it(target, saved):
    model, batch = double("llama")
    if target == saved:
        return
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", target], modules_to_save=saved)).double()
    with torch.no_grad():
        for p in adapted.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.1)
    outputs = assert_same(adapted.eval(), batch)
    # Frozen, the linear layer makes the gradient of its input at once; adapted, it is no plain linear layer.
    assert (outputs.scorer is not None) == (target == "q_proj" and saved is None)


def test_a_layer_that_is_adapted_after_it_was_seen():
    model, batch = double("llama")
    assert_same(model, batch)
    assert_same(get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"])).eval(), batch)


class Reshaping(hf.LlamaForCausalLM):
    """Looks at the shape of its logits."""

    def forward(self, input_ids, **inputs):
        outputs = super().forward(input_ids, **inputs)
        outputs.logits = outputs.logits.view(*input_ids.shape, -1)
        return outputs


class Neighbours(hf.LlamaForCausalLM):
    """Mixes the logits of neighbouring positions."""

    def forward(self, *args, **inputs):
        outputs = super().forward(*args, **inputs)
        outputs.logits = outputs.logits + outputs.logits.roll(1, 1)
        return outputs


@pytest.mark.parametrize("cls", [Reshaping, Neighbours])
def test_a_model_that_cannot_leave_positions_out_gives_all_its_logits_by_name(cls, caplog):
    case_of = (cls, *PER_TOKEN["llama"][1:])
    torch.manual_seed(0)
    model = build(*case_of)[0].double()
    batch = {**text(), **causal_tokens()}
    with caplog.at_level(logging.INFO, "hf_unlearn"):
        outputs = assert_same(model, batch)
    assert outputs.scorer is None and "All logits are computed" in caplog.text


def test_in_half_precision_a_softcap_is_not_taken_for_none():
    model, batch = build(*LOGITS["gemma2"])
    model.config.final_logit_softcapping = 1e3  # it changes hardly anything
    head, model = head_of(model), model.bfloat16()
    outputs = head.run(model, batch)
    assert outputs.scorer is None
    assert_close(head.losses(outputs, batch), head.losses(model(**head.inputs(batch)), batch), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("trains", [True, False])
def test_autocast_is_that_of_the_layer(trains):
    model, batch = build(*LOSSES["llama"])
    model.requires_grad_(trains)
    model.model.requires_grad_(True)
    head = head_of(model)
    with torch.autocast("cpu", torch.bfloat16):
        losses, expected = head.losses(head.run(model, batch), batch), head.losses(model(**head.inputs(batch)), batch)
    assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    for actual, reference in zip(gradients(model, losses), gradients(model, expected), strict=True):
        assert_close(actual, reference, rtol=3e-2, atol=3e-2 * float(reference.abs().max()))


def test_modes_random_state_and_layer_are_left_as_they_were():
    model, batch = build(*LOSSES["whisper"])
    model.train()
    model.model.encoder.eval()
    modes, state = [m.training for m in model.modules()], torch.get_rng_state()
    head_of(model).run(model.eval().train(), batch)
    assert torch.equal(torch.get_rng_state(), state) and all(m.training for m in model.modules()) and any(modes)


def test_confident_predictions_keep_their_small_losses():
    """Logits of thousands: a difference of two large numbers would be off by 1e-4."""
    hidden, weight = torch.tensor([[3000.0, 2995.0]]), torch.eye(2)
    losses, normalizers, _ = linear_cross_entropy(hidden, weight, None, torch.tensor([0]))
    expected = torch.nn.functional.cross_entropy(hidden.double(), torch.tensor([0]), reduction="none")
    assert_close(losses.double(), expected, rtol=1e-5, atol=0)
    assert_close(residuals(hidden, weight, None, torch.tensor([0]), normalizers).sum(), torch.tensor(0.0))


@pytest.mark.parametrize("trains", [True, False])
def test_no_tensor_of_all_labelled_logits_is_made(trains, monkeypatch):
    """The largest tensor between the losses and the gradients, over a vocabulary of 4,000 and 60 labels."""
    monkeypatch.setattr(cross_entropy, "CHUNK", 40_000)
    settings = {**BERT, "vocab_size": 4000}
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**settings)).eval()
    model.lm_head.requires_grad_(trains)
    batch = {**text(), **{"labels": torch.randint(3, 4000, (4, 7))}}
    head, seen = head_of(model), []
    head.run(model, batch)  # the look at two samples

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            seen.extend(r.shape for r in torch.utils._pytree.tree_leaves(result) if isinstance(r, torch.Tensor))
            return result

    with Largest():
        head.losses(head.run(model, batch), batch).sum().backward()
    with_vocabulary = [shape for shape in seen if 4000 in shape and shape != model.lm_head.weight.shape]
    largest = max(shape.numel() for shape in with_vocabulary if 16 not in shape)
    assert largest == 40_000
