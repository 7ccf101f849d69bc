"""Executors do independent jobs, each alone in its failure and its process; a Ray cluster does what processes do."""

import contextlib
import importlib.util
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tiny
import torch
from forked import IMPORTED
from jobs import Work, build
from transformers import TrainingArguments

from hf_unlearn.auditing.shadows import train_shadows
from hf_unlearn.comparing import Comparison, compare
from hf_unlearn.comparing.folder import ComparisonFolder
from hf_unlearn.comparing.runs import measured_runs
from hf_unlearn.executors import EXECUTORS, JobError, local, make_executor
from hf_unlearn.executors.local import threads_of_worker

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
BOTH = ["local", pytest.param("ray", marks=needs_ray)]


@pytest.fixture(scope="module")
def ray_cluster():
    """Two machines of one processor each, which are processes of this one."""
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its default warns
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (Path(__file__).parents[2], Path(__file__).parents[1]))))
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.add_node(num_cpus=1)
        ray.init(cluster.address, logging_level="WARNING", log_to_driver=False)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(params=BOTH)
def executor(request, monkeypatch):
    """Two workers."""
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    else:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(IMPORTED)
        monkeypatch.setattr(local, "CONTEXT", context)
    return make_executor(request.param, workers=2)


def named(*names):
    return {name: name for name in names}


def left(folder, name):
    return (folder / name).read_text().split("\n")


