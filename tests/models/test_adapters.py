import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny
import torch
import transformers as tf
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from hf_unlearn.models.adapters import add_adapter, lora_config, merged

pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),  # PEFT asks Transformers for it
]

# The layers adapted in the tiny models (each name once), and the heads that train beside them.
VIT = "q_proj k_proj v_proj o_proj fc1 fc2"
CLIP = "q_proj k_proj v_proj out_proj fc1 fc2"
WAV2VEC2 = "q_proj k_proj v_proj out_proj intermediate_dense output_dense"
BERT = "self.query self.key self.value attention.output.dense intermediate.dense {layer}.output.dense"
GPT2 = "attn.c_attn attn.c_proj mlp.c_fc mlp.c_proj"
LLAMA = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"
EXPECTED = {
    "vit": (VIT, 12, "classifier"),
    "deit": (VIT, 12, "classifier"),
    "swin": (f"{VIT} downsample.reduction", 19, "classifier"),
    "convnext": ("pwconv1 pwconv2", 4, "classifier"),
    "resnet": ("convolution", 8, "classifier"),
    "clip": (CLIP, 12, "classifier"),
    "dinov2": (VIT, 12, "classifier"),
    "whisper": (CLIP, 32, ""),
    "wav2vec2": (WAV2VEC2, 12, "projector classifier"),
    "wav2vec2_ctc": (WAV2VEC2, 12, ""),
    "hubert": (WAV2VEC2, 12, "projector classifier"),
    "albert": ("query key value attention.dense ffn ffn_output", 6, "classifier"),
    "mixtral": ("q_proj k_proj v_proj o_proj", 8, ""),
    "bert": (BERT, 12, "classifier"),
    "bert_lm": (BERT, 12, ""),
    "distilbert": ("q_lin k_lin v_lin out_lin lin1 lin2", 12, "pre_classifier classifier"),
    "roberta": (BERT, 12, "classifier"),
    "gpt2": (GPT2, 8, ""),
    "gpt2_classifier": (GPT2, 8, "score"),
    "llama": (LLAMA, 14, ""),
    "qwen2": (LLAMA, 14, ""),
    "qwen3": (LLAMA, 14, ""),
    "gemma": (LLAMA, 14, ""),
    "gemma3": (LLAMA, 14, ""),
    "phi": ("q_proj k_proj v_proj self_attn.dense fc1 fc2", 12, ""),
    "phi3": ("qkv_proj o_proj gate_up_proj down_proj", 8, ""),
    "t5": ("q k v o wi wo", 32, ""),
}

each_architecture = pytest.mark.parametrize("name", tiny.ARCHITECTURES)


def adapted_layers(model: nn.Module) -> list[str]:
    names = [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    return [name.removeprefix("base_model.model.") for name in names]


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)


