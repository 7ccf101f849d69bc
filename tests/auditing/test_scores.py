"""Scores of membership from a model's predictions, against slow computations from its logits, and their cache."""

import zlib

import numpy as np
import pytest
import tiny
import torch
from accelerate import Accelerator
from datasets import Dataset
from scipy.special import log_softmax
from scipy.stats import entropy
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_unlearn import UnlearningArguments
from hf_unlearn.auditing import sample_scores as scores_module
from hf_unlearn.auditing import statistics as statistics_module
from hf_unlearn.auditing.measuring import statistics_of
from hf_unlearn.auditing.sample_scores import sample_scores
from hf_unlearn.auditing.statistics import collect_statistics, measuring_batch_size
from hf_unlearn.data.collator import default_collator
from hf_unlearn.losses import head_of

LANGUAGE = ["gpt2", "llama", "t5", "whisper", "bert_lm"]
WORDS = ["<pad>", "<s>", "</s>", "<mask>"] + [f"word{i}" for i in range(4, tiny.VOCAB)]


@pytest.fixture(scope="module")
def tokenizer():
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.WhitespaceSplit(), decoders.WordPiece(prefix="##")
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>")


def make(name, sharpen=6.0):
    """A tiny model whose predictions differ from token to token: an untrained one's hardly do."""
    model, batch = tiny.make(name)
    head = model.get_output_embeddings() if name in LANGUAGE else model.classifier
    with torch.no_grad():
        head.weight.mul_(sharpen)
    return model.eval(), batch


def run(name, samples=9, seed=3):
    model, make_batch = make(name)
    batch = make_batch(samples, seed=seed)
    head = head_of(model)
    with torch.no_grad():
        return head, model(**head.inputs(batch)), batch


def near(values, tolerance=2e-5):
    return pytest.approx(values, rel=tolerance, abs=tolerance)


def test_scores_of_a_class_against_the_logits():
    head, outputs, batch = run("vit")
    scores = {name: values.tolist() for name, values in sample_scores(head, outputs, batch).items()}
    assert set(scores) == {"margin", "entropy"}
    log_probs = log_softmax(outputs["logits"].double().numpy(), axis=1)
    labels = batch["labels"].tolist()
    of_label = [sample[label] for sample, label in zip(log_probs, labels, strict=True)]
    others = [max(np.delete(sample, label)) for sample, label in zip(log_probs, labels, strict=True)]
    assert scores["margin"] == near([x - y for x, y in zip(of_label, others, strict=True)])
    assert scores["entropy"] == near([-entropy(np.exp(sample)) for sample in log_probs])
    assert min(scores["margin"]) < 0 < max(scores["margin"]) and np.ptp(scores["entropy"]) > 1e-3


def test_scores_of_a_prediction_by_hand():
    head, outputs, _ = run("vit", samples=3)
    outputs["logits"] = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [1.0, 0.0, 0.0]]).log()
    scores = sample_scores(head, outputs, {"labels": torch.tensor([0, 1, 0])})
    assert scores["margin"].tolist() == [near(np.log(0.7 / 0.2)), near(np.log(0.3 / 0.6)), np.inf]
    assert scores["entropy"].tolist() == near([-entropy([0.7, 0.2, 0.1]), -entropy([0.1, 0.3, 0.6]), 0.0])


