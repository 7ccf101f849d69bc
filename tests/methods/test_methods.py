"""The methods by hand: their update, weights and defaults."""

import math
from types import SimpleNamespace

import pytest
import torch

from hf_unlearn import UnlearningArguments
from hf_unlearn.methods import METHODS, RunInfo
from hf_unlearn.per_sample.basis import Basis
from hf_unlearn.per_sample.factors import Dense, Recording
from hf_unlearn.targets import Ascent, MeanTarget
from hf_unlearn.trainer.surgery_step import combined_gradient

INFO = RunInfo(forget_samples=10, retain_samples=90, is_text=False)


def method(name, info=INFO, **settings):
    defaults = {
        "retain_weight": None,
        "forget_target": "auto",
        "forgetting_loss": "nabla_tau",
        "projection": "gradient",
        "seed": 42,
        "method_kwargs": None,
    }
    return METHODS[name](SimpleNamespace(**{**defaults, **settings}), info)


def update(name, forget, samples, retain_weight, per_tensor=False, retain_loss=0.0, **settings):
    """A surgery method on gradients given as numbers: the update as lists, and the log."""
    forget = {n: torch.tensor(g) for n, g in forget.items()}
    factors = {n: [Dense(torch.tensor(r))] for n, r in samples.items()}
    recording = Recording(torch.zeros(len(next(iter(samples.values())))), factors)
    basis = Basis(None)
    basis.recordings = [recording]
    products = basis.gram(forget, per_tensor)
    gradient, log = combined_gradient(method(name, **settings), basis, forget, products, retain_weight, retain_loss)
    return {n: g.tolist() for n, g in gradient.items()}, log


def test_orthograd_in_two_dimensions_by_hand():
    # Retain gradients (1, 0) and (3, 0), forget gradient (2, 5), retain weight 0.25:
    # 0.25 * (2, 0) + 0.75 * ((2, 5) - (2, 0)) = (0.5, 3.75).
    gradient, log = update("orthograd", {"w": [2.0, 5.0]}, {"w": [[1.0, 0.0], [3.0, 0.0]]}, 0.25)
    assert gradient["w"] == pytest.approx([0.5, 3.75])
    assert log.pop("largest_cosine") == pytest.approx(0, abs=1e-12)
    assert log == {"surviving_share": pytest.approx(5 / 29**0.5), "effective_rank": 1}


def test_orthograd_that_corrects_the_step_mixes_the_gradients():
    gradient, _ = update("orthograd", {"w": [2.0, 5.0]}, {"w": [[1.0, 0.0], [3.0, 0.0]]}, 0.25, projection="update")
    assert gradient["w"] == pytest.approx([0.25 * 2 + 0.75 * 2, 0.75 * 5])


def test_orthograd_per_tensor_protects_every_tensor():
    # Over both tensors together the sample (1, 1) leaves (1, -1); for each alone, nothing is left.
    forget, samples = {"a": [2.0], "b": [0.0]}, {"a": [[1.0]], "b": [[1.0]]}
    gradient, _ = update("orthograd", forget, samples, 0.0)
    assert [*gradient["a"], *gradient["b"]] == pytest.approx([1.0, -1.0])
    gradient, log = update("orthograd", forget, samples, 0.0, per_tensor=True)
    assert [*gradient["a"], *gradient["b"]] == pytest.approx([0.0, 0.0]) and log["surviving_share"] < 1e-6


def test_conegrad_removes_only_what_raises_a_retain_loss():
    # Descending (2, 5) lowers the loss of a sample with gradient (1, 0), and raises that of one with (0, -1).
    gradient, log = update("conegrad", {"w": [2.0, 5.0]}, {"w": [[1.0, 0.0], [0.0, -1.0]]}, 0.0)
    assert gradient["w"] == pytest.approx([2.0, 0.0])
    assert log["active_samples"] == 1 and log["surviving_share"] == pytest.approx(2 / 29**0.5)
    assert log["largest_cosine"] == pytest.approx(0, abs=1e-12)


def test_pcgrad_by_hand():
    # The mean retain gradient is (-2, 0): it conflicts with (2, 5), whose first component goes.
    gradient, log = update("pcgrad", {"w": [2.0, 5.0]}, {"w": [[-1.0, 0.0], [-3.0, 0.0]]}, 0.25)
    assert gradient["w"] == pytest.approx([0.25 * -2, 0.75 * 5]) and log == {"conflict": 1.0}


def test_pcgrad_without_conflict_changes_nothing():
    gradient, log = update("pcgrad", {"w": [2.0, 5.0]}, {"w": [[1.0, 0.0], [3.0, 0.0]]}, 0.25)
    assert gradient["w"] == pytest.approx([0.25 * 2 + 0.75 * 2, 0.75 * 5]) and log == {"conflict": 0.0}


def test_gdr_gma_by_hand():
    # At a retain loss of eps both weigh one half. f = (1, 1), r = (-1, 0): f' = (0, 1), r' = (-1, 0) + (1, 1) / 2.
    gradient, log = update("gdr_gma", {"w": [1.0, 1.0]}, {"w": [[-1.0, 0.0]]}, 0.5, retain_loss=0.02)
    assert gradient["w"] == pytest.approx([0.5 * (0 - 0.5), 0.5 * (1 + 0.5)])
    assert log == {"conflict": 1.0, "forget_weight": pytest.approx(0.5)}


