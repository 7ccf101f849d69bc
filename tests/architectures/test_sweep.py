"""The sweep itself: small models of every kind of task, always the same; and, slow, all of them."""

import re

import pytest
import torch
from building import LARGEST, TASKS, architectures, batch_for, build
from sweep import Result, _keep, sweep

BY_NAME = {architecture.name: architecture for architecture in architectures()}
QUICK = [
    "ConvNextForImageClassification", "ASTForAudioClassification", "BertForSequenceClassification",
    "T5ForConditionalGeneration", "ElectraForTokenClassification", "Gemma3ForCausalLM", "RobertaForMaskedLM",
    "HubertForCTC", "Speech2TextForConditionalGeneration",
]  # fmt: skip


def test_every_task_has_a_quick_one():
    assert {BY_NAME[name].task for name in QUICK} == set(TASKS.values())


@pytest.mark.parametrize("name", QUICK)
def test_a_small_model_is_the_same_every_time(name):
    model, again = build(BY_NAME[name]), build(BY_NAME[name])
    weights = dict(again.named_parameters())
    assert all(torch.equal(weight, weights[n]) for n, weight in model.named_parameters())
    assert sum(weight.numel() for weight in weights.values()) <= LARGEST
    batch, other = batch_for(BY_NAME[name], model, 3), batch_for(BY_NAME[name], model, 3, seed=1)
    assert all(len(value) == 3 for value in batch.values())
    assert any(not torch.equal(value, other[n]) for n, value in batch.items())


@pytest.mark.parametrize("mode", ["all", "lora"])
def test_the_result_of_one(mode):
    result = sweep(BY_NAME["BertForSequenceClassification"], mode)
    assert (result["outcome"], result["arithmetic"], result["message"]) == ("exact", ["float64"], "")
    assert 0 < result["error"] < 1e-12 and result["parameter"]


def test_errors_are_relative_and_nan_is_one():
    result = Result("A", "a", "text", "all")
    _keep(result, "w", torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0]), 0.0)
    assert result.error == pytest.approx(0.1) and result.parameter == "w"
    _keep(result, "small", torch.tensor([1e-9, 0.0]), torch.tensor([0.0, 0.0]), 1e-3)
    assert result.parameter == "w"
    _keep(result, "nan", torch.tensor([torch.nan]), torch.tensor([1.0]), 0.0)
    assert result.parameter == "nan" and not result.error <= 1


SHARDS = 8


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of transformers, about configurations this small
@pytest.mark.parametrize("mode", ["all", "lora"])
@pytest.mark.parametrize("shard", range(SHARDS))
def test_no_architecture_is_wrong(shard, mode):
    results = [sweep(architecture, mode) for architecture in architectures()[shard::SHARDS]]
    wrong = {
        r["name"]: (r["outcome"], r["error"], r["message"]) for r in results if r["outcome"] in ("wrong", "crashed")
    }
    assert not wrong
    built = [r for r in results if r["outcome"] != "not built"]
    assert len(built) >= 0.8 * len(results) and all(re.fullmatch(r"\w+", r["name"]) for r in built)