def perturb(model: nn.Module) -> None:
    """Random steps on all that trains, as training would take them: a fresh adapter changes nothing."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, weight in trainable(model):
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))


@torch.no_grad()
def logits(model: nn.Module, batch: tiny.Batch) -> torch.Tensor:
    return model(**batch).logits


def same_bits(state: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return state.keys() == other.keys() and all(
        value.dtype == other[name].dtype and torch.equal(value, other[name]) for name, value in state.items()
    )


@each_architecture
def test_default_adapter_trains_the_blocks_and_a_classifier(name: str) -> None:
    model, batch_fn = tiny.make(name)
    before = copy.deepcopy(model).eval()
    expected, count, heads = EXPECTED[name]
    adapted_model = add_adapter(model).eval()

    layers = adapted_layers(adapted_model)
    assert len(layers) == count
    for ending in expected.split():
        assert any(layer.endswith(ending.replace("{layer}", "layer.0")) for layer in layers), ending
    # Swin's downsampling, the pooler and the embeddings have layers too, but stand outside the blocks.
    parts = ("layers.", "layer.", "h.", "block.", "embedder.")
    assert all(any(part in layer for part in parts) for layer in layers)

    trained_heads = {weight.split(".")[2] for weight, _ in trainable(adapted_model) if "lora_" not in weight}
    assert trained_heads == set(heads.split())

    batch = batch_fn(4)
    assert torch.equal(logits(adapted_model, batch), logits(before, batch))
    perturb(adapted_model)
    adapted_model(**batch).loss.backward()
    assert all(weight.grad is not None and weight.grad.any() for _, weight in trainable(adapted_model))


@each_architecture
def test_merged_is_the_adapted_model(name: str, tmp_path: Path) -> None:
    model, batch_fn = tiny.make(name)
    adapted_model = add_adapter(model).eval()
    perturb(adapted_model)
    before = copy.deepcopy(adapted_model.state_dict())
    batch = batch_fn(4)
    expected = logits(adapted_model, batch)
    with adapted_model.disable_adapter():
        assert (logits(adapted_model, batch) - expected).abs().max() > 1e-2  # the adapter matters

    plain = merged(adapted_model)

    assert same_bits(adapted_model.state_dict(), before)
    assert torch.equal(logits(adapted_model, batch), expected)
    assert type(plain) is type(tiny.make(name)[0])
    assert not adapted_layers(plain)
    assert all(weight.requires_grad for weight in plain.parameters())
    torch.testing.assert_close(logits(plain, batch), expected, rtol=1e-5, atol=1e-5)

    plain.save_pretrained(tmp_path)
    assert not (tmp_path / "adapter_config.json").exists()
    reloaded, report = type(plain).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert reloaded.config.to_dict().get("tie_word_embeddings") == plain.config.to_dict().get("tie_word_embeddings")
    torch.testing.assert_close(logits(reloaded.eval(), batch), logits(plain, batch), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "gemma", "t5", "bert_lm", "whisper"])
def test_merged_keeps_tied_weights_tied(name: str) -> None:
    adapted_model = add_adapter(tiny.make(name)[0])
    perturb(adapted_model)
    plain = merged(adapted_model)
    assert plain.get_output_embeddings().weight is plain.get_input_embeddings().weight


@pytest.mark.parametrize("adapter_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["vit", "gpt2", "resnet"])
def test_bfloat16_is_merged_in_float32_and_rounded_once(name: str, adapter_dtype: torch.dtype) -> None:
    model, _ = tiny.make(name)
    adapted_model = add_adapter(model.to(torch.bfloat16))
    perturb(adapted_model)
    if adapter_dtype == torch.bfloat16:
        adapted_model.to(torch.bfloat16)
    in_float32 = merged(copy.deepcopy(adapted_model).float()).to(torch.bfloat16)

    assert same_bits(merged(adapted_model).state_dict(), in_float32.state_dict())
    rounded_twice = copy.deepcopy(adapted_model).merge_and_unload(safe_merge=True)
    assert not same_bits(rounded_twice.state_dict(), in_float32.state_dict())


def test_each_weight_keeps_its_own_dtype() -> None:
    # As T5 in float16, which keeps some layers in float32.
    model, _ = tiny.make("llama")
    model.to(torch.bfloat16)
    model.model.layers[0].mlp.down_proj.float()
    model.model.norm.float()
    expected = {name: weight.dtype for name, weight in model.named_parameters()}
    assert {name: weight.dtype for name, weight in merged(add_adapter(model)).named_parameters()} == expected


def test_merged_takes_the_active_adapter_of_a_users_own_model() -> None:
    model, batch_fn = tiny.make("bert")
    config = LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"], use_dora=True)
    adapted_model = get_peft_model(model, config).eval()
    perturb(adapted_model)
    adapted_model.add_adapter("ref", LoraConfig(r=2, target_modules=["query"]))
    expected = logits(adapted_model, batch_fn(4))
    torch.testing.assert_close(logits(merged(adapted_model), batch_fn(4)), expected, rtol=1e-5, atol=1e-5)


def test_merged_refuses_weights_that_are_not_finite() -> None:
    adapted_model = add_adapter(tiny.make("vit")[0])
    next(weight for name, weight in trainable(adapted_model) if "lora_B" in name).data.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN"):
        merged(adapted_model)


def electra_classifier() -> tf.PreTrainedModel:
    config = tf.ElectraConfig(**tiny.DECODER, embedding_size=16)
    return tf.ElectraForSequenceClassification(config)


def electra_lm() -> tf.PreTrainedModel:
    return tf.ElectraForMaskedLM(tf.ElectraConfig(**tiny.DECODER, embedding_size=16))


def data2vec_ctc() -> tf.PreTrainedModel:
    waves = {key: value for key, value in tiny.WAVES.items() if key != "num_conv_pos_embeddings"}
    return tf.Data2VecAudioForCTC(tf.Data2VecAudioConfig(**waves))


def t5_answers() -> tf.PreTrainedModel:
    # Listed in the table, but without a body under base_model_prefix.
    return tf.T5ForQuestionAnswering(tiny.make("t5")[0].config)


def vit_body() -> tf.PreTrainedModel:
    return tf.ViTMSNModel(tf.ViTMSNConfig(**tiny.PATCHES))


@pytest.mark.parametrize(
    ("build", "heads"),
    [
        (electra_classifier, {"classifier"}),
        (electra_lm, set()),
        (data2vec_ctc, set()),
        (t5_answers, {"qa_outputs"}),
        (vit_body, set()),
    ],
)
def test_other_architectures_adapt_every_linear_layer_of_the_blocks(
    build: Callable[[], tf.PreTrainedModel], heads: set[str]
) -> None:
    model = build()
    outside = ("classifier", "generator_predictions", "generator_lm_head", "lm_head", "qa_outputs")
    outside += ("data2vec_audio.feature_projection",)
    linear = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith(outside)
    }
    adapted_model = add_adapter(model)
    assert set(adapted_layers(adapted_model)) == linear
    assert {name.split(".")[2] for name, _ in trainable(adapted_model) if "lora_" not in name} == heads


def test_a_head_whose_name_ends_names_in_the_body_stays_out() -> None:
    # PoolFormer has a norm beside its classifier, and "norm" would also match every norm of its blocks.
    config = tf.PoolFormerConfig(hidden_sizes=[8] * 4, depths=[1] * 4)
    model = tf.PoolFormerForImageClassification(config)
    assert [name for name, _ in model.named_children()] == ["poolformer", "norm", "classifier"]
    assert lora_config(model).modules_to_save == ["classifier"]


def test_the_users_configuration_is_used_and_left_alone() -> None:
    config = LoraConfig(r=3, target_modules="all-linear")
    adapted_model = add_adapter(tiny.make("vit")[0], config)
    assert isinstance(adapted_model, PeftModel)
    assert {weight.shape[0] for name, weight in trainable(adapted_model) if "lora_A" in name} == {3}
    assert config.target_modules == "all-linear"


def test_targets_that_match_nothing() -> None:
    model, _ = tiny.make("vit")
    with pytest.raises(ValueError) as error:
        add_adapter(model, LoraConfig(target_modules=["query"]))
    message = str(error.value)
    assert message.startswith("peft_config: PEFT cannot apply target_modules={'query'} to ViTForImageClassification")
    assert "classifier, fc1, fc2, k_proj, o_proj, projection, q_proj, v_proj" in message
    assert "\n" not in message
    assert all(weight.requires_grad for weight in model.parameters())
    add_adapter(model)  # the model is still good


def test_a_second_adapter_is_refused() -> None:
    adapted_model = add_adapter(tiny.make("vit")[0])
    with pytest.raises(ValueError, match="model: this PeftModel has an adapter already; unlearn that one, or merge"):
        add_adapter(adapted_model)
    # A model that transformers itself gave an adapter, as from_pretrained on an adapter's folder does.
    with_adapter, _ = tiny.make("bert")
    with_adapter.add_adapter(LoraConfig(target_modules=["query"]))
    with pytest.raises(ValueError, match="this BertForSequenceClassification has an adapter already"):
        add_adapter(with_adapter)
