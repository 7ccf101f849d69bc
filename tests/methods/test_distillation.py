"""The frozen original, and the methods that learn from a teacher: in plain numpy, and against saved originals."""

import copy
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gradients import Gradients
from tiny import make
from torch import nn
from transformers.modeling_outputs import CausalLMOutput, ImageClassifierOutput

from hf_unlearn.losses import head_of
from hf_unlearn.methods import METHODS, RunInfo
from hf_unlearn.methods.distillation import DECISION_HEADS, Distillation
from hf_unlearn.models.adapters import add_adapter
from hf_unlearn.models.original import OriginalModel, untrained

SAMPLES = 4


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def kl(q, p):
    return float((np.exp(q) * (q - p)).sum())


def method(name, teacher=None, **settings):
    run_settings = SimpleNamespace(retain_weight=None, seed=1, method_kwargs=None, **settings)
    method_under_test = METHODS[name](run_settings, RunInfo(6, 10))
    method_under_test.original_model = teacher
    return method_under_test


def decisions(seed=0):
    """A causal head; batch; logits of model and teacher; by sample the (model, teacher, label) of its label tokens."""
    model, make_batch = make("gpt2")
    batch = make_batch(SAMPLES, seed=3)
    batch["labels"][1, :4] = -100
    rng = np.random.default_rng(seed)
    logits, taught = (rng.normal(size=(*batch["labels"].shape, 40)) * 2 for _ in range(2))
    samples = [
        [
            (log_softmax(logits[i, t - 1]), taught[i, t - 1], int(label))
            for t, label in enumerate(batch["labels"][i])
            if t and label != -100
        ]
        for i in range(SAMPLES)
    ]
    assert len({len(sample) for sample in samples}) > 1
    return head_of(model), batch, torch.tensor(logits), torch.tensor(taught), samples


def score(objective, head, batch, logits):
    logits = logits.clone().requires_grad_()
    outputs = head.run(lambda **_: CausalLMOutput(logits=logits), batch, logits=True)
    scores, losses = objective.scores(outputs, batch, head, torch.arange(SAMPLES))
    scores.sum().backward()
    return scores.detach().numpy(), losses.numpy(), logits.grad.numpy()


@pytest.mark.parametrize("name", ["kl", "bad_teacher", "scrub", "undial"])
def test_scores_in_numpy(name):
    head, batch, logits, taught, samples = decisions()
    method_under_test = method(name, lambda **_: CausalLMOutput(logits=taught))
    method_under_test.incompetent = method_under_test.original_model
    divergence = np.array([np.mean([kl(log_softmax(q), p) for p, q, _ in sample]) for sample in samples])
    loss = np.array([np.mean([-p[y] for p, _, y in sample]) for sample in samples])

    def lowered(q, y):
        return log_softmax(q - 10 * (np.arange(40) == y))

    forget = {
        "kl": loss,  # combined with a minus
        "bad_teacher": divergence,
        "scrub": -divergence,
        "undial": np.array([np.mean([kl(lowered(q, y), p) for p, q, y in sample]) for sample in samples]),
    }[name]
    retain = {
        "kl": divergence,
        "bad_teacher": divergence,
        "scrub": 0.001 * divergence + 0.99 * loss,
        "undial": loss,
    }[name]
    for objective, expected in (
        (method_under_test.objective(None, None), forget),
        (method_under_test.retain_objective(), retain),
    ):
        actual, losses, _ = score(objective, head, batch, logits)
        assert actual == pytest.approx(expected, rel=1e-9) and losses == pytest.approx(loss)
    assert method_under_test.objective(None, None).combine(torch.tensor(forget)).item() == pytest.approx(
        forget.mean() * (-1 if name == "kl" else 1)
    )


