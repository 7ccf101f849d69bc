"""Loss methods under DeepSpeed's ZeRO, where DeepSpeed is installed: `DS_ACCELERATOR=cpu` takes no GPU.

One process; two are in test_launch.py.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("deepspeed")


def run(folder, stage):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"]
    command += [str(Path(__file__).with_name("run_deepspeed.py")), str(folder), str(stage)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / f"{stage}.pt", weights_only=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return run(tmp_path_factory.mktemp("plain"), 0)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_changes_neither_the_run_nor_what_is_saved(tmp_path, plain, stage):
    for case, state in run(tmp_path, stage).items():
        assert state.keys() == plain[case].keys(), case  # a merged model: no tensor of an adapter
        for name, tensor in plain[case].items():
            torch.testing.assert_close(state[name], tensor, rtol=1e-4, atol=1e-6, msg=f"{case}: {name}")
