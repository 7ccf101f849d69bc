"""The peak memory of a step beside what the trainer predicted before it.

    python benchmarks/step_memory.py --out benchmarks/results/step_memory.json

Language models of three sizes, random weights, a vocabulary of 49,152; and steps of 8,192 tokens a sample, in chunks
of samples (gradient accumulation), with and without activation checkpointing. Every measurement has a process of its
own, which has run the same on a model of one layer before: code and work space of libraries do not count. Measured is
the largest resident memory within two steps less that before the model was built. Every tensor has pages of its own
there, which go back when it is freed (MALLOC_MMAP_THRESHOLD_), or what glibc keeps of freed memory would be counted.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from logits import THRESHOLD, VOCABULARY, make_samples
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, TrainerCallback

from hf_unlearn import UnlearningArguments, UnlearningTrainer
from hf_unlearn.trainer.memory import MemoryPrediction

STEPS = 2
# Name to layers, width, heads.
SIZES = {"11M": (4, 192, 3), "33M": (8, 384, 6), "19M": (6, 288, 3), "long": (2, 96, 3)}
SHORT = {"per_device_train_batch_size": 2, "tokens": 256}
LONG = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "tokens": 8192}
THREE, ONE = ("11M", "19M", "33M"), ("long",)
# Name to what differs from the default; the sizes that it runs on.
CASES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "nabla_tau, all weights": ({"method": "nabla_tau", **SHORT}, THREE),
    "nabla_tau, LoRA on nf4": ({"method": "nabla_tau", "nf4": True, **SHORT}, THREE),
    "orthograd, LoRA": ({"method": "orthograd", **SHORT}, THREE),
    "orthograd, all weights": ({"method": "orthograd", "peft_config": None, **SHORT}, THREE),
    "nabla_tau, 8,192 tokens": ({"method": "nabla_tau", **LONG}, ONE),
    "nabla_tau, 8,192 tokens, checkpointed": ({"method": "nabla_tau", "activation_checkpointing": True, **LONG}, ONE),
    "orthograd, LoRA, 8,192 tokens": ({"method": "orthograd", **LONG}, ONE),
}


def build(size: str, nf4: bool, tokens: int) -> LlamaForCausalLM:
    """A model of the shape of SmolLM2, or a smaller one."""
    torch.manual_seed(0)
    layers, width, heads = SIZES[size]
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=width * 8 // 3, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads // 3, max_position_embeddings=tokens,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    if not nf4:
        return model
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        quantised = AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantization)
    for p in quantised.parameters():  # or the file of the weights before they were quantised stays in memory
        p.data = p.data.clone() if p.is_floating_point() else p.data
    return quantised


class Peak(TrainerCallback):
    """The largest resident memory within steps, in bytes."""

    def __init__(self) -> None:
        self.bytes = 0

    def on_step_begin(self, *args, **kwargs):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew

    def on_step_end(self, *args, **kwargs):
        status = Path("/proc/self/status").read_text()
        self.bytes = max(self.bytes, 1024 * int(status.partition("VmHWM:")[2].split()[0]))


def run(model: Any, settings: dict[str, Any]) -> tuple[int, MemoryPrediction]:
    """A few steps; the peak and the prediction."""
    settings = dict(settings)
    tokens, peft_config = settings.pop("tokens"), settings.pop("peft_config", "auto")
    settings.pop("nf4", None)
    count = settings["per_device_train_batch_size"] * settings.get("gradient_accumulation_steps", 1)
    samples, peak = make_samples(2 * count, tokens), Peak()
    with tempfile.TemporaryDirectory() as folder:
        args = UnlearningArguments(
            folder, max_steps=STEPS, learning_rate=1e-5, per_device_eval_batch_size=1, forget_target=12.0,
            stop_at_target=False, use_cpu=True, disable_tqdm=True, report_to="none", optim="adamw_torch",
            save_strategy="no", logging_steps=1, **settings,
        )  # fmt: skip
        trainer = UnlearningTrainer(
            model, samples[:count], samples[count:], args, peft_config=peft_config, callbacks=[peak]
        )
        trainer.train()
    assert trainer.memory is not None
    return peak.bytes, trainer.memory


def measure(name: str, size: str) -> dict[str, Any]:
    """One case on one size."""
    torch.set_num_threads(1)
    settings = CASES[name][0]
    nf4 = bool(settings.get("nf4"))
    SIZES["one layer"] = (1, *SIZES[size][1:])
    run(build("one layer", nf4, 8192), settings)
    gc.collect()
    before = psutil.Process().memory_info().rss
    peak, prediction = run(build(size, nf4, 8192), settings)
    mebibytes = {term: round(value / 2**20, 1) for term, value in vars(prediction).items()}
    predicted, measured = prediction.total / 2**20, (peak - before) / 2**20
    return {
        "step": name, "size": size,
        "predicted_mebibytes": round(predicted, 1), "measured_mebibytes": round(measured, 1),
        "difference_percent": round(100 * (predicted / measured - 1), 1), "terms_mebibytes": mebibytes,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(CASES))
    parser.add_argument("--sizes", nargs="*", default=list(SIZES))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    os.environ[THRESHOLD] = "65536"
    rows = []
    for name in options.only:
        for size in (size for size in CASES[name][1] if size in options.sizes):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rows.append(pool.apply(measure, (name, size)))
            print(json.dumps(rows[-1]), flush=True)
            packages = {package: version(package) for package in ("torch", "transformers", "accelerate", "peft")}
            result = {
                "command": " ".join(["python", "benchmarks/step_memory.py", *sys.argv[1:]]), "device": "cpu, 1 thread",
                **packages, "steps": STEPS, "rows": rows,
            }  # fmt: skip
            options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
