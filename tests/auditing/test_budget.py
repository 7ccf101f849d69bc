"""What the attempts to bring data back take, and what is measured once only."""

import copy

import pytest
import torch

from hf_unlearn import audit
from hf_unlearn.auditing.budget import LOOKS, PASSES_OF_AN_ANSWER, RELEARNING_STEPS, Budget
from hf_unlearn.auditing.extraction import EXTRACTED_SAMPLES
from hf_unlearn.models.adapters import add_adapter
from tests import tiny
from tests.auditing.test_audit import words

TOKENS = 10  # of the longest samples of the tiny models


def counted(model, counts):
    """The model; its sample passes, and those of its copies, add up in `counts`: forward 1, with gradients 3."""

    def count(module, args, kwargs, output):
        inputs = kwargs[module.main_input_name]
        # Of tokens those of a sample are one: an answer is generated token by token.
        samples = inputs.numel() / TOKENS if module.main_input_name == "input_ids" else len(inputs)
        counts.append(samples * (1 + 2 * torch.is_grad_enabled()))

    model.register_forward_hook(count, with_kwargs=True)
    return model


def altered(model):
    model = copy.deepcopy(model)
    with torch.no_grad():
        next(p for p in model.parameters() if p.ndim > 1).mul_(1.1)
    return model


@pytest.mark.parametrize("epochs", [3, 10])
def test_attempts_take_a_tenth_of_training_again(epochs):
    samples = tiny.samples(tiny.make("vit")[1](380))
    datasets_by_name = {"forget_ds": samples[:40], "retain_ds": samples[40:340], "unseen_ds": samples[340:]}
    counts = {}
    for relearning in (False, True):
        counts[relearning] = []
        model = counted(tiny.make("vit")[0], counts[relearning])
        report = audit(model, **datasets_by_name, relearning=relearning, training_passes=epochs, resamples=10)
    assert {"finetuned_forget_loss", "probe_forget_accuracy", "int4_forget_loss"} <= report.metrics.keys()
    extra, again = sum(counts[True]) - sum(counts[False]), 3 * epochs * 300
    assert 0.05 * again < extra <= 0.1 * again


@pytest.mark.parametrize("name", ["whisper", "wav2vec2_ctc", "hubert", "gpt2", "adapted gpt2"])
def test_attempts_on_speech_and_text_take_a_tenth_with_what_asking_takes(name):
    architecture = name.split()[-1]
    samples = [s for s in tiny.samples(tiny.make(architecture)[1](1520)) if len(s.get("input_ids", [])) in (0, TOKENS)]
    datasets_by_name = {"forget_ds": samples[:40], "retain_ds": samples[40:340], "unseen_ds": samples[340:380]}
    counts, asking = {}, 0
    for relearning in (False, True):
        counts[relearning] = []
        model = counted(tiny.make(architecture)[0], counts[relearning])
        model = add_adapter(model) if name.startswith("adapted") else model
        report = audit(
            model, **datasets_by_name, relearning=relearning, training_passes=10, resamples=10,
            processing_class=words() if architecture == "gpt2" else None,
        )  # fmt: skip
    if architecture == "gpt2":
        asking = PASSES_OF_AN_ANSWER * EXTRACTED_SAMPLES
        assert report.metrics["forget_rouge_l_recall"] >= 0
    assert {"finetuned_forget_loss", "relearned_forget_loss", "int4_forget_loss"} <= report.metrics.keys()
    extra, again = sum(counts[True]) - sum(counts[False]) + asking, 3 * 10 * 300
    print(name, extra / again)
    assert 0.04 * again < extra <= 0.1 * again


@pytest.mark.parametrize("retain", [342, 700, 2000])
@pytest.mark.parametrize("asked", [0, EXTRACTED_SAMPLES])
def test_all_that_is_allowed_is_a_tenth(retain, asked):
    budget = Budget.of(retain, 3, asked)
    passes = (
        LOOKS * budget.looked_at + 3 * RELEARNING_STEPS * budget.relearned + 2 * budget.probed
        + 3 * budget.tuning_steps * budget.tuning_batch + PASSES_OF_AN_ANSWER * asked
    )  # fmt: skip
    print(retain, asked, passes / (9 * retain))
    assert 0.08 * 9 * retain < passes <= 0.1 * 9 * retain


