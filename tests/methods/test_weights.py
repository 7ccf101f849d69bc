"""The methods that choose weights: masks, penalties and Fisher information by hand, by loops of single samples."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gradients import Gradients
from peft import LoraConfig
from tiny import make
from torch import nn

from hf_unlearn.methods import METHODS
from hf_unlearn.methods.base import CalibrationPass
from hf_unlearn.methods.last_layers import last_layers
from hf_unlearn.methods.small_gradients import smallest
from hf_unlearn.models.adapters import add_adapter
from hf_unlearn.models.resetting import fresh_weights
from hf_unlearn.per_sample import PerSampleGradients
from hf_unlearn.per_sample.fisher import loss_gradient, squared_gradients


def single_gradients(trainer, samples, model=None):
    """One backward pass a sample, by the model's own loss."""
    model, gradients = (trainer.model if model is None else model).eval(), []
    for sample in samples:
        model.zero_grad()
        model(**trainer.data_collator([sample])).loss.backward()
        gradients.append(
            {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
        )
    model.zero_grad()
    return {n: torch.stack([g[n] for g in gradients]) for n in gradients[0]}


@pytest.mark.parametrize("name", ["vit", "gpt2", "resnet"])
def test_squares_are_those_of_single_samples(unlearn, name):
    trainer = unlearn(name, dtype=torch.float64, per_device_train_batch_size=4)
    expected = single_gradients(trainer, trainer.retain_ds.items)
    calibration = trainer._calibration_pass()
    assert len(list(calibration.batches("retain"))) == 3
    squares = squared_gradients(calibration.gradients, calibration.batches("retain"))
    sums = loss_gradient(calibration.gradients, calibration.batches("retain"))
    # A language model's own loss is in float32.
    torch.testing.assert_close(squares, {n: g.square().sum(0) for n, g in expected.items()}, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(sums, {n: g.sum(0) for n, g in expected.items()}, rtol=1e-5, atol=1e-7)


def test_salun_by_hand():
    # Four weights, two samples: gradients (1, -3, 0, 2) and (1, 2, 0, 2) add up to 2, -1, 0, 4; the median is 1.
    model = nn.Linear(4, 1, bias=False)
    samples = {"x": torch.tensor([[1.0, -3.0, 0.0, 2.0], [1.0, 2.0, 0.0, 2.0]])}
    gradients = PerSampleGradients(model, lambda batch: model(batch["x"])[:, 0])
    method = METHODS["salun"](SimpleNamespace(method_kwargs=None), None)
    method.on_train_begin(
        CalibrationPass(gradients, lambda name: [samples] if name == "forget" else [], None, lambda t: t)
    )
    assert method.masks["weight"].tolist() == [[True, False, False, True]]


def test_salun_moves_the_salient_half_and_nothing_else(unlearn):
    settings = {"method": "salun", "max_steps": 6, "learning_rate": 1e-2, "stop_at_target": False}
    for optimizer in ({"weight_decay": 0.5}, {"optim": "sgd", "optim_args": "momentum=0.9", "weight_decay": 0.5}):
        trainer = unlearn("vit", **settings, **optimizer)
        samples = trainer.forget_ds.items
        gradient = {n: g.sum(0).abs() for n, g in single_gradients(trainer, samples).items()}
        median = np.median(np.concatenate([g.flatten().numpy() for g in gradient.values()]))
        before = {n: p.clone() for n, p in trainer.model.named_parameters()}
        trainer.train()
        share = sum(int(m.sum()) for m in trainer.method.masks.values()) / sum(p.numel() for p in before.values())
        assert 0.49 < share <= 0.5
        for n, p in trainer.model.named_parameters():
            chosen = trainer.method.masks[n]
            clear = (gradient[n] - median).abs() > 1e-4 * median
            assert ((gradient[n] > median) == chosen)[clear].all()
            assert torch.equal(p[~chosen], before[n][~chosen])
            assert (p[chosen] != before[n][chosen]).float().mean() > 0.5 or not chosen.any()


def test_salun_labels_are_those_of_random_label(unlearn):
    one, two = Gradients(), Gradients()
    for name, recorded in (("random_label", two), ("salun", one)):
        trainer = unlearn("vit", method=name, max_steps=1, callbacks=[recorded], max_grad_norm=0.0, folder=name)
        trainer.train()
    masks = trainer.method.masks
    for n, g in two.steps[0].items():
        torch.testing.assert_close(one.steps[0][n], g * masks[n], rtol=1e-5, atol=1e-7)


def test_l1_sparse_by_hand(unlearn):
    one, two = Gradients(), Gradients()
    start = {n: p.detach().clone() for n, p in make("resnet")[0].double().named_parameters()}
    for name, recorded in (("l1_sparse", one), ("finetune", two)):
        trainer = unlearn(
            "resnet", method=name, max_steps=4, callbacks=[recorded], max_grad_norm=0.0, dtype=torch.float64,
            learning_rate=0.0, folder=name, gradient_accumulation_steps=2,
        )  # fmt: skip
        trainer.train()
        log = [e["l1_penalty"] for e in trainer.state.log_history if "l1_penalty" in e]
        # With a learning rate of 0 the weights are those of the start, and the penalty falls with the steps.
        if name == "l1_sparse":
            norm = sum(float(p.abs().sum()) for p in start.values())
            assert log == pytest.approx([5e-5 * norm * share for share in (1, 0.75, 0.5, 0.25)], rel=1e-6)
    for step, share in enumerate((1, 0.75, 0.5, 0.25)):
        for n, g in two.steps[step].items():
            torch.testing.assert_close(one.steps[step][n], g + 5e-5 * share * start[n].sign(), rtol=1e-9, atol=1e-15)


def test_l1_sparse_makes_small_weights_smaller(unlearn):
    sums = {}
    for name in ("l1_sparse", "finetune"):
        trainer = unlearn("vit", method=name, max_steps=30, learning_rate=1e-3, folder=name, logging_steps=30)
        trainer.train()
        sums[name] = sum(float(p.detach().abs().sum()) for p in trainer.model.parameters())
    assert sums["l1_sparse"] < sums["finetune"]


def test_ssd_damps_what_the_formula_says(unlearn):
    def unlike(forget, retain, unseen):
        forget.items = [{**sample, "pixel_values": sample["pixel_values"] * 10} for sample in forget.items]
        return forget, retain, unseen

    trainer = unlearn("resnet", method="ssd", forget=1, retain=30, dtype=torch.float64, weight_decay=0.1, sets=unlike)
    model = copy.deepcopy(trainer.model)
    forget = single_gradients(trainer, trainer.forget_ds.items, model)
    retain = single_gradients(trainer, trainer.retain_ds.items, model)
    output = trainer.train()
    damped = 0
    for name, p in trainer.model.named_parameters():
        f = forget[name].square().mean(0)
        everything = torch.cat([forget[name], retain[name]]).square().mean(0)
        old = dict(model.named_parameters())[name]
        chosen = f > 10 * everything
        expected = torch.where(chosen, old * (everything / f).clamp(max=1), old)
        torch.testing.assert_close(p, expected, rtol=1e-6, atol=0)
        damped += int((chosen & (old != 0)).sum())
    assert damped > 20
    assert output.global_step == trainer.state.global_step == 0
    # Everything else is as after any run.
    assert {"forget_loss", "retain_accuracy"} <= output.metrics.keys()
    assert trainer.unlearning_state.metrics_before["forget_loss"] != output.metrics["forget_loss"]
    assert any("final_forget_loss" in e for e in trainer.state.log_history)


def test_ssd_needs_many_more_retain_samples(unlearn):
    with pytest.raises(
        ValueError, match=r"^method: ssd damps .* where it holds 6 of 16 samples; give more retain samples"
    ):
        unlearn("vit", method="ssd")
    with pytest.raises(ValueError, match="where it holds 1 of 10 samples"):
        unlearn("vit", method="ssd", forget=1, retain=9)
    trainer = unlearn("vit", method="ssd", forget=1, retain=10)
    with pytest.raises(ValueError, match="resume_from_checkpoint: ssd takes no steps"):
        trainer.train(resume_from_checkpoint="somewhere")


@pytest.mark.parametrize(
    ("name", "k", "expected"),
    [
        ("vit", 1, {"vit.layernorm", "classifier"}),
        ("vit", 2, {"vit.layernorm", "classifier", "vit.layers.1"}),
        ("gpt2", 1, {"transformer.ln_f"}),  # its head is the embedding
        ("whisper", 2, {"model.decoder.layer_norm", "model.decoder.layers.1"}),
        ("swin", 1, {"swin.layernorm", "classifier"}),
    ],
)
def test_the_last_layers(name, k, expected):
    model = make(name)[0]
    last = last_layers(model, k)
    assert {n for n in last if not n.startswith(tuple(expected))} == set()
    assert {n for n, _ in model.named_parameters() if n.startswith(tuple(expected))} == last
    with pytest.raises(ValueError, match=r"^method_kwargs: k of .* can be 1 to \d, its layers; got 9"):
        last_layers(model, 9)


def test_cf_k_and_eu_k_train_the_last_layers_alone(unlearn):
    for name in ("cf_k", "eu_k"):
        trainer = unlearn("vit", method=name, max_steps=2, folder=name)
        before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
        trainer.train()
        changed = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
        assert changed and changed <= last_layers(trainer.model, 2)
        assert all(p.requires_grad for p in trainer.model.parameters())
        assert (trainer.unlearning_state.retain_after_reset is not None) == (name == "eu_k")


def test_eu_k_begins_with_new_layers(unlearn):
    starts = []
    for seed in (5, 5, 6):
        trainer = unlearn("vit", method="eu_k", max_steps=1, learning_rate=0.0, seed=seed, method_kwargs={"k": 1})
        old = trainer.model.classifier.weight.clone()
        trainer.train()
        starts.append(trainer.model.classifier.weight.detach().clone())
        assert not torch.equal(starts[-1], old)
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])


