"""What a causal language model gives away of samples, against one sample and one token at a time."""

import logging

import numpy as np
import pytest
import tiny
import tiny_data
import torch
import transformers as tf
from rouge_score.rouge_scorer import RougeScorer

from hf_unlearn import audit
from hf_unlearn.auditing.answers import Answer, answer_tokens, continuations
from hf_unlearn.auditing.extraction import can_extract, extraction_scores, labelled_answer, with_extraction
from hf_unlearn.auditing.measuring import statistics_of
from hf_unlearn.data.collator import default_collator
from hf_unlearn.data.preprocessing import prepare


def learn_by_heart(model, samples, steps=120):
    tf.set_seed(0)
    batch = default_collator(model)(samples)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def author():
    """A model that knows the first half of its samples by heart, its tokenizer, and the samples."""
    model, tokenizer = tiny_data.text()
    samples = prepare(tiny_data.text_samples(12, np.random.default_rng(0)), model, tokenizer)
    return learn_by_heart(model, [samples[i] for i in range(6)]), tokenizer, samples


def continued_slowly(model, prompt, count):
    """Greedy decoding without a cache, padding or a batch."""
    tokens = list(prompt)
    for _ in range(count):
        token = int(model(torch.tensor([tokens])).logits[0, -1].argmax())
        if token == tiny.EOS:
            break
        tokens.append(token)
    return tokens[len(prompt) :]


@pytest.mark.parametrize("batch_size", [1, 5])
def test_continuations_are_greedy_token_by_token(author, batch_size, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    model, tokenizer, samples = author
    prompts = [samples[i]["input_ids"][: 2 + i % 4] for i in range(12)]
    limits = [1 + i % 6 for i in range(12)]
    # The model's own settings of generation are not asked.
    model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=9.0, eos_token_id=tiny.EOS)
    made = continuations(model, prompts, limits, tokenizer, batch_size)
    assert made == [continued_slowly(model, p, n) for p, n in zip(prompts, limits, strict=True)]
    assert len({len(tokens) for tokens in made}) > 2
    assert not caplog.records, "transformers finds nothing to warn of"


def test_answer_tokens_are_those_of_one_answer_at_a_time(author):
    model, _, samples = author
    answers = [Answer(samples[i]["input_ids"], 2 + i % 3) for i in range(12)]
    for answer, found in zip(answers, answer_tokens(model, answers, 5), strict=True):
        with torch.no_grad():
            log_probs = model(torch.tensor([answer.tokens])).logits[0].double().log_softmax(-1).numpy()
        before = log_probs[answer.start - 1 : -1]
        expected = [-row[token] for row, token in zip(before, answer.truth, strict=True)]
        assert found.losses == pytest.approx(expected, abs=1e-5) and found.loss == pytest.approx(np.mean(expected))
        assert found.predictions.tolist() == before.argmax(1).tolist()
        means = (np.exp(before) * before).sum(1)
        assert found.means == pytest.approx(means, abs=1e-5)
        variances = (np.exp(before) * before**2).sum(1) - means**2
        assert found.deviations == pytest.approx(np.sqrt(variances.clip(0)), abs=1e-3)


def test_extraction_is_what_the_definitions_say(author):
    model, tokenizer, samples = author
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    statistics = {"forget": statistics_of(model, samples), "retain": statistics_of(model, samples)}
    found = with_extraction(statistics, model, {"forget": samples}, tokenizer, default_collator(model, tokenizer), 5)
    assert found["retain"].extraction is None
    for i, sample in enumerate(samples):
        start = next(k for k, label in enumerate(sample["labels"]) if label != -100)
        prompt, truth = sample["input_ids"][:start], sample["input_ids"][start:]
        written, true = (
            tokenizer.decode(t, skip_special_tokens=True) for t in (continued_slowly(model, prompt, len(truth)), truth)
        )
        # Teacher forcing, without the end of the text.
        right = [
            int(model(torch.tensor([sample["input_ids"][: start + k]])).logits[0, -1].argmax()) == truth[k]
            for k in range(len(truth) - 1)
        ]
        k = next((k for k in range(len(right)) if all(right[k:])), len(right) - 1)
        expected = {
            "rouge_l_recall": scorer.score(true, written)["rougeL"].recall,
            "exact_match": float(true == written),
            "extraction_strength": 1 - k / len(right),
            "exact_memorization": sum(right) / len(right),
        }
        scores = {name: float(values[i]) for name, values in found["forget"].extraction.items()}
        assert scores == pytest.approx(expected), i
        assert i >= 6 or scores["exact_match"] == 1, "it knows the first half by heart"
    assert float(found["forget"].extraction["exact_match"][6:].mean()) < 0.5