def test_gdr_gma_waits_while_the_retain_loss_is_high():
    gradient, log = update("gdr_gma", {"w": [1.0, 1.0]}, {"w": [[1.0, 0.0]]}, 0.5, retain_loss=0.12)
    weight = 1 / (1 + math.exp(100 * 0.1))
    assert gradient["w"] == pytest.approx([1.0, weight]) and log["forget_weight"] == pytest.approx(weight)


def test_ngdiff_by_hand():
    gradient, _ = update("ngdiff", {"w": [3.0, 4.0]}, {"w": [[0.0, 1.0], [0.0, 3.0]]}, 0.5)
    assert gradient["w"] == pytest.approx([0.6, 0.8 + 1.0])


def test_ngdiff_of_a_zero_forget_gradient():
    gradient, _ = update("ngdiff", {"w": [0.0, 0.0]}, {"w": [[0.0, 1.0]]}, 0.5)
    assert gradient["w"] == pytest.approx([0.0, 1.0])


def test_published_nabla_tau_starts_at_five_thirds_of_the_share_and_falls_to_zero():
    published = method("nabla_tau", forget_target="mean")
    assert [1 - published.retain_weight(p) for p in (0, 0.5, 1)] == pytest.approx([1 / 6, 1 / 12, 0])
    large = RunInfo(forget_samples=80, retain_samples=20, is_text=False)
    assert method("nabla_tau", large, forget_target="mean").retain_weight(0) == 0
    assert UnlearningArguments(output_dir="x", forget_target="mean").hinge == "squared"


def test_published_nabla_tau_of_text_weighs_both_losses_the_same():
    text = RunInfo(forget_samples=10, retain_samples=90, is_text=True)
    assert method("nabla_tau", text, forget_target="mean").retain_weight(0.9) == 0.5


def test_a_retain_weight_replaces_the_published_schedule():
    assert method("nabla_tau", forget_target="mean", retain_weight=0.7).retain_weight(0.5) == 0.7


def remeasured(instance):
    """Steps of 40, of four forget samples each, before which the target is measured again."""
    return [step for step in range(40) if instance.remeasures_target(step, 40, 4)]


def test_the_published_target_is_measured_again_every_five_passes():
    assert remeasured(method("nabla_tau", forget_target="mean")) == [13, 26, 39]  # ten samples, four a step


@pytest.mark.parametrize("name", ["nabla_tau", "orthograd"])
def test_the_target_follows_the_model_in_the_second_half(name):
    assert remeasured(method(name)) == [20, 24, 28, 32, 36]


def test_the_target_stays_where_nothing_converges_to_it():
    assert remeasured(method("grad_diff")) == []
    assert remeasured(method("orthograd", forgetting_loss="grad_ascent")) == []


def test_the_target_stays_with_few_retain_samples():
    assert remeasured(method("nabla_tau", RunInfo(forget_samples=10, retain_samples=19, is_text=False))) == []


def test_weights_and_objectives_of_the_baselines():
    target = MeanTarget(2.0)
    assert method("finetune").retain_weight(0.5) == 1 and method("grad_ascent").retain_weight(0.5) == 0
    assert method("grad_diff").retain_weight(0.5) == 0.9
    assert isinstance(method("grad_diff").objective(target, None), Ascent)
    assert isinstance(method("grad_ascent").objective(target, None), Ascent)
    assert method("nabla_tau").objective(target, None) is target
    assert method("orthograd").objective(target, None) is target
    assert isinstance(method("orthograd", forgetting_loss="grad_ascent").objective(target, None), Ascent)


def test_only_losses_with_a_minimum_converge_at_the_target():
    converges = {name: method(name, RunInfo(1, 90, is_text=False)).converges_at_target for name in METHODS}
    ends = {"finetune", "nabla_tau", "orthograd", "conegrad", "pcgrad", "gdr_gma", "ngdiff", "l1_sparse", "ssd"}
    assert {name for name, yes in converges.items() if yes} == ends
    assert not method("orthograd", forgetting_loss="grad_ascent").converges_at_target
    assert method("orthograd").converges_at_target  # one object's choice is not another's


def test_arguments_resolve_their_defaults():
    args = UnlearningArguments(output_dir="x")
    assert (args.max_steps, args.has_default_steps, args.effective_retain_batch_size) == (-1, True, 64)
    args = UnlearningArguments(output_dir="x", num_train_epochs=2, retain_batch_size=5)
    assert (args.max_steps, args.has_default_steps, args.effective_retain_batch_size) == (-1, False, 5)
    assert UnlearningArguments(output_dir="x", forget_target="2.5").forget_target == 2.5
    assert UnlearningArguments(output_dir="x", forget_target=torch.tensor([1.0, 2.0])).forget_target == [1.0, 2.0]


def test_arguments_can_be_parsed_from_a_command_line():
    from transformers import HfArgumentParser

    (args,) = HfArgumentParser(UnlearningArguments).parse_args_into_dataclasses(
        ["--output_dir", "x", "--method", "orthograd", "--retain_weight", "0.3", "--forget_target", "1.5",
         "--learning_rate", "1e-3", "--stop_at_target", "true"]
    )  # fmt: skip
    assert (args.method, args.retain_weight, args.forget_target, args.learning_rate) == ("orthograd", 0.3, 1.5, 1e-3)
    assert args.stop_at_target is True