def test_msg_by_hand():
    # Mean gradients of two retain samples (1, 3, -2, 0) and of one forget sample (2, 3, -2.5, 4).
    difference = torch.tensor([1.0, 3.0, -2.0, 0.0]) - torch.tensor([2.0, 3.0, -2.5, 4.0])
    assert smallest(difference, 0.5).tolist() == [False, True, True, False]
    assert smallest(difference, 0.3).tolist() == [False, True, False, False]
    assert smallest(difference, 1.0).all()


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_msg_initialises_weights_whose_gradients_are_alike(unlearn, name):
    trainer = unlearn(
        name, method="msg", max_steps=1, dtype=torch.float64, learning_rate=0.0, method_kwargs={"share": 0.4},
        per_device_train_batch_size=4, stop_at_target=False,
    )  # fmt: skip
    model = copy.deepcopy(trainer.model)
    forget, retain = (single_gradients(trainer, ds.items, model) for ds in (trainer.forget_ds, trainer.retain_ds))
    trainer.train()
    chosen = {
        f"{n}.weight"
        for n, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and not n.startswith("classifier")
    }
    fresh = fresh_weights(model, trainer.args.seed)
    assert trainer.method.masks.keys() == chosen
    for n, p in trainer.model.named_parameters():
        before = model.get_parameter(n)
        if n not in chosen:
            assert torch.equal(p, before)
            continue
        difference = (retain[n].mean(0) - forget[n].mean(0)).abs()
        mask = trainer.method.masks[n]
        assert mask.sum() == round(0.4 * mask.numel())
        assert difference[mask].max() <= difference[~mask].min() + 1e-12
        torch.testing.assert_close(p, torch.where(mask, fresh[n].double(), before), rtol=0, atol=0)
    assert trainer.unlearning_state.retain_after_reset is not None


