"""How a run ends: what its audit compares with, what stops it, what it says and what it leaves."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import make
from transformers import TrainerCallback

from hf_unlearn import audit
from hf_unlearn.cli.endings import exit_code, location
from hf_unlearn.methods import METHODS
from hf_unlearn.report.numbers import show
from hf_unlearn.targets import Ascent, DistributionTarget, MeanTarget
from hf_unlearn.trainer.guard import KINDS_WITHOUT_UNIT, retain_limit
from hf_unlearn.trainer.outcome import outcome_of
from hf_unlearn.trainer.pace import LOWEST, WARM_UP, Pace


def test_the_audit_of_a_run_has_the_original_that_was_measured_before_the_first_step(unlearn):
    trainer = unlearn(forget=10, unseen=10)
    original = {name: p.clone() for name, p in trainer.model.state_dict().items()}
    trainer.train()
    report = trainer.audit()
    trainer.model.load_state_dict(original)
    data = {"forget_ds": trainer.forget_ds, "retain_ds": trainer.retain_ds, "unseen_ds": trainer.unseen_ds}
    expected = audit(trainer.model, **data).metrics
    assert set(expected) <= set(report.metrics_by_model["original"])
    for name in (name for name in expected if not name.startswith("mia_")):  # ranks of almost equal losses may swap
        assert report.metrics_by_model["original"][name] == pytest.approx(expected[name], abs=1e-5), name


def test_statistics_of_other_samples_are_no_original(unlearn):
    trainer = unlearn(forget=10, unseen=10)
    trainer.train()
    statistics = trainer._original_statistics()
    data = {"forget_ds": trainer.forget_ds, "retain_ds": trainer.retain_ds, "unseen_ds": list(trainer.unseen_ds)[1:]}
    with pytest.raises(ValueError, match="original: holds statistics of 10 unseen samples, the audit measures 9"):
        audit(trainer.model, **data, original=statistics)


def test_a_second_run_is_compared_with_the_first_original(unlearn):
    trainer = unlearn(learning_rate=1e-2)
    trainer.train()
    before, original = trainer.unlearning_state, trainer._original_statistics()
    trainer.train()
    assert trainer.unlearning_state.metrics_before == before.metrics_before
    again = trainer._original_statistics()
    assert all(torch.equal(again[name].losses, original[name].losses) for name in original)


# ---- the guard -------------------------------------------------------------------------------------------------

# Methods that need text, and those that need a frozen copy, come with a model that suits them.
MODELS = {name: "llama" if "causal_lm" in method.head_kinds else "vit" for name, method in METHODS.items()}


def learned(name="vit"):
    """A tiny model that is sure of its own predictions, and datasets labelled with them: retain loss near 0."""
    model, _ = make(name)
    head = model.classifier if name == "vit" else model.lm_head
    head.weight.data.mul_(300)

    @torch.no_grad()
    def label(*parts):
        for sample in (sample for part in parts for sample in part.items):
            inputs = {key: value[None] for key, value in sample.items() if key != "labels"}
            predicted = model.eval()(**inputs).logits[0].argmax(-1)
            sample["labels"] = (
                predicted if name == "vit" else predicted.roll(1)
            )  # a token is predicted by the one before
        return parts

    return {"model": model, "sets": label}


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.state_dict().items()}


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.is_iterative])
def test_a_run_that_diverges_is_stopped_and_its_last_good_weights_are_put_back(unlearn, method, caplog):
    name = MODELS[method]
    settings = {"learning_rate": 1e4, "lr_scheduler_type": "constant", "stop_at_target": False} | learned(name)
    trainer = unlearn(name, method=method, max_steps=12, adam_beta1=0.9, **settings)
    before = weights(trainer)
    output = trainer.train()
    assert trainer.outcome.ending == "diverged" and output.metrics["diverged"] == 1.0
    assert trainer.state.global_step <= 6 and caplog.text.count("Diverged: stopped at step") == 1
    after = weights(trainer)  # no step was good
    # What msg initialises again matters so little here that its weights are good after it.
    assert method == "msg" or all(torch.equal(before[name], after[name]) for name in before)
    assert all(math.isfinite(value) for key, value in output.metrics.items() if key != "train_loss")


def test_a_run_that_diverges_at_a_rate_that_nobody_gave_goes_on_at_a_lower_one(unlearn, monkeypatch, caplog):
    monkeypatch.setattr(METHODS["nabla_tau"], "learning_rate", 0.3)
    given = learned()
    label = given.pop("sets")
    # Unseen samples have random labels: there is much to forget, and a rate that is far too high.
    trainer = unlearn(sets=lambda forget, retain, unseen: (*label(forget, retain), unseen), max_steps=30, **given)
    before, seen = weights(trainer), []

    class Steps(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            seen.append((trainer.optimizer.param_groups[0]["lr"], weights(trainer), dict(trainer.optimizer.state)))

    trainer.add_callback(Steps())
    trainer.train()
    assert "Diverged at step 6" in caplog.text and "the run goes on at a learning rate of 0.025" in caplog.text
    assert trainer.outcome.ending != "diverged" and trainer.state.global_step == 30
    rates, models, moments = zip(*seen, strict=True)
    assert rates[:6] == pytest.approx([0.1 * step / WARM_UP for step in range(1, 7)])
    assert rates[6:12] == pytest.approx([0.025 * step / WARM_UP for step in range(1, 7)])
    assert all(torch.equal(models[6][name], weight) for name, weight in before.items())  # no step was good
    assert moments[5] and not moments[6]
    assert len(trainer.pace.retain_before) == len(trainer.unlearning_state.retain_before)  # not those of bad steps


def test_a_rate_that_was_given_is_not_lowered():
    trainer_pace = pace_at(factor=1.0, calibrates=False)
    assert not trainer_pace.begin_again(5) and trainer_pace.factor == 1.0
    assert not pace_at(factor=LOWEST, calibrates=True).begin_again(5)


def pace_at(**settings):
    target = DistributionTarget(torch.linspace(0.0, 2.0, 101))
    kept = {"retain_before": torch.zeros(2), "first_losses": torch.zeros(20), "forget_per_step": 10, "max_steps": 50}
    return Pace(target=target, need=1.0, converges=True, stops=True, **kept, **settings)


def test_a_method_without_steps_is_looked_at_afterwards(unlearn):
    """Every weight that matters at all to the forget samples is set to zero: nothing is left of the classifier."""
    trainer = unlearn(method="ssd", method_kwargs={"alpha": 1e-9, "lambda_": 0.0}, **learned())
    before = weights(trainer)
    trainer.train()
    assert trainer.outcome.ending == "diverged" and trainer.outcome.steps == 0
    assert all(torch.equal(before[name], value) for name, value in weights(trainer).items())


class NanGradient(TrainerCallback):
    """Spoils the weights as an overflow does, after a step."""

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 6:
            next(p for p in model.parameters() if p.requires_grad).data[0] = torch.nan


@pytest.mark.parametrize("method", ["nabla_tau", "orthograd", "grad_ascent"])
@pytest.mark.parametrize("save_steps", [None, 1])
def test_weights_that_are_no_numbers_are_never_saved(unlearn, method, save_steps):
    settings = {"learning_rate": 3e-4, "save_steps": save_steps, "forget_target": 1e9}  # a rate that stays
    trainer = unlearn(method=method, max_steps=20, callbacks=[NanGradient()], **settings)
    trainer.train()
    assert trainer.outcome.ending == "diverged"
    assert trainer.guard.good_step == (5 if save_steps is None else 6)
    assert all(value.isfinite().all() for value in weights(trainer).values())
    for path in Path(trainer.args.output_dir).glob("checkpoint-*/*.safetensors"):
        assert all(value.isfinite().all() for value in load_file(path).values()), path


def test_a_resumed_run_puts_the_same_weights_back(unlearn):
    settings = {"max_steps": 20, "save_steps": 3, "callbacks": [NanGradient()]}
    whole = unlearn(**settings)
    whole.train()
    again = unlearn(folder="again", **settings)
    again.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-3")
    # The seconds differ.
    assert replace(again.outcome, cost=None) == replace(whole.outcome, cost=None)
    assert again.outcome.cost.passes == whole.outcome.cost.passes
    assert again.guard.good_step == whole.guard.good_step
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(whole).items())


def test_the_guard_measures_only_where_the_steps_say_nothing(unlearn, monkeypatch):
    """A step's own retain losses are enough while they are low; without them a fixed sample is measured."""
    counts = {}
    for method, settings in (("nabla_tau", {}), ("grad_ascent", {"retain_weight": 0.0, "forget_target": 1e9})):
        trainer = unlearn(method=method, max_steps=21, learning_rate=1e-6, stop_at_target=False, **settings)
        measured = []
        retain_loss = trainer.guard.retain_loss
        monkeypatch.setattr(trainer.guard, "retain_loss", lambda: measured.append(1) or retain_loss())  # noqa: B023
        trainer.train()
        counts[method] = len(measured)
    assert counts == {"nabla_tau": 0, "grad_ascent": 5}  # every five steps


