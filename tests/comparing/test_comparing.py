"""`compare`: runs are done once, repeat bitwise, fail alone; tables show the results of the runs."""

import json
import math
import multiprocessing
import shutil
import statistics
from pathlib import Path

import pytest
import tiny_data
from datasets import Dataset
from forked import IMPORTED
from PIL import Image
from transformers.utils.logging import is_progress_bar_enabled

from hf_unlearn.cli import main
from hf_unlearn.comparing import Comparison, Task, compare
from hf_unlearn.comparing.folder import ComparisonFolder
from hf_unlearn.comparing.runs import measured_runs, training_runs
from hf_unlearn.comparing.task import NamedTask
from hf_unlearn.data.collator import readable_collator
from hf_unlearn.executors import local
from hf_unlearn.losses import head_of
from hf_unlearn.report.comparison import lines, markdown_table, mean_ranks

HERE = Path(__file__).parents[1]
METHODS = {
    "nabla_tau": {"max_steps": 6},
    "ascent": {"method": "grad_ascent", "max_steps": 3},
    "orthograd": {"max_steps": 3},
}


def config(**changes):
    settings = {
        "name": "small",
        "task": "comparing_task.py:Small",
        "requests": {"random": {"forget": ["10%", "20%"]}},
        "methods": METHODS,
        "seeds": [0, 1],
    }
    return Comparison.from_dict({**settings, **changes}, HERE)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    return folder, compare(config(), folder, progress=False)


