"""The methods by hand: their update, weights and defaults."""

from types import SimpleNamespace

import pytest
import torch

from hf_unlearn import UnlearningArguments
from hf_unlearn.methods import METHODS, Setting
from hf_unlearn.targets import Ascent, MeanTarget

SETTING = Setting(forget_rows=10, retain_rows=90, text=False)


def method(name, setting=SETTING, **settings):
    defaults = {"retain_weight": None, "forget_target": "auto", "forgetting_loss": "nabla_tau"}
    return METHODS[name](SimpleNamespace(**{**defaults, "projection_scope": "global", **settings}), setting)


def test_orthograd_in_two_dimensions_by_hand():
    # Retain gradients (1, 0) and (3, 0), forget gradient (2, 5), retain weight 0.25:
    # 0.25 * (2, 0) + 0.75 * ((2, 5) - (2, 0)) = (0.5, 3.75).
    rows = {"w": torch.tensor([[1.0, 0.0], [3.0, 0.0]])}
    update, log = method("orthograd").update({"w": torch.tensor([2.0, 5.0])}, rows, 0.25)
    assert torch.allclose(update["w"], torch.tensor([0.5, 3.75]))
    assert log == {"surviving_share": pytest.approx(5 / 29**0.5), "effective_rank": 1}


def test_orthograd_per_tensor_protects_every_tensor():
    # Over both tensors together the row (1, 1) leaves (1, -1); for each alone, nothing is left.
    forget, rows = {"a": torch.tensor([2.0]), "b": torch.tensor([0.0])}, {"a": torch.ones(1, 1), "b": torch.ones(1, 1)}
    update, _ = method("orthograd").update(forget, rows, 0.0)
    assert [update[n].item() for n in "ab"] == pytest.approx([1.0, -1.0])
    update, log = method("orthograd", projection_scope="tensor").update(forget, rows, 0.0)
    assert [update[n].item() for n in "ab"] == pytest.approx([0.0, 0.0]) and log["surviving_share"] < 1e-6


def test_published_nabla_tau_starts_at_five_thirds_of_the_share_and_falls_to_zero():
    published = method("nabla_tau", forget_target="mean")
    assert [1 - published.retain_weight(p) for p in (0, 0.5, 1)] == pytest.approx([1 / 6, 1 / 12, 0])
    assert published.refresh_steps(4) == 13  # five passes over ten rows, four a step
    assert method("nabla_tau").refresh_steps(4) is None
    text = Setting(forget_rows=10, retain_rows=90, text=True)
    assert method("nabla_tau", text, forget_target="mean").retain_weight(0.9) == 0.5
    large = Setting(forget_rows=80, retain_rows=20, text=False)
    assert method("nabla_tau", large, forget_target="mean").retain_weight(0) == 0
    assert method("nabla_tau", forget_target="mean", retain_weight=0.7).retain_weight(0.5) == 0.7
    assert UnlearningArguments(output_dir="x", forget_target="mean").hinge == "squared"


def test_weights_and_objectives_of_the_baselines():
    target = MeanTarget(2.0)
    assert method("finetune").retain_weight(0.5) == 1 and method("grad_ascent").retain_weight(0.5) == 0
    assert method("grad_diff").retain_weight(0.5) == 0.5
    assert isinstance(method("grad_diff").objective(target), Ascent)
    assert isinstance(method("grad_ascent").objective(target), Ascent)
    assert method("nabla_tau").objective(target) is target
    assert method("orthograd").objective(target) is target
    assert isinstance(method("orthograd", forgetting_loss="grad_ascent").objective(target), Ascent)


def test_only_losses_that_end_by_themselves_are_bounded():
    bounded = {name: method(name).bounded for name in METHODS}
    assert bounded == {
        "nabla_tau": True, "orthograd": True, "grad_ascent": False, "grad_diff": False, "finetune": True,
    }  # fmt: skip
    assert not method("orthograd", forgetting_loss="grad_ascent").bounded
    assert method("orthograd").bounded  # one object's choice is not another's


def test_arguments_resolve_their_defaults():
    args = UnlearningArguments(output_dir="x")
    assert (args.max_steps, args.default_steps, args.retain_rows) == (240, True, 64)
    args = UnlearningArguments(output_dir="x", num_train_epochs=2, retain_batch_size=5)
    assert (args.max_steps, args.default_steps, args.retain_rows) == (-1, False, 5)
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