def test_jobs_run_at_once_in_processes_that_keep_what_they_have(executor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs = named("meets 1", "meets 2", *(f"job {i}" for i in range(6)))
    assert executor.run(Work(tmp_path), {"Working": jobs, "Ending": named("last")}) == []
    assert (tmp_path / "last").stat().st_mtime_ns > max((tmp_path / name).stat().st_mtime_ns for name in jobs)
    jobs |= named("last")
    processes, threads, done, folders = zip(*(left(tmp_path, name) for name in jobs), strict=True)
    assert len(set(processes)) == 2 and str(os.getpid()) not in processes
    assert set(threads) == {"1"} and set(folders) == {str(tmp_path)}
    for process in set(processes):
        numbers = sorted(int(n) for p, n in zip(processes, done, strict=True) if p == process)
        assert numbers == list(range(1, len(numbers) + 1))


def test_an_error_names_its_job_and_ends_the_others(executor, tmp_path):
    jobs = named("endless", "raises", "waiting")
    with pytest.raises(JobError, match=r"^raises: ValueError: there is no data$") as error:
        executor.run(Work(tmp_path), {"Working": jobs})
    assert isinstance(error.value.__cause__, ValueError)
    assert not (tmp_path / "waiting").exists()
    wait_for_the_end_of(int(left(tmp_path, "endless")[0]))


def wait_for_the_end_of(process, seconds=20):
    until = time.monotonic() + seconds
    with contextlib.suppress(ProcessLookupError):
        while os.kill(process, 0) is None:
            assert time.monotonic() < until, "the job goes on"
            time.sleep(0.02)


def test_a_job_whose_process_dies_runs_once_more_and_stops_no_other(executor, tmp_path):
    jobs = named("dies", "stumbles", "job 1", "job 2", "job 3")
    assert executor.run(Work(tmp_path), {"Working": jobs}) == ["dies"]
    for name in set(jobs) - {"dies"}:
        assert left(tmp_path, name)[1] == "1"


def test_work_that_cannot_be_sent_to_another_process_is_refused(executor, tmp_path):
    work = Work(tmp_path)
    work.lock = threading.Lock()
    with pytest.raises(TypeError, match=r"^executor: the work cannot be sent to another process \(cannot pickle"):
        executor.run(work, {"Working": named("job")})


HERE = Path(__file__).parents[1]
SETTINGS = {
    "name": "small", "task": f"{HERE / 'comparing_task.py'}:Small", "requests": {"random": {"forget": "10%"}},
    "methods": {"ascent": {"method": "grad_ascent", "max_steps": 3}}, "seeds": [0], "retrained": 1,
}  # fmt: skip


def bits(results):
    return [(run["model"], run["weights"], run["metrics"]) for run in results["runs"]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A comparison in this process."""
    return bits(compare(Comparison.from_dict(SETTINGS), tmp_path_factory.mktemp("alone"), progress=False))


@needs_ray
def test_a_comparison_on_a_cluster_has_the_same_bits(ray_cluster, alone, tmp_path):
    results = compare(Comparison.from_dict(SETTINGS), tmp_path, workers=2, executor="ray", progress=False)
    assert len(alone) == 3 and bits(results) == alone


@pytest.mark.parametrize("name", ["local", pytest.param("ray", marks=[needs_ray, pytest.mark.slow])])
def test_a_killed_comparison_goes_on_with_the_same_bits(name, alone, tmp_path, request):
    environment = dict(os.environ)
    if name == "ray":
        environment["RAY_ADDRESS"] = request.getfixturevalue("ray_cluster").address
    (tmp_path / "small.yaml").write_text(json.dumps(SETTINGS))
    command = [sys.executable, "-m", "hf_unlearn.cli", "compare", "small.yaml", "--output_dir=out"]
    command += ["--workers=2", f"--executor={name}"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as run:
        while not list(tmp_path.glob("out/models/*-0-*")) and run.poll() is None:
            time.sleep(0.005)
        run.kill()
        errors = run.communicate(timeout=60)[1]  # waits for all that can write there: workers of this machine, too
    assert run.returncode == -signal.SIGKILL, errors
    config = Comparison.from_yaml(tmp_path / "small.yaml")
    assert not all(map(ComparisonFolder(config, tmp_path / "out").is_done, measured_runs(config)))
    results = compare(config, tmp_path / "out", progress=False)
    assert bits(results) == alone
    assert not [path for part in ("models", "runs") for path in (tmp_path / "out" / part).rglob(".*")]


def test_shadow_models_have_the_same_bits(executor, tmp_path):
    samples = [{k: torch.as_tensor(v) for k, v in sample.items()} for sample in tiny.samples(tiny.images(8, 1))]
    args = TrainingArguments(num_train_epochs=1, per_device_train_batch_size=4, use_cpu=True, report_to="none",
                             disable_tqdm=True)  # fmt: skip
    name = next(name for name, cls in EXECUTORS.items() if type(executor) is cls)
    shadows = [
        train_shadows(build, samples[:4], samples[4:6], samples[6:], tmp_path / folder, args, count=2, **settings)
        for folder, settings in {"alone": {}, name: {"workers": 2, "executor": name}}.items()
    ]
    for one, other in zip(*(models.folders for models in shadows), strict=True):
        assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert len(shadows[1]) == 2 and sorted(os.listdir(tmp_path / name)) == sorted(os.listdir(tmp_path / "alone"))


@needs_ray
def test_both_machines_of_a_cluster_have_jobs(ray_cluster, tmp_path):
    import ray

    def note_machine(name):
        Work(tmp_path)(name)
        (tmp_path / f"machine of {name}").write_text(ray.get_runtime_context().get_node_id())

    make_executor("ray", workers=2).run(note_machine, {"Working": named("meets 1", "meets 2")})
    machines = {path.read_text() for path in tmp_path.glob("machine*")}
    assert machines == {node["NodeID"] for node in ray.nodes()} and len(machines) == 2


def test_one_worker_is_this_process(tmp_path):
    assert make_executor("local").run(Work(tmp_path), {"Working": named("job 1", "job 2")}) == []
    assert [left(tmp_path, f"job {i}")[::2] for i in (1, 2)] == [[str(os.getpid()), str(i)] for i in (1, 2)]


@pytest.mark.parametrize("name", EXECUTORS)
def test_no_jobs_start_nothing(name, tmp_path, capfd):
    if name == "ray" and importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed")
    assert make_executor(name, workers=2).run(Work(tmp_path), {"Nothing": {}}) == []
    assert capfd.readouterr() == ("", "")


def test_threads_are_shared_out_unless_the_environment_says_how_many(monkeypatch):
    monkeypatch.setattr(local.torch, "get_num_threads", lambda: 8)
    assert threads_of_worker(2) == threads_of_worker(100) == 8
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads_of_worker(2) == 4 and threads_of_worker(100) == 1


def test_executors_that_are_not_there_are_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"^executor: there is no 'rai'; use one of local, ray \(did you mean 'ray'"):
        make_executor("rai")
    with pytest.raises(ValueError, match=r"^workers: must be at least 1, got 0$"):
        make_executor("local", workers=0)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^executor: ray is not installed; pip install 'hf-unlearn\[ray\]', or use"):
        make_executor("ray")