@pytest.mark.parametrize("optimizer", [{"optim": "sgd"}, {"optim": "sgd", "optim_args": "momentum=0.9"}, {}])
def test_msg_slows_the_other_weights_of_its_layers(unlearn, optimizer):
    """Against the same weights, all with whole steps: a run of one step for each."""
    ends = {}
    for slow in (1.0, 0.1, 0.0):
        trainer = unlearn(
            "vit", method="msg", max_steps=1, learning_rate=1e-2, method_kwargs={"slow": slow}, dtype=torch.float64,
            max_grad_norm=0.0, stop_at_target=False, folder=str(slow), **optimizer,
        )  # fmt: skip
        trainer.train()
        ends[slow] = {n: p.detach() for n, p in trainer.model.named_parameters()}
    masks = trainer.method.masks
    for n, p in ends[0.1].items():
        if n in masks:
            whole, none = ends[1.0][n], ends[0.0][n]
            torch.testing.assert_close(p[masks[n]], whole[masks[n]], rtol=0, atol=0)
            torch.testing.assert_close(p[~masks[n]], (0.9 * none + 0.1 * whole)[~masks[n]], rtol=1e-9, atol=1e-12)
        else:
            assert torch.equal(p, ends[1.0][n])
    assert any((ends[1.0][n] != ends[0.0][n])[~mask].any() for n, mask in masks.items())


@pytest.mark.parametrize("name", ["msg", "eu_k", "undo"])
def test_methods_that_reset_weights_refuse_a_model_with_an_adapter(unlearn, name):
    model = add_adapter(make("vit")[0])
    with pytest.raises(ValueError, match=rf"^model: {name} initialises weights .* merge it \(merge_and_unload\)"):
        unlearn(model=model, method=name)


@pytest.mark.parametrize("name", ["salun", "l1_sparse", "ssd", "cf_k", "eu_k", "msg", "undo"])
def test_an_adapter_beside_the_weights_is_refused(unlearn, name):
    model = make("vit")[0]
    names = [n for n, _ in model.named_parameters()]
    with pytest.raises(ValueError, match=f"^peft_config: {name} works on the weights themselves"):
        unlearn(model=model, method=name, forget=1, retain=30, peft_config=LoraConfig(r=2, target_modules=["q_proj"]))
    assert [n for n, _ in model.named_parameters()] == names


@pytest.mark.parametrize("name", ["l1_sparse", "ssd"])
def test_methods_that_raise_no_loss_want_no_unseen_samples(unlearn, name, caplog):
    unlearn(unseen=0, method=name, forget=1, retain=30)
    assert "No unseen_ds" not in caplog.text