def test_losses_without_a_unit_may_rise_with_their_size():
    for kind in KINDS_WITHOUT_UNIT:
        assert retain_limit(1e4, kind) == pytest.approx(1e4 * (1 + math.log(2)))
        assert retain_limit(0.1, kind) == pytest.approx(0.1 + math.log(2))
    assert retain_limit(7.0, "causal_lm") == pytest.approx(7 + math.log(2))


# ---- what a run says of its end --------------------------------------------------------------------------------


def ended(target, after, request="samples", spread=0.1, **values):
    before = {"forget_loss": 0.01, "forget_accuracy": 1.0, "retain_loss": 0.02, "unseen_accuracy": 0.9}
    settings = {"steps": 30, "is_iterative": True, "reason": None} | values
    losses = torch.linspace(-spread, spread, 50) + after["forget_loss"]
    return outcome_of(target=target, request=request, before=before, after=after, forget_losses=losses, **settings)


@pytest.mark.parametrize(
    ("target", "loss", "ending"),
    [
        (MeanTarget(0.5), 0.49, "reached"),  # 1.96 standard errors of 50 losses are 0.016
        (MeanTarget(0.5), 0.48, "short"),
        (MeanTarget(0.5), 0.52, "past"),
        (DistributionTarget(torch.linspace(0.0, 1.0, 50)), 0.44, "reached"),  # the target's own noise counts, too
        (DistributionTarget(torch.linspace(0.0, 1.0, 50)), 0.3, "short"),
        (DistributionTarget(torch.rand(50, 8)), 9.0, "past"),
        (Ascent(), 9.0, "no target"),
    ],
)
def test_a_target_is_reached_within_the_noise_of_the_samples(target, loss, ending):
    outcome = ended(target, {"forget_loss": loss, "retain_loss": 0.04})
    assert outcome.ending == ending
    metrics = outcome.metrics()
    assert metrics["forget_loss_before"] == 0.01 and "unseen_accuracy_before" not in metrics
    if target.value is None:
        assert "No target (unseen_ds sets one)" in outcome.sentence and "target_reached" not in metrics
    else:
        assert metrics["target_reached"] == (ending == "reached")
        assert metrics["forget_loss_above_target"] == pytest.approx(loss - target.value)
        side = "above" if loss > target.value else "below"
        assert f"{show(abs(loss - target.value), 'loss')} {side} the target loss" in outcome.sentence


