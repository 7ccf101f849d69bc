"""`accelerate launch` with the configurations of the examples: weights, evaluations and audits of one process."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import launch
from accelerate import Accelerator
from tiny import make

from hf_unlearn import UnlearningArguments
from hf_unlearn.auditing.shadows import train_shadows
from hf_unlearn.cli import main
from hf_unlearn.cli.launched import ENGINE, PROCESS, workers_of_launcher
from hf_unlearn.methods import METHODS, RunInfo
from hf_unlearn.trainer.processes import check_launched, check_processes

ROOT = launch.ROOT
CASES = {
    "ddp-2": ["vit-nabla_tau-all-float64", "llama-orthograd-all-float64"],
    "fsdp2-2": ["vit-nabla_tau-all-float64", "vit-orthograd-all-float64"],
    "zero2-2": ["vit-nabla_tau-all-float32", "vit-orthograd-lora-float32"],
    "zero3-2": ["vit-nabla_tau-all-float32", "vit-nabla_tau-all-float64"],
}
REFUSED = {
    ("fsdp2-2", "vit-orthograd-all-float64"): "method: orthograd .* under FSDP2 for vit.embeddings.cls_token",
    ("zero2-2", "vit-orthograd-lora-float32"): "deepspeed: orthograd writes the gradients itself",
    ("zero3-2", "vit-nabla_tau-all-float64"): "deepspeed: trains in float32 at most",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("launch")


@pytest.mark.parametrize(
    "engine",
    [
        "ddp-2",
        "fsdp2-2",
        pytest.param("zero2-2", marks=pytest.mark.slow),
        pytest.param("zero3-2", marks=pytest.mark.slow),
    ],
)
def test_several_processes_end_as_one(engine, folder):
    if engine.startswith("zero"):
        pytest.importorskip("deepspeed")
    results = launch.run_engines([engine], CASES[engine], folder, timeout=500)[engine]
    for case, result in results.items():
        if message := REFUSED.get((engine, case)):
            assert result["status"] == "refused" and re.search(message, result["message"]), result
        else:
            assert result["status"] == "same", result
            assert result["moved"] > 1e-3


def test_results_are_kept_of_every_engine():
    kept = json.loads(launch.RESULTS.read_text())
    assert kept.keys() == launch.ENGINES.keys()
    assert all({*of_engine} == {*launch.CASES} for of_engine in kept.values())
    assert {result["status"] for of_engine in kept.values() for result in of_engine.values()} == {"same", "refused"}
    assert not [case for case, result in kept["ddp-4"].items() if result["status"] != "same"]


def test_processes_that_do_not_know_of_each_other_are_refused(monkeypatch):
    check_launched(1)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_launched(2)
    with pytest.raises(ValueError, match="processes: 2 were started, and each knows of 1 alone; on CPUs give use_cpu"):
        check_launched(1)
    with pytest.raises(ValueError, match="train_shadows: is called by 2 processes that were started together"):
        train_shadows(None, [], [], [], "", None)


def test_the_first_of_started_processes_has_them_as_workers(monkeypatch):
    for name in (*PROCESS, *ENGINE):
        monkeypatch.delenv(name, raising=False)
    assert workers_of_launcher() == 1
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "3", "ACCELERATE_USE_FSDP": "true"}.items():
        monkeypatch.setenv(name, value)
    assert workers_of_launcher() == 0
    monkeypatch.setenv("RANK", "0")
    assert workers_of_launcher() == 3
    assert not {*PROCESS, *ENGINE} & os.environ.keys()


@pytest.mark.slow
def test_a_comparison_has_the_numbers_of_one_process(tmp_path):
    config = {
        "name": "small", "task": f"{ROOT}/tests/comparing_task.py:Small", "seeds": [0],
        "requests": {"random": {"forget": ["20%"]}}, "methods": {"nabla_tau": {"max_steps": 4}},
    }  # fmt: skip
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(config))
    assert main(["compare", str(file), f"--output_dir={tmp_path / 'one'}"]) == 0
    command = [sys.executable, "-m", "accelerate.commands.launch", f"--config_file={launch.CONFIGS / 'ddp.yaml'}"]
    command += ["-m", "hf_unlearn.cli", "compare", str(file), f"--output_dir={tmp_path / 'two'}"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Table, picture and results") == 1
    one, two = (json.loads((tmp_path / name / "results.json").read_text())["runs"] for name in ("one", "two"))
    assert [run["metrics"] for run in two] == [run["metrics"] for run in one] and len(one) > 2


@pytest.mark.parametrize(
    ("method", "settings", "goes_back", "message"),
    [
        ("nabla_tau", {}, True, "reset: is not supported for weights spread over processes"),
        ("orthograd", {"projection": "update"}, False, 'projection: "update" is not supported for weights spread'),
        ("salun", {}, False, "method: salun changes the weights itself"),
    ],
)
def test_what_spread_weights_do_not_allow_is_refused(tmp_path, method, settings, goes_back, message):
    args = UnlearningArguments(str(tmp_path), method=method, use_cpu=True, **settings)
    made, accelerator = METHODS[method](args, RunInfo(4, 8)), Accelerator(cpu=True)
    model, _ = make("vit")
    with pytest.raises(ValueError, match=message):
        check_processes(accelerator, model, made, sharded=True, adds_adapter=False, goes_back=goes_back)
    if method != "salun":
        check_processes(accelerator, model, made, sharded=False, adds_adapter=False, goes_back=goes_back)
