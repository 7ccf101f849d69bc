"""What attempts to bring data back find beyond a retrained model, worked out by hand."""

import math

import pytest

from hf_unlearn.auditing.depth import ATTEMPTS, depth
from hf_unlearn.auditing.differences import SPREAD_MODELS
from hf_unlearn.comparing.running import with_depth


def test_an_advantage_is_in_deviations_of_retrained_models():
    """Of one retrained model by what was measured before, of several by what these differ by as well."""
    spread = ATTEMPTS["finetuned_forget_accuracy"].spread
    one = depth({"finetuned_forget_accuracy": 0.7}, [{"finetuned_forget_accuracy": 0.6}])
    assert one["depth"] == one["depth_finetuned"] == pytest.approx(0.1 / (spread * math.sqrt(2)), abs=0.05)
    pair = [{"finetuned_forget_accuracy": value} for value in (0.5, 0.7)]
    variance = (SPREAD_MODELS * spread**2 + 2 * 0.1**2) / (SPREAD_MODELS + 1)
    two = depth({"finetuned_forget_accuracy": 0.7}, pair)
    assert two["depth"] == pytest.approx(0.1 / math.sqrt(1.5 * variance), abs=0.05)


def test_few_samples_make_an_advantage_smaller():
    metrics = {"finetuned_forget_accuracy": 0.7}
    interval = {"finetuned_forget_accuracy_low": 0.5, "finetuned_forget_accuracy_high": 0.9}
    retrained = [{"finetuned_forget_accuracy": 0.6}]
    assert 0 < depth(metrics | interval, retrained)["depth"] < depth(metrics, retrained)["depth"] / 5


def test_the_largest_advantage_is_the_depth_and_a_low_offset_is_one():
    retrained = [{"one_offset": 0.6, "probe_forget_accuracy": 0.8, "int8_forget_accuracy": 0.0}]
    metrics = {"one_offset": 0.05, "probe_forget_accuracy": 0.8, "finetuned_forget_accuracy": 1.0}
    found = depth(metrics, retrained)
    assert found.keys() == {"depth_one_offset", "depth_probe", "depth"}  # what was not tried on both is left out
    assert found["depth"] == found["depth_one_offset"] > 2 and found["depth_probe"] == 0
    assert depth({**metrics, "one_offset": 0.9}, retrained)["depth_one_offset"] < 0
    broken = {**metrics, "probe_forget_accuracy": math.nan}
    assert depth(broken, retrained).keys() == {"depth_one_offset", "depth"}
    assert depth(metrics, []) == {} and depth({}, retrained) == {}


def test_answers_are_in_what_the_given_models_differ_by():
    """No pair was measured for them: of one retrained model there is the chance of the samples, or nothing."""
    assert depth({"forget_rouge_l_recall": 0.5}, [{"forget_rouge_l_recall": 0.4}]) == {}
    retrained = [{"forget_rouge_l_recall": value} for value in (0.3, 0.4)]
    deviation = math.sqrt(2 * 0.05**2 * 1.5)  # of two numbers 0.05 from their mean, and of that mean
    assert depth({"forget_rouge_l_recall": 0.9}, retrained)["depth_extraction"] == pytest.approx(
        0.55 / deviation, abs=0.05
    )
    interval = {"forget_rouge_l_recall_low": 0.5 - 1.96 * 0.1, "forget_rouge_l_recall_high": 0.5 + 1.96 * 0.1}
    found = depth({"forget_rouge_l_recall": 0.5, **interval}, [{"forget_rouge_l_recall": 0.4}])
    assert found == {"depth_extraction": 1.0, "depth": 1.0}


def test_a_comparison_has_the_depth_of_all_that_was_not_retrained():
    def run(model, accuracy, seed=0, **changes):
        metrics = {"finetuned_forget_loss": 1.0, "finetuned_forget_accuracy": accuracy}
        return {"request": "r", "seed": seed, "model": model, "status": "done", "metrics": metrics, **changes}

    runs = [run("original", 0.9), run("retrained", 0.5), run("retrained 2", 0.52), run("a", 0.51), run("a", 0.9, 1)]
    runs += [run("refusing", 0.0, status="refused"), run("untried", 0.0, metrics={"forget_rouge_l_recall": 0.2})]
    original, first, second, a, alone, refusing, untried = with_depth(runs)
    assert original["metrics"]["depth"] > 20 and a["metrics"]["depth"] == 0
    assert all("depth" not in r["metrics"] for r in (first, second, alone, refusing, untried))
    assert all("depth" not in r["metrics"] for r in runs)  # what is on disk stays
