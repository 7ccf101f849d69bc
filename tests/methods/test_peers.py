"""The peer methods that descend a loss of their own: their losses and gradients in plain numpy, and their refusals."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import make
from transformers.modeling_outputs import CausalLMOutput, ImageClassifierOutput

from hf_unlearn.losses import head_of
from hf_unlearn.methods import METHODS, RunInfo

LANGUAGE = ("npo", "simnpo", "wga", "satimp", "ceu")
SAMPLES = 5


def objective(name, original=None, samples=SAMPLES, seed=42):
    args = SimpleNamespace(retain_weight=None, seed=seed, method_kwargs=None)
    return METHODS[name](args, RunInfo(samples, 10)).objective(None, original)


def tokens(name):
    """Of a tiny model in float64: head, batch, logits, and by hand the (sample, log-probabilities, label) of tokens.

    The labels of the first two tokens of sample 1 are left out, as a prompt's are.
    """
    model, make_batch = make(name)
    batch = make_batch(SAMPLES, seed=3)
    batch["labels"][1, :2] = -100
    batch = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
    head = head_of(model.double().eval())
    with torch.no_grad():
        logits = model(**head.inputs(batch)).logits
    shift = 1 if head.kind == "causal_lm" else 0
    label_tokens = []
    for sample in range(SAMPLES):
        for place in range(shift, batch["labels"].shape[1]):
            if (label := int(batch["labels"][sample, place])) != -100:
                values = logits[sample, place - shift].numpy()
                label_tokens.append((sample, values - np.log(np.exp(values).sum()), label))
    assert len({sum(sample == i for sample, _, _ in label_tokens) for i in range(SAMPLES)}) > 1  # lengths differ
    return head, batch, logits, label_tokens


def by_sample(label_tokens, value):
    return [
        np.mean([value(log_probs, label) for r, log_probs, label in label_tokens if r == sample])
        for sample in range(SAMPLES)
    ]


def score(name, head, batch, logits, index=None, **settings):
    logits = logits.clone().requires_grad_()
    index = torch.arange(SAMPLES) if index is None else index
    loss = objective(name, **settings)
    scores, losses = loss.scores(CausalLMOutput(logits=logits), batch, head, index)
    value = loss.combine(scores)
    value.backward()
    return value.item(), losses.numpy(), logits.grad.numpy()


@pytest.mark.parametrize("name", ["gpt2", "whisper"])
def test_npo_of_whole_sequences(name):
    head, batch, logits, label_tokens = tokens(name)
    lengths = np.array([sum(r == sample for r, _, _ in label_tokens) for sample in range(SAMPLES)])
    model = np.exp([sum(p[y] for r, p, y in label_tokens if r == sample) for sample in range(SAMPLES)])
    # Probabilities under the original; of the forget dataset, this batch is samples 4, 0, 3, 1, 2.
    original_probs = model * np.array([1.0, 2.0, 0.5, 30.0, 0.001])
    order = torch.tensor([4, 0, 3, 1, 2])
    original = torch.empty(SAMPLES, dtype=torch.float64)
    original[order] = torch.tensor(-np.log(original_probs) / lengths)
    expected = np.mean(2 / 0.1 * np.log(1 + (model / original_probs) ** 0.1))
    value, losses, _ = score("npo", head, batch, logits, order, original=original)
    assert value == pytest.approx(expected, rel=1e-9)
    assert losses == pytest.approx(-np.log(model) / lengths)


@pytest.mark.parametrize("name", ["gpt2", "whisper"])
def test_dpo_towards_alternatives(name):
    # Samples 0 and 1 of the batch are the forget samples 1 and 0, samples 2 and 3 their alternatives.
    head, batch, logits, label_tokens = tokens(name)
    batch, logits = {k: v[:4] for k, v in batch.items()}, logits[:4]
    lengths = np.array([sum(r == sample for r, _, _ in label_tokens) for sample in range(4)])
    log_probs = np.array([sum(p[y] for r, p, y in label_tokens if r == sample) for sample in range(4)])
    ratios = np.array([0.3, -2.0, 1.5, -0.7])  # model over original, in logarithms
    original_losses = -(log_probs - ratios) / lengths
    dpo = METHODS["idk_dpo"](SimpleNamespace(retain_weight=None, method_kwargs=None), RunInfo(2, 10))
    dpo.load_state_dict({"alternative": torch.tensor(original_losses[[3, 2]])})
    goal = dpo.objective(None, torch.tensor(original_losses[[1, 0]]))
    scores, losses = goal.scores(CausalLMOutput(logits=logits), batch, head, torch.tensor([1, 0]))
    expected = [
        -2 / 0.1 * np.log(1 / (1 + np.exp(-0.1 * (alternative_ratio - forget_ratio))))
        for forget_ratio, alternative_ratio in ((0.3, 1.5), (-2, -0.7))
    ]
    assert scores.numpy() == pytest.approx(expected, rel=1e-9)
    assert losses.numpy() == pytest.approx(-log_probs[:2] / lengths[:2])


def test_dpo_learns_the_alternatives(unlearn):
    trainer = unlearn(
        "gpt2", method="idk_dpo", max_steps=15, stop_at_target=False, learning_rate=1e-2, retain_weight=0.0
    )
    before = trainer._collect_statistics(trainer.alternative_ds).losses
    trainer.train()
    assert torch.equal(trainer.method.alternative, before)
    entries = [e for e in trainer.state.log_history if "loss" in e]
    assert entries[0]["loss"] == pytest.approx(20 * np.log(2), rel=1e-5) and entries[-1]["loss"] < 12.5
    after, forget = (
        trainer._collect_statistics(trainer.alternative_ds).losses,
        trainer._collect_statistics(trainer.forget_ds).losses,
    )
    assert (after - before).mean() < (forget - trainer.unlearning_state.original_losses).mean()


def test_alternatives_go_with_the_forget_samples(unlearn):
    trainer = unlearn("gpt2", method="idk_dpo")
    forget, good = trainer.forget_ds, trainer.alternative_ds
    batch = next(iter(trainer.get_train_dataloader()))
    for i, number in enumerate(batch["index"].tolist()):
        for place, samples in ((i, forget), (i + 4, good)):
            labels = batch["forget"]["labels"][place]
            assert torch.equal(labels[labels != -100], samples[number]["labels"])
    for wrong, message in (
        (None, "alternative_ds: is missing; idk_dpo needs, for every sample"),
        (good[:3], "alternative_ds: has 3 samples for 6 of forget_ds"),
        ([{"labels": sample["labels"]} for sample in good], "alternative_ds: its columns"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            unlearn("gpt2", method="idk_dpo", alternative_ds=wrong)
    with pytest.raises(ValueError, match=r"^alternative_ds: npo does not use it"):
        unlearn("gpt2", method="npo", alternative_ds=good)


@pytest.mark.parametrize("name", ["gpt2", "whisper"])
def test_simnpo_without_the_original_model(name):
    head, batch, logits, label_tokens = tokens(name)
    mean_log = np.array(by_sample(label_tokens, lambda p, y: p[y]))
    expected = np.mean(-2 / 2.5 * np.log(1 / (1 + np.exp(2.5 * mean_log))))
    value, losses, _ = score("simnpo", head, batch, logits)
    assert value == pytest.approx(expected, rel=1e-9) and losses == pytest.approx(-mean_log)


def token_gradient(label_tokens, shape, shift, rule):
    """The mean over samples of the mean over tokens of `rule(probabilities, label)`, a gradient at the logits."""
    gradient, place = np.zeros(shape), dict.fromkeys(range(SAMPLES), 0)
    lengths = [sum(r == sample for r, _, _ in label_tokens) for sample in range(SAMPLES)]
    skipped = {1: max(0, 2 - shift)}
    for sample, log_probs, label in label_tokens:
        gradient[sample, skipped.get(sample, 0) + place[sample]] = (
            rule(np.exp(log_probs), label) / lengths[sample] / SAMPLES
        )
        place[sample] += 1
    return gradient


@pytest.mark.parametrize("name", ["gpt2", "whisper"])
@pytest.mark.parametrize(("method", "first", "second"), [("wga", 1, 0), ("satimp", 5, 1)])
def test_weighted_ascent_with_weights_held_fixed(name, method, first, second):
    head, batch, logits, label_tokens = tokens(name)

    def weight(p):
        return p**first * (1 - p) ** second

    expected = np.mean(by_sample(label_tokens, lambda p, y: weight(np.exp(p[y])) * p[y]))
    value, losses, gradient = score(method, head, batch, logits)
    assert value == pytest.approx(expected, rel=1e-9)
    assert losses == pytest.approx(by_sample(label_tokens, lambda p, y: -p[y]))
    # The gradient of log p at the logits is onehot - p, and the weight is a number.
    expected_gradient = token_gradient(
        label_tokens, logits.shape, int(name == "gpt2"), lambda p, y: weight(p[y]) * (np.eye(len(p))[y] - p)
    )
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-8, atol=1e-16)
    assert expected_gradient.any()


@pytest.mark.parametrize("name", ["gpt2", "whisper"])
def test_ceu_aims_at_the_models_own_prediction_without_the_label(name):
    head, batch, logits, label_tokens = tokens(name)

    def without_label(p, y):
        q = p * (np.arange(len(p)) != y)
        return q / q.sum()

    expected = np.mean(by_sample(label_tokens, lambda p, y: -(without_label(np.exp(p), y) * p).sum()))
    value, losses, gradient = score("ceu", head, batch, logits)
    assert value == pytest.approx(expected, rel=1e-9)
    assert losses == pytest.approx(by_sample(label_tokens, lambda p, y: -p[y]))
    expected = token_gradient(label_tokens, logits.shape, int(name == "gpt2"), lambda p, y: p - without_label(p, y))
    np.testing.assert_allclose(gradient, expected, rtol=1e-8, atol=1e-16)


def test_random_labels_are_wrong_uniform_and_belong_to_the_sample():
    model, _ = make("vit")
    head, samples, classes = head_of(model), 600, 3
    labels = torch.arange(samples) % classes
    logits = torch.randn(samples, classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    probs = logits.softmax(1).numpy()

    def wrong(index, seed=42):
        leaf = logits[index].clone().requires_grad_()
        batch = {"labels": labels[index]}
        scores, losses = objective("random_label", samples=samples, seed=seed).scores(
            ImageClassifierOutput(logits=leaf), batch, head, index
        )
        scores.sum().backward()
        # The gradient of a cross-entropy is p - onehot: negative at the label alone.
        wrong_labels = leaf.grad.argmin(1).numpy()
        assert scores.detach().numpy() == pytest.approx(-np.log(probs[index.numpy(), wrong_labels]))
        assert losses.numpy() == pytest.approx(-np.log(probs[index.numpy(), labels[index].numpy()]))
        return wrong_labels

    everything = wrong(torch.arange(samples))
    assert (everything != labels.numpy()).all()
    counts = np.array([[((labels.numpy() == c) & (everything == d)).sum() for d in range(classes)] for c in range(3)])
    assert (np.abs(counts[~np.eye(3, dtype=bool)] - 100) < 30).all()  # four deviations of a fair coin
    some = torch.tensor([599, 3, 250])
    assert (wrong(some) == everything[some.numpy()]).all()
    assert (wrong(torch.arange(samples), seed=1) != everything).any()


def test_neggrad_plus_is_gradient_difference_at_95_percent(unlearn):
    trainer = unlearn(method="neggrad_plus", max_steps=1)
    trainer.train()
    entry = next(e for e in trainer.state.log_history if "loss" in e)
    assert entry["loss"] == pytest.approx(0.95 * entry["retain_loss"] - 0.05 * entry["forget_loss"], rel=1e-5)
    alone = METHODS["neggrad_plus"](
        SimpleNamespace(retain_weight=None, method_kwargs=None), RunInfo(1, 1, has_target=False)
    )
    assert alone.retain_weight(0.5) == 0.95


def test_npo_compares_with_the_original_to_the_end(unlearn):
    model, _ = make("gpt2")
    trainer = unlearn("gpt2", method="npo", max_steps=4, learning_rate=1e-2, retain_weight=0.5)
    before = []
    with torch.no_grad():
        for sample in trainer.forget_ds.items:
            before.append(model.eval()(**trainer.data_collator([sample])).loss.item())
    trainer.train()
    assert trainer.step.objective.original.numpy() == pytest.approx(np.array(before), rel=1e-5)
    first, *_, last = [e for e in trainer.state.log_history if "loss" in e]
    # At the start nothing is forgotten: (2 / beta) log 2.
    assert first["loss"] == pytest.approx(0.5 * 20 * np.log(2) + 0.5 * first["retain_loss"], rel=1e-5)
    assert last["forget_loss"] > first["forget_loss"]


@pytest.mark.parametrize("method", ["random_label", *LANGUAGE])
def test_every_peer_raises_the_forget_loss(unlearn, method):
    name = "vit" if method == "random_label" else "gpt2"
    trainer = unlearn(name, method=method, max_steps=8, learning_rate=1e-2, retain_weight=0.0, stop_at_target=False)
    trainer.train()
    assert trainer.unlearning_metrics()["forget_loss"] > trainer.unlearning_state.metrics_before["forget_loss"] + 0.02


def test_stops_at_the_target(unlearn):
    trainer = unlearn("gpt2", method="simnpo", forget_target=4.5, learning_rate=1e-2, max_steps=200, logging_steps=200)
    trainer.train()
    assert trainer.state.global_step < 200 and trainer.unlearning_metrics()["forget_loss"] >= 4.5


@pytest.mark.parametrize("method", LANGUAGE)
@pytest.mark.parametrize(
    ("name", "kind"), [("vit", "single_label"), ("bert_lm", "masked_lm"), ("wav2vec2_ctc", "ctc")]
)
def test_language_methods_refuse_other_heads(unlearn, method, name, kind):
    message = f"^method: {method} works on heads of kind causal_lm or seq2seq_lm, got {kind}; use nabla_tau"
    with pytest.raises(ValueError, match=message):
        unlearn(name, method=method)


def test_random_labels_need_one_label_a_sample(unlearn):
    with pytest.raises(ValueError, match=r"^method: random_label works on heads of kind single_label, got causal_lm"):
        unlearn("gpt2", method="random_label")

    def several(*datasets):
        for samples in datasets:
            samples.items = [{**sample, "labels": torch.eye(3)[int(sample["labels"])]} for sample in samples.items]
        return datasets

    # This head takes several labels as well as one: only the samples tell.
    trainer = unlearn("vit", method="random_label", sets=several)
    before = {n: p.clone() for n, p in trainer.model.named_parameters()}
    with pytest.raises(ValueError, match=r"^method: random_label needs one integer label a sample, .* multi_label"):
        trainer.train()
    assert all(torch.equal(p, before[n]) for n, p in trainer.model.named_parameters())