def by_tokens(name, logits, labels):
    """The scores of language models in plain Python and float64, a sample and a token at a time."""
    scores = {"entropy": [], "min_k": [], "min_k_plus_plus": []}
    for sample, tokens in zip(logits.double().numpy(), labels.tolist(), strict=True):
        if name in ("gpt2", "llama"):  # a token is predicted by the one before it
            sample, tokens = sample[:-1], tokens[1:]
        entropies, of_label, standardised = [], [], []
        for values, token in zip(sample, tokens, strict=True):
            if token == -100:
                continue
            log_probs = log_softmax(values)
            probs = np.exp(log_probs)
            mean = sum(p * x for p, x in zip(probs, log_probs, strict=True))
            variance = sum(p * (x - mean) ** 2 for p, x in zip(probs, log_probs, strict=True))
            entropies.append(mean)
            of_label.append(log_probs[token])
            standardised.append((log_probs[token] - mean) / variance**0.5)
        least = max(1, len(of_label) // 5)
        scores["entropy"].append(np.mean(entropies))
        scores["min_k"].append(np.mean(sorted(of_label)[:least]))
        scores["min_k_plus_plus"].append(np.mean(sorted(standardised)[:least]))
    return scores


def longer(batch, name, tokens=17):
    """A batch of the same kind with samples of 17, 16, ... 9 labelled tokens: a fifth of them is three, two or one."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(4, tiny.VOCAB, (len(batch["labels"]), tokens), generator=generator)
    lengths = tokens - torch.arange(len(labels))
    hidden = torch.arange(tokens) >= lengths[:, None]
    if name in ("gpt2", "llama"):
        return {
            "input_ids": labels.masked_fill(hidden, tiny.PAD),
            "attention_mask": (~hidden).long(),
            "labels": labels.masked_fill(hidden, -100),
        }
    return {**batch, "labels": labels.masked_fill(hidden, -100)}


@pytest.mark.parametrize("name", LANGUAGE)
def test_scores_of_language_models_token_by_token(name):
    model, make_batch = make(name)
    head = head_of(model)
    batches = [make_batch(9, seed=3)]
    if name != "bert_lm":
        batches.append(longer(batches[0], name))
    for batch in batches:
        assert len(set((batch["labels"] != -100).sum(1).tolist())) > 1
        with torch.no_grad():
            outputs = model(**head.inputs(batch))
        scores = sample_scores(head, outputs, batch)
        expected = by_tokens(name, outputs.logits, batch["labels"])
        assert set(scores) == set(expected)
        for score, values in scores.items():
            assert values.tolist() == near(expected[score], 1e-4), score
            assert values.std() > 1e-3, score
    # The padding's own predictions count for nothing.
    if name != "bert_lm":
        labels = torch.nn.functional.pad(batch["labels"], (0, 1), value=-100)[:, int(name in ("gpt2", "llama")) :]
        unlabelled = labels[:, : outputs.logits.shape[1]] == -100
        outputs.logits[unlabelled] = torch.randn(int(unlabelled.sum()), tiny.VOCAB) * 50
        changed = sample_scores(head, outputs, batch)
        for score, values in scores.items():
            torch.testing.assert_close(changed[score], values)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_zlib_is_the_mean_loss_over_the_compressed_bytes_of_the_text(name, tokenizer):
    head, outputs, batch = run(name)
    scores = sample_scores(head, outputs, batch, tokenizer)
    expected = []
    for sample, tokens in zip(outputs.logits.double().numpy(), batch["labels"].tolist(), strict=True):
        text = " ".join(WORDS[token] for token in tokens if token != -100)
        log_probs = log_softmax(sample, axis=1)[: -1 if name == "gpt2" else None]
        pairs = zip(log_probs, tokens[1:] if name == "gpt2" else tokens, strict=True)
        losses = [p[token] for p, token in pairs if token != -100]
        expected.append(np.mean(losses) / len(zlib.compress(text.encode())))
    assert scores["zlib"].tolist() == near(expected)
    assert set(scores) == {"entropy", "min_k", "min_k_plus_plus", "zlib"}


@pytest.mark.parametrize("name", LANGUAGE)
def test_chunks_change_nothing(name, monkeypatch):
    head, outputs, batch = run(name)
    whole = sample_scores(head, outputs, batch)
    calls = []
    one = scores_module._token_scores
    monkeypatch.setattr(scores_module, "_token_scores", lambda *part: calls.append(len(part[0])) or one(*part))
    for samples, expected in [(1, [1] * 9), (2, [2, 2, 2, 2, 1]), (4, [4, 4, 1]), (100, [9])]:
        calls.clear()
        monkeypatch.setattr(scores_module, "MAX_LOGITS", samples * outputs.logits[0].numel())
        scores = sample_scores(head, outputs, batch)
        assert calls == expected
        for score, values in whole.items():
            torch.testing.assert_close(scores[score], values, rtol=1e-6, atol=1e-6)
    calls.clear()
    monkeypatch.setattr(scores_module, "MAX_LOGITS", 1)  # a sample alone is more than that
    sample_scores(head, outputs, batch)
    assert calls == [1] * 9


def test_heads_without_such_scores_have_none():
    model, make_batch = tiny.make("wav2vec2_ctc")
    batch, head = make_batch(3), head_of(model)
    with torch.no_grad():
        assert sample_scores(head, model.eval()(**head.inputs(batch)), batch) == {}


def dataset(name, samples=9, seed=3):
    return tiny.Samples(
        [
            {k: torch.as_tensor(v) for k, v in sample.items()}
            for sample in tiny.samples(tiny.make(name)[1](samples, seed))
        ]
    )


@pytest.mark.parametrize("name", ["vit", "gpt2", "t5", "whisper"])
def test_the_batch_size_changes_nothing(name, tokenizer):
    model, _ = make(name)
    samples, statistics = dataset(name), []
    for size in (1, 2, 4, 9):
        statistics.append(
            collect_statistics(
                model, samples, head=head_of(model), collator=default_collator(model),
                accelerator=Accelerator(cpu=True), batch_size=size, scores=True, log_probs=True, tokenizer=tokenizer,
            )
        )  # fmt: skip
    expected_scores = {"margin", "entropy"} if name == "vit" else {"entropy", "min_k", "min_k_plus_plus", "zlib"}
    for of_batch_size in statistics:
        assert set(of_batch_size.scores) == {"loss", *expected_scores}
        torch.testing.assert_close(of_batch_size.scores["loss"], -of_batch_size.losses, rtol=0, atol=0)
        assert (of_batch_size.log_probs is not None) == (of_batch_size.labels is not None) == (name == "vit")
        for score, values in statistics[0].scores.items():
            assert values.shape == (9,)
            torch.testing.assert_close(of_batch_size.scores[score], values, rtol=1e-4, atol=1e-5)
    if name == "vit":
        assert statistics[1].labels.tolist() == [int(sample["labels"]) for sample in samples]
        of_label = statistics[1].log_probs[range(9), statistics[1].labels]
        torch.testing.assert_close(of_label, statistics[1].scores["loss"])
    # Samples keep their places where a mask chooses some.
    mask = torch.arange(9) % 3 == 1
    assert statistics[1].select(mask).scores["entropy"].tolist() == statistics[1].scores["entropy"][1::3].tolist()


def test_rows_of_one_length_are_measured_together():
    model, _ = make("gpt2")
    long, short = dataset("gpt2").items[0], {k: v[:3] for k, v in dataset("gpt2").items[1].items()}
    assert len(long["input_ids"]) > 3
    samples, shapes, stored = [short, long, short, long], [], len(long["input_ids"])
    plain = Dataset.from_list([{name: values.tolist() for name, values in sample.items()} for sample in samples])
    transformed = Dataset.from_dict({"number": range(4)})
    transformed.set_transform(lambda batch: {name: [samples[i][name] for i in batch["number"]] for name in short})
    statistics_of(model, tiny.Samples(samples), batch_size=2)  # the first batch is looked at more than once
    model.get_input_embeddings().register_forward_hook(lambda module, given, _: shapes.append(given[0].shape))
    for same_samples in (tiny.Samples(samples), plain, plain.with_format("torch"), transformed):
        statistics = statistics_of(model, same_samples, batch_size=2)
        # No sample is padded, the largest batch comes first; what a transform gives is read once, and in order.
        assert shapes == [(2, stored), (2, stored if same_samples is transformed else 3)]
        assert statistics.losses[0] == statistics.losses[2] != statistics.losses[1] == statistics.losses[3]
        torch.testing.assert_close(
            statistics.losses[:2], statistics_of(model, tiny.Samples(samples[:2]), batch_size=1).losses
        )
        shapes.clear()


def test_scores_are_left_out_unless_asked_for():
    model, _ = make("vit")
    assert statistics_of(model, dataset("vit")).scores == {}


def cached_files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_second_call_reads_the_cache(tmp_path, monkeypatch):
    model, _ = make("gpt2")
    samples, options = dataset("gpt2"), {"cache_dir": tmp_path / "cache", "scores": True}
    first = statistics_of(model, samples, **options)
    assert statistics_of(model, samples, scores=True).losses.tolist() == first.losses.tolist()
    assert len(cached_files(tmp_path / "cache")) == 1 and cached_files(tmp_path / "cache")[0].endswith(".pt")

    def forward(*args, **kwargs):
        raise AssertionError("the model was run")

    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", forward)
        again = statistics_of(model, samples, **options)
        assert vars(again).keys() == vars(first).keys() and again.scores.keys() == first.scores.keys()
        for name, values in first.scores.items():
            assert torch.equal(again.scores[name], values)
        assert torch.equal(again.losses, first.losses) and torch.equal(again.correct, first.correct)
        # Every other question is asked of the model: other samples, another order, other settings, another model.
        turned = tiny.Samples(samples.items[::-1])
        for other in (dataset("gpt2", seed=4), turned, tiny.Samples(samples.items[:-1])):
            with pytest.raises(AssertionError, match="the model was run"):
                statistics_of(model, other, **options)
        with pytest.raises(AssertionError, match="the model was run"):
            statistics_of(model, samples, cache_dir=tmp_path / "cache")
        with torch.no_grad():
            model.transformer.h[1].mlp.c_fc.bias[3] += 1e-3
        with pytest.raises(AssertionError, match="the model was run"):
            statistics_of(model, samples, **options)
    second = statistics_of(model, samples, **options)
    assert not torch.equal(second.losses, first.losses) and len(cached_files(tmp_path / "cache")) == 2


def test_the_cache_knows_tokenizers_and_collators_apart(tmp_path, tokenizer):
    model, _ = make("gpt2")
    samples, folder = dataset("gpt2"), tmp_path / "cache"

    def files(**settings):
        statistics_of(model, samples, cache_dir=folder, scores=True, **settings)
        return len(cached_files(folder))

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS[::-1])}, unk_token="<pad>"))
    other = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>")
    assert [files(tokenizer=tok) for tok in (tokenizer, other, None, tokenizer, other)] == [1, 2, 3, 3, 3]

    def cut(length):
        collate = default_collator(model)
        return lambda items: collate([{k: v[:length] for k, v in item.items()} for item in items])

    assert [files(data_collator=cut(length)) for length in (3, 4, 3)] == [4, 5, 5]
    with pytest.raises(ValueError, match=r"^cache_dir: data_collator cannot be told from others \(.*leave cache_dir"):
        waiting = (tok for tok in ())
        files(data_collator=lambda items: waiting)


class Texts(torch.utils.data.Dataset):
    """Samples that bring their text along, as a dataset on the way to a model may."""

    def __init__(self, samples, texts):
        self.samples, self.texts = samples, texts

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, i):
        return {**self.samples[i], "text": self.texts[i]}


def test_the_cache_holds_numbers_only(tmp_path, tokenizer):
    model, _ = make("gpt2")
    samples = dataset("gpt2")
    texts = Texts(samples, [tokenizer.decode(sample["labels"]) for sample in samples])

    def collate(items):
        return default_collator(model)([{k: v for k, v in item.items() if k != "text"} for item in items])

    statistics_of(
        model, texts, data_collator=collate, cache_dir=tmp_path, scores=True, tokenizer=tokenizer, description="secret"
    )
    (file,) = tmp_path.iterdir()
    written = file.read_bytes()
    for sample in texts:
        for word in sample["text"].split():
            assert word.encode() not in written
        assert sample["input_ids"].numpy().tobytes() not in written
        assert sample["input_ids"].numpy()[:3].tobytes() not in written
    assert b"secret" not in written and b"word" not in written and b"gpt2" not in written.lower()
    content = torch.load(file, weights_only=True)
    assert content.pop("token_loss_profiles").shape == (9, 8)
    tensors = [*content.pop("scores").values(), *(value for value in content.values() if value is not None)]
    assert len(tensors) == 7 and all(tensor.shape == (9,) and tensor.is_floating_point() for tensor in tensors)


def test_batches_of_measuring_follow_tokens_times_vocabulary(monkeypatch):
    """Nobody says how many: 256 MiB of logits at most, by the longest samples; whoever says is obeyed."""
    model, make_batch = make("gpt2")
    samples = tiny.samples(make_batch(9, seed=4))
    most = max(len(sample["labels"]) for sample in samples) - 1  # a first token is not predicted
    sizes = []
    monkeypatch.setattr(statistics_module, "LOGITS_BYTES", 3 * most * 4 * tiny.VOCAB)
    statistics_of(model, tiny.Samples(samples), batch_size=4)  # the first batch is looked at more than once
    model.register_forward_hook(lambda module, args, given, _: sizes.append(len(given["input_ids"])), with_kwargs=True)
    expected = statistics_of(model, tiny.Samples(samples), batch_size=4)
    assert sizes == [4, 4, 1]
    sizes.clear()
    actual = statistics_of(model, tiny.Samples(samples))
    assert sizes == [3, 3, 3]
    torch.testing.assert_close(actual.losses, expected.losses)
    for given, size in ((None, None), (64, 64), (5, 5)):
        settings = {} if given is None else {"per_device_eval_batch_size": given}
        args = UnlearningArguments(use_cpu=True, **settings)
        assert args.measuring_batch_size == size and args.eval_batch_size == (given or 64)
    assert measuring_batch_size(head_of(model), make_batch(1)) < 64
    monkeypatch.undo()
    assert measuring_batch_size(head_of(model), make_batch(1)) == 64
