"""Smoothed forgetting: the forget gradient at the weights moved along it, for the whole step."""

import copy
from types import SimpleNamespace

import pytest
import torch
from gradients import Gradients
from tiny import make
from torch import nn
from transformers import TrainerCallback
from transformers.modeling_outputs import ImageClassifierOutput

from hf_unlearn import UnlearningArguments
from hf_unlearn.losses import head_of
from hf_unlearn.targets import Ascent, Objective
from hf_unlearn.trainer.setup import check_sharpness
from hf_unlearn.trainer.smoothed_step import SmoothedStep

RADIUS = 0.05


class Weights(TrainerCallback):
    """Keeps the model at the beginning of every step."""

    def __init__(self, trainer):
        self.trainer, self.models = trainer, []

    def on_step_begin(self, *args, **kwargs):
        self.models.append(copy.deepcopy(self.trainer.model).eval())


def recorded(unlearn, **settings):
    gradients = Gradients()
    trainer = unlearn(dtype=torch.float64, max_grad_norm=0.0, callbacks=[gradients], stop_at_target=False, **settings)
    weights = Weights(trainer)
    trainer.add_callback(weights)
    trainer.train()
    return trainer, gradients.steps, weights.models


def loss_gradient(model, trainer, samples):
    model.zero_grad()
    model(**trainer.data_collator(samples)).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_gradient_is_that_of_the_formula(unlearn, accumulation):
    """By hand: ascent at w + rho g / |g|, retain samples at w; over a step of two batches g is that of all."""
    trainer, steps, models = recorded(
        unlearn, method="grad_diff", sharpness_radius=RADIUS, retain_weight=0.3, learning_rate=1e-2,
        per_device_train_batch_size=4 // accumulation, gradient_accumulation_steps=accumulation,
    )  # fmt: skip
    for step, model in enumerate(models):
        pairs = [trainer.train_dataset[number] for number in range(4 * step, 4 * step + 4)]
        forget, retain = [p.forget for p in pairs], [sample for p in pairs for sample in p.retain]
        expected = {name: 0.3 * g for name, g in loss_gradient(model, trainer, retain).items()}
        ascent = {name: -g for name, g in loss_gradient(model, trainer, forget).items()}
        norm = torch.cat([g.flatten() for g in ascent.values()]).norm()
        with torch.no_grad():
            for name, p in model.named_parameters():
                p += RADIUS * ascent[name] / norm
        for name, g in loss_gradient(model, trainer, forget).items():
            expected[name] -= 0.7 * g
        torch.testing.assert_close(steps[step], expected, rtol=1e-9, atol=1e-12)


def test_one_weight_by_hand():
    """F = -(w x)^2 with x = 2 at w = 1: g = -8, so w moves to 1 - rho, where dF/dw is -8 (1 - rho)."""

    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.config = nn.Parameter(torch.ones(1)), SimpleNamespace(problem_type="regression")

        def forward(self, x):
            return ImageClassifierOutput(logits=self.w * x)

    model = Square()
    accelerator = SimpleNamespace(num_processes=1, device="cpu", scaler=None, reduce=lambda value, _: value)
    head = head_of(model, lambda outputs, batch: outputs.logits[:, 0].square())
    method = SimpleNamespace(retain_objective=Objective)
    step = SmoothedStep(method, head, accelerator, Ascent(), model=model, radius=0.25)
    forget, retain = {"x": torch.tensor([[2.0]])}, {"x": torch.tensor([[1.0]])}
    batch = {"forget": forget, "retain": retain, "index": torch.tensor([0])}
    step.prepare_step(model, [batch], retain_weight=0.5)
    assert model.w.item() == 1 and model.w.grad.item() == pytest.approx(-8 * 0.75 / 2)
    loss = step.loss(model, batch, 0.5, is_last=True)
    assert loss.item() == pytest.approx((-4 + 1) / 2)  # as without: the objective at the weights themselves
    loss.backward()
    assert model.w.grad.item() == pytest.approx((-8 * 0.75 + 2) / 2)


CASES = [
    ("nabla_tau", {}),
    ("nabla_tau", {"forget_target": 9.0}),
    ("nabla_tau", {"forget_target": "masked_class", "request": "class"}),
    ("npo", {"name": "gpt2"}),
    ("scrub", {}),
    ("idk_dpo", {"name": "gpt2"}),
    ("salun", {}),
]


