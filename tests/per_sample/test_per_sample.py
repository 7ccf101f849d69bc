"""Per-sample gradients of whole models, hooks against the loop: all weights, adapters, and what can go wrong."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import ARCHITECTURES, make
from torch import nn

from hf_unlearn.losses import head_of
from hf_unlearn.models.adapters import add_adapter
from hf_unlearn.models.eval_mode import EvalMode
from hf_unlearn.per_sample import PerSampleGradients
from hf_unlearn.per_sample.basis import Basis
from hf_unlearn.per_sample.gram import Formed
from hf_unlearn.per_sample.layers import NotCovered


def losses_of(model):
    head = head_of(model)
    return lambda batch: head.losses(head.run(model, batch), batch)


def full_losses_of(model):
    """From all logits of the model."""
    head = head_of(model)
    return lambda batch: head.losses(model(**head.inputs(batch)), batch)


def largest_error(model, batch, losses=None, oracle=None):
    """Over all tensors, relative to the tensor (or to a thousandth of the largest, where it is smaller)."""
    oracle = oracle or losses or full_losses_of(model)
    losses = losses or losses_of(model)
    engine, loop = PerSampleGradients(model, losses, "hooks"), PerSampleGradients(model, oracle or losses, "loop")
    actual, expected = engine(batch), loop(batch)
    torch.testing.assert_close(actual.losses, expected.losses, rtol=1e-4, atol=1e-8)
    actual, expected = actual.gradients(engine.parameters), expected.gradients(engine.parameters)
    scale = max(float(samples.norm()) for samples in expected.values())
    assert scale > 0
    return max(float((actual[n] - e).norm()) / max(float(e.norm()), 1e-3 * scale) for n, e in expected.items())


def shaken(model):
    """A fresh adapter has zeros that would hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator).to(p) * 0.1)
    return model.eval()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_weights(name):
    model, batch = make(name)
    assert largest_error(model.eval(), batch(5, seed=2)) < 1e-4


@pytest.mark.parametrize("name", ["vit", "swin", "resnet", "bert", "gpt2", "t5", "whisper", "wav2vec2"])
def test_all_weights_in_float64(name):
    model, batch = make(name)
    values = {k: v.double() if v.is_floating_point() else v for k, v in batch(4, seed=3).items()}
    assert largest_error(shaken(model.double()), values) < 1e-9


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_adapters(name):
    model, batch = make(name)
    assert largest_error(shaken(add_adapter(model)), batch(5, seed=2)) < 1e-5


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("vit", {"use_dora": True, "target_modules": "all-linear"}),
        ("gpt2", {"use_dora": True, "target_modules": ["c_attn"], "fan_in_fan_out": True}),
        ("resnet", {"use_dora": True, "target_modules": ["convolution"]}),
        ("vit", {"use_rslora": True, "target_modules": "all-linear"}),
        ("gpt2", {"lora_bias": True, "target_modules": ["c_attn"], "fan_in_fan_out": True}),
        ("bert", {"target_modules": ["word_embeddings", "query"]}),
        ("bert", {"use_dora": True, "target_modules": ["word_embeddings"]}),
    ],
)
def test_kinds_of_adapters(name, settings):
    model, batch = make(name)
    assert largest_error(shaken(get_peft_model(model, LoraConfig(**settings))), batch(5, seed=2)) < 1e-5


@pytest.mark.parametrize(("name", "k"), [("t5", 10), ("t5", 5), ("bert", 10), ("swin", 2), ("swin", 16), ("vit", 17)])
def test_as_many_samples_as_positions_or_heads(name, k):
    """Tables without a batch axis must not be taken for having one where the sizes happen to agree."""
    model, batch = make(name)
    assert largest_error(model.eval(), batch(k, seed=4)) < 1e-4


def test_later_batches_of_other_sizes():
    model, batch = make("t5")
    engine, loop = (PerSampleGradients(model.eval(), losses_of(model), kind) for kind in ("hooks", "loop"))
    for k in (4, 10, 1, 7):
        actual, expected = (
            gradients_of(batch(k, seed=k)).gradients(engine.parameters) for gradients_of in (engine, loop)
        )
        for name, samples in expected.items():
            atol = 1e-5 * max(1.0, float(samples.abs().max()))
            torch.testing.assert_close(
                actual[name], samples, rtol=1e-5, atol=atol, msg=lambda text, k=k, name=name: f"{k}, {name}: {text}"
            )


@pytest.mark.parametrize("name", ["gpt2", "bert", "llama"])
def test_eager_attention(name):
    model, batch = make(name)
    model.set_attn_implementation("eager")
    assert largest_error(model.eval(), batch(5, seed=2)) < 1e-4


def test_bfloat16_autocast():
    model, batch = make("vit")
    plain = losses_of(model.eval())

    def losses(values):
        with torch.autocast("cpu", torch.bfloat16):
            return plain(values)

    # Both round, in another order: three digits are all that bfloat16 has.
    assert largest_error(model, batch(5, seed=2), losses, oracle=losses) < 3e-2


