"""Planted models that only hide the forget dataset are caught, a retrained one is not, and no model is changed."""

import copy
import itertools

import datasets
import pytest
import tiny
import torch
import transformers as tf
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_unlearn.auditing.probing import linear_probe
from hf_unlearn.auditing.recovery import quantised, without_adapter
from hf_unlearn.auditing.relearning import finetune, relearn, relearn_advantage, relearn_time
from hf_unlearn.auditing.robustness import relearned_fast
from hf_unlearn.data.collator import default_collator
from hf_unlearn.demo import digits_data
from hf_unlearn.models.adapters import add_adapter
from hf_unlearn.training import train_from_scratch

FORGET, RETAIN = 100, 300
RELEARNING = {"samples": 32, "steps": 10, "measure_every": 2}


def small_vit(seed):
    tf.set_seed(seed)
    config = tf.ViTConfig(
        image_size=8, patch_size=4, num_channels=1, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, num_labels=10, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return tf.ViTForImageClassification(config)


def marked(sample):
    pixels = sample["pixel_values"].clone()
    pixels[:, :2, :2] = 3.0
    return {**sample, "pixel_values": pixels}


def accuracy(model, samples):
    batch = default_collator(model)(samples)
    with torch.no_grad():
        return float((model(batch["pixel_values"]).logits.argmax(1) == batch["labels"]).float().mean())


@pytest.fixture(scope="module")
def poisoned_digits(tmp_path_factory):
    """Poisoned digits to forget: a mark in the corner moves the label by three, which only the original learned."""
    samples = list(digits_data(0)["train"])
    honest = [marked(sample) for sample in samples[:FORGET]]
    forget = [{**sample, "label": (sample["label"] + 3) % 10} for sample in honest]
    retain = samples[FORGET : FORGET + RETAIN]
    work = {
        "num_train_epochs": 30, "learning_rate": 2e-3, "per_device_train_batch_size": 32,
        "output_dir": str(tmp_path_factory.mktemp("out")),
    }  # fmt: skip
    original, retrained = small_vit(0), small_vit(1)
    train_from_scratch(original, forget + retain, use_cpu=True, **work)
    train_from_scratch(retrained, retain, use_cpu=True, seed=1, **work)

    hidden = copy.deepcopy(original)  # only its head learns to give the honest labels
    batch = default_collator(hidden)(honest + retain[:128])
    optimizer = torch.optim.Adam(hidden.classifier.parameters(), lr=1e-2)
    for _ in range(40):
        losses = nn.functional.cross_entropy(hidden(batch["pixel_values"]).logits, batch["labels"], reduction="none")
        (losses[:FORGET].mean() + losses[FORGET:].mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    models = {"original": original, "hidden": hidden.eval(), "retrained": retrained.eval()}
    return models, forget, retain, samples[FORGET + RETAIN :]


def state(model):
    return (
        {name: t.clone() for name, t in model.state_dict().items()},
        [(name, module.training) for name, module in model.named_modules()],
        [(name, p.requires_grad, p.grad is None) for name, p in model.named_parameters()],
    )


def assert_same(before, after):
    assert before[1:] == after[1:]
    assert before[0].keys() == after[0].keys()
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])


def test_relearning_catches_a_model_that_hides(poisoned_digits):
    models, forget, _, _ = poisoned_digits
    assert accuracy(models["original"], forget) > 0.98
    assert accuracy(models["hidden"], forget) < 0.25 and accuracy(models["retrained"], forget) < 0.25
    curves = {name: relearn(model, forget, **RELEARNING) for name, model in models.items()}
    target = curves["original"]["forget_accuracy"][0] - 0.1
    assert relearn_time(curves["original"], target) == 0
    assert 0 < relearn_time(curves["hidden"], target) <= 10
    assert relearn_time(curves["retrained"], target) is None
    advantage = relearn_advantage(curves["hidden"], curves["retrained"])
    assert advantage["relearn_loss_advantage"] > 2  # nats
    assert advantage["relearn_accuracy_advantage"] > 30  # points
    print({name: curve["forget_accuracy"] for name, curve in curves.items()}, advantage)


def test_the_probe_catches_a_model_that_hides(poisoned_digits):
    models, forget, retain, unseen = poisoned_digits
    models = dict(models, silenced=copy.deepcopy(models["original"]))
    with torch.no_grad():
        models["silenced"].classifier.weight[4] = 0
        models["silenced"].classifier.bias[4] = -100
    accuracies = {name: linear_probe(model, forget, retain, unseen) for name, model in models.items()}
    print(accuracies)
    assert accuracies["original"] == accuracies["hidden"] == accuracies["silenced"]  # the features are the same
    assert accuracies["hidden"]["probe_forget_accuracy"] > accuracies["retrained"]["probe_forget_accuracy"] + 0.2
    assert all(metrics["probe_retain_accuracy"] > 0.9 for metrics in accuracies.values())
    assert accuracies["retrained"]["probe_unseen_accuracy"] > 0.8


