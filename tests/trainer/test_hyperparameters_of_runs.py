"""Hyper-parameters of a method as a run has them, and as its record says."""

import json

import pytest
from tiny import make

from hf_unlearn.cli import main
from hf_unlearn.methods import METHODS


def record(trainer, folder):
    trainer.save_release(str(folder))
    return json.loads((folder / "unlearning.json").read_text())["settings"]


@pytest.mark.parametrize(("given", "used"), [(None, 0.1), ({"beta": 0.5}, 0.5)])
def test_the_record_and_the_card_have_them(unlearn, tmp_path, given, used):
    trainer = unlearn("gpt2", method="npo", method_kwargs=given, unseen=0)
    trainer.train()
    assert record(trainer, tmp_path / "release")["method_kwargs"] == {"beta": used}
    assert "| `method_kwargs` | {'beta': " + f"{used}" in (tmp_path / "release" / "README.md").read_text()


def test_those_that_are_set_later_are_used_and_recorded(unlearn, tmp_path):
    trainer = unlearn("gpt2", method="npo", method_kwargs={"beta": 0.5}, unseen=0)
    trainer.args.method_kwargs = {"beta": 9.0}
    trainer.train()
    assert trainer.step.objective.beta == trainer.method.hp.beta == 9.0
    trainer.args.method_kwargs = {"beta": 2.0}  # too late for this run
    assert record(trainer, tmp_path / "release")["method_kwargs"] == {"beta": 9.0}


def test_a_search_over_them_reaches_the_method(unlearn):
    """What `hyperparameter_search` does for a trial: it sets the arguments once the run has begun."""
    trainer = unlearn("gpt2", method="npo", model_init=lambda: make("gpt2")[0], without_model=True, max_steps=1)
    betas = []
    for beta in (0.2, 7.0):
        trainer.hp_search_backend = None
        setup = trainer._hp_search_setup
        trainer._hp_search_setup = lambda trial, beta=beta: setattr(trainer.args, "method_kwargs", {"beta": beta})
        trainer.train()
        trainer._hp_search_setup = setup
        betas.append(trainer.step.objective.beta)
    assert betas == [0.2, 7.0]


def test_methods_without_any_have_none(unlearn, tmp_path):
    trainer = unlearn(unseen=0)
    trainer.train()
    assert "method_kwargs" not in record(trainer, tmp_path / "release")


def test_help_names_those_of_every_method(capsys):
    assert main(["run", "--help-all"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, method in METHODS.items():
        for key in vars(method.check_hyperparameters({})):
            assert key in text.partition(f"{name} ")[2], (name, key)
    assert "npo beta=0.1" in text
