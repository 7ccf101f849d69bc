"""Runs of a retain stream on every process, some of them resumed; see test_stream_processes.py."""

import os
from itertools import pairwise

import datasets
import torch
from tiny import make, samples

from hf_unlearn import UnlearningArguments, UnlearningTrainer


def read(parts):
    data = prepared()
    for start, stop in parts:
        yield from data[start:stop]


def prepared():
    _, make_batch = make("vit")
    data = [{k: torch.as_tensor(v) for k, v in sample.items()} for sample in samples(make_batch(24, seed=1))]
    return [{k: v.double() if v.is_floating_point() else v for k, v in sample.items()} for sample in data]


def run(folder, method, parts, batch, checkpoint=None):
    """Six steps of 8 samples; the stream of samples 4 to 15 holds two of the forget samples 0 to 5."""
    model, _ = make("vit")
    bounds = [4 + 12 * i // parts for i in range(parts + 1)]
    stream = datasets.IterableDataset.from_generator(read, gen_kwargs={"parts": list(pairwise(bounds))})
    args = UnlearningArguments(
        output_dir=folder, method=method, max_steps=6, save_steps=3, per_device_train_batch_size=batch,
        max_grad_norm=0.0, report_to="none", disable_tqdm=True, use_cpu=True, stop_at_target=False,
    )  # fmt: skip
    data = prepared()
    trainer = UnlearningTrainer(model.double(), data[:6], stream, args, unseen_ds=data[16:])
    trainer.train(resume_from_checkpoint=checkpoint)
    return {
        "weights": {n: p.detach().clone() for n, p in trainer.model.named_parameters()},
        "skipped": trainer._pairs.skipped,
        "readers": trainer._stream_readers,
        "metrics": trainer.unlearning_state.metrics_before,
    }


def save(folder, cases):
    results = []
    for i, (method, parts, batch) in enumerate(cases):
        whole = run(f"{folder}/{i}", method, parts, batch)
        resumed = run(f"{folder}/{i}", method, parts, batch, f"{folder}/{i}/checkpoint-3")
        results.append((whole, resumed))
    torch.save(results, f"{folder}/rank{os.environ['RANK']}.pt")