def test_the_gradient_of_a_divergence_is_model_minus_teacher():
    head, batch, logits, taught, samples = decisions()
    _, _, gradient = score(Distillation(lambda **_: CausalLMOutput(logits=taught)), head, batch, logits)
    p, q, _ = samples[0][2]
    assert gradient[0, 2] == pytest.approx((np.exp(p) - np.exp(log_softmax(q))) / len(samples[0]), abs=1e-12)
    assert not gradient[1, :3].any()  # no label, no gradient


def test_a_classifier_has_one_decision_a_sample():
    model, make_batch = make("vit")
    rng = np.random.default_rng(0)
    logits, taught = rng.normal(size=(2, SAMPLES, 3))
    objective = Distillation(lambda **_: ImageClassifierOutput(logits=torch.tensor(taught)))
    batch = make_batch(SAMPLES)
    actual, _ = objective.scores(
        ImageClassifierOutput(logits=torch.tensor(logits)), batch, head_of(model), torch.arange(SAMPLES)
    )
    assert actual.numpy() == pytest.approx(
        [kl(*pair) for pair in zip(log_softmax(taught), log_softmax(logits), strict=True)]
    )


def shaken(model):
    torch.manual_seed(7)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.1)


@pytest.mark.parametrize("adapter", [False, True])
def test_the_original_model_stays_unchanged(adapter):
    model, make_batch = make("bert")
    original = copy.deepcopy(model).eval()
    model = (add_adapter(model) if adapter else model).eval()
    original_model, batch = OriginalModel(model, adapter), make_batch(3)
    weights = {n for n, p in model.named_parameters() if p.requires_grad}
    shaken(model)
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    assert torch.equal(original_model(**inputs).logits, original(**inputs).logits)
    assert not torch.allclose(model(**inputs).logits, original(**inputs).logits, atol=1e-3)
    # Asking it between a forward and a backward pass leaves the gradients alone.
    loss = model(**batch).loss
    assert not original_model(**inputs).logits.requires_grad
    loss.backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None and p.requires_grad} == weights


def test_beside_a_users_adapter_only_the_adapter_is_copied(caplog):
    model = add_adapter(make("bert")[0])
    with caplog.at_level(logging.INFO):
        original_model = OriginalModel(model, added_adapter=False)
    assert "frozen copy" in caplog.text
    pairs = dict(original_model.model.named_parameters())
    for name, p in model.named_parameters():
        assert (pairs[name] is p) == (not p.requires_grad) and not pairs[name].requires_grad


def test_an_untrained_model_knows_nothing_and_disturbs_nothing():
    model, make_batch = make("vit")
    adapted = add_adapter(copy.deepcopy(model))
    state = torch.random.get_rng_state()
    one, two, other = untrained(model, 3), untrained(adapted, 3), untrained(model, 4)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert type(one) is type(two) is type(model) and not one.training
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    for another in (other, model):
        pairs = zip(one.parameters(), another.parameters(), strict=True)
        assert any(not torch.equal(a, b) for a, b in pairs)
    assert one(pixel_values=make_batch(2)["pixel_values"]).logits.shape == (2, 3)


@pytest.mark.parametrize("name", ["kl", "bad_teacher", "scrub"])
@pytest.mark.parametrize("adapter", [False, True])
def test_the_original_model_of_a_run_is_unchanged(unlearn, name, adapter):
    original = make("vit")[0].eval()
    settings = {"peft_config": _lora() if adapter else None}
    trainer = unlearn("vit", method=name, max_steps=4, learning_rate=1e-2, stop_at_target=False, **settings)
    trainer.train()
    inputs = {"pixel_values": make("vit")[1](3)["pixel_values"]}
    assert torch.equal(trainer.method.original_model(**inputs).logits, original(**inputs).logits)
    assert not torch.allclose(trainer.model.eval()(**inputs).logits, original(**inputs).logits, atol=1e-3)


def _lora():
    from peft import LoraConfig

    return LoraConfig(r=4, target_modules=["q_proj", "v_proj", "fc1", "fc2"])