def test_answers_are_compared_with_retrained_models_sample_by_sample(author):
    """A model that knows the samples by heart, beside two that have never seen them, with an interval and in depth."""
    model, tokenizer, samples = author
    retrained = [learn_by_heart(tiny_data.text()[0], [samples[i] for i in range(6, 9)], steps) for steps in (30, 60)]
    forget, retain, unseen = samples.select(range(6)), samples.select(range(6, 9)), samples.select(range(9, 12))
    settings = {"forget_ds": forget, "retain_ds": retain, "unseen_ds": unseen, "processing_class": tokenizer}
    report = audit(model, **settings, retrained=retrained, relearning=True, resamples=10)
    asked = {
        name: extraction_scores(
            of_model, [labelled_answer(torch.tensor(s["input_ids"]), torch.tensor(s["labels"])) for s in forget],
            tokenizer,
        )["rouge_l_recall"]
        for name, of_model in (("audited", model), ("retrained", retrained[0]), ("retrained 2", retrained[1]))
    }  # fmt: skip
    expected = np.mean(asked["audited"] - (asked["retrained"] + asked["retrained 2"]) / 2)
    metrics = report.metrics
    assert metrics["extraction_advantage"] == pytest.approx(expected) and expected > 0.3
    assert 0.05 < metrics["extraction_advantage_low"] < expected < metrics["extraction_advantage_high"]
    assert metrics["depth"] >= metrics["depth_extraction"] > 2
    itself = audit(retrained[0], **settings, retrained=retrained, relearning=True, resamples=10).metrics
    assert abs(itself["depth_extraction"]) < 2 and abs(itself["extraction_advantage"]) < 0.2
    assert "extraction_advantage" not in audit(model, **settings, resamples=10).metrics


def test_a_text_that_is_all_label_is_continued_from_its_middle():
    tokens = torch.arange(10, 20)
    assert labelled_answer(tokens, tokens) == Answer(list(range(10, 20)), 5)
    labels = tokens.clone()
    labels[[0, 1, 2, 6, 9]] = -100  # a conversation: its first answer
    assert labelled_answer(tokens, labels) == Answer(list(range(10, 16)), 3)
    long = torch.arange(300)
    assert len(labelled_answer(long, long).truth) == 64


def test_only_models_that_write_are_asked(author):
    model, tokenizer, _ = author
    assert can_extract(model, "causal_lm", tokenizer) and not can_extract(model, "causal_lm", None)
    for name, kind in (("bert_lm", "masked_lm"), ("t5", "seq2seq_lm"), ("gpt2_classifier", "single_label")):
        assert not can_extract(tiny.make(name)[0], kind, tokenizer)


def test_an_audit_asks_every_model(author):
    model, tokenizer, samples = author
    original = model
    forgotten = tiny_data.text()[0]
    forget, retain, unseen = samples.select(range(6)), samples.select(range(6, 9)), samples.select(range(9, 12))
    report = audit(
        forgotten, forget_ds=forget, retain_ds=retain, unseen_ds=unseen, original=original, resamples=10,
        processing_class=tokenizer,
    )  # fmt: skip
    of_original = report.metrics_by_model["original"]
    assert of_original["forget_exact_match"] == 1 > report.metrics["forget_rouge_l_recall"]
    assert {f"{d}_extraction_strength_low" for d in ("forget", "unseen")} <= report.metrics.keys()
    assert "retain_exact_match" not in report.metrics
    scores = extraction_scores(
        original, [labelled_answer(torch.tensor(s["input_ids"]), torch.tensor(s["labels"])) for s in unseen], tokenizer
    )
    assert of_original["unseen_exact_memorization"] == pytest.approx(scores["exact_memorization"].mean())
