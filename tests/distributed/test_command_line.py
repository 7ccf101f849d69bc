"""`accelerate launch -m hf_unlearn.cli run` on two real processes (gloo): the model of one process, said once."""

import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import tiny_data

from hf_unlearn.cli import main
from hf_unlearn.models.loading import load_model

# Without a GPU, accelerate starts processes by torchrun if it is told of several GPUs, and by MPI otherwise.
LAUNCH = (
    "--multi_gpu --num_processes=2 --num_machines=1 --mixed_precision=no --dynamo_backend=no --main_process_port=0"
)


def test_two_processes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache" / "one")
    build, samples = tiny_data.HUB["vit"]
    model, processor = build()
    model.save_pretrained("base")
    processor.save_pretrained("base")
    samples(24, np.random.default_rng(0)).to_parquet("train.parquet")
    samples(9, np.random.default_rng(1)).to_parquet("unseen.parquet")
    files = {"model": "base", "dataset": "train.parquet", "unseen_dataset": "unseen.parquet", "forget": "label=cat"}
    settings = files | {"max_steps": 3, "optim": "sgd", "learning_rate": 0.1, "disable_tqdm": "true"}
    flags = [f"--{name}={value}" for name, value in settings.items()]
    assert main(["run", *flags, "--output_dir=one", "--per_device_train_batch_size=8", "--use_cpu"]) == 0

    command = [sys.executable, "-m", "accelerate.commands.launch", *LAUNCH.split(), "-m", "hf_unlearn.cli", "run"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "HF_DATASETS_CACHE": str(tmp_path / "cache" / "two")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [*command, *flags, "--output_dir=two", "--per_device_train_batch_size=4"],
        env=environment, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("whether the model in two has forgotten") == 1
    before, one, two = (load_model(name).state_dict() for name in ("base", "one", "two"))
    moved = {name: float((one[name] - before[name]).norm()) for name in before}
    assert max(moved.values()) > 0.01
    assert all(float((two[name] - one[name]).norm()) <= 1e-3 * moved[name] + 1e-6 for name in before)