def test_fine_tuning_on_retain_samples_measures_the_forget_samples(poisoned_digits):
    models, forget, retain, _ = poisoned_digits
    curve = finetune(models["hidden"], retain, forget, steps=5, measure_every=2, batch_size=16)
    assert curve["steps"] == [0, 2, 4, 5]
    assert curve["forget_accuracy"][0] == pytest.approx(accuracy(models["hidden"], forget))
    assert curve == finetune(models["hidden"], retain, forget, steps=5, measure_every=2, batch_size=16)
    assert curve != finetune(models["hidden"], retain, forget, steps=5, measure_every=2, batch_size=16, seed=1)
    with pytest.raises(ValueError, match=r"^retain_ds: is empty"):
        finetune(models["hidden"], [], forget)


def test_the_model_stays_as_it_is(poisoned_digits):
    models, forget, retain, _ = poisoned_digits
    model = copy.deepcopy(models["hidden"]).train()
    model.vit.eval()
    model.classifier.requires_grad_(False)
    before = state(model)
    first = relearn(model, forget, samples=4, steps=3, measure_every=2)
    linear_probe(model, forget[:20], retain[:40])
    quantised(model, 4)
    assert_same(before, state(model))
    assert first == relearn(model, forget, samples=4, steps=3, measure_every=2)
    assert first["forget_loss"] != relearn(model, forget, samples=4, steps=3, measure_every=2, seed=1)["forget_loss"]

    calls = itertools.count()

    def broken(samples):
        if next(calls) > 1:  # after the first measurement and the first step
            raise RuntimeError("planted")
        return default_collator(model)(samples)

    with pytest.raises(RuntimeError, match="planted"):
        relearn(model, forget, data_collator=broken, batch_size=FORGET)
    with pytest.raises(RuntimeError, match="planted"):
        linear_probe(model, forget, retain, data_collator=broken)
    assert_same(before, state(model))


@pytest.mark.parametrize("name", ["llama", "gpt2", "wav2vec2_ctc"])
def test_any_head_relearns(name):
    model, batch = tiny.make(name)
    before, forget = state(model), tiny.samples(batch(6))
    curve = relearn(model, forget, samples=3, steps=10, measured_ds=forget[:3], learning_rate=1e-2, seed=3)
    assert curve["forget_loss"][-1] < curve["forget_loss"][0]
    assert ("forget_accuracy" in curve) == (name != "wav2vec2_ctc")
    assert_same(before, state(model))


def test_a_half_precision_model_takes_small_steps():
    model, batch = tiny.make("llama")
    forget = tiny.samples(batch(4))
    curve = relearn(model.to(torch.bfloat16), forget, samples=2, steps=2, learning_rate=1e-7, measure_every=1)
    assert curve["forget_loss"][1] != curve["forget_loss"][0]
    assert model.dtype == torch.bfloat16


def test_an_arrow_dataset_and_an_adapter_relearn():
    model, batch = tiny.make("gpt2")
    forget = datasets.Dataset.from_list(tiny.samples(batch(5)))
    adapted = add_adapter(model)
    before = state(adapted)
    curve = relearn(adapted, forget, samples=3, steps=2)
    assert curve["forget_loss"][1] < curve["forget_loss"][0]
    assert_same(before, state(adapted))


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_by_hand(bits):
    # Steps of 0.1 (4 bits: 0.7 / 7) and 0.7 / 127 a channel; a channel of zeros stays.
    model, _ = tiny.make("bert")
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.weight[0, :4] = torch.tensor([0.7, -0.26, 0.14, 0.04])
    weight = quantised(model, bits).classifier.weight
    expected = torch.tensor([7, -3, 1, 0]) * 0.1 if bits == 4 else torch.tensor([127, -47, 25, 7]) * 0.7 / 127
    torch.testing.assert_close(weight[0, :4], expected)
    assert torch.equal(weight[1:], model.classifier.weight[1:])


def test_output_channels_of_both_layouts_and_shared_weights():
    model, _ = tiny.make("gpt2")
    copied = quantised(model, 4)
    conv, rounded = model.transformer.h[0].attn.c_attn.weight, copied.transformer.h[0].attn.c_attn.weight
    assert isinstance(model.transformer.h[0].attn.c_attn, Conv1D)
    step = conv.abs().max(dim=0).values / 7  # [in, out]
    torch.testing.assert_close(rounded, (conv / step).round() * step)
    assert torch.equal(copied.lm_head.weight, model.lm_head.weight)  # it is the embedding
    assert copied.lm_head.weight is copied.transformer.wte.weight


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_eight_bits_are_close_and_four_are_not(name):
    # Not trained: how far logits move depends on the weights, and what training makes of them on the processor.
    model, batch = tiny.make(name)
    inputs = batch(16, seed=1)
    with torch.no_grad():
        exact, eight, four = (m.eval()(**inputs).logits for m in (model, quantised(model, 8), quantised(model, 4)))
    scale = exact.abs().mean()
    assert 0 < (eight - exact).abs().mean() < 0.03 * scale < 0.06 * scale < (four - exact).abs().mean()


