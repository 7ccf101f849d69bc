"""The default adapter of networks without linear layers, mixtures of experts and state-space models."""

import copy
import inspect

import pytest
import torch
from building import architectures, batch_for, build
from peft.tuners.tuners_utils import BaseTunerLayer
from sweep import losses_of, merge_error, models_of, with_adapter
from transformers import BertConfig, BertForSequenceClassification

from hf_unlearn import UnlearningArguments, UnlearningTrainer, audit
from hf_unlearn.models.adapter_targets import norms, target_modules
from hf_unlearn.models.adapters import add_adapter, lora_config

BY_NAME = {architecture.name: architecture for architecture in architectures()}

# Where the adapter goes, by the last two parts of the layers' names.
EXPECTED = {
    # The routers are left alone, and what PEFT would take for the experts.
    "Llama4ForCausalLM": "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj",
    "PhimoeForCausalLM": "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj",
    "OlmoeForCausalLM": "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj",
    "Qwen2MoeForCausalLM": "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj",
    "DeepseekV3ForCausalLM": "self_attn.q_a_proj self_attn.q_b_proj self_attn.kv_a_proj_with_mqa self_attn.kv_b_proj "
    "self_attn.o_proj",
    # An indexer's choice has no gradient.
    "GlmMoeDsaForCausalLM": "self_attn.q_a_proj self_attn.q_b_proj self_attn.kv_a_proj_with_mqa self_attn.kv_b_proj "
    "self_attn.o_proj",
    # A linear layer with its own way to write the product.
    "FalconForCausalLM": "self_attention.query_key_value self_attention.dense mlp.dense_h_to_4h mlp.dense_4h_to_h",
    # Networks of convolutions: those in groups are left out.
    "RegNetForImageClassification": None,
    "PoolFormerForImageClassification": None,
    "SqueezeBertForSequenceClassification": None,
    # State-space models: PEFT refuses out_proj, and dt_proj is never called.
    "MambaForCausalLM": "mixer.in_proj mixer.x_proj",
    "FalconMambaForCausalLM": "mixer.in_proj mixer.x_proj",
    # Attention takes the weights of its projections.
    "WavLMForSequenceClassification": "attention.gru_rel_pos_linear feed_forward.intermediate_dense "
    "feed_forward.output_dense",
    # Labels come by **kwargs.
    "Qwen3_5TextForSequenceClassification": None,
    # No layer takes LoRA: normalisations train.
    "BitForImageClassification": None,
    "MobileNetV2ForImageClassification": None,
    "IBertForSequenceClassification": None,
}
NORMS = ("BitForImageClassification", "MobileNetV2ForImageClassification", "IBertForSequenceClassification")


@pytest.fixture(scope="module", params=EXPECTED)
def adapted(request):
    model = list(models_of(BY_NAME[request.param]))[-1]
    dtype = next(model.parameters()).dtype
    batch = batch_for(BY_NAME[request.param], model, 4)
    return request.param, with_adapter(model, dtype), batch


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_everything_of_the_adapter_trains_and_merges_back(adapted):
    _, model, batch = adapted
    losses = losses_of(model)
    losses(batch).mean().backward()
    trainable = {n: weight for n, weight in model.named_parameters() if weight.requires_grad}
    dead = [n for n, weight in trainable.items() if weight.grad is None or not weight.grad.any()]
    assert trainable and not dead
    assert merge_error(model, losses, batch) < 1e-5


def test_it_goes_where_it_can_train(adapted):
    name, model, _ = adapted
    layers = {n: module for n, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    assert layers
    if EXPECTED[name]:
        assert {".".join(n.split(".")[-2:]) for n in layers} == set(EXPECTED[name].split())
    else:
        bases = [layer.get_base_layer() for layer in layers.values()]
        assert all("Norm" in type(base).__name__ for base in bases) == (name in NORMS)
        assert all(getattr(base, "groups", 1) == 1 for base in bases)


def test_what_takes_no_lora_says_so_when_lora_is_asked_for():
    model = build(BY_NAME["BitForImageClassification"])
    with pytest.raises(
        ValueError, match=r"^peft_config: BitForImageClassification has no layer that LoRA can be merged"
    ):
        lora_config(model)
    assert norms(model) and target_modules(model, ["classifier"]) == []


def test_names_end_where_no_other_layer_has_them():
    config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    model = BertForSequenceClassification(config)
    before = copy.deepcopy(model.state_dict())
    # The pooler's dense layer stands outside the blocks.
    assert target_modules(model, ["classifier"]) == ["intermediate.dense", "key", "output.dense", "query", "value"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("method", ["nabla_tau", "orthograd"])
def test_a_classifier_that_takes_labels_by_keywords_is_trained_and_audited(method, tmp_path):
    """Qwen3.5's forward names no labels."""
    architecture = BY_NAME["Qwen3_5ForSequenceClassification"]
    model = build(architecture).float()
    assert "labels" not in inspect.signature(model.forward).parameters
    batch = batch_for(architecture, model, 18)
    data = [{name: value[i] for name, value in batch.items()} for i in range(18)]
    forget_ds, retain_ds, unseen_ds = data[:4], data[4:12], data[12:]
    args = UnlearningArguments(
        output_dir=str(tmp_path), method=method, max_steps=1, per_device_train_batch_size=4, report_to="none",
        use_cpu=True, disable_tqdm=True, stop_at_target=False,
    )  # fmt: skip
    trainer = UnlearningTrainer(model, forget_ds, retain_ds, args, unseen_ds=unseen_ds)
    trainer.train()
    report = audit(trainer.model, forget_ds=forget_ds, retain_ds=retain_ds, unseen_ds=unseen_ds)
    assert 0 <= report.metrics["forget_accuracy"] <= 1


def test_levit_trains_its_attention_biases_in_eval_mode():
    """In plain eval mode their second use goes through a graph that is gone."""
    architecture = BY_NAME["LevitForImageClassification"]
    model = build(architecture)
    batch = batch_for(architecture, model, 3)
    for _ in range(2):
        model.zero_grad()
        losses_of(model)(batch).mean().backward()
        biases = [weight for name, weight in model.named_parameters() if "attention_biases" in name]
        assert any(weight.grad.any() for weight in biases)  # the last stage has one position alone


def test_reformer_is_refused_an_adapter():
    with pytest.raises(ValueError, match=r"^peft_config: Reformer's reversible layers give no gradient to an adapter"):
        add_adapter(build(BY_NAME["ReformerForMaskedLM"]))
