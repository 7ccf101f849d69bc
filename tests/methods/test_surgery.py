"""The step of methods that combine gradients: loss scaling, chunks, the correction of the optimizer's step."""

from types import SimpleNamespace

import pytest
import tiny
import torch
import transformers as tf
from transformers import TrainerCallback

from hf_unlearn.methods import METHODS
from hf_unlearn.per_sample import basis
from hf_unlearn.trainer import surgery_step as surgery

SURGERY = sorted(name for name, method in METHODS.items() if method.is_gradient_surgery)


class Keep(TrainerCallback):
    """Keeps what the optimizer got, as it is when gradients are clipped and before the step is taken."""

    def __init__(self):
        self.steps, self.logs = [], []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.logs.append(dict(logs))


def run(unlearn, method="orthograd", name="vit", scaler=None, **settings):
    recorded = Keep()
    trainer = unlearn(name, method=method, callbacks=[recorded], max_grad_norm=0.0, stop_at_target=False, **settings)
    trainer.accelerator.scaler = scaler
    trainer.train()
    return trainer, recorded


@pytest.mark.parametrize("method", SURGERY)
def test_a_loss_scaler_sees_the_gradients_scaled_and_changes_nothing_else(unlearn, method):
    _, plain = run(unlearn, method, dtype=torch.float64, peft_config=None)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**7, growth_interval=1000)
    _, scaled = run(unlearn, method, dtype=torch.float64, peft_config=None, scaler=scaler)
    for one, many in zip(plain.steps, scaled.steps, strict=True):
        scale = max(float(g.norm()) for g in one.values())
        assert all(float((many[n] / 2.0**7 - g).norm()) < 1e-9 * scale for n, g in one.items())
    for one, many in zip(plain.logs, scaled.logs, strict=True):
        assert {k: v for k, v in many.items() if k != "grad_norm"} == pytest.approx(
            {k: v for k, v in one.items() if k != "grad_norm"}, abs=1e-6
        )


def test_float16_with_its_scaler_trains(unlearn):
    _, recorded = run(unlearn, fp16=True, scaler=torch.amp.GradScaler("cpu", init_scale=2.0**7))
    _, expected = run(unlearn)
    for one, many in zip(expected.steps, recorded.steps, strict=True):
        scale = max(float(g.norm()) for g in one.values())
        assert all(float((many[n] / 2.0**7 - g).norm()) < 5e-2 * scale for n, g in one.items())
    assert recorded.logs[-1]["retain_loss"] == pytest.approx(expected.logs[-1]["retain_loss"], rel=2e-2)


@pytest.mark.parametrize("projection", ["gradient", "update"])
def test_an_overflow_is_seen_by_the_scaler_and_the_step_left_out(unlearn, projection):
    scaler = torch.amp.GradScaler("cpu", init_scale=1e38)
    weights = []

    class Start(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            weights.extend(p.detach().clone() for p in model.parameters())

    trainer = unlearn("vit", method="orthograd", projection=projection, callbacks=[Start()], max_steps=1)
    trainer.accelerator.scaler = scaler
    trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(weights, trainer.model.parameters(), strict=True))
    assert scaler.get_scale() < 1e38


@pytest.mark.parametrize("peft_config", ["auto", None])
def test_chunks_of_the_retain_batch_change_nothing(unlearn, monkeypatch, peft_config):
    settings = {"dtype": torch.float64, "peft_config": peft_config, "retain_batch_size": 9}
    _, whole = run(unlearn, **settings)
    monkeypatch.setattr(surgery, "CHUNK", 2)  # four forget samples are more: 4 + 4 + 1
    _, chunks = run(unlearn, **settings)
    for one, many in zip(whole.steps, chunks.steps, strict=True):
        scale = max(float(g.norm()) for g in one.values())
        assert all(float((many[n] - g).norm()) < 1e-9 * scale for n, g in one.items())


def one_layer():
    torch.manual_seed(0)
    return tf.ViTForImageClassification(tf.ViTConfig(**tiny.PATCHES | {"num_hidden_layers": 1}))


