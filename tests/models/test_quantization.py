"""Quantised models: known before a run, by transformers' word or by their weights, and refused where they change."""

import tempfile

import pytest
import tiny
import torch
import transformers as tf
from peft import LoraConfig, get_peft_model
from torch import nn

from hf_unlearn import UnlearningArguments, UnlearningTrainer, audit
from hf_unlearn.models.quantization import quantization_of

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # the libraries' own
]


class PackedTensor(torch.Tensor):
    """As torchao's: a class of its own that says float32."""


def dynamic(model):
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def integers(model):
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = nn.Parameter((layer.weight * 100).to(torch.int8), requires_grad=False)
    return model


def float8(model):
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    return model


def packed(model):
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(PackedTensor), requires_grad=False)
    return model


def said(model):
    model.is_quantized, model.quantization_method = True, "gptq"
    return model


def torchao(model):
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return model


def quanto(model):
    library = pytest.importorskip("optimum.quanto")
    library.quantize(model, weights=library.qint8)
    library.freeze(model)
    return model


def bitsandbytes(model):
    pytest.importorskip("bitsandbytes")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = tf.BitsAndBytesConfig(load_in_8bit=True)
        return tf.AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)


REFUSED = {
    dynamic: r"torch\.ao\.quantization", integers: "weights of int8", float8: "weights of float8_e4m3fn",
    packed: "PackedTensor", said: "gptq",
}  # fmt: skip


@pytest.mark.parametrize("quantise", REFUSED)
def test_quantised_models_that_take_no_merged_adapter_are_refused_before_the_run(quantise, tmp_path):
    model = quantise(tiny.make("llama")[0])
    samples = tiny.Samples(tiny.samples(tiny.make("llama")[1](8)))
    quantised = rf"the model is quantised \(({REFUSED[quantise]})\)"
    for method in ("nabla_tau", "orthograd"):
        args = UnlearningArguments(str(tmp_path / "out"), method=method, use_cpu=True)
        with pytest.raises(ValueError, match=rf"^model: {quantised}, .*; use bitsandbytes, optimum-quanto or"):
            UnlearningTrainer(model, samples, samples, args)
    with pytest.raises(ValueError, match=rf"^relearning: {quantised}, and its weights cannot be trained"):
        audit(model, forget_ds=samples, retain_ds=samples, unseen_ds=samples, relearning=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("quantise", [torchao, quanto, bitsandbytes])
def test_all_weights_of_a_quantised_model_do_not_train(quantise, unlearn):
    model = quantise(tiny.make("llama")[0])
    with pytest.raises(ValueError, match=r"^model: .* quantised .* cannot be trained; leave peft_config out"):
        unlearn("llama", model=model, method="nabla_tau", peft_config=None)
    with pytest.raises(ValueError, match=r"cannot be trained, which l1_sparse does; load it without quantisation"):
        unlearn("llama", model=model, method="l1_sparse")


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_no_other_model_is_taken_for_one(name):
    model = tiny.make(name)[0]
    assert quantization_of(model) is None and quantization_of(model.to(torch.bfloat16)) is None


@pytest.mark.parametrize("method", ["grad_diff", "kl", "orthograd"])
@pytest.mark.parametrize("quantise", [torchao, quanto, bitsandbytes])
def test_a_users_adapter_on_a_quantised_base_is_unlearned(quantise, method, unlearn, tmp_path):
    model = get_peft_model(quantise(tiny.make("llama")[0]), LoraConfig(target_modules=["q_proj", "v_proj"]))
    trainer = unlearn("llama", model=model, method=method)
    trainer.train()
    trainer.save_release(str(tmp_path / "out"))
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
