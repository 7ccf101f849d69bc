"""`benchmarks/continual.py`: requests in turn, a row after each, and a verdict beside two retrained models."""

import json
import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import continual

TASK = Path(__file__).parents[1] / "comparing_task.py"


def test_requests_in_turn(tmp_path, monkeypatch, capsys):
    config = {
        "task": f"{TASK}:Small", "seeds": [0], "budget": {"max_steps": 2},
        "requests": {"a tenth": {"forget": "10%"}, "threes": {"forget": "label=3"}, "another": {"forget": "10%"}},
        "methods": {"nabla_tau": {}, "orthograd": {}},
    }  # fmt: skip
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    argv = ["continual.py", str(tmp_path / "small.yaml"), "--output_dir", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", argv)
    continual.main()
    runs = json.loads((tmp_path / "out" / "results.json").read_text())["runs"]
    assert sorted(run["model"] for run in runs) == ["nabla_tau", "orthograd", "retrained", "retrained"]
    rows = {run["model"]: run["rows"] for run in runs if "rows" in run}["orthograd"]
    assert [sorted(row["accuracy"]) for row in rows] == [
        ["forget 1", "retain", "test"], ["forget 1", "forget 2", "retain", "test"],
        ["forget 1", "forget 2", "forget 3", "retain", "test"],
    ]  # fmt: skip
    # Of 300 samples a tenth, the threes that are left, and a tenth of the rest.
    first, threes, last = (row["samples"] for row in rows)
    assert first == 30 and last == round((270 - threes) / 10) and all(row["steps"] == 2 for row in rows)
    table = (tmp_path / "out" / "table.md").read_text()
    assert table in capsys.readouterr().out and "### nabla_tau, seed 0" in table and "| orthograd | 0 |" in table
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/runs/*")}
    continual.main()  # nothing is run again
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/runs/*")} == written


def test_what_two_retrained_models_differ_by_is_allowed():
    config = continual.Comparison.from_dict(
        {"name": "x", "requests": {"a": {"forget": "1%"}, "b": {"forget": "1%"}}, "methods": ["npo"], "seeds": [0]}
    )
    accuracy = [{"forget 1": 50.0, "forget 2": 60.0, "retain": 90.0, "test": 80.0}]
    accuracy += [{**accuracy[0], "forget 2": 65.0}]

    def met(**last):
        runs = [{"model": "retrained", "seed": 0, "accuracy": each} for each in accuracy]
        rows = [{"accuracy": {**accuracy[0], **last}}]
        return continual.summary(config, [*runs, {"model": "m", "seed": 0, "rows": rows}]).splitlines()[-1]

    assert met(**{"forget 1": 55.0}) == "| m | 0 | 5.0 | 5.0 | 0.0 | 0.0 | 0.0 | yes | - | - |"
    assert "| no |" in met(**{"forget 1": 55.5}) and "| yes |" in met(retain=92.0) and "| no |" in met(retain=92.5)
