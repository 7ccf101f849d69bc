"""Whether a retain stream costs what a dataset on disk costs: memory and time of the loader, without a model.

    python benchmarks/streaming.py --out benchmarks/results/streaming.json

A stream of 1,000,000 tiny samples is made on the fly and read to its end, in steps of 32 forget and 32 retain samples,
as a run reads them: samples to forget are looked for, and batches carry where the stream is. Memory is flat if, after
a tenth of the samples, it never is more than 2 % above what it was. Throughput is that of the same samples in a
`datasets.Dataset`, in rounds that take turns; a ratio above 1 says that the stream is faster.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import datasets
import numpy as np
import psutil
import torch
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel

from hf_unlearn.data.collator import columns_read, readable_collator
from hf_unlearn.data.pairing import PairCollator, PairedDataset, PairSampler, StreamedPairs
from hf_unlearn.data.streaming import open_stream

TOKENS, VOCABULARY, PER_STEP, FORGET, SEED = 16, 1000, 32, 64, 0


def generate(parts):
    """Samples of random tokens, by their numbers, which are among the tokens."""
    drawn = np.random.default_rng(SEED).integers(0, VOCABULARY, 4096).tolist()
    for start, stop in parts:
        for number in range(start, stop):
            first = number % 4000
            tokens = [number % 1000, number // 1000, *drawn[first : first + TOKENS - 2]]
            yield {"input_ids": tokens, "attention_mask": [1] * TOKENS, "labels": tokens}


def read(pairs: PairedDataset, collator, on_batch=lambda number: None) -> float:
    """Processor seconds that a pass takes."""
    loader = DataLoader(
        pairs, batch_size=PER_STEP, sampler=PairSampler(len(pairs), lambda: 0), collate_fn=PairCollator(collator)
    )
    started = time.process_time()
    for number, batch in enumerate(loader):
        if isinstance(pairs, StreamedPairs):
            pairs.remember([batch.pop("stream")])
        on_batch(number)
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--round", type=int, default=20_000, help="samples of a round that is timed")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0)
    )
    collator, columns = readable_collator(model), columns_read(model)
    forget_ds = datasets.Dataset.from_list(list(generate([(0, FORGET)])))  # the stream holds them, too

    def streamed(samples: int) -> StreamedPairs:
        stream = datasets.IterableDataset.from_generator(generate, gen_kwargs={"parts": [(0, samples)]})
        steps = (samples - FORGET) // PER_STEP
        retain = open_stream(stream, forget_ds, columns)
        assert retain is not None
        return StreamedPairs(
            forget_ds, retain, forget_per_step=PER_STEP, retain_per_step=PER_STEP, seed=SEED, steps=steps, readers=1
        )

    seconds: dict[str, list[float]] = {"stream": [], "dataset": []}
    with tempfile.TemporaryDirectory() as folder:
        made = datasets.Dataset.from_generator(
            generate, gen_kwargs={"parts": [(FORGET, options.round)]}, cache_dir=folder
        )
        for _ in range(options.rounds):
            seconds["stream"].append(read(streamed(options.round), collator))
            paired = PairedDataset(forget_ds, made, forget_per_step=PER_STEP, retain_per_step=PER_STEP, seed=SEED)
            seconds["dataset"].append(read(paired, collator))
        del made, paired
    ratios = [b / a for a, b in zip(seconds["stream"], seconds["dataset"], strict=True)]
    gc.collect()

    pairs, process = streamed(options.samples), psutil.Process()
    every, memory = max(1, pairs.steps // 100), {}

    def look(number: int) -> None:
        if (number + 1) % every == 0:
            memory[number + 1] = process.memory_info().rss / 2**20

    whole = read(pairs, collator, look)
    (state,) = pairs.states.values()
    warm = memory[min(step for step in memory if step >= pairs.steps // 10)]
    result = {
        "command": " ".join(["python", *sys.argv]),
        "seed": SEED,
        "versions": {name: version(name) for name in ("torch", "transformers", "datasets", "accelerate")},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "samples": options.samples,
        "samples_read": state["read"],
        "forget_samples_left_out": state["skipped"],
        "processor_seconds": round(whole, 1),
        "mebibytes_after_a_tenth": round(warm, 2),
        "growth_percent": round(100 * (max(m for s, m in memory.items() if s >= pairs.steps // 10) / warm - 1), 3),
        "round_samples": options.round,
        "processor_seconds_of_rounds": {
            name: [round(value, 3) for value in values] for name, values in seconds.items()
        },
        "throughput_ratios": [round(ratio, 3) for ratio in ratios],
        "throughput_ratio_median": round(statistics.median(ratios), 3),
        "mebibytes_by_step": {step: round(value, 2) for step, value in memory.items()},
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: value for name, value in result.items() if name != "mebibytes_by_step"}, indent=1))


if __name__ == "__main__":
    main()