@pytest.mark.parametrize(("scope", "projection"), [("global", "gradient"), ("global", "update"), ("tensor", "update")])
def test_running_retain_samples_again_changes_nothing(unlearn, monkeypatch, scope, projection, caplog):
    settings = {"dtype": torch.float64, "peft_config": None, "retain_batch_size": 9, "gradient_accumulation_steps": 2}
    settings |= {"projection_scope": scope, "projection": projection, "logging_steps": 1}
    recorded, one = run(unlearn, model=one_layer(), gram_cache="keep", **settings)
    monkeypatch.setattr(surgery, "CHUNK", 2)
    monkeypatch.setattr(basis.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    again, two = run(unlearn, model=one_layer(), **settings)
    assert again.step.basis.cache == "recompute" and "6 chunks" in caplog.text and "21 times" in caplog.text
    for first, second in zip(one.steps, two.steps, strict=True):
        scale = max(float(g.norm()) for g in first.values())
        assert all(float((second[n] - g).norm()) < 1e-9 * scale for n, g in first.items())
    for first, second in zip(recorded.model.parameters(), again.model.parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-8)
    assert [log["step_cosine"] for log in two.logs] == pytest.approx(
        [log["step_cosine"] for log in one.logs], abs=1e-6
    )


@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_a_corrected_step_raises_no_retain_loss(unlearn, scope):
    """AdamW turns the projected gradient: its step climbs along retain gradients. The corrected step does not."""
    settings = {"dtype": torch.float64, "peft_config": None, "projection_scope": scope, "retain_weight": 0.1}
    settings |= {"forgetting_loss": "grad_ascent", "logging_steps": 1, "lr_scheduler_type": "constant"}
    _, gradient = run(unlearn, projection="gradient", **settings)
    _, update = run(unlearn, projection="update", **settings)
    assert gradient.logs[-1]["largest_cosine"] == pytest.approx(0, abs=1e-6)
    assert max(log["step_cosine"] for log in gradient.logs) > 0.01
    assert max(log["step_cosine"] for log in update.logs) < 1e-7


def test_the_correction_is_the_smallest_one(unlearn):
    """By hand: what plain SGD steps, corrected, against the cone of the per-sample gradients by the loop."""
    from scipy.optimize import nnls

    from hf_unlearn.per_sample import PerSampleGradients

    before, batches = {}, []

    class Spy(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            before.update({n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad})

    trainer = unlearn(
        "vit", method="orthograd", projection="update", forgetting_loss="grad_ascent", dtype=torch.float64,
        max_steps=1, optim="sgd", learning_rate=0.1, max_grad_norm=0.0, stop_at_target=False, callbacks=[Spy()],
        lr_scheduler_type="constant",
        retain_weight=0.2,
    )  # fmt: skip
    take = trainer.get_batch_samples
    trainer.get_batch_samples = lambda *a: batches.append(take(*a)) or batches[-1]
    trainer.train()
    after = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if n in before}
    trainer.model.load_state_dict({**trainer.model.state_dict(), **before})
    (pair,) = batches[0][0]
    loop = PerSampleGradients(trainer.model.eval(), trainer.step.per_sample.losses, "loop")
    samples = torch.cat([loop(pair["retain"]).gradients(loop.parameters)[n] for n in before], 1)
    forget = torch.cat([loop(pair["forget"]).gradients(loop.parameters)[n] for n in before], 1).mean(0)
    step = -0.1 * (0.2 * samples.mean(0) - 0.8 * forget)
    coefficients, _ = nnls(samples.T.numpy(), step.numpy())  # the nearest point of the cone that the samples span
    expected = step - torch.from_numpy(coefficients) @ samples
    actual = torch.cat([(after[n] - before[n]).flatten() for n in before])
    assert (coefficients > 0).any() and float((actual - expected).norm() / step.norm()) < 1e-6


def test_a_step_that_was_broken_off_leaves_nothing_behind(unlearn, monkeypatch):
    _, clean = run(unlearn, max_steps=1)
    recorded = Keep()
    trainer = unlearn(method="orthograd", callbacks=[recorded], max_grad_norm=0.0, max_steps=1)
    with monkeypatch.context() as patched:
        patched.setattr(basis.Basis, "add", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trainer.train()
    trainer.train()
    for name, expected in clean.steps[0].items():
        torch.testing.assert_close(recorded.steps[0][name], expected)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_half_precision_model_with_an_adapter_keeps_the_hooks(unlearn, name):
    trainer = unlearn(name, method="orthograd", dtype=torch.bfloat16, per_sample_engine="hooks", max_steps=1)
    trainer.train()  # raises where it would fall back to the loop
    assert trainer.state.global_step == 1 and trainer.state.log_history[0]["grad_norm"] > 0