@pytest.mark.parametrize(("method", "settings"), CASES)
def test_accumulation_changes_nothing(unlearn, method, settings):
    def one_class(forget, retain, unseen):
        if settings.get("request") == "class":
            forget.items = [{**sample, "labels": torch.tensor(0)} for sample in forget.items]
            retain.items = [{**sample, "labels": torch.tensor(1)} for sample in retain.items]
        return forget, retain, unseen

    settings = {"method": method, "sets": one_class, **settings}
    found = [
        recorded(
            unlearn, per_device_train_batch_size=batch, gradient_accumulation_steps=parts, folder=f"{batch}",
            sharpness_radius=RADIUS, **settings,
        )[1]
        for batch, parts in ((8, 1), (2, 4))
    ]  # fmt: skip
    plain = recorded(unlearn, per_device_train_batch_size=8, folder="plain", **settings)[1]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)
    # Of scrub's two steps the second is on forget samples.
    last = {name: g for name, g in plain[-1].items() if g.abs().max() > 1e-8}
    assert any(not torch.allclose(g, found[0][-1][name], rtol=1e-3) for name, g in last.items())


def test_a_radius_of_zero_is_the_plain_step_and_a_small_one_is_near(unlearn):
    plain, none, small = (
        recorded(unlearn, method="nabla_tau", folder=str(radius), **({} if radius is None else radius))[1]
        for radius in (None, {"sharpness_radius": 0.0}, {"sharpness_radius": 1e-7})
    )
    for name, g in plain[0].items():
        assert torch.equal(g, none[0][name])
        torch.testing.assert_close(small[0][name], g, rtol=1e-4, atol=1e-6)


def test_adapters_are_smoothed_too(unlearn):
    from peft import LoraConfig

    trainer = unlearn(
        "vit", method="grad_diff", sharpness_radius=RADIUS, learning_rate=1e-2,
        peft_config=LoraConfig(r=2, target_modules=["q_proj"]),
    )  # fmt: skip
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trains = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved and moved <= trains


def test_forget_samples_are_counted_twice(unlearn):
    passes = [
        unlearn(method="grad_diff", folder=f"{radius}", max_steps=2, sharpness_radius=radius, stop_at_target=False)
        for radius in (0.0, RADIUS)
    ]
    for trainer in passes:
        trainer.train()
    plain, smoothed = (trainer.outcome.cost.passes["steps"] for trainer in passes)
    assert smoothed - plain == 2 * 4 * 3  # two steps, four samples, a forward and a backward pass
    planned = passes[1].step.planned_passes([0.5, 1.0], 4, 4, 1)
    assert planned == 3 * (2 * 4 + 4 + 4)


def test_what_has_no_forget_gradient_is_refused(unlearn):
    model = make("vit")[0]
    # Older releases of transformers say gradient_checkpointing.
    new = hasattr(UnlearningArguments, "activation_checkpointing_kwargs")
    checkpointing = "activation_checkpointing_kwargs" if new else "gradient_checkpointing_kwargs"
    for method, why in (
        ("orthograd", "orthograd combines gradients; use a method that descends a loss"),
        ("finetune", "finetune descends nothing on forget samples"),
    ):
        with pytest.raises(ValueError, match=f"^sharpness_radius: {why}.*, or sharpness_radius=0"):
            unlearn(model=model, method=method, sharpness_radius=0.01)
    with pytest.raises(ValueError, match=r"^sharpness_radius: lomo takes its steps within"):
        unlearn(model=model, optim="lomo", sharpness_radius=0.01)
    with pytest.raises(ValueError, match=r"^sharpness_radius: use_reentrant=True hides"):
        unlearn(model=model, sharpness_radius=0.01, **{checkpointing: {"use_reentrant": True}})
    trainer = unlearn(model=model, sharpness_radius=0.01)
    with pytest.raises(ValueError, match=r"^sharpness_radius: weights are spread over processes"):
        check_sharpness(trainer.args, trainer.method, sharded=True)
    for radius, message in ((-0.1, "must be at least 0"), (float("nan"), "must be a finite number")):
        with pytest.raises(ValueError, match=f"^sharpness_radius: {message}"):
            unlearn(model=model, sharpness_radius=radius)
