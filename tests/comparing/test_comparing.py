"""`compare`: cells are run once, repeat bitwise, fail alone; tables say what the cells say."""

import json
import math
import multiprocessing
import shutil
import statistics
from pathlib import Path

import pytest
from forked import IMPORTED
from PIL import Image
from transformers.utils.logging import is_progress_bar_enabled

from hf_unlearn.cli import main
from hf_unlearn.comparing import Comparison, compare
from hf_unlearn.comparing import running as run
from hf_unlearn.comparing.runs import ComparisonFolder, cells, trainings
from hf_unlearn.report.comparison import lines, markdown_table, mean_ranks

HERE = Path(__file__).parents[1]
METHODS = {
    "nabla_tau": {"max_steps": 6},
    "ascent": {"method": "grad_ascent", "max_steps": 3},
    "orthograd": {"max_steps": 3},
}


def config(**changes):
    found = {
        "name": "small",
        "task": "comparing_task.py:Small",
        "requests": {"random": {"forget": ["10%", "20%"]}},
        "methods": METHODS,
        "seeds": [0, 1],
    }
    return Comparison.from_dict({**found, **changes}, HERE)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    return folder, compare(config(), folder, progress=False)


@pytest.fixture
def forking(monkeypatch):
    """Workers that need not import everything again."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    monkeypatch.setattr(run, "CONTEXT", context)


def by_name(report):
    return {(c["request"], c["seed"], c["model"]): c for c in report["cells"]}


def test_every_cell_is_measured_against_its_own_reference(done):
    folder, report = done
    cells = by_name(report)
    assert len(cells) == 2 * (3 + 3)
    assert {c["status"] for c in cells.values()} == {"done"}
    for (request, seed, model), cell in cells.items():
        retrained = cells[request, seed, "retrained"]["metrics"]
        assert (cell["metrics"]["gap"] == 0) == (model == "retrained")
        metrics = [f"{name}_accuracy" for name in ("forget", "retain", "unseen", "mia")]
        away = [100 * abs(cell["metrics"][f] - retrained[f]) for f in metrics]
        assert cell["metrics"]["gap"] == pytest.approx(statistics.mean(away))
    assert cells["random", 1, "ascent"]["steps"] == 3
    assert [cells["random", seed, "nabla_tau"]["forget"] for seed in (0, 1)] == ["10%", "20%"]
    weights = {cells["random", 0, model]["weights"] for model in ("original", "retrained", "retrained 2", "nabla_tau")}
    assert len(weights) == 4
    assert json.loads((folder / "results.json").read_text()) == report
    with Image.open(folder / "picture.png") as picture:
        assert min(picture.size) > 300


def test_what_is_there_is_not_run_again(done, monkeypatch):
    folder, report = done
    monkeypatch.setattr("hf_unlearn.comparing.runs.ComparisonFolder.run", None)
    monkeypatch.setattr("hf_unlearn.comparing.runs.ComparisonFolder.train", None)
    assert compare(config(), folder, progress=False) == report


def test_processes_and_repetition_change_no_bit(done, forking, tmp_path):
    again = config(seeds=[1], requests={"random": {"forget": "20%"}}, retrained=1)
    shutil.copytree(done[0] / "models", tmp_path / "models", ignore=shutil.ignore_patterns("retrained-1-*"))
    first, second = by_name(done[1]), by_name(compare(again, tmp_path, workers=2))
    assert len(second) == 5
    for key, cell in second.items():
        assert cell["weights"] == first[key]["weights"]
        assert cell["metrics"] == first[key]["metrics"]


def test_a_cell_whose_settings_changed_is_run_again_and_no_other(done):
    folder, report = done
    changed = config(methods={**METHODS, "ascent": {"method": "grad_ascent", "max_steps": 4}})
    first, second = by_name(report), by_name(compare(changed, folder, progress=False))
    for key, cell in second.items():
        assert (cell == first[key]) == (key[2] != "ascent")
    assert second["random", 0, "ascent"]["steps"] == 4


def test_cells_fail_and_refuse_alone(done):
    folder, _ = done
    methods = {"broken": {"method": "nabla_tau", "hinge": "cubic"}, "npo": None, "nabla_tau": {"max_steps": 6}}
    found = by_name(compare(config(methods=methods), folder, progress=False))
    for (_, _, model), cell in found.items():
        status = {"broken": "failed", "npo": "refused"}.get(model, "done")
        assert cell["status"] == status
    assert "hinge: unknown value 'cubic'" in found["random", 0, "broken"]["error"]
    assert "npo works on heads" in found["random", 0, "npo"]["error"]
    table = (folder / "table.md").read_text()
    assert "Refused: npo (method: npo works on heads" in table
    assert "broken: ValueError: hinge" in table


def test_a_process_that_dies_takes_only_its_cell(forking, tmp_path):
    settings = {"task": "comparing_task.py:Dying", "methods": {"nabla_tau": {"max_steps": 2}}, "retrained": 1}
    place = ComparisonFolder(config(**settings), tmp_path)
    for training in trainings(place.config):
        place.train(training)
    found = by_name(compare(place.config, tmp_path, workers=2, progress=False))
    for (_, seed, model), cell in found.items():
        dies = seed == 1 and model == "nabla_tau"
        assert cell["status"] == ("failed" if dies else "done")
        assert not dies or "the process died" in cell["error"]


def test_a_model_that_cannot_be_trained_stops_only_the_cells_that_need_it(tmp_path):
    settings = {"task": "comparing_task.py:Broken", "methods": {"nabla_tau": {"max_steps": 2}}, "retrained": 1}
    found = by_name(compare(config(**settings), tmp_path, progress=False))
    for (_, seed, model), cell in found.items():
        assert cell["status"] == ("failed" if seed == 1 else "done")
        assert (
            seed == 0
            or f"the {'original' if model == 'nabla_tau' else model} model could not be trained" in cell["error"]
        )


def test_cells_are_those_of_the_training_that_the_task_has_now(tmp_path, monkeypatch):
    place = ComparisonFolder(config(), tmp_path)
    cell = cells(place.config)[0]
    before = place.cell_file(cell)
    monkeypatch.setitem(place.config.task_class.training, "num_train_epochs", 7)
    assert place.cell_file(cell) != before


@pytest.mark.parametrize("task,name", [("Restless", "original"), ("RestlessShadow", "shadow")])
def test_models_of_other_rows_are_refused(tmp_path, task, name):
    settings = config(task=f"comparing_task.py:{task}", methods={"nabla_tau": {"max_steps": 2}}, retrained=1)
    place = ComparisonFolder(settings, tmp_path)
    training = next(each for each in trainings(settings) if each.name == name)
    place.train(training)
    _, clocks = place.load(training)
    assert set(clocks) == {"seconds", "processor_seconds"}
    with pytest.raises(RuntimeError, match=f"the {name} model of seed 0 was trained on other samples"):
        ComparisonFolder(settings, tmp_path).load(training)


def test_models_that_are_there_are_loaded(done, tmp_path):
    folder, report = done
    original, there = (str(next((folder / "models").glob(f"{name}-0-*"))) for name in ("original", "retrained"))
    requests = {"random": {"forget": "10%", "retrained": there}, "few": {"forget": "10%", "retain_samples": 8}}
    one = {"methods": {"ascent": METHODS["ascent"]}, "retrained": 1, "seeds": [0]}
    settings = config(**one, requests=requests, original=original)
    place = ComparisonFolder(settings, tmp_path)
    assert all(place.there(each) for each in trainings(settings))
    first, second = by_name(report), by_name(compare(settings, tmp_path, progress=False))
    for key, cell in second.items():
        if key[0] == "random":
            assert cell["weights"] == first[key]["weights"] and cell["metrics"] == first[key]["metrics"]
    for name, checkpoint in {"original": original, "retrained": there}.items():
        assert "processor_seconds" not in second["random", 0, name]
        assert second["random", 0, name]["checkpoint"] == second["few", 0, name]["checkpoint"] == checkpoint
    found = {line.model: line.values for line in lines({"requests": requests, "cells": list(second.values())})}
    assert "gap" in found["ascent"] and "time / retraining" not in found["ascent"]
    # With other models, or none that were there, all is measured again: in both requests.
    for others in ((original, None), (original, "elsewhere"), ("elsewhere", there), (None, there), (there, None)):
        requests["random"]["retrained"] = others[1]
        changed = ComparisonFolder(config(**one, requests=requests, original=others[0]), tmp_path)
        assert not any(changed.done(cell) for cell in cells(settings))
    requests["random"]["retrained"] = [there, "elsewhere"]  # another seed's is of no concern
    more = config(**one | {"seeds": [0, 1]}, requests=requests, original=[original, "elsewhere"])
    assert all(ComparisonFolder(more, tmp_path).done(cell) for cell in cells(settings))
    second = [each for each in trainings(more) if each.seed == 1]
    assert [ComparisonFolder(more, tmp_path).there(each) for each in second] == [["elsewhere"], ["elsewhere"]]


def test_a_retrained_model_that_does_not_load_is_told_before_the_work(tmp_path):
    requests = {"random": {"forget": "10%", "retrained": "nowhere"}}
    settings = {"methods": {"ascent": METHODS["ascent"]}, "retrained": 1, "seeds": [0], "requests": requests}
    place = ComparisonFolder(config(**settings), tmp_path)
    place.train(trainings(place.config)[0])
    found = by_name(compare(place.config, tmp_path, progress=False))
    assert found["random", 0, "ascent"]["status"] == "failed"
    assert (
        found["random", 0, "ascent"]["error"] == "RuntimeError: the retrained model could not be loaded from nowhere"
    )


def test_targets_may_come_from_shadow_models_and_few_retain_rows_suffice(tmp_path):
    settings = {"task": "comparing_task.py:Shadowed", "seeds": [0], "methods": {"nabla_tau": {}}, "retrained": 1}
    requests = {"all": {"forget": "10%"}, "few": {"forget": "10%", "retain_samples": 8}}
    found = by_name(compare(config(**settings, requests=requests, budget={"max_steps": 5}), tmp_path, progress=False))
    assert {cell["status"] for cell in found.values()} == {"done"}
    assert found["all", 0, "nabla_tau"]["steps"] == found["few", 0, "nabla_tau"]["steps"] == 5
    assert found["all", 0, "nabla_tau"]["weights"] != found["few", 0, "nabla_tau"]["weights"]
    assert found["all", 0, "retrained"]["weights"] == found["few", 0, "retrained"]["weights"]
    assert len(list((tmp_path / "models").iterdir())) == 3  # original, retrained, shadow


def test_a_budget_of_seconds_ends_a_run(done):
    folder, _ = done
    settings = {"methods": {"nabla_tau": {}}, "seeds": [0], "requests": {"random": {"forget": ["10%"]}}}
    found = by_name(compare(config(**settings, budget={"seconds": 0.05}), folder, progress=False))
    assert 0 < found["random", 0, "nabla_tau"]["steps"] < 100


def cell(model, seed, gap, forget, **more):
    metrics = {"forget_accuracy": forget, "retain_accuracy": 1.0, "unseen_accuracy": 0.9, "mia_accuracy": 0.5}
    metrics |= {"gap": gap, "forget_loss": 0.5 if model == "retrained" else 0.25}
    clocks = {"processor_seconds": 10.0 if model.startswith("retrained") else 4.0, "clock": "processor_seconds"}
    return {"request": "r", "seed": seed, "model": model, "status": "done", "metrics": metrics, **clocks, **more}


def test_the_table_is_worked_out_by_hand():
    cells = [cell("retrained", s, 0.0, 0.8) for s in (0, 1)]
    cells += [cell("a", 0, 1.0, 0.9), cell("a", 1, 3.0, 0.84), cell("b", 0, 2.0, 0.8), cell("b", 1, 2.0, 0.7)]
    report = {"name": "n", "requests": {"r": ["10%"] * 2}, "seeds": [0, 1], "cells": cells}
    found = {line.model: line for line in lines(report)}
    assert found["a"].values["gap"] == [1.0, 3.0]
    assert found["a"].forgetting == pytest.approx([5.0, 2.0])  # 10 and 4 points on forget samples, 0 by the attack
    assert found["a"].utility == [0, 0]
    assert found["a"].ranks == [1, 2] and found["b"].ranks == [2, 1]
    assert mean_ranks(list(found.values())) == {m: (1.5, pytest.approx(math.sqrt(0.5))) for m in ("a", "b")}
    sample = next(each for each in markdown_table(report).splitlines() if each.startswith("| r | a "))
    assert sample == (
        "| r | a | 87.00 ± 4.24 | 100.00 ± 0.00 | 90.00 ± 0.00 | 50.00 ± 0.00 | 2.00 ± 1.41 | 0.50 ± 0.00 | "
        "0.40 ± 0.00 |"
    )


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"method": ["x"]}, "knows no method"),
        ({"methods": ["nabla"]}, "method 'nabla' is none of"),
        ({"methods": {}}, "methods is missing"),
        ({"requests": {"one": {"forget": ["label=1"]}}}, "1 forget expressions for 2 seeds"),
        ({"requests": {"one": {"forget": "label=1", "retrained": ["x"]}}}, "one': retrained has 1 checkpoints for"),
        ({"original": ["x", "y", "z"]}, "original has 3 checkpoints for 2 seeds"),
        ({"original": 3}, "original names 3; give a checkpoint"),
        (
            {"requests": {"one": {"forget": "label=1", "retrained": [None, "x"]}}},
            "retrained names None; give a checkpoint",
        ),
        (
            {"requests": {n: {"forget": "5%", "retrained": n} for n in ("a", "b")}},
            "another one that forgets '5%' has 'a'",
        ),
        ({"requests": {"one": "label=1"}}, "is to be a mapping"),
        ({"requests": {"one": {"samples": 1}}}, "has forget"),
        ({"budget": {"epochs": 1}}, "budget is one of"),
        ({"seeds": [0, 0]}, "seeds are to be different"),
        ({"task": "nowhere.py:Small"}, "is not there"),
        ({"task": "comparing_task.py:Large"}, "does not define"),
    ],
)
def test_bad_configurations_are_refused(changes, said, tmp_path):
    with pytest.raises(ValueError, match=said) as error:
        compare(config(**changes), tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_configuration_is_refused(tmp_path):
    (tmp_path / "bad.yaml").write_text("requests: [")
    for name, said in (("bad.yaml", "is no YAML"), ("none.yaml", "there is no file")):
        with pytest.raises(ValueError, match=said):
            Comparison.from_yaml(tmp_path / name)


@pytest.mark.parametrize("path", sorted((HERE.parent / "benchmarks/recipes").glob("**/*.yaml")), ids=lambda p: p.stem)
def test_recipes_are_configurations(path):
    found = Comparison.from_yaml(path)
    assert found.task_class.__name__
    assert len(found.seeds) >= 1


def test_the_command(tmp_path, capsys):
    (tmp_path / "comparing_task.py").write_text((HERE / "comparing_task.py").read_text())
    settings = {"task": "comparing_task.py:Small", "seeds": [0], "retrained": 1, "budget": {"max_steps": 2}}
    methods = {"nabla_tau": {}, "npo": {}}
    found = {**settings, "requests": {"random": {"forget": "10%"}}, "methods": methods}
    (tmp_path / "tiny.yaml").write_text(json.dumps(found))
    assert main(["compare", str(tmp_path / "tiny.yaml"), "--output_dir", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "nabla_tau" in said.out and "npo" not in said.out
    # One bar: no other of models read or written in between, and those of others come back afterwards.
    assert "Comparing: 100%" in said.err and "weights" not in said.err and "shards" not in said.err
    assert is_progress_bar_enabled()
    assert json.loads((tmp_path / "out" / "results.json").read_text())["name"] == "tiny"
    assert main(["compare", str(tmp_path / "none.yaml")]) == 2
    assert main(["compare"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert "there is no file" in said[0] and "comes first" in said[1] and len(said) == 2
