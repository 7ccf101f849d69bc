"""Adapters on 4-bit and 8-bit bases, loaded as transformers loads them: trained, measured, saved, merged."""

import importlib.util
import logging

import pytest
import tiny
import torch
import transformers as tf
from hub_server import TOKEN
from peft import LoraConfig, get_peft_model

from hf_unlearn.hub.record import verify
from hf_unlearn.models.adapters import lora_config, merged
from hf_unlearn.models.quantization import dequantized, pass_gradients, quantized_layers
from hf_unlearn.models.rehearsal import resolution
from hf_unlearn.per_sample import PerSampleGradients
from hf_unlearn.per_sample.loop import loop_gradients

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # the libraries' own
]


def nf4():
    return tf.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")


def nf4_in_bfloat16():
    return tf.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)


def nested_nf4():
    return tf.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)


def int8():
    return tf.BitsAndBytesConfig(load_in_8bit=True)


def torchao_int8():
    from torchao.quantization import Int8WeightOnlyConfig

    return tf.TorchAoConfig(Int8WeightOnlyConfig())


def torchao_int8_activations():
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return tf.TorchAoConfig(Int8DynamicActivationInt8WeightConfig())


def quanto_int8():
    return tf.QuantoConfig(weights="int8")


def quanto_int4():
    return tf.QuantoConfig(weights="int4")


PACKAGES = {
    nf4: "bitsandbytes", nf4_in_bfloat16: "bitsandbytes", nested_nf4: "bitsandbytes", int8: "bitsandbytes",
    torchao_int8: "torchao",
    torchao_int8_activations: "torchao", quanto_int8: "optimum.quanto", quanto_int4: "optimum.quanto",
}  # fmt: skip
TRAINED = [config for config in PACKAGES if config not in (torchao_int8_activations, nf4_in_bfloat16)]


@pytest.fixture
def load(tmp_path):
    """Loads a tiny Llama with a quantisation."""

    def load(config, dtype=torch.float32):
        package = PACKAGES[config]
        try:
            is_there = importlib.util.find_spec(package) is not None
        except ModuleNotFoundError:
            is_there = False
        if not is_there:
            pytest.skip(f"{package} is not installed")
        torch.manual_seed(0)
        folder = tmp_path / "plain"
        size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
        tf.LlamaForCausalLM(tf.LlamaConfig(**size, num_key_value_heads=2, **tiny.SPECIAL)).to(dtype).save_pretrained(
            folder
        )
        return tf.AutoModelForCausalLM.from_pretrained(folder, quantization_config=config())

    return load


def logits(model):
    with torch.no_grad():
        return model.eval()(**tiny.causal_text(4)).logits.float()


@pytest.mark.parametrize(
    ("config", "expected"),
    [(nf4, torch.finfo(torch.float32).eps), (nf4_in_bfloat16, torch.finfo(torch.bfloat16).eps), (int8, 2**-7)],
)
def test_what_is_released_is_compared_as_exactly_as_the_layers_compute(config, expected, load):
    assert resolution(load(config)) == expected


@pytest.mark.parametrize(
    ("config", "method"),
    [(nf4, "nabla_tau"), (nf4, "npo"), (nf4_in_bfloat16, "nabla_tau"), *((config, "orthograd") for config in TRAINED)],
)
def test_an_adapter_is_trained_and_what_is_released_is_a_plain_model(config, method, load, unlearn, tmp_path):
    model = load(config)
    before = {name: dequantized(layer) for name, layer in quantized_layers(model).items()}
    trainer = unlearn("llama", model=model, method=method, learning_rate=1e-2, max_steps=3)
    trainer.train()
    assert trainer.audit().metrics
    trainer.save_release(str(tmp_path / "released"))
    released = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "released")
    assert type(released) is tf.LlamaForCausalLM and released.dtype == torch.float32
    assert not quantized_layers(released) and "quantization_config" not in released.config.to_dict()
    trained, saved = logits(trainer.model), logits(released)
    assert (trained - logits(load(config))).norm() > 0.05 * trained.norm()
    # LLM.int8() rounds activations, bfloat16 as well; the merged model does not.
    assert (trained - saved).norm() <= (1e-2 if config in (int8, nf4_in_bfloat16) else 1e-6) * trained.norm()
    assert verify(tmp_path / "released" / "unlearning.json", tmp_path / "released").matches
    inner = trainer.model.get_base_model()
    after = {name.removesuffix(".base_layer"): dequantized(layer) for name, layer in quantized_layers(inner).items()}
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("config", TRAINED)
def test_per_sample_gradients_are_those_of_samples_alone(config, load):
    model = load(config)
    pass_gradients(model)
    model = get_peft_model(model, lora_config(model)).eval()
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p.data, std=0.1)

    def losses(batch):
        shifted = model(**{k: v for k, v in batch.items() if k != "labels"}).logits[:, :-1].mT
        return torch.nn.functional.cross_entropy(shifted, batch["labels"][:, 1:], reduction="none").sum(1)

    engine = PerSampleGradients(model, losses, "hooks")
    batch = tiny.causal_text(4)
    by_hooks = engine(batch).gradients(engine.parameters)
    by_loop = loop_gradients(losses, batch, engine.parameters).gradients(engine.parameters)
    for name, gradient in by_loop.items():
        # LLM.int8() rounds gradients, too, with a step that depends on the batch.
        tolerance = 3e-2 if config is int8 else 1e-5
        assert (by_hooks[name] - gradient).norm() <= tolerance * gradient.norm(), name
        assert gradient.norm() > 0


