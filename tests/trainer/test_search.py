"""`hyperparameter_search` with Optuna: a trial runs with what it suggests, judged by the metrics of an audit."""

import copy

import pytest
from tiny import make
from transformers.trainer_utils import IntervalStrategy

from hf_unlearn import AuditCallback

optuna = pytest.importorskip("optuna")
optuna.logging.set_verbosity(optuna.logging.WARNING)
SAMPLER = {"sampler": optuna.samplers.RandomSampler(seed=0)}


def searching(unlearn, model="vit", **settings):
    original = make(model)[0]
    return unlearn(model, model_init=lambda: copy.deepcopy(original), without_model=True, **settings)


def search(trainer, hp_space, compute_objective, n_trials=2, **settings):
    return trainer.hyperparameter_search(
        hp_space=hp_space, compute_objective=compute_objective, n_trials=n_trials, backend="optuna",
        **{"direction": "minimize", **SAMPLER, **settings},
    )  # fmt: skip


def test_the_gap_of_an_audit_is_an_objective(unlearn):
    """Two trials, each from the original model, by an audit with a retrained model; the best is run again."""
    trainer = searching(unlearn, forget=12, unseen=12, max_steps=2)
    trainer.add_callback(AuditCallback(trainer, retrained=make("vit")[0], resamples=20))
    objectives, rates, begun = [], [], []

    def gap(metrics):
        assert 0 <= metrics["eval_mia_accuracy"] <= 1 and metrics["eval_forget_loss"] > 0
        objectives.append(metrics["eval_gap"])
        rates.append(trainer.args.learning_rate)
        begun.append(trainer.unlearning_state.metrics_before)
        return metrics["eval_gap"]

    def space(trial):
        return {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1.0, log=True)}

    best = search(trainer, space, gap)
    assert best.objective == min(objectives) and len(set(rates)) == 2 and begun[0] == begun[1]
    assert best.hyperparameters == {"learning_rate": rates[objectives.index(min(objectives))]}
    trainer.args.learning_rate = best.hyperparameters["learning_rate"]
    trainer.train()
    assert trainer.audit(retrained=make("vit")[0], resamples=20).metrics["gap"] == pytest.approx(best.objective)


def test_two_objectives(unlearn):
    trainer = searching(unlearn)
    found = search(
        trainer, lambda trial: {"retain_weight": trial.suggest_float("retain_weight", 0.1, 0.9)},
        lambda metrics: [metrics["eval_target_distance"], metrics["eval_retain_accuracy"]],
        direction=["minimize", "maximize"],
    )  # fmt: skip
    assert found and all(len(run.objective) == 2 for run in found)
    assert trainer._retain_weight() == trainer.args.retain_weight != 0.7


SUGGESTED = {
    "learning_rate": (3e-3, lambda t: rates(t)[0] == pytest.approx(3e-3 / 6)),  # after a sixth of warm-up
    "max_steps": (12, lambda t: t.state.global_step == 12),
    "num_train_epochs": (5, lambda t: t.state.global_step == 5 * 3),  # 10 retain samples, 4 a step
    "lr_scheduler_type": ("constant", lambda t: len(set(rates(t))) == 1),
    "method_kwargs": ({"beta": 7.0}, lambda t: t.step.objective.beta == 7.0),
}


def rates(trainer):
    return [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]


@pytest.mark.parametrize("name", SUGGESTED)
def test_a_run_follows_what_its_trial_suggests(unlearn, name):
    """Rate, schedule and length, too, which a run chooses where they are left to it."""
    value, follows = SUGGESTED[name]
    settings = {"model": "gpt2", "method": "npo"} if name == "method_kwargs" else {}
    trainer = searching(unlearn, max_steps=-1, **settings)
    search(trainer, lambda trial: {name: value}, lambda metrics: metrics["eval_forget_loss"], n_trials=1)
    assert follows(trainer)


def test_a_trial_is_pruned(unlearn):
    trainer = searching(unlearn, eval_strategy=IntervalStrategy.STEPS, eval_steps=1, max_steps=4)
    pruner = optuna.pruners.ThresholdPruner(upper=0.5, n_warmup_steps=2)
    losses = iter([0.4, 0.3, 0.2, 0.1, 0.4, 0.9, 0.9, 0.9])
    best = search(trainer, lambda trial: {"seed": 1 + trial.number}, lambda metrics: next(losses), pruner=pruner)
    assert best.run_id == "0" and best.objective == 0.1
    assert trainer.state.global_step == 2 and next(losses) == 0.9  # two are left


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("forget_target", 0.5, "hp_space: forget_target cannot change from trial to trial; make a trainer for each"),
        ("method", "npo", "hp_space: method cannot change"),
        ("retain_weight", 2.0, r"retain_weight: must lie in \[0, 1\], got 2.0"),
        ("method_kwargs", {"betta": 1.0}, "method_kwargs: nabla_tau has no 'betta"),
    ],
)
def test_what_a_search_may_not_set(unlearn, name, value, message):
    trainer = searching(unlearn)
    with pytest.raises(ValueError, match=f"^{message}"):
        search(trainer, lambda trial: {name: value}, lambda metrics: 0.0, n_trials=1)
    assert trainer.state.global_step == 0
