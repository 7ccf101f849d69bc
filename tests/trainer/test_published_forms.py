"""The published forms against their arithmetic, spelled out on one sample at a time in float64."""

import copy

import pytest
import torch
from transformers import TrainerCallback

RATE, STEPS, SAMPLES = 1e-3, 3, 4


class Weights(TrainerCallback):
    """A copy of the model at the beginning of every step, and at the end."""

    def __init__(self):
        self.models = []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.models.append(copy.deepcopy(model).eval())

    on_train_end = on_step_begin


def gradient(model, collator, samples):
    """Of the mean loss of samples, by parameter."""
    model.zero_grad()
    model(**collator(samples)).loss.backward()
    return {name: p.grad.clone().flatten() for name, p in model.named_parameters() if p.requires_grad}


class AdamDirection:
    """Adam's update, of a gradient at a time, without its learning rate."""

    def __init__(self):
        self.steps, self.first, self.second = 0, 0.0, 0.0

    def __call__(self, gradient):
        self.steps += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        first, second = self.first / (1 - 0.9**self.steps), self.second / (1 - 0.999**self.steps)
        return first / (second**0.5 + 1e-8)


@pytest.mark.parametrize("engine", ["hooks", "loop"])
@pytest.mark.parametrize("peft_config", ["auto", None])
def test_orthograd_adam_takes_the_steps_of_the_authors_code(unlearn, peft_config, engine):
    weights = Weights()
    trainer = unlearn(
        method="orthograd_adam", dtype=torch.float64, peft_config=peft_config, learning_rate=RATE, max_steps=STEPS,
        retain=16, stop_at_target=False, callbacks=[weights], per_sample_engine=engine,
    )  # fmt: skip
    trainer.train()
    assert type(trainer.optimizer.optimizer) is torch.optim.SGD
    forgetting, retaining = {}, {}
    for step in range(STEPS):
        model, after = weights.models[step : step + 2]
        pairs = [trainer.train_dataset[p] for p in range(SAMPLES * step, SAMPLES * (step + 1))]
        forget = gradient(model, trainer.data_collator, [pair.forget for pair in pairs])
        samples = [gradient(model, trainer.data_collator, [s]) for pair in pairs for s in pair.retain]
        assert len(samples) == SAMPLES
        weights_after, changed = dict(after.named_parameters()), False
        for name, p in model.named_parameters():
            if name not in forget:
                continue
            up = forgetting.setdefault(name, AdamDirection())(forget[name])
            direction = retaining.setdefault(name, AdamDirection())
            down = torch.stack([direction(sample[name]) for sample in samples])
            for column in torch.linalg.qr(down.T)[0].T:
                up = up - up @ column / (column @ column) * column
            expected = p.flatten() - RATE * (0.5 * down.mean(0) - 0.5 * up)
            torch.testing.assert_close(weights_after[name].flatten(), expected, rtol=0, atol=1e-10 * RATE)
            changed |= not torch.equal(weights_after[name], p)
        assert changed


def test_a_resumed_run_of_orthograd_adam_has_its_moments(unlearn):
    whole = unlearn(method="orthograd_adam", max_steps=4, save_steps=2, stop_at_target=False, folder="whole")
    whole.train()
    resumed = unlearn(method="orthograd_adam", max_steps=4, save_steps=2, stop_at_target=False, folder="resumed")
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-2")
    for (name, p), q in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q), name
    whole.train()  # and a second run begins without moments
    assert int(next(v for k, v in whole.method.moments.items() if k.startswith("forget") and k.endswith("count"))) == 4


class Modes(TrainerCallback):
    def __init__(self):
        self.training = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.training.append([module.training for module in model.modules() if isinstance(module, torch.nn.Dropout)])


def test_nabla_tau_of_text_is_the_published_loss(unlearn):
    modes = Modes()
    trainer = unlearn("gpt2", method="nabla_tau_text", forget=6, retain=40, max_steps=-1, callbacks=[modes],
                      per_device_train_batch_size=2)  # fmt: skip
    assert trainer.args.max_steps == 3 * 6 / 2
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 9 and {entry["learning_rate"] for entry in entries} == {3e-4}
    for step, entry in enumerate(entries):
        alpha = 0.5 * (1 - step / 9)
        assert entry["retain_weight"] == pytest.approx(1 - alpha)
        expected = alpha * (entry["target"] - entry["forget_loss"]) ** 2 + (1 - alpha) * entry["retain_loss"]
        assert entry["loss"] == pytest.approx(expected, rel=1e-5)
    assert all(mode for step in modes.training for mode in step) and modes.training[0]
    evaluated = Modes()
    unlearn("gpt2", method="nabla_tau", callbacks=[evaluated]).train()
    assert not any(mode for step in evaluated.training for mode in step)


def test_nabla_tau_of_images_measures_its_target_again_every_five_passes(unlearn):
    trainer = unlearn(method="nabla_tau_images", forget=6, retain=18, max_steps=-1)
    assert trainer.args.max_steps == 9 * 6 / 4 + 0.5  # three passes over the retain dataset
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    targets = [entry["target"] for entry in entries]
    assert len(set(targets[:8])) == 1 and targets[8] != targets[7]
    rates = [entry["learning_rate"] for entry in entries]
    assert rates == pytest.approx([1e-3 - 9e-4 * step / 14 for step in range(14)])
    weights = [entry["retain_weight"] for entry in entries]
    assert weights == pytest.approx([1 - 5 / 12 * (1 - int(step / 14 * 9 + 1e-9) / 9) for step in range(14)])
