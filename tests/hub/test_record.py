"""The unlearning record: hashes that tell models and samples apart, and settings without secrets."""

import copy
import json

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model

from hf_unlearn import UnlearningArguments
from hf_unlearn.data.hashing import weights_hash
from hf_unlearn.hub.record import base_state, make_record, verify
from hf_unlearn.models.adapters import add_adapter
from hf_unlearn.trainer.hub import settings_of

SAMPLES = [{"x": [float(i), 2.0], "labels": i % 3, "note": f"about {i}"} for i in range(6)]


def record(samples=SAMPLES, columns=("labels", "x"), **weights):
    return make_record(
        forget_ds=samples, columns=columns, request="samples", request_id=None, method={"name": "nabla_tau"},
        settings={}, weights={"kind": "model", "before": None, "after": None} | weights, report=None,
    )  # fmt: skip


def test_weights_hash_sees_every_change_and_no_order():
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)}
    one = weights_hash(state)
    assert one == weights_hash({"b": state["b"], "a": state["a"].T.contiguous().T})
    changes = [
        {"a": state["a"].reshape(3, 2)}, {"a": state["a"].double()}, {"a": state["a"] + 1e-6}, {"b": torch.tensor(4)},
        {"c": state["b"]},
    ]  # fmt: skip
    assert len({one, *(weights_hash(state | change) for change in changes)}) == 6
    assert weights_hash({"a": torch.ones(2, dtype=torch.bfloat16)}) != weights_hash({"a": torch.ones(2)})


@pytest.mark.parametrize("name", ["vit", "whisper", "gpt2", "resnet"])
def test_base_state_is_the_model_without_its_adapter(name):
    model = tiny.make(name)[0]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    adapted = add_adapter(copy.deepcopy(model))
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight += 1  # adapters, and the copy of the head that trains with them
    state = base_state(adapted)
    assert state.keys() == before.keys()
    assert weights_hash(state) == weights_hash(before) == weights_hash(base_state(model))


def test_base_state_under_an_adapter_on_embeddings():
    model = tiny.make("gpt2")[0]
    before = weights_hash(model.state_dict())
    adapted = get_peft_model(model, LoraConfig(target_modules=["wte", "c_attn"], fan_in_fan_out=True))
    assert weights_hash(base_state(adapted)) == before


def test_two_records_of_the_same_samples_share_no_hash():
    one, two = record(), record()
    assert not set(one["sample_hashes"]) & set(two["sample_hashes"]) and one["salt"] != two["salt"]
    assert one["sample_hashes"] == sorted(one["sample_hashes"])  # their order says nothing
    assert "about" not in json.dumps(one)


def test_samples_are_counted(tmp_path):
    path = tmp_path / "unlearning.json"
    path.write_text(json.dumps(record([*SAMPLES, SAMPLES[0]])))
    assert verify(path, samples=[SAMPLES[0], SAMPLES[0]]).matches
    verification = verify(path, samples=[SAMPLES[1], SAMPLES[1], {**SAMPLES[2], "labels": 9}])
    assert not verification.matches
    assert str(verification) == "samples: 1 of 3 given are among the 7 forgotten samples of the record"
    assert verify(path, samples=[{**SAMPLES[2], "note": "not a column of the record"}]).matches


def test_weights_that_are_neither(tmp_path):
    model = tiny.make("bert")[0]
    saved = record(before=weights_hash(model.state_dict()), after="0" * 64)
    assert str(verify(saved, model)) == "weights: those from BEFORE unlearning"
    model.save_pretrained(tmp_path)
    assert str(verify(saved, tmp_path)) == "weights: those from BEFORE unlearning"
    with torch.no_grad():
        model.classifier.bias += 1
    assert str(verify(saved, model)) == "weights: neither those from before nor those from after unlearning"
    with pytest.raises(ValueError, match="nothing to check"):
        verify(saved)
    with pytest.raises(ValueError, match=r"^record: schema_version is 0, expected 3"):
        verify(saved | {"schema_version": 0}, model)


def test_settings_have_no_path_no_token_and_no_data(tmp_path):
    args = UnlearningArguments(
        str(tmp_path), hub_token="hf_secret", forget_target=[0.125, 0.25], use_cpu=True,
    )  # fmt: skip
    settings = settings_of(args, 7, add_adapter(tiny.make("vit")[0]), {"beta": 0.1})
    assert (settings["steps"], settings["forget_target"], settings["adapter"]) == (
        7,
        "losses of 2 samples",
        "LORA, rank 8",
    )
    text = json.dumps(settings)
    assert str(tmp_path) not in text and "secret" not in text and "0.125" not in text