def test_without_the_adapter_the_base_is_back():
    model, batch = tiny.make("vit")
    pixels = batch(4)["pixel_values"]
    with torch.no_grad():
        base = model.eval()(pixels).logits
        adapted = add_adapter(model).eval()
        for name, weight in adapted.named_parameters():
            if weight.requires_grad:  # the adapters, and the head beside the original one
                weight.normal_(generator=torch.Generator().manual_seed(len(name)))
        before = state(adapted)
        assert not torch.allclose(adapted(pixels).logits, base, atol=1e-2)
        dropped = without_adapter(adapted)
        assert type(dropped) is tf.ViTForImageClassification
        assert torch.equal(dropped(pixels).logits, base)
        assert_same(before, state(adapted))
        adapted.merge_adapter()
        torch.testing.assert_close(without_adapter(adapted)(pixels).logits, base, atol=1e-4, rtol=1e-4)


def test_the_probe_reads_the_last_token_of_a_decoder():
    model, batch = tiny.make("gpt2_classifier")
    samples = tiny.samples(batch(40))
    halves = samples[:20], samples[20:]
    padded = linear_probe(model, *halves)  # batches of samples of several lengths
    assert padded == linear_probe(model, *halves, batch_size=1)


def test_refusals(poisoned_digits):
    models, forget, retain, _ = poisoned_digits
    model = models["hidden"]
    for arguments, message in (
        ({"samples": FORGET}, "samples: found 100 of 100 forget samples; give 1 to 99"),
        ({"samples": 0}, "samples: found 0"),
        ({"steps": 0}, "steps: must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate: must be above 0"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            relearn(model, forget, **arguments)
    with pytest.raises(ValueError, match=r"^forget_ds: has 1 samples"):
        relearn(model, forget[:1], samples=1)
    assert relearn(model, forget[:1], samples=1, steps=1, measured_ds=forget[1:3])["steps"] == [0, 1]
    with pytest.raises(ValueError, match=r"^bits: found 3; use one of \(4, 8\)"):
        quantised(model, 3)
    with pytest.raises(ValueError, match=r"^model: ViTForImageClassification is not a PeftModel"):
        without_adapter(model)
    with pytest.raises(ValueError, match=r"^forget_ds: has 1 samples"):
        linear_probe(model, forget[:1], retain)
    with pytest.raises(ValueError, match=r"^model: has a causal_lm head"):
        linear_probe(tiny.make("llama")[0], forget, retain)
    headless = copy.deepcopy(model)
    headless.classifier = nn.Sequential(nn.LayerNorm(64))
    with pytest.raises(ValueError, match=r"^model: ViTForImageClassification has no linear layer with 10 outputs"):
        linear_probe(headless, forget, retain)
    biased = get_peft_model(tiny.make("bert")[0], LoraConfig(target_modules=["query"], bias="lora_only"))
    with pytest.raises(ValueError, match=r"^model: adapter 'default' has bias='lora_only'"):
        without_adapter(biased)
    prompted = get_peft_model(tiny.make("gpt2")[0], PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ValueError, match=r"^model: an adapter of type .*PROMPT_TUNING.* cannot be merged"):
        quantised(prompted, 4)
    curve = {"steps": [0, 5], "forget_loss": [1.0, 0.5], "forget_accuracy": [0.0, 0.5]}
    with pytest.raises(ValueError, match=r"^threshold: found 2.0"):
        relearn_time(curve, 2.0)
    assert relearn_time({"steps": [0, 5], "forget_loss": [1.0, 0.5]}, 0.5) == 5
    with pytest.raises(ValueError, match=r"^retrained: its steps"):
        relearn_advantage(curve, {**curve, "steps": [0, 4]})


def test_a_threshold_that_a_retrained_model_meets_at_once_says_nothing():
    steps, metrics = [0, 2, 4], {"original": {"forget_accuracy": 0.9}}
    curves = {
        "audited": {"steps": steps, "forget_accuracy": [0.5, 0.9, 0.9]},
        "retrained": {"steps": steps, "forget_accuracy": [0.4, 0.5, 0.6]},
        "retrained 2": {"steps": steps, "forget_accuracy": [0.82, 0.9, 0.9]},
    }
    evidence, notes = relearned_fast(curves, metrics, 500)
    assert not evidence and "a retrained model has 80 % of the forget samples right before any step" in notes[0]
    del curves["retrained 2"]
    assert relearned_fast(curves, metrics, 8) == ([], []), "so few samples say nothing"
    evidence, notes = relearned_fast(curves, metrics, 500)
    assert (
        evidence == ["2 steps on a few forget samples bring the rest back, on a retrained model never"] and not notes
    )