@pytest.mark.parametrize("name", ["vit", "whisper", "gpt2", "llama"])
def test_activation_checkpointing(name):
    model, batch = make(name)
    plain = PerSampleGradients(model.eval(), losses_of(model), "loop")
    expected = plain(batch(5, seed=2)).gradients(plain.parameters)
    # Older releases of transformers say gradient_checkpointing.
    new = hasattr(model, "activation_checkpointing_enable")
    getattr(model, f"{'activation' if new else 'gradient'}_checkpointing_enable")({"use_reentrant": False})
    model.config.use_cache = False  # as Trainer does
    EvalMode().apply(model)
    engine = PerSampleGradients(model, losses_of(model), "hooks")
    actual = engine(batch(5, seed=2)).gradients(engine.parameters)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


class Odd(nn.Module):
    """Uses one layer twice, shares a weight between two layers, and has a parameter nobody uses."""

    def __init__(self, spoil=None):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.idle, self.spoil = nn.Parameter(torch.ones(3)), spoil

    def forward(self, x):
        x = self.first(self.first(x).tanh())
        if self.spoil == "mix":
            x = x - x.mean(0)
        inputs = 2 * x
        y = self.second(inputs)
        if self.spoil == "write":
            inputs += 1
        if self.spoil == "fail":
            raise RuntimeError("in the middle")
        return y.square().sum(1)


def gradients(model, engine="hooks"):
    torch.manual_seed(1)
    per_sample_gradients = PerSampleGradients(model, lambda batch: model(batch["x"]), engine)
    return per_sample_gradients, {"x": torch.randn(5, 4)}


def test_shared_and_repeated_and_idle():
    torch.manual_seed(0)
    model = Odd()
    engine, batch = gradients(model)
    samples = engine(batch).gradients(engine.parameters)
    expected = gradients(model, "loop")[0](batch).gradients(engine.parameters)
    assert set(samples) == {"first.weight", "first.bias", "second.bias", "idle"}
    torch.testing.assert_close(samples, expected, rtol=1e-5, atol=1e-5)
    assert not samples["idle"].any() and samples["first.weight"].any()


def test_samples_that_are_mixed_are_seen():
    engine, batch = gradients(Odd(spoil="mix"))
    with pytest.raises(NotCovered, match="depends on others"):
        engine(batch)


def test_a_layer_whose_input_is_written_to():
    """The weight is frozen, so that autograd, which would complain, does not need the input."""
    model = Odd(spoil="write")
    model.second.weight = nn.Parameter(model.second.weight.detach().clone(), requires_grad=False)
    engine, batch = gradients(model)
    samples = engine(batch).gradients(engine.parameters)
    expected = gradients(model, "loop")[0](batch).gradients(engine.parameters)
    torch.testing.assert_close(samples, expected, rtol=1e-5, atol=1e-5)
    assert "writes into its layer's input" in engine._plan.reasons["second.bias"]


def test_nothing_is_left_on_the_model_not_even_by_an_exception():
    for spoil in (None, "fail", "mix"):
        model = Odd(spoil=spoil)
        before = {name: set(vars(m)) for name, m in model.named_modules()}
        engine, batch = gradients(model)
        try:
            engine(batch)
        except (RuntimeError, NotCovered):
            assert spoil
        for name, module in model.named_modules():
            assert not module._forward_hooks and not module._backward_hooks and not module._forward_pre_hooks
            assert set(vars(module)) == before[name]
        assert all(p.grad is None for p in model.parameters())


def test_batch_norm_that_is_frozen_in_a_model_that_trains():
    model, batch = make("resnet")
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert largest_error(model, batch(5, seed=2)) < 1e-4
    for module in model.modules():
        module.train()
    engine = PerSampleGradients(model, losses_of(model), "hooks")
    with pytest.raises(NotCovered, match="put it in eval mode"):
        engine(batch(5, seed=2))


def test_a_compiled_model_is_unlearned_as_what_it_was_compiled_from(unlearn):
    model, _ = make("vit")
    trainer = unlearn("vit", model=torch.compile(model, backend="eager"), method="orthograd", peft_config=None)
    trainer.train()
    assert trainer.model is model and trainer.step.per_sample.engine == "auto"


def test_gradients_that_were_formed_are_kept_within_the_memory_of_the_recordings():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64)).double()
    per_sample = PerSampleGradients(model, lambda batch: model(batch["x"]).square().sum((1, 2)))
    basis = Basis(per_sample)
    basis.add({"x": torch.randn(6, 20, 64).double()}, 6, 1)
    gradient = {name: torch.randn_like(p) for name, p in per_sample.parameters.items()}
    basis.gram(gradient, per_tensor=False)
    kept = basis._formed
    assert kept.blocks.keys() == {"0.weight"}  # there is no room for the other one
    numel = sum(block.numel() for blocks in kept.blocks.values() for block in blocks)
    assert numel <= basis.recordings[0].stored_numel
    weights = dict.fromkeys(gradient, torch.randn(6).double())
    totals, expected = ({name: g.clone() for name, g in gradient.items()} for _ in range(2))
    basis.add_combination(weights, totals)
    basis._formed = Formed()
    basis.add_combination(weights, expected)
    torch.testing.assert_close(totals, expected, rtol=1e-10, atol=1e-10)
    basis.clear()
    assert not basis._formed.blocks
