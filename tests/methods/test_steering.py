"""RMU: distances in numpy, which layers train, what is refused."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig
from tiny import DECODER, make
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from hf_unlearn.losses import head_of
from hf_unlearn.methods import METHODS, RunInfo
from hf_unlearn.methods.steering import layers_of


def states(model, head, batch, layer):
    """The inputs and outputs of the layers as hooks hear them: not as the model lists them."""
    heard = []
    handle = layers_of(model)[layer].register_forward_hook(lambda m, i, o: heard.append(o))
    with torch.no_grad():
        outputs = model(**head.inputs(batch), output_hidden_states=True)
    handle.remove()
    out = heard[0][0] if isinstance(heard[0], tuple) else heard[0]
    return outputs, out.numpy()


@pytest.mark.parametrize("name", ["gpt2", "whisper", "vit"])
def test_distances_in_numpy(name):
    model, make_batch = make(name)
    model, batch = model.double().eval(), make_batch(4)
    batch = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
    head = head_of(model)
    rmu = METHODS["rmu"](SimpleNamespace(retain_weight=None, seed=5, method_kwargs=None), RunInfo(6, 10))
    before = copy.deepcopy(model)
    rmu.on_init_end(model, False)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.1 * p.requires_grad)
    assert rmu.layer == 0
    outputs, outputs_of_layer = states(model, head, batch, 0)
    _, original = states(before, head, batch, 0)
    assert not np.allclose(outputs_of_layer, original)
    direction = torch.rand(16, generator=torch.Generator().manual_seed(5), dtype=torch.float64).numpy()
    direction = direction / np.sqrt((direction**2).sum())
    steered = 5 * np.sqrt((original**2).sum(-1, keepdims=True)) * direction
    lengths = {"gpt2": batch.get("attention_mask", batch["labels"]).sum(-1), "vit": [17] * 4,
               "whisper": (batch["labels"] != -100).sum(-1)}[name]  # fmt: skip
    for objective, goal in ((rmu.objective(None, None), steered), (rmu.retain_objective(), original)):
        scores, losses = objective.scores(outputs, batch, head, torch.arange(4))
        expected = [
            ((f - w) ** 2).mean(-1)[:n].mean() for f, w, n in zip(outputs_of_layer, goal, lengths, strict=True)
        ]
        assert scores.detach().numpy() == pytest.approx(expected, rel=1e-9)
        torch.testing.assert_close(losses, head.losses(outputs, batch), rtol=1e-5, atol=1e-8)
    assert rmu.retain_weight(0.5) / (1 - rmu.retain_weight(0.5)) == pytest.approx(1200)


@pytest.mark.parametrize("depth", [2, 8, 14])
def test_three_layers_train_and_the_rest_comes_back(depth):
    model = LlamaForCausalLM(LlamaConfig(**{**DECODER, "num_hidden_layers": depth}))
    model.model.embed_tokens.weight.requires_grad_(False)
    before = {n for n, p in model.named_parameters() if p.requires_grad}
    rmu = METHODS["rmu"](SimpleNamespace(retain_weight=None, seed=5, method_kwargs=None), RunInfo(6, 10))
    rmu.on_init_end(model, False)
    layers = {int(n.split(".")[2]) for n, p in model.named_parameters() if p.requires_grad}
    assert rmu.layer == {2: 0, 8: 2, 14: 3}[depth]
    assert layers == {2: {0}, 8: {0, 1, 2}, 14: {1, 2, 3}}[depth]
    # What does not train is not kept twice.
    pairs = zip(model.parameters(), rmu.original_model.model.parameters(), strict=True)
    assert all((p is q) == (not p.requires_grad) for p, q in pairs)
    rmu.on_train_end()
    assert {n for n, p in model.named_parameters() if p.requires_grad} == before


@pytest.mark.parametrize("adapter", [False, True])
def test_a_run_moves_one_layer_towards_the_direction(unlearn, adapter):
    lora = LoraConfig(r=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True) if adapter else None
    trainer = unlearn(
        "gpt2", method="rmu", max_steps=20, learning_rate=1e-2, stop_at_target=False, retain_weight=0.0,
        peft_config=lora,
    )  # fmt: skip
    before = {n: p.clone() for n, p in trainer.model.named_parameters()}
    trains = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved and all(".h.0." in n for n in moved)
    assert {n for n, p in trainer.model.named_parameters() if p.requires_grad} == trains
    first, *_, last = [e["loss"] for e in trainer.state.log_history if "loss" in e]
    assert last < 0.7 * first


class Watch(TrainerCallback):
    """Sees which parameters get a gradient."""

    def __init__(self):
        self.seen = set()

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.seen |= {name for name, p in model.named_parameters() if p.grad is not None}


def test_the_original_model_leaves_frozen_weights_of_an_adapter_frozen(unlearn):
    model = LlamaForCausalLM(LlamaConfig(**{**DECODER, "num_hidden_layers": 14}))
    lora = LoraConfig(r=4, target_modules=["q_proj"])
    unlearn("llama", model=model, method="rmu", peft_config=lora, callbacks=[watch := Watch()], max_steps=2).train()
    assert {int(name.split(".layers.")[1].split(".")[0]) for name in watch.seen} == {1, 2, 3}


def test_models_without_a_stack_of_layers_are_refused(unlearn):
    with pytest.raises(ValueError, match=r"^method: rmu steers one of a model's layers, and ResNetForImage.* has no"):
        unlearn("resnet", method="rmu")