def test_kl_keeps_what_the_original_says_of_retain_samples(unlearn):
    """The gradient of the second step, from the formula on the model and the saved original."""
    recorded, seen = Gradients(), []
    trainer = unlearn(
        "gpt2", method="kl", dtype=torch.float64, max_grad_norm=0.0, callbacks=[recorded], stop_at_target=False,
        learning_rate=1e-2, retain_weight=0.5,
    )  # fmt: skip
    take = trainer.compute_loss

    def spy(model, inputs, *args, **kwargs):
        seen.append((copy.deepcopy(trainer.model).eval(), inputs))
        return take(model, inputs, *args, **kwargs)

    trainer.compute_loss = spy
    original = copy.deepcopy(trainer.model).eval()
    trainer.train()
    model, inputs = seen[1]
    forget, retain = inputs["forget"], inputs["retain"]

    def log_probs(model, batch):
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(-1)

    total = 0.0
    for i in range(4):
        labels = forget["labels"][i, 1:]
        lines = log_probs(model, forget)[i, :-1][labels != -100]
        total = total + lines.gather(1, labels[labels != -100][:, None]).mean() / 8  # minus the loss
        used = retain["labels"][i, 1:] != -100
        p, q = (log_probs(m, retain)[i, :-1][used] for m in (model, original))
        total = total + nn.functional.kl_div(p, q.detach(), log_target=True, reduction="none").sum(1).mean() / 8
    total.backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    torch.testing.assert_close(recorded.steps[1], expected, rtol=1e-9, atol=1e-12)


def test_scrub_takes_turns_and_ends_with_min_steps(unlearn):
    trainer = unlearn("vit", method="scrub", max_steps=9, stop_at_target=False, learning_rate=3e-3)
    trainer.train()
    entries = [e for e in trainer.state.log_history if "loss" in e]
    assert [e["retain_weight"] for e in entries] == [1, 0, 1, 0, 1, 0, 1, 1, 1]
    assert all(("forget_loss" in e) == (e["retain_weight"] == 0) for e in entries)
    assert entries[1]["loss"] < 0  # away from the original
    assert entries[0]["loss"] == pytest.approx(0.99 * entries[0]["retain_loss"], rel=1e-5)


