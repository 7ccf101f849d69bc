"""Two kills of `benchmarks/kills.py`, which has fifty: while a checkpoint, and while a release, is written."""

import gc
import multiprocessing
import os
import signal
import socket
import sys
from pathlib import Path

import pytest
import torch
from forked import IMPORTED

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import kills


def _run(name, folder, rank, environment):
    os.environ |= environment
    gc.freeze()
    torch.set_num_threads(1)
    sys.stdout = open(f"{folder}-{rank}.log", "w", buffering=1)  # noqa: SIM115
    kills.run(name, folder)


class Process:
    """A process as `subprocess` has them, forked from one that has imported everything."""

    def __init__(self, *arguments):
        self.process = multiprocessing.get_context("forkserver").Process(target=_run, args=arguments)
        self.process.start()

    def poll(self):
        return self.process.exitcode

    def wait(self, timeout=60):
        self.process.join(timeout)
        return self.process.exitcode

    def send_signal(self, number):
        assert number == signal.SIGKILL
        self.process.kill()

    def kill(self):
        self.process.kill()


def start(case, folder):
    multiprocessing.set_forkserver_preload(IMPORTED)
    name, processes = case.rsplit("-", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(int(processes)):
        Path(f"{folder}-{rank}.log").write_text("")
        environment = {} if processes == "1" else {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
        }  # fmt: skip
        started.append(Process(name, str(folder), rank, environment))
    return started


@pytest.mark.parametrize(("case", "number"), [("nabla_tau-2", 0), ("orthograd_lora-1", 2)])
def test_a_killed_run_ends_bitwise_where_it_would_have_ended(tmp_path, monkeypatch, case, number):
    monkeypatch.setattr(kills, "start", start)
    whole = tmp_path / "whole"
    whole.mkdir()
    seconds = kills.left_alone(case, whole)
    result = kills.try_kill(case, number, whole, tmp_path, seconds)
    assert result["bitwise"] and len(result["compared"]) >= 6, result
    expected = 8 if result["moment"] == "release" else max(
        [int(name.removeprefix("checkpoint-")) for name in result["left"]["complete"]], default=0
    )  # fmt: skip
    assert result["resumed_from_step"] == expected
