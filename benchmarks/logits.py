"""Peak memory and time of a step on a language model with a large vocabulary, beside a plain step on the same samples.

    python benchmarks/logits.py --out benchmarks/results/logits.json

The model has the shape of SmolLM2-135M (vocabulary 49,152, tied embeddings) and random weights. The plain step is
transformers' own loss, forward and backward pass of the forget and retain samples in one batch, and AdamW; where the
method trains an adapter, it trains that adapter as well. Half of the tokens have labels. Every measurement has a
process of its own, and plain steps and steps of a method take turns.

Memory is the peak of the resident memory within a step less that before the first one: activations, logits, gradients
and the optimizer's state count, the model does not, nor does the copy of the weights that a run goes back to when it
diverges (`kept_mebibytes`). Every tensor has pages of its own there, which go back when it is freed
(MALLOC_MMAP_THRESHOLD_), or what glibc keeps of freed memory would be counted. The time is the processor's, of other
processes, with the allocator as it comes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median

import psutil
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from hf_unlearn import UnlearningArguments, UnlearningTrainer
from hf_unlearn.models.adapters import add_adapter

SEED, VOCABULARY = 0, 49_152
SHAPES = {"4 + 4 samples of 256 tokens": (4, 256), "1 + 1 samples of 1,024 tokens": (1, 1024)}
# Name to method, and whether it trains an adapter.
STEPS = {
    "nabla_tau, all weights": ("nabla_tau", False),
    "orthograd, LoRA": ("orthograd", True),
    "orthograd, all weights": ("orthograd", False),
}
THRESHOLD = "MALLOC_MMAP_THRESHOLD_"
ALLOCATORS: dict[str, dict[str, str]] = {"mebibytes": {THRESHOLD: "65536"}, "processor_seconds": {}}


def build(layers: int) -> LlamaForCausalLM:
    """A model of the shape of SmolLM2-135M."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def make_samples(count: int, tokens: int) -> list[dict]:
    """Texts whose second half is labelled."""
    ids = torch.randint(3, VOCABULARY, (count, tokens), generator=torch.Generator().manual_seed(SEED))
    labels = ids.clone()
    labels[:, : tokens // 2] = -100
    mask = [1] * tokens
    pairs = zip(ids.tolist(), labels.tolist(), strict=True)
    return [{"input_ids": sample, "attention_mask": mask, "labels": of_sample} for sample, of_sample in pairs]


class Meter(TrainerCallback):
    """Peak memory (MiB above what is there before the first step) and processor seconds of every step.

    `kept`: MiB between the built model and the first step: of a run, the weights to go back to, and modules.
    """

    def __init__(self) -> None:
        self.built = psutil.Process().memory_info().rss
        self.kept = 0.0
        self.steps: list[tuple[float, float]] = []

    def on_step_begin(self, *args, **kwargs):
        if not self.steps:
            self.base = psutil.Process().memory_info().rss
            self.kept = (self.base - self.built) / 2**20
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        self.started = time.process_time()

    def on_step_end(self, *args, **kwargs):
        seconds = time.process_time() - self.started
        status = Path("/proc/self/status").read_text()
        peak = 1024 * int(status.partition("VmHWM:")[2].split()[0])
        self.steps.append(((peak - self.base) / 2**20, seconds))


def plain(lora: bool, count: int, tokens: int, layers: int, steps: int) -> Meter:
    """Plain steps on forget and retain samples in one batch."""
    model = build(layers)
    model = add_adapter(model) if lora else model
    model.train()
    meter = Meter()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, weight_decay=0.0)
    samples = make_samples(2 * count, tokens)
    for _ in range(steps):
        meter.on_step_begin()
        model(**{name: torch.tensor([s[name] for s in samples]) for name in samples[0]}).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        meter.on_step_end()
        optimizer.zero_grad()
    return meter


def unlearning(method: str, lora: bool, count: int, tokens: int, layers: int, steps: int) -> Meter:
    """Steps of a method."""
    model, samples = build(layers), make_samples(2 * count, tokens)
    meter = Meter()
    with tempfile.TemporaryDirectory() as folder:
        args = UnlearningArguments(
            folder, method=method, max_steps=steps, learning_rate=1e-5, per_device_train_batch_size=count,
            per_device_eval_batch_size=count, retain_batch_size=count, forget_target=12.0, stop_at_target=False,
            use_cpu=True, disable_tqdm=True, report_to="none", optim="adamw_torch", save_strategy="no", seed=SEED,
        )  # fmt: skip
        UnlearningTrainer(
            model, samples[:count], samples[count:], args, peft_config="auto" if lora else None, callbacks=[meter]
        ).train()
    return meter


def measure(name: str, is_plain: bool, shape: str, layers: int, steps: int) -> tuple[float, float, float]:
    """The largest peak (MiB) and the median time (s) of the steps after the first, and what is kept beside (MiB)."""
    method, lora = STEPS[name]
    run = plain(lora, *SHAPES[shape], layers, steps) if is_plain else unlearning(
        method, lora, *SHAPES[shape], layers, steps
    )  # fmt: skip
    peaks, seconds = zip(*run.steps[1:], strict=True)
    return max(peaks), median(seconds), run.kept


def measure_apart(*settings) -> dict[str, float]:
    """Memory and time, each in a process of its own."""
    values = {}
    for number, (key, allocator) in enumerate(ALLOCATORS.items()):
        os.environ.pop(THRESHOLD, None)
        os.environ.update(allocator)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            measured = pool.apply(measure, settings)
        values[key] = measured[number]
        if key == "mebibytes":
            values["kept_mebibytes"] = measured[2]
    return values


def write(rows: list[dict], options: argparse.Namespace) -> None:
    """Write what has been measured so far."""
    packages = {name: version(name) for name in ("torch", "transformers", "accelerate", "peft")}
    result = {
        "command": " ".join(["python", "benchmarks/logits.py", *sys.argv[1:]]), "device": "cpu, 1 thread",
        "processor": platform.processor() or platform.machine(), "python": platform.python_version(), **packages,
        "seed": SEED, "layers": options.layers, "labelled_share": 0.5, "rows": rows,
    }  # fmt: skip
    options.out.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--steps", type=int, default=3, help="of a process; the first is not counted")
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=list(STEPS))
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = []
    for shape in options.shapes:
        for name in options.only:
            runs: dict[bool, list[dict[str, float]]] = {True: [], False: []}
            for _ in range(options.repetitions):
                for is_plain in runs:
                    runs[is_plain].append(measure_apart(name, is_plain, shape, options.layers, options.steps))
            sides = {
                side: {key: round(median(run[key] for run in runs[is_plain]), 2) for key in runs[is_plain][0]}
                for side, is_plain in (("plain", True), ("step", False))
            }
            ratios = {key: round(sides["step"][key] / sides["plain"][key], 3) for key in ALLOCATORS}
            rows.append({"step": name, "samples": shape, **sides, "ratios": ratios, "runs": list(runs.values())})
            print(f"{name}, {shape}: memory {ratios['mebibytes']}, time {ratios['processor_seconds']} of a plain "
                  f"step ({sides})", flush=True)  # fmt: skip
            write(rows, options)


if __name__ == "__main__":
    main()