@pytest.mark.parametrize("name", ["kl", "bad_teacher", "scrub", "undial"])
def test_every_peer_raises_the_forget_loss(unlearn, name):
    settings = {} if name == "scrub" else {"retain_weight": 0.0}
    rate = 2e-3 if name == "kl" else 1e-2  # kl ascends, and where it runs away the guard takes it back
    trainer = unlearn("gpt2", method=name, max_steps=12, learning_rate=rate, stop_at_target=False, **settings)
    # A model at chance has nothing to forget: first it learns the samples.
    batch = trainer.data_collator(trainer.forget_ds.items)
    optimizer = torch.optim.AdamW(trainer.model.parameters(), 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        trainer.model(**batch).loss.backward()
        optimizer.step()
    trainer.train()
    assert trainer.unlearning_state.metrics_before["forget_loss"] < 2.5
    assert trainer.unlearning_metrics()["forget_loss"] > trainer.unlearning_state.metrics_before["forget_loss"] + 0.1


def test_undo_begins_with_noise_and_learns_what_the_original_says(unlearn):
    """The first step from the formula: noise is what is left when nothing of the weights is."""
    ends, gradients = {}, Gradients()
    for alpha, beta in ((1.0, 1.0), (0.6, 0.1), (0.0, 0.1)):
        trainer = unlearn(
            "vit", method="undo", method_kwargs={"alpha": alpha, "beta": beta}, learning_rate=0.0, max_steps=1,
            dtype=torch.float64, folder=f"{alpha}", callbacks=[gradients], stop_at_target=False, max_grad_norm=0.0,
        )  # fmt: skip
        trainer.train()
        ends[alpha] = {n: p.detach() for n, p in trainer.model.named_parameters()}
    original = make("vit")[0].double().eval()
    for n, p in original.named_parameters():
        noise = ends[1.0][n]
        bound = (6 / sum(nn.init._calculate_fan_in_and_fan_out(p))) ** 0.5 if p.dim() > 1 else 0.0
        assert noise.abs().max() <= bound
        if p.dim() > 1:
            assert noise.std() == pytest.approx(bound / 3**0.5, rel=0.35)
        torch.testing.assert_close(ends[0.6][n], 0.4 * p + 0.6 * 0.1 * noise, rtol=1e-12, atol=1e-12)
        assert torch.equal(ends[0.0][n], p)

    student = make("vit")[0].double().eval()
    student.load_state_dict(ends[0.6])
    samples = [sample for number in range(4) for sample in trainer.train_dataset[number].retain]
    inputs = {"pixel_values": trainer.data_collator(samples)["pixel_values"]}
    p, q = student(**inputs).logits.log_softmax(-1), original(**inputs).logits.log_softmax(-1).detach()
    nn.functional.kl_div(p, q, log_target=True, reduction="batchmean").backward()
    expected = {n: p.grad for n, p in student.named_parameters() if p.grad is not None}
    torch.testing.assert_close({n: gradients.steps[1][n] for n in expected}, expected, rtol=1e-8, atol=1e-12)
    assert gradients.steps[2].keys() and max(float(g.abs().max()) for g in gradients.steps[2].values()) < 1e-12


@pytest.mark.parametrize("name", ["kl", "bad_teacher", "scrub", "undo"])
def test_heads_without_decisions_are_refused(unlearn, name):
    assert METHODS[name].head_kinds == DECISION_HEADS
    with pytest.raises(ValueError, match=f"^method: {name} works on heads of kind single_label or .*, got ctc"):
        unlearn("wav2vec2_ctc", method=name)


def test_undial_is_for_language_models(unlearn):
    with pytest.raises(
        ValueError, match=r"^method: undial works on heads of kind causal_lm or seq2seq_lm, got single"
    ):
        unlearn("vit", method="undial")


def test_sharded_weights_are_refused_by_name():
    refused = {name: lambda a, m=m: m.check_weights(adapter=a, sharded=True) for name, m in METHODS.items()}
    for name in ("kl", "scrub", "undial", "bad_teacher", "salun", "l1_sparse", "ssd", "undo"):
        with pytest.raises(ValueError, match=rf"^method: {name} .*FSDP, DeepSpeed"):
            refused[name](False)
    refused["kl"](True)  # the adapter is switched off, nothing is copied
    with pytest.raises(ValueError, match=r"^method: bad_teacher needs a second"):
        refused["bad_teacher"](True)
    refused["grad_diff"](False)


def test_a_resumed_run_wants_the_original_model(unlearn, tmp_path):
    common = {"method": "kl", "stop_at_target": False, "learning_rate": 3e-2, "save_strategy": "steps"}
    first = unlearn("vit", max_steps=8, save_steps=6, **common)
    first.train()
    moved, checkpoint = copy.deepcopy(first.model), str(tmp_path / "out" / "checkpoint-6")
    again = unlearn("vit", model=moved, max_steps=8, save_steps=20, **common)
    with pytest.raises(
        ValueError, match=r"^model: is not the one that the run in the checkpoint began with, which kl"
    ):
        again.train(resume_from_checkpoint=checkpoint)
    unlearn("vit", max_steps=8, save_steps=20, **common).train(resume_from_checkpoint=checkpoint)


def test_in_mixed_precision_the_original_model_rounds_as_the_model_does(unlearn):
    trainer = unlearn("vit", method="kl", bf16=True, max_steps=1)
    trainer.train()
    batch = next(trainer._calibration_pass().batches("forget"))
    actual = trainer.head.losses(trainer.method.original_model(**trainer.head.inputs(batch)), batch)
    torch.testing.assert_close(actual, trainer.unlearning_state.original_losses[: len(actual)], rtol=0, atol=1e-6)
