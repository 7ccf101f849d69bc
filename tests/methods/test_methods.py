"""The methods by hand: their update, weights and defaults."""

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainingArguments

from hf_unlearn import UnlearningArguments
from hf_unlearn.methods import METHODS, RunInfo
from hf_unlearn.per_sample.basis import Basis
from hf_unlearn.per_sample.factors import Dense, Recording
from hf_unlearn.targets import Ascent, MeanTarget
from hf_unlearn.trainer.surgery_step import combined_gradient

INFO = RunInfo(forget_samples=10, retain_samples=90)


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
    """For images by the pass over the forget dataset: 27 of them take three over the retain dataset."""
    published = method("nabla_tau_images")
    assert published.default_steps(1) == 27 * 10 and published.default_steps(256) == 2
    passes = [1 - published.retain_weight(step / 270, step) for step in range(270)]
    assert passes == pytest.approx([1 / 6 * (1 - step // 10 / 27) for step in range(270)])
    large = RunInfo(forget_samples=80, retain_samples=20)
    assert method("nabla_tau_images", large).retain_weight(0) == 0
    assert method("nabla_tau_images", large).default_steps(80) == 1


def test_published_nabla_tau_of_text_falls_from_one_half_by_the_step():
    """In `int(|D_r| / (2 |D_f|))` passes over the forget dataset."""
    published = method("nabla_tau_text")
    assert published.default_steps(4) == 4 * 10 / 4 and published.default_steps(128) == 1
    assert [1 - published.retain_weight(p) for p in (0, 0.25, 1)] == pytest.approx([0.5, 0.375, 0])
    assert method("nabla_tau_text", RunInfo(forget_samples=10, retain_samples=15)).default_steps(10) == 1


def test_a_retain_weight_replaces_the_published_schedule():
    for name in ("nabla_tau_images", "nabla_tau_text", "orthograd_adam"):
        assert method(name, retain_weight=0.7).retain_weight(0.5) == 0.7


def test_published_forms_have_arguments_of_their_own_and_given_ones_stay():
    text = UnlearningArguments(output_dir="x", method="nabla_tau_text")
    assert (text.forget_target, text.hinge, text.learning_rate, text.max_grad_norm) == ("mean", "two_sided", 3e-4, 0)
    assert text.lr_scheduler_type == "constant"
    images = UnlearningArguments(output_dir="x", method="nabla_tau_images", learning_rate=2e-3)
    assert (images.forget_target, images.hinge, images.learning_rate) == ("mean", "squared", 2e-3)
    assert images.lr_scheduler_type == "polynomial" and images.lr_scheduler_kwargs == {"lr_end": 1e-4, "power": 1.0}
    adam = UnlearningArguments(output_dir="x", method="orthograd_adam", hinge="linear", forgetting_loss="grad_diff")
    assert (adam.optim, adam.forgetting_loss, adam.projection_scope, adam.hinge) == (
        "sgd",
        "grad_diff",
        "tensor",
        "linear",
    )
    plain, trainers = UnlearningArguments(output_dir="x"), TrainingArguments(output_dir="x")
    assert (plain.hinge, plain.forgetting_loss, plain.projection_scope) == ("squared", "nabla_tau", "global")
    assert (plain.optim, plain.max_grad_norm) == (trainers.optim, trainers.max_grad_norm)


def test_a_two_sided_hinge_pulls_back_from_above():
    scores = torch.tensor([2.0, 4.0], requires_grad=True)
    value = MeanTarget(1.0, "two_sided").combine(scores)
    assert value == 4 and torch.autograd.grad(value, scores)[0].tolist() == [2.0, 2.0]
    assert MeanTarget(5.0, "two_sided").combine(scores) == 4


def remeasured(instance):
    """Steps of 40, of four forget samples each, before which the target is measured again."""
    return [step for step in range(40) if instance.remeasures_target(step, 40, 4)]


def test_the_published_target_is_measured_again_every_five_passes():
    for name in ("nabla_tau_images", "nabla_tau_text"):
        assert remeasured(method(name)) == [13, 26, 39]  # ten samples, four a step
    assert remeasured(method("nabla_tau", forget_target="mean")) == remeasured(method("nabla_tau"))


def test_the_target_stays():
    assert remeasured(method("nabla_tau")) == [] and remeasured(method("grad_diff")) == []
    assert remeasured(method("orthograd", forgetting_loss="grad_ascent")) == []


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
    converges = {name: method(name, RunInfo(1, 90)).converges_at_target for name in METHODS}
    ends = {"finetune", "nabla_tau", "orthograd", "conegrad", "pcgrad", "gdr_gma", "ngdiff", "l1_sparse", "ssd"}
    ends |= {"cf_k", "eu_k", "msg", "undo"}
    ends |= {"nabla_tau_images", "nabla_tau_text", "orthograd_adam"}  # the last one with this forgetting loss
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