@pytest.mark.parametrize("config", [nf4, nested_nf4])
def test_measuring_in_eval_mode_leaves_4_bit_layers_their_gradient(config, load):
    torch.manual_seed(0)
    model = load(config)
    weights = {name: dequantized(layer) for name, layer in quantized_layers(model).items()}
    inputs = torch.randn(2, 3, 64)
    layer = model.model.layers[0].self_attn.q_proj.eval()
    with torch.no_grad():
        layer(inputs)  # packs the weight, where the CPU has the kernel
    pass_gradients(model)
    with torch.no_grad():
        for other in quantized_layers(model).values():
            other.eval()(torch.randn(1, other.in_features))
    inputs.requires_grad_()
    (gradient,) = torch.autograd.grad(layer(inputs).sum(), inputs)
    expected = torch.ones(2, 3, layer.out_features) @ weights["model.layers.0.self_attn.q_proj"]
    # Packing has rounded the scales of this layer to bfloat16.
    assert (gradient - expected).norm() <= 1e-2 * expected.norm()
    del weights["model.layers.0.self_attn.q_proj"]
    assert all(torch.equal(dequantized(quantized_layers(model)[name]), weight) for name, weight in weights.items())


def test_layers_that_pass_no_gradient_on_are_refused(load, unlearn):
    model = load(torchao_int8_activations)
    message = r"^model: the model is quantised \(torchao\), and its layer .*q_proj.* does not pass the gradient on"
    with pytest.raises(ValueError, match=message):
        unlearn("llama", model=model, method="orthograd")
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=message):
        unlearn("llama", model=adapted, method="orthograd")


def test_a_base_in_bfloat16_is_saved_in_bfloat16(load, unlearn, tmp_path):
    trainer = unlearn("llama", model=load(nf4, torch.bfloat16), method="orthograd", learning_rate=1e-2)
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
    trainer.train()
    trainer.save_model(str(tmp_path / "merged"))
    saved = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert saved.dtype == torch.bfloat16
    trained = logits(trainer.model)
    assert (trained - logits(saved)).norm() <= 2e-2 * trained.norm()


def test_an_adapter_alone_is_saved_and_goes_on_the_same_base(load, unlearn, tmp_path, caplog):
    from peft import PeftModel

    trainer = unlearn("llama", model=load(nf4), method="nabla_tau", learning_rate=1e-2)
    trainer.train()
    with caplog.at_level(logging.WARNING):
        trainer.save_adapter(str(tmp_path / "adapter"))
    assert "The adapter alone has forgotten nothing" in caplog.text
    base = load(nf4)
    pass_gradients(base)
    again = PeftModel.from_pretrained(base, tmp_path / "adapter")
    torch.testing.assert_close(logits(again), logits(trainer.model), rtol=1e-5, atol=1e-5)


def test_merging_adds_the_adapter_to_the_dequantised_weight(load):
    model = load(quanto_int4)
    weight = dequantized(model.model.layers[1].mlp.down_proj)
    adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=["down_proj"]))
    layer = adapted.get_base_model().model.layers[1].mlp.down_proj
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    change = 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    plain = merged(adapted)
    torch.testing.assert_close(plain.model.layers[1].mlp.down_proj.weight, weight + change)
    assert "down_proj.lora_A" in str([name for name, _ in adapted.named_parameters()])


def test_relearning_of_an_audit_works_on_the_merged_model(load, unlearn):
    trainer = unlearn("llama", model=load(nf4), method="orthograd")
    trainer.train()
    metrics = trainer.audit(relearning=True).metrics
    assert {"int4_forget_loss", "without_adapter_forget_loss"} <= metrics.keys()


def test_what_is_pushed_loads_as_a_plain_model(hub, load, unlearn, tmp_path):
    trainer = unlearn("llama", model=load(int8), method="orthograd", learning_rate=1e-2)
    trainer.train()
    trainer.push_to_hub("me/llama-int8", audit=trainer.audit(), token=TOKEN)
    for name, content in hub.repos["me/llama-int8"].files().items():
        (tmp_path / name).write_bytes(content)
    pushed = tf.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not quantized_layers(pushed)
    trained = logits(trainer.model)
    assert (trained - logits(pushed)).norm() <= 1e-2 * trained.norm()
