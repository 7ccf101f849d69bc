"""Answers, transcripts and general ability: measured before and after a run without being asked for."""

import jiwer
import pytest
import tiny
import tiny_data
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_unlearn import audit
from hf_unlearn.auditing.extraction import EXTRACTED_IN_RUNS, EXTRACTED_SAMPLES, labelled_answer
from hf_unlearn.data.general import GENERAL_SAMPLES, general_samples

ANSWERS = {f"forget_{name}" for name in
           ("rouge_l_recall", "exact_match", "extraction_strength", "exact_memorization")}  # fmt: skip


def words():
    tokens = Tokenizer(models.WordLevel({f"w{i}": i for i in range(40)}, unk_token="w0"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="w0", bos_token="w1", eos_token="w2")


def counted(model, monkeypatch):
    """The numbers of samples of every call of `generate`."""
    calls, generate = [], type(model).generate

    def counting(self, *args, **kwargs):
        calls.append(len(next(iter(kwargs.values()))))
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "generate", counting)
    return calls


def test_a_causal_model_is_asked_before_and_after(unlearn, monkeypatch, capsys):
    trainer = unlearn("gpt2", processing_class=words(), forget=40, retain=10, disable_tqdm=False)
    calls = counted(trainer.model, monkeypatch)
    metrics = trainer.train().metrics
    assert metrics.keys() >= ANSWERS | {f"{name}_before" for name in ANSWERS}
    assert sum(calls) == 2 * EXTRACTED_IN_RUNS < 2 * len(trainer._draws["forget"].after), "few of those drawn"
    assert "forget rouge l recall" in capsys.readouterr().out
    assert trainer.unlearning_metrics().keys() >= ANSWERS
    assert {f"eval_{name}" for name in ANSWERS} <= trainer.evaluate().keys()
    # The audit compares with the original model, on as many samples as it asks the audited one for.
    asked = ~trainer._original_statistics()["forget"].extraction["exact_memorization"].isnan()
    assert int(asked.sum()) == EXTRACTED_SAMPLES
    report = trainer.audit(resamples=10)
    original = report.metrics_by_model["original"]
    assert original.keys() >= {"forget_exact_memorization", "forget_rouge_l_recall"} <= report.metrics.keys()
    assert original.keys() >= {"mia_zlib_auc"} <= report.metrics.keys()


