"""Whether a long run leaks: the process's resident memory over 10,000 steps of a tiny language model.

    python benchmarks/memory.py --out benchmarks/results/memory.json

A process a method. Memory is flat if, after a tenth of the steps (the allocator has what it needs by then), it never
is more than 2 % above what it was.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import psutil
import torch
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback

from hf_unlearn import UnlearningArguments, UnlearningTrainer

METHODS = ("nabla_tau", "orthograd")
VOCABULARY, TOKENS, SAMPLES = 32, 6, 16


class MemoryLog(TrainerCallback):
    """The resident memory (MiB) every so many steps."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.mebibytes_by_step: dict[int, float] = {}

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every == 0:
            self.mebibytes_by_step[state.global_step] = psutil.Process().memory_info().rss / 2**20


def measure(method: str, steps: int) -> dict:
    """Run a method for `steps` steps; returns the memory over them."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    )
    tokens = torch.randint(1, VOCABULARY, (3 * SAMPLES, TOKENS)).tolist()
    samples = [{"input_ids": sample, "attention_mask": [1] * TOKENS, "labels": sample} for sample in tokens]
    forget_ds, retain_ds, unseen_ds = (samples[i * SAMPLES : (i + 1) * SAMPLES] for i in range(3))
    log = MemoryLog(every=steps // 100)
    with tempfile.TemporaryDirectory() as folder:
        args = UnlearningArguments(
            folder, method=method, max_steps=steps, learning_rate=1e-4, per_device_train_batch_size=2,
            stop_at_target=False, use_cpu=True, disable_tqdm=True, report_to="none", logging_steps=100,
        )  # fmt: skip
        trainer = UnlearningTrainer(model, forget_ds, retain_ds, args, unseen_ds=unseen_ds, callbacks=[log])
        started = time.process_time()
        trainer.train()
    assert trainer.state.global_step == steps, trainer.outcome
    memory = log.mebibytes_by_step
    warm = memory[steps // 10]
    return {
        "method": method,
        "steps": steps,
        "weights": model.num_parameters(),
        "processor_seconds": round(time.process_time() - started, 1),
        "mebibytes_after_warm_up": round(warm, 2),
        "mebibytes_at_the_end": round(memory[steps], 2),
        "growth_percent": round(100 * (max(m for step, m in memory.items() if step >= steps // 10) / warm - 1), 3),
        "mebibytes_by_step": {step: round(m, 2) for step, m in memory.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    # A process of its own for each method, so that none starts in what another has left.
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        runs = pool.starmap(measure, [(method, options.steps) for method in METHODS], chunksize=1)
    for run in runs:
        print(f"{run['method']}: {run['mebibytes_after_warm_up']} MiB after {run['steps'] // 10} steps, at most "
              f"{run['growth_percent']} % more until step {run['steps']}")  # fmt: skip
    packages = {name: version(name) for name in ("torch", "transformers", "accelerate")}
    options.out.write_text(
        json.dumps({"python": platform.python_version(), **packages, "runs": runs}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