def test_a_class_is_at_its_target_by_accuracy():
    after = {"forget_loss": 3.0, "forget_accuracy": 0.01, "retain_loss": 0.02, "unseen_accuracy": 0.85}
    outcome = ended(MeanTarget(5.0), after, request="class")
    assert outcome.ending == "reached" and outcome.sentence == (
        "Target reached after 30 steps: forget loss 0.0100 to 3.00, accuracy 100.0 % to 1.0 %, at most 1.0 % of the "
        "class was the target; retain loss 0.0200 to 0.0200; unseen accuracy 90.0 % to 85.0 %"
    )
    assert ended(MeanTarget(5.0), {**after, "forget_accuracy": 0.02}, request="class").ending == "short"


def test_no_step_and_divergence_come_before_the_target():
    after = {"forget_loss": 0.5, "retain_loss": 0.02}
    outcome = ended(MeanTarget(0.5), after, steps=0)
    assert outcome.ending == "no steps" and outcome.sentence.startswith("No step was taken, the model is as it was:")
    assert ended(MeanTarget(0.5), after, steps=0, is_iterative=False).ending == "reached"
    outcome = ended(MeanTarget(0.5), after, reason="the loss or its gradient was not finite")
    assert outcome.ending == "diverged" and "last good weights were put back" in outcome.sentence


def test_a_run_says_how_it_ended_in_metrics_record_and_its_last_line(unlearn, tmp_path, capsys):
    trainer = unlearn(forget=10, unseen=10, disable_tqdm=False)
    assert trainer.outcome is None
    output = trainer.train()
    assert capsys.readouterr().out.rstrip().splitlines()[-1] == trainer.outcome.sentence
    expected = {"diverged", "target_reached", "target_loss", "forget_loss_above_target", "retain_loss_before"}
    assert expected <= output.metrics.keys()
    trainer.save_release(str(tmp_path / "release"))
    record = json.loads((tmp_path / "release" / "unlearning.json").read_text())
    assert record["outcome"] == trainer.outcome.to_dict() and record["outcome"]["sentence"] == trainer.outcome.sentence
    trainer = unlearn(num_train_epochs=0, max_steps=-1, folder="none")
    assert trainer.train().global_step == 0 and trainer.outcome.ending == "no steps"


LEVELS = {None: 0, "consistent": 0, "unclear": 0, "remembers": 3, "over-forgotten": 3, "hidden": 3, "damaged": 3}


@pytest.mark.parametrize("level", LEVELS)
def test_the_exit_code_is_that_of_audit_and_outcome(level):
    good = {"forget_loss": 0.5, "retain_loss": 0.02}
    assert exit_code(ended(MeanTarget(0.5), good).ending, level) == LEVELS[level]
    assert exit_code(ended(Ascent(), good).ending, level) == LEVELS[level]
    assert exit_code(ended(MeanTarget(0.5), good, reason="it was not finite").ending, level) == 3
    assert exit_code(ended(MeanTarget(0.5), good, steps=0).ending, level) == 3
    stopped = location(ended(MeanTarget(0.5), good, steps=0).ending, level, Path("out"))
    assert stopped == "The model in out is not one that has forgotten: the run took no step"
    sentence = location(ended(MeanTarget(0.5), good).ending, level, Path("out"))
    assert (sentence.startswith("The model that has forgotten is in")) == (level == "consistent")
    assert sentence.startswith("Warning: ") == (level in (None, "unclear"))