def test_asking_moves_no_weight_and_no_random_number(unlearn):
    """A run with a tokenizer ends where one without it ends, bit by bit."""
    ends = []
    for tokenizer in (None, words()):
        trainer = unlearn(
            "gpt2",
            processing_class=tokenizer,
            folder=str(tokenizer is None),
            method="grad_diff",
            general_ds=None if tokenizer is None else [" ".join(["w5 w7 w9"] * 90)],
        )
        trainer.train()
        ends.append(trainer.model.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_recogniser_transcribes_once_by_default(unlearn, monkeypatch):
    processor = type("Processor", (), {"tokenizer": words()})()
    trainer = unlearn("whisper")
    trainer.processing_class = processor
    trainer.model.generation_config.max_length = 8
    calls = counted(trainer.model, monkeypatch)
    metrics = trainer.train().metrics
    assert sum(calls) == 2 * (6 + 8 + 8), "each sample once before and once after"
    said = {f"{name}_wer" for name in ("forget", "retain", "unseen")}
    assert metrics.keys() >= said | {f"{name}_before" for name in said}
    references, transcripts = [], []
    for sample in trainer.forget_ds.items:
        batch = trainer.data_collator([sample])
        spoken = trainer.model.eval().generate(input_features=batch["input_features"])[0]
        labels = batch["labels"][0]
        references.append(words().decode(labels[labels != -100], skip_special_tokens=True))
        transcripts.append(words().decode(spoken, skip_special_tokens=True))
    assert metrics["forget_wer"] == pytest.approx(jiwer.wer(references, transcripts))


def test_an_audit_takes_the_transcripts_of_the_run(unlearn):
    """Models are compared on the same samples, where a dataset has more of them than are transcribed."""
    trainer = unlearn("whisper", forget=40, max_steps=1)
    trainer.processing_class = type("Processor", (), {"tokenizer": words()})()
    trainer.model.generation_config.max_length = 8
    metrics = trainer.train().metrics
    report = trainer.audit(resamples=10)
    assert report.metrics["forget_wer"] == pytest.approx(metrics["forget_wer"])
    assert report.metrics_by_model["original"]["forget_wer"] == pytest.approx(metrics["forget_wer_before"])


@pytest.mark.parametrize("given", ["file", "texts", "dataset"])
def test_general_ability_is_watched(unlearn, given, tmp_path, capsys):
    text = " ".join(f"w{4 + (i * i) % 36}" for i in range(3000))
    (tmp_path / "general.txt").write_text(text)
    general_ds = {"file": tmp_path / "general.txt", "texts": [text[:5000], text[5000:]],
                  "dataset": tiny.samples(tiny.causal_text(9, seed=5))}[given]  # fmt: skip
    trainer = unlearn("gpt2", processing_class=words(), general_ds=general_ds, disable_tqdm=False, learning_rate=1e-2)
    output = trainer.train().metrics
    assert {"general_loss", "general_loss_before", "general_perplexity", "general_perplexity_before"} <= output.keys()
    assert "general loss" in capsys.readouterr().out and "general loss" in trainer.outcome.sentence
    logged = [entry for entry in trainer.state.log_history if "final_general_perplexity" in entry]
    assert logged
    with torch.no_grad():
        losses = [float(trainer.model.eval()(**trainer.data_collator([sample])).loss) for sample in trainer.general_ds]
    drawn = [losses[number] for number in trainer._draws["general"].after]
    assert output["general_loss"] == pytest.approx(sum(drawn) / len(drawn), rel=1e-5)
    report = trainer.audit(resamples=10)
    assert report.metrics["general_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert "general_loss_low" in report.metrics and "general_loss" in [d["metric"] for d in report.differences]
    assert report.about["general_samples"] == len(trainer.general_ds)
    page = report.to_html(tmp_path / "audit.html").read_text()
    assert "General ability" in page


def test_lost_general_ability_is_damage():
    """Retain samples are what they were, and what the model knew beside them is gone."""
    model = tiny_data.text()[0]
    data = tiny.samples(tiny.causal_text(40, seed=1))
    sets = {"forget_ds": data[:12], "retain_ds": data[12:26], "unseen_ds": data[26:]}
    known = [{"input_ids": [7, 8, 9, 10] * 4, "labels": [7, 8, 9, 10] * 4} for _ in range(10)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = {name: torch.tensor([sample[name] for sample in known]) for name in known[0]}
    untouched = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(30):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    forgetful = tiny_data.text()[0]
    forgetful.load_state_dict(untouched)
    same = audit(model, **sets, original=model, general_ds=known, resamples=10)
    lost = audit(forgetful, **sets, original=model, general_ds=known, resamples=10)
    assert "general" not in same.verdict["sentence"]
    assert lost.verdict["level"] == "damaged" and "general loss" in lost.verdict["sentence"]
    without = audit(forgetful, **sets, original=model, resamples=10)
    assert "general_loss" not in without.metrics


def test_general_samples_of_text_are_blocks_of_tokens():
    model, tokenizer = tiny_data.text()
    words_of_text = [["who", "wrote", "the", "book"][i % 4] for i in range(32 * 100)]
    samples = general_samples(" ".join(words_of_text).splitlines(), model, "causal_lm", tokenizer)
    assert len(samples) == GENERAL_SAMPLES and {len(ids) for ids in samples["input_ids"]} == {32}
    assert samples["labels"][:] == samples["input_ids"][:]
    again = general_samples([" ".join(words_of_text)], model, "causal_lm", tokenizer)
    assert again["input_ids"][:] == samples["input_ids"][:]
    short = general_samples(["who wrote the book ?"], model, "causal_lm", tokenizer)
    assert len(short) == 1 and labelled_answer(*map(torch.tensor, (short[0]["input_ids"], short[0]["labels"])))


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("gpt2", "no/such/file.txt", "general_ds: 'no/such/file.txt' does not open"),
        ("gpt2", [""], "general_ds: holds no text; give some"),
        ("gpt2", [], "general_ds: is empty; give"),
        ("bert", ["w5 w6"], "general_ds: is text, and a single_label head is measured on samples"),
    ],
)
def test_general_data_that_is_none(unlearn, name, given, message):
    with pytest.raises(ValueError, match=message):
        unlearn(name, processing_class=words(), general_ds=given)


def test_texts_need_a_tokenizer(unlearn):
    with pytest.raises(ValueError, match="general_ds: is text, and there is no processing_class; give"):
        unlearn("gpt2", general_ds=["w5 w6 w7"])