def test_asking_takes_no_more_than_is_counted():
    """The tokens of forget and unseen samples that a model is asked for, beside an audit that does not ask."""
    samples = [s for s in tiny.samples(tiny.make("gpt2")[1](400)) if len(s["input_ids"]) == TOKENS]
    datasets_by_name = {"forget_ds": samples[:40], "retain_ds": samples[40:60], "unseen_ds": samples[60:]}
    counts = {}
    for tokenizer in (None, words()):
        counts[tokenizer is None] = []
        model = counted(tiny.make("gpt2")[0], counts[tokenizer is None])
        audit(model, **datasets_by_name, resamples=10, processing_class=tokenizer)
    asked = 2 * EXTRACTED_SAMPLES
    extra = sum(counts[False]) - sum(counts[True])
    print(extra / asked)
    assert 0.5 * PASSES_OF_AN_ANSWER * asked < extra <= PASSES_OF_AN_ANSWER * asked


@pytest.mark.parametrize("retain", [200, 300])
def test_attempts_on_a_class_take_a_tenth_too(retain):
    samples = tiny.samples(tiny.make("vit")[1](retain + 80))
    labelled = [{**sample, "labels": i % 2 + 1 if i >= 40 else 0} for i, sample in enumerate(samples)]
    datasets_by_name = {
        "forget_ds": labelled[:40], "retain_ds": labelled[40 : 40 + retain], "unseen_ds": labelled[40 + retain :]
    }  # fmt: skip
    counts = {}
    for relearning in (False, True):
        counts[relearning] = []
        model = counted(tiny.make("vit")[0], counts[relearning])
        report = audit(
            model, **datasets_by_name, relearning=relearning, request="class", training_passes=10, resamples=10
        )
    assert report.relearning.keys() == {"audited"}
    assert sum(counts[True]) - sum(counts[False]) <= 0.1 * 3 * 10 * retain


@pytest.mark.parametrize("name", ["vit", "gpt2", "whisper"])
def test_a_retrained_model_is_measured_once(name, tmp_path):
    model, batch = tiny.make(name)
    samples = tiny.samples(batch(60))
    datasets_by_name = {"forget_ds": samples[:20], "retain_ds": samples[20:40], "unseen_ds": samples[40:]}
    retrained, calls = altered(model), []
    retrained.register_forward_pre_hook(lambda *_: calls.append(1))
    settings = {"relearning": True, "resamples": 10, "cache_dir": tmp_path, "processing_class": words()}
    first, second = (audit(model, **datasets_by_name, retrained=retrained, **settings) for _ in range(2))
    calls_of_one = len(calls)
    calls.clear()
    third = audit(altered(altered(model)), **datasets_by_name, retrained=retrained, **settings)
    assert calls_of_one and not calls
    assert second.metrics == first.metrics != third.metrics
    assert first.metrics_by_model["retrained"] == third.metrics_by_model["retrained"]
    assert second.relearning == first.relearning


def test_a_model_that_writes_otherwise_is_asked_again(tmp_path):
    model, batch = tiny.make("gpt2")
    samples = tiny.samples(batch(12))
    datasets_by_name = {"forget_ds": samples[:4], "retain_ds": samples[4:8], "unseen_ds": samples[8:]}
    tokenizer, written = words(), []
    made = model.generate
    model.generate = lambda *args, **kwargs: written.append(1) or made(*args, **kwargs)
    settings = {"resamples": 10, "cache_dir": tmp_path, "processing_class": tokenizer, **datasets_by_name}
    audit(model, **settings)
    calls = len(written)
    audit(model, **settings)
    assert calls == len(written) > 0
    model.generation_config.eos_token_id = 3
    audit(model, **settings)
    assert len(written) == 2 * calls
    tokenizer.pad_token = "secret3"
    audit(model, **settings)
    assert len(written) == 3 * calls
