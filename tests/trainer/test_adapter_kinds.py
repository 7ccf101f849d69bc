"""Every kind of adapter of PEFT: trained, saved and loaded with the same outputs, or refused before the first step."""

import copy

import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from hf_unlearn.models.adapters import merged

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # PEFT warns of kinds that it means to change
]
KINDS = {str(getattr(kind, "value", kind)): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
# What a kind needs beside the names of its layers, or to fit into a tiny model.
SETTINGS = {
    "ADALORA": {"total_step": 9}, "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 1}, "C3A": {"block_size": 4},
    "FOURIERFT": {"n_frequency": 8}, "MISS": {"r": 4}, "SHIRA": {"r": 2}, "PSOFT": {"r": 4}, "ROAD": {"group_size": 4},
    "VBLORA": {"vector_length": 8, "num_vectors": 8}, "WAVEFT": {"n_frequency": 8},
    "CPT": {"task_type": "CAUSAL_LM", "cpt_token_ids": [4, 5, 6]}, "POLY": {"n_tasks": 1, "n_skills": 1},
    "MULTITASK_PROMPT_TUNING": {"num_tasks": 1}, "LN_TUNING": {"target_modules": ["LayerNorm"]},
    "TRAINABLE_TOKENS": {"target_modules": ["word_embeddings"], "token_indices": [5, 6]},
}  # fmt: skip
# Refused where the trainer adds them: what stands beside the model, needs other inputs, or cannot be merged by PEFT.
NOT_ADDED = {
    "ADAPTION_PROMPT", "CARTRIDGE", "CPT", "LILY", "MULTITASK_PROMPT_TUNING", "POLY", "PREFIX_TUNING", "PROMPT_TUNING",
    "P_TUNING", "SHADOW", "XLORA",
}  # fmt: skip
# Refused where the user has made them: other inputs, or a state that does not load as it was.
NOT_OWN = {"ADAPTION_PROMPT", "CPT", "IA3", "MULTITASK_PROMPT_TUNING", "POLY", "P_TUNING", "SHADOW", "XLORA"}
BATCH = {key: value for key, value in tiny.make("bert")[1](3, seed=5).items() if key != "labels"}


def config_of(kind):
    fields = KINDS[kind].__dataclass_fields__
    settings = {"task_type": "SEQ_CLS"}
    settings |= {"target_modules": ["query", "value"]} if "target_modules" in fields else {}
    settings |= {"num_virtual_tokens": 4} if "num_virtual_tokens" in fields else {}
    return KINDS[kind](**settings | SETTINGS.get(kind, {}))


def logits(model):
    with torch.no_grad():
        return model.eval()(**BATCH).logits


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_added_adapters_end_as_a_plain_model_or_are_refused(kind, unlearn, tmp_path):
    model = tiny.make("bert")[0]
    before, original = copy.deepcopy(model.state_dict()), logits(model)
    settings = {"forget": 2, "retain": 2, "unseen": 0, "max_steps": 1, "learning_rate": 1e-2, "method": "grad_diff"}
    if kind in NOT_ADDED:
        with pytest.raises(ValueError, match=r"^(peft_config: |CPTConfig|Unsupported)"):
            unlearn("bert", model=model, peft_config=config_of(kind), **settings)
        state = model.state_dict()
        assert state.keys() == before.keys() and all(torch.equal(state[key], before[key]) for key in before)
        assert torch.equal(logits(model), original) and all(w.requires_grad for w in model.parameters())
        return
    trainer = unlearn("bert", model=model, peft_config=config_of(kind), **settings)
    with trainer.model.disable_adapter():
        torch.testing.assert_close(logits(trainer.model), original, rtol=0, atol=1e-6)
    trainer.train()
    trained = logits(trainer.model)
    assert (trained - original).abs().max() > 1e-3 or kind == "TRAINABLE_TOKENS"
    with trainer.model.disable_adapter():
        assert torch.equal(logits(trainer.model), original)
    trainer.save_model(tmp_path / "saved")
    loaded = type(model).from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(logits(loaded), trained, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_users_adapter_ends_as_an_adapter_or_is_refused(kind, unlearn, tmp_path):
    model = tiny.make("bert")[0]
    base, settings = copy.deepcopy(model), {"forget": 2, "retain": 2, "unseen": 0, "max_steps": 1, "method": "kl"}
    try:
        given = get_peft_model(model, config_of(kind))
    except (ValueError, AttributeError):  # refused by PEFT
        assert kind in NOT_OWN
        return
    before = {name: weight.clone() for name, weight in given.named_parameters()}
    if kind in NOT_OWN:
        with pytest.raises(ValueError, match=r"^model: "):
            unlearn("bert", model=given, **settings)
        assert all(torch.equal(weight, before[name]) for name, weight in given.named_parameters())
        return
    original = logits(given)
    trainer = unlearn("bert", model=given, learning_rate=1e-2, **settings)
    torch.testing.assert_close(logits(given), original, rtol=0, atol=1e-6)  # the rehearsal has left nothing
    trainer.train()
    trained = logits(given)
    trainer.save_model(tmp_path / "saved")
    loaded = PeftModel.from_pretrained(base, tmp_path / "saved")
    torch.testing.assert_close(logits(loaded), trained, rtol=0, atol=1e-6)


# ---- weights that two layers share, and weights of the model itself ----------------------------------------------


def tied(name):
    """A model, its batches, and its two layers that share one weight."""
    model, batch_fn = tiny.make(name)
    heads = [key for key, module in model.named_modules() if module is model.get_output_embeddings()]
    bodies = [key for key, module in model.named_modules() if module is model.get_input_embeddings()]
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    return model, batch_fn, heads[0], bodies[0]


@pytest.mark.parametrize("where", ["head", "saved body", "both, tied by PEFT"])
@pytest.mark.parametrize("name", ["gpt2", "t5", "bert_lm", "whisper", "gemma"])
def test_one_side_of_tied_weights_is_refused(name, where, unlearn):
    model, batch_fn, head, body = tied(name)
    inner = next(key for key, module in model.named_modules() if key.endswith(("c_attn", ".q", "query", "q_proj")))
    layers = [head if "head" in where else body]
    settings = (
        {"target_modules": [inner], "modules_to_save": layers} if "saved" in where else {"target_modules": layers}
    )
    batch = batch_fn(2)
    before = model.eval()(**batch).logits
    config = LoraConfig(**settings, ensure_weight_tying="tied" in where, fan_in_fan_out=name == "gpt2")
    with pytest.raises(ValueError, match=rf"^peft_config: adapts ({head}|{body}), whose weight is also that of"):
        unlearn(name, model=model, peft_config=config)
    assert torch.equal(model.eval()(**batch).logits, before)
    assert not any("lora" in key or "base_layer" in key for key in model.state_dict())


def test_layers_that_share_no_weight_are_adapted(unlearn, tmp_path):
    model, batch_fn, head, _ = tied("gemma")
    model.config.tie_word_embeddings = False
    model.get_output_embeddings().weight = torch.nn.Parameter(model.get_output_embeddings().weight.detach().clone())
    trainer = unlearn(
        "gemma", model=model, peft_config=LoraConfig(target_modules=[head, "q_proj"]), learning_rate=1e-2
    )
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    batch = batch_fn(3)
    loaded = type(model).from_pretrained(tmp_path / "saved").eval()
    torch.testing.assert_close(loaded(**batch).logits, trainer.model.eval()(**batch).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_of_the_model_itself_do_not_train(bias, unlearn):
    model = tiny.make("bert")[0]
    config = LoraConfig(target_modules=["query"], bias=bias)
    with pytest.raises(ValueError, match=f"^peft_config: bias='{bias}' trains biases of the model itself"):
        unlearn("bert", model=model, peft_config=config)
    assert all(weight.requires_grad for weight in model.parameters())
    # A user's own adapter keeps its biases, and the original is a copy.
    given = get_peft_model(model, config)
    trainer = unlearn("bert", model=given, method="kl", learning_rate=3e-2, stop_at_target=False)
    original, seen = logits(given), []
    step = trainer.method.on_optimizer_step
    trainer.method.on_optimizer_step = lambda *args: (
        seen.append(trainer.method.original_model(**BATCH).logits),
        step(*args),
    )[1]
    trainer.train()
    assert seen and all(torch.equal(outputs, original) for outputs in seen)
    assert not torch.equal(logits(given), original)


def test_weights_that_an_adapter_does_not_save_are_refused(unlearn):
    given = get_peft_model(tiny.make("bert")[0], LoraConfig(target_modules=["query"]))
    given.get_base_model().classifier.requires_grad_(True)
    with pytest.raises(ValueError, match=r"^model: LORA, saved and loaded, does not give the outputs"):
        unlearn("bert", model=given)


def test_a_merged_model_that_is_another_is_not_saved(unlearn, tmp_path, monkeypatch):
    trainer = unlearn("vit", method="orthograd")
    trainer.train()

    def wrongly(adapted):
        plain = merged(adapted)
        with torch.no_grad():
            plain.classifier.weight *= 3
        return plain

    monkeypatch.setattr("hf_unlearn.trainer.checkpointing.merged", wrongly)
    state = copy.deepcopy(trainer.model.state_dict())
    for save in (trainer.save_model, trainer.save_release):
        with pytest.raises(ValueError, match=r"^model: merged, its outputs differ by up to"):
            save(str(tmp_path / "saved"))
    assert not [*tmp_path.rglob("*.safetensors")]
    assert all(torch.equal(weight, state[key]) for key, weight in trainer.model.state_dict().items())