@pytest.fixture
def forking(monkeypatch):
    """Workers that need not import everything again."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    monkeypatch.setattr(local, "CONTEXT", context)


def by_name(results):
    return {(run["request"], run["seed"], run["model"]): run for run in results["runs"]}


def test_every_run_is_measured_against_the_retrained_model_of_its_seed(done):
    folder, results = done
    runs = by_name(results)
    assert len(runs) == 2 * (3 + 3)
    assert {run["status"] for run in runs.values()} == {"done"}
    for (request, seed, model), run in runs.items():
        retrained = runs[request, seed, "retrained"]["metrics"]
        assert (run["metrics"]["gap"] == 0) == (model == "retrained")
        names = [f"{name}_accuracy" for name in ("forget", "retain", "unseen", "mia")]
        distances = [100 * abs(run["metrics"][name] - retrained[name]) for name in names]
        assert run["metrics"]["gap"] == pytest.approx(statistics.mean(distances))
    ascent = runs["random", 1, "ascent"]  # 240 retain samples, six epochs
    assert ascent["steps"] == 3 and ascent["cost_of_retraining"] == ascent["sample_passes"] / (3 * 6 * 240)
    assert "passes / retrained" in (folder / "table.md").read_text()
    assert [runs["random", seed, "nabla_tau"]["forget"] for seed in (0, 1)] == ["10%", "20%"]
    weights = {runs["random", 0, model]["weights"] for model in ("original", "retrained", "retrained 2", "nabla_tau")}
    assert len(weights) == 4
    assert json.loads((folder / "results.json").read_text()) == results
    with Image.open(folder / "picture.png") as picture:
        assert min(picture.size) > 300


def test_what_is_done_is_not_run_again(done, monkeypatch):
    folder, results = done
    monkeypatch.setattr("hf_unlearn.comparing.folder.ComparisonFolder.measure", pytest.fail)
    monkeypatch.setattr("hf_unlearn.comparing.folder.ComparisonFolder.train", pytest.fail)
    assert compare(config(), folder, progress=False) == results


def test_processes_and_repetition_change_no_bit(done, forking, tmp_path):
    again = config(seeds=[1], requests={"random": {"forget": "20%"}}, retrained=1)
    shutil.copytree(done[0] / "models", tmp_path / "models", ignore=shutil.ignore_patterns("retrained-1-*"))
    first, second = by_name(done[1]), by_name(compare(again, tmp_path, workers=2))
    assert len(second) == 5
    for key, run in second.items():
        assert run["weights"] == first[key]["weights"]
        assert run["metrics"] == first[key]["metrics"]


def test_a_run_whose_settings_changed_is_run_again_and_no_other(done):
    folder, results = done
    changed = config(methods={**METHODS, "ascent": {"method": "grad_ascent", "max_steps": 4}})
    first, second = by_name(results), by_name(compare(changed, folder, progress=False))
    for key, run in second.items():
        assert (run == first[key]) == (key[2] != "ascent")
    assert second["random", 0, "ascent"]["steps"] == 4


def test_runs_fail_and_are_refused_alone(done):
    folder, _ = done
    methods = {"broken": {"method": "nabla_tau", "hinge": "cubic"}, "npo": None, "nabla_tau": {"max_steps": 6}}
    runs = by_name(compare(config(methods=methods), folder, progress=False))
    for (_, _, model), run in runs.items():
        assert run["status"] == {"broken": "failed", "npo": "refused"}.get(model, "done")
    assert "hinge: unknown value 'cubic'" in runs["random", 0, "broken"]["error"]
    assert "npo works on heads" in runs["random", 0, "npo"]["error"]
    table = (folder / "table.md").read_text()
    assert "Refused: npo (method: npo works on heads" in table
    assert "broken: ValueError: hinge" in table


def test_a_process_that_dies_fails_only_its_run(forking, tmp_path):
    settings = {"task": "comparing_task.py:Dying", "methods": {"nabla_tau": {"max_steps": 2}}, "retrained": 1}
    folder = ComparisonFolder(config(**settings), tmp_path)
    for run in training_runs(folder.config):
        folder.train(run)
    runs = by_name(compare(folder.config, tmp_path, workers=2, progress=False))
    for (_, seed, model), run in runs.items():
        dies = seed == 1 and model == "nabla_tau"
        assert run["status"] == ("failed" if dies else "done")
        assert not dies or "the process died" in run["error"]


def test_a_model_that_cannot_be_trained_fails_only_the_runs_that_need_it(tmp_path):
    settings = {"task": "comparing_task.py:Broken", "methods": {"nabla_tau": {"max_steps": 2}}, "retrained": 1}
    runs = by_name(compare(config(**settings), tmp_path, progress=False))
    for (_, seed, model), run in runs.items():
        assert run["status"] == ("failed" if seed == 1 else "done")
        missing = "original" if model == "nabla_tau" else model
        assert seed == 0 or f"the {missing} model could not be trained" in run["error"]


def test_results_are_those_of_the_training_settings_that_the_task_has_now(tmp_path, monkeypatch):
    folder = ComparisonFolder(config(), tmp_path)
    run = measured_runs(folder.config)[0]
    before = folder.result_file(run)
    monkeypatch.setitem(folder.task_class.training, "num_train_epochs", 7)
    assert folder.result_file(run) != before


@pytest.mark.parametrize("task,name", [("Restless", "original"), ("RestlessShadow", "shadow")])
def test_models_trained_on_other_samples_are_refused(tmp_path, task, name):
    settings = config(task=f"comparing_task.py:{task}", methods={"nabla_tau": {"max_steps": 2}}, retrained=1)
    folder = ComparisonFolder(settings, tmp_path)
    run = next(run for run in training_runs(settings) if run.name == name)
    folder.train(run)
    _, durations = folder.load_trained_model(run)
    assert set(durations) == {"seconds", "processor_seconds"}
    with pytest.raises(RuntimeError, match=f"the {name} model of seed 0 was trained on other samples"):
        ComparisonFolder(settings, tmp_path).load_trained_model(run)


def test_given_checkpoints_are_loaded(done, tmp_path):
    folder, results = done
    original, retrained = (str(next((folder / "models").glob(f"{name}-0-*"))) for name in ("original", "retrained"))
    requests = {"random": {"forget": "10%", "retrained": retrained}, "few": {"forget": "10%", "retain_samples": 8}}
    one = {"methods": {"ascent": METHODS["ascent"]}, "retrained": 1, "seeds": [0]}
    settings = config(**one, requests=requests, original=original)
    given = ComparisonFolder(settings, tmp_path)
    assert all(given.given_checkpoint(run) for run in training_runs(settings))
    first, second = by_name(results), by_name(compare(settings, tmp_path, progress=False))
    for key, run in second.items():
        if key[0] == "random":
            assert run["weights"] == first[key]["weights"] and run["metrics"] == first[key]["metrics"]
    for name, checkpoint in {"original": original, "retrained": retrained}.items():
        assert "processor_seconds" not in second["random", 0, name]
        assert second["random", 0, name]["checkpoint"] == second["few", 0, name]["checkpoint"] == checkpoint
    values = {line.model: line.values for line in lines({"requests": requests, "runs": list(second.values())})}
    assert "gap" in values["ascent"] and "time / retraining" not in values["ascent"]


def test_runs_are_measured_again_in_all_requests_when_given_checkpoints_change(done, tmp_path):
    folder, _ = done
    original, retrained = (str(next((folder / "models").glob(f"{name}-0-*"))) for name in ("original", "retrained"))
    requests = {"random": {"forget": "10%", "retrained": retrained}, "few": {"forget": "10%", "retain_samples": 8}}
    one = {"methods": {"ascent": METHODS["ascent"]}, "retrained": 1, "seeds": [0]}
    settings = config(**one, requests=requests, original=original)
    for run in measured_runs(settings):
        ComparisonFolder(settings, tmp_path).write_result(run, {"status": "done"})
    changes = (
        (original, None), (original, "elsewhere"), ("elsewhere", retrained), (None, retrained), (retrained, None),
    )  # fmt: skip
    for other_original, other_retrained in changes:
        requests["random"]["retrained"] = other_retrained
        changed = ComparisonFolder(config(**one, requests=requests, original=other_original), tmp_path)
        assert not any(changed.is_done(run) for run in measured_runs(settings))
    requests["random"]["retrained"] = [retrained, "elsewhere"]  # that of another seed does not matter
    two_seeds = config(**one | {"seeds": [0, 1]}, requests=requests, original=[original, "elsewhere"])
    extended = ComparisonFolder(two_seeds, tmp_path)
    assert all(extended.is_done(run) for run in measured_runs(settings))
    checkpoints = [extended.given_checkpoint(run) for run in training_runs(two_seeds) if run.seed == 1]
    assert checkpoints == ["elsewhere", "elsewhere"]


def test_a_retrained_model_that_does_not_load_fails_before_the_work(tmp_path):
    requests = {"random": {"forget": "10%", "retrained": "nowhere"}}
    settings = {"methods": {"ascent": METHODS["ascent"]}, "retrained": 1, "seeds": [0], "requests": requests}
    folder = ComparisonFolder(config(**settings), tmp_path)
    folder.train(training_runs(folder.config)[0])
    run = by_name(compare(folder.config, tmp_path, progress=False))["random", 0, "ascent"]
    assert run["status"] == "failed"
    assert run["error"] == "RuntimeError: the retrained model could not be loaded from nowhere"


def test_targets_may_come_from_shadow_models_and_few_retain_samples_suffice(tmp_path):
    settings = {"task": "comparing_task.py:Shadowed", "seeds": [0], "methods": {"nabla_tau": {}}, "retrained": 1}
    requests = {"all": {"forget": "10%"}, "few": {"forget": "10%", "retain_samples": 8}}
    runs = by_name(compare(config(**settings, requests=requests, budget={"max_steps": 5}), tmp_path, progress=False))
    assert {run["status"] for run in runs.values()} == {"done"}
    assert runs["all", 0, "nabla_tau"]["steps"] == runs["few", 0, "nabla_tau"]["steps"] == 5
    assert runs["all", 0, "nabla_tau"]["weights"] != runs["few", 0, "nabla_tau"]["weights"]
    assert runs["all", 0, "retrained"]["weights"] == runs["few", 0, "retrained"]["weights"]
    assert len(list((tmp_path / "models").iterdir())) == 3  # original, retrained, shadow


def test_a_budget_of_seconds_ends_a_run(done):
    folder, _ = done
    settings = {"methods": {"nabla_tau": {}}, "seeds": [0], "requests": {"random": {"forget": ["10%"]}}}
    runs = by_name(compare(config(**settings, budget={"seconds": 0.05}), folder, progress=False))
    assert 0 < runs["random", 0, "nabla_tau"]["steps"] < 100


def result(model, seed, gap, forget):
    metrics = {"forget_accuracy": forget, "retain_accuracy": 1.0, "unseen_accuracy": 0.9, "mia_accuracy": 0.5}
    metrics |= {"gap": gap, "forget_loss": 0.5 if model == "retrained" else 0.25}
    clocks = {"processor_seconds": 10.0 if model.startswith("retrained") else 4.0, "clock": "processor_seconds"}
    cost = {} if model.startswith("retrained") else {"cost_of_retraining": 0.08}
    return {"request": "r", "seed": seed, "model": model, "status": "done", "metrics": metrics, **clocks, **cost}


def test_the_table_is_worked_out_by_hand():
    runs = [result("retrained", seed, 0.0, 0.8) for seed in (0, 1)]
    runs += [result("a", 0, 1.0, 0.9), result("a", 1, 3.0, 0.84), result("b", 0, 2.0, 0.8), result("b", 1, 2.0, 0.7)]
    results = {"name": "n", "requests": {"r": ["10%"] * 2}, "seeds": [0, 1], "runs": runs}
    table = {line.model: line for line in lines(results)}
    assert table["a"].values["gap"] == [1.0, 3.0]
    assert table["a"].forgetting == pytest.approx([5.0, 2.0])  # 10 and 4 points on forget samples, 0 by the attack
    assert table["a"].utility == [0, 0]
    assert table["a"].ranks == [1, 2] and table["b"].ranks == [2, 1]
    assert mean_ranks(list(table.values())) == {m: (1.5, pytest.approx(math.sqrt(0.5))) for m in ("a", "b")}
    row = next(row for row in markdown_table(results).splitlines() if row.startswith("| r | a "))
    assert row == (
        "| r | a | 87.00 ± 4.24 | 100.00 ± 0.00 | 90.00 ± 0.00 | 50.00 ± 0.00 | 2.00 ± 1.41 | 0.50 ± 0.00 | "
        "0.40 ± 0.00 | 0.08 ± 0.00 |"
    )
    runs[2]["metrics"]["depth"] = 4.5
    heading, _, *rows = markdown_table(results).splitlines()
    assert heading.split(" | ")[6:8] == ["gap", "depth"] and "| 2.00 ± 1.41 | 4.50 | " in rows[1]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"method": ["x"]}, "unknown key method"),
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
        ({"requests": {"one": "label=1"}}, "must be a mapping"),
        ({"requests": {"one": {"samples": 1}}}, "needs forget"),
        ({"budget": {"epochs": 1}}, "budget must be one of"),
        ({"seeds": [0, 0]}, "seeds must be different"),
        ({"task": "nowhere.py:Small"}, "does not exist"),
        ({"task": "comparing_task.py:Large"}, "does not define"),
    ],
)
def test_bad_configurations_are_refused(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        compare(config(**changes), tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_configuration_is_refused(tmp_path):
    (tmp_path / "bad.yaml").write_text("requests: [")
    for name, message in (("bad.yaml", "is not valid YAML"), ("none.yaml", "there is no file")):
        with pytest.raises(ValueError, match=message):
            Comparison.from_yaml(tmp_path / name)


@pytest.mark.parametrize("path", sorted((HERE.parent / "benchmarks/recipes").glob("**/*.yaml")), ids=lambda p: p.stem)
def test_recipes_are_configurations(path):
    comparison = Comparison.from_yaml(path)
    assert issubclass(comparison.load_task_class(), Task)
    assert len(comparison.seeds) >= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"requests": {"good": {"forget": "10%"}, "bad": {"forget": "label=99"}}},
            "request 'bad': forget: there is no ",
        ),
        (
            {"task": "comparing_task.py:Overlapping"},
            "request 'random': the unseen dataset and the forget dataset share ",
        ),
        ({"options": {"samples": 0}}, "request 'random': "),
    ],
)
def test_a_fault_that_all_runs_share_is_reported_once_and_before_work(changes, message, tmp_path, capsys):
    (tmp_path / "comparing_task.py").write_text((HERE / "comparing_task.py").read_text())
    settings = {"task": "comparing_task.py:Small", "requests": {"random": {"forget": "10%"}}, "methods": METHODS}
    (tmp_path / "bad.yaml").write_text(json.dumps(settings | changes))
    for workers in ("1", "2"):
        command = ["compare", str(tmp_path / "bad.yaml"), "--output_dir", str(tmp_path / "out"), "--workers", workers]
        assert main(command) == 2
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == 1 and message in errors[0]
    assert not (tmp_path / "out").exists()


FRESH = {
    "texts": (["b", "a", "c", "b"], {0: "a", 1: "b", 2: "c"}, [1, 0, 2, 1]),
    "numbers": ([3, 0, 1, 3], {i: f"LABEL_{i}" for i in range(4)}, [3, 0, 1, 3]),
    "truth": ([True, False, True, True], {0: "LABEL_0", 1: "LABEL_1"}, [1, 0, 1, 1]),
    "floats": ([0.5, 1.5, 2.5, 0.5], {0: "LABEL_0"}, [0.5, 1.5, 2.5, 0.5]),
    "lists of texts": ([["b"], ["a", "b"], [], ["b"]], {0: "a", 1: "b"}, [[0, 1], [1, 1], [0, 0], [0, 1]]),
    "lists of numbers": ([[1], [0, 1], [], [1]], {0: "LABEL_0", 1: "LABEL_1"}, [[0, 1], [1, 1], [0, 0], [0, 1]]),
}


@pytest.mark.parametrize("kind", FRESH)
def test_a_fresh_head_has_the_classes_of_the_labels(kind, tmp_path, cache):
    labels, names, expected = FRESH[kind]
    model, tokenizer = tiny_data.text_classification()
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    samples = Dataset.from_dict({"text": ["who", "one", "two", "ann"], "label": labels})
    for split in ("train", "test"):
        (tmp_path / "data").mkdir(exist_ok=True)
        samples.to_parquet(tmp_path / "data" / f"{split}.parquet")
    options = {"base": str(tmp_path / "base"), "dataset": str(tmp_path / "data"), "unseen": "test"}
    task = NamedTask(0, head="AutoModelForSequenceClassification", **options)
    built = task.build(0)
    assert built.config.id2label == names and built.classifier.out_features == len(names)
    assert task.datasets["train"].with_format(None)["label"][:] == expected
    samples = [dict(sample) for sample in task.datasets["train"]]
    batch = readable_collator(built, tokenizer)(samples)
    head = head_of(built)
    assert head.losses(built(**head.inputs(batch)), batch).isfinite().all()


def test_the_command(tmp_path, capsys):
    (tmp_path / "comparing_task.py").write_text((HERE / "comparing_task.py").read_text())
    settings = {"task": "comparing_task.py:Small", "seeds": [0], "retrained": 1, "budget": {"max_steps": 2}}
    methods = {"nabla_tau": {}, "npo": {}}
    settings |= {"requests": {"random": {"forget": "10%"}}, "methods": methods}
    (tmp_path / "tiny.yaml").write_text(json.dumps(settings))
    assert main(["compare", str(tmp_path / "tiny.yaml"), "--output_dir", str(tmp_path / "out")]) == 0
    output = capsys.readouterr()
    assert "nabla_tau" in output.out and "npo" not in output.out
    # One bar: none of models that are loaded or saved; those of transformers are enabled again at the end.
    assert "Comparing: 100%" in output.err and "weights" not in output.err and "shards" not in output.err
    assert is_progress_bar_enabled()
    assert json.loads((tmp_path / "out" / "results.json").read_text())["name"] == "tiny"
    assert main(["compare", str(tmp_path / "none.yaml")]) == 2
    assert main(["compare"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "there is no file" in errors[0] and "is missing; give the file" in errors[1] and len(errors) == 2
