"""Whether several processes end with the weights and the audit of one: `accelerate launch` with every engine.

    python benchmarks/launch.py
    python benchmarks/launch.py --engines ddp-2 zero3-2 --cases vit-nabla_tau-all-float64

A run without accelerate's launcher is compared with DDP on one, two and four processes, and with FSDP2, ZeRO-2 and
ZeRO-3 on two, by the configurations in `examples/accelerate_configs`: the same samples a step, all on a CPU. Every
run takes six steps of AdamW, is evaluated twice on the way and audited (after ∇τ relearning included), and is saved
as a release. What an engine does not do is in the results with its message. Results that are there are not made again.

accelerate knows no FSDP on CPUs: it is told that the two CPU processes are GPUs (`prepare_engine`). DeepSpeed takes
CPUs with DS_ACCELERATOR=cpu and ddp_backend="gloo"; the first start compiles an operator for some minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kills import build as build_vit
from kills import images, texts

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "examples" / "accelerate_configs"
RESULTS = Path(__file__).parent / "results" / "launch.json"
ENGINES = {
    "ddp-1": "ddp", "ddp-2": "ddp", "ddp-4": "ddp", "fsdp2-2": "fsdp2", "zero2-2": "deepspeed_zero2",
    "zero3-2": "deepspeed_zero3",
}  # fmt: skip
# Model, method, and whether all weights train or an adapter.
RUNS = [
    ("vit", "nabla_tau", "all"), ("vit", "nabla_tau", "lora"), ("vit", "orthograd", "lora"),
    ("vit", "orthograd", "all"), ("vit", "scrub", "all"), ("vit", "scrub", "lora"), ("llama", "nabla_tau", "all"),
    ("llama", "orthograd", "lora"), ("llama", "orthograd", "all"), ("llama", "npo", "all"), ("llama", "npo", "lora"),
    ("llama", "scrub", "all"),
]  # fmt: skip
CASES = [f"{'-'.join(run)}-{dtype}" for run in RUNS for dtype in ("float64", "float32")]
WRAPPED = {"vit": "ViTLayer", "llama": "LlamaDecoderLayer"}
# The largest difference that rounding makes, as a share of the largest weight or number.
TOLERANCES = {"float64": 1e-10, "float32": 1e-5}
AUDIT_TOLERANCES = {"float64": 1e-6, "float32": 1e-3}  # an audit computes its statistics in float32
STEPS, PER_STEP, SEED = 6, 8, 0
# What differs from run to run, or says where it was.
LEFT_OUT = {"cost", "device"}


# ---- a run, on every process ----


def build(name: str, dtype: str) -> Any:
    """A small model, always with the same weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if name == "vit":
        return build_vit(False).to(getattr(torch, dtype))
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(getattr(torch, dtype))


def prepare_engine(engine: str) -> dict[str, Any]:
    """Arguments of the trainer that an engine needs on CPUs."""
    if engine.startswith("fsdp2"):
        from accelerate import PartialState
        from accelerate.utils import DistributedType

        PartialState(cpu=True).distributed_type = DistributedType.MULTI_GPU
        return {"accelerator_config": {"use_configured_state": True}}
    return {"ddp_backend": "gloo"} if engine.startswith("zero") else {"use_cpu": True}


def train(case: str, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train, evaluate, audit and save one case; what is compared."""
    import torch

    from hf_unlearn import UnlearningArguments, UnlearningTrainer
    from hf_unlearn.models.adapters import lora_config

    name, method, weights, dtype = case.split("-")
    made = texts if name == "llama" else images
    samples = [
        {k: v.to(getattr(torch, dtype)) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in s.items()}
        for s in made(72, seed=1)
    ]
    model, retrained = (build(name, dtype) for _ in range(2))
    torch.manual_seed(1)
    for p in retrained.parameters():
        p.data += 0.02 * torch.randn_like(p)
    args = UnlearningArguments(
        output_dir=str(folder), method=method, max_steps=STEPS, optim="adamw_torch", learning_rate=1e-3,
        per_device_train_batch_size=PER_STEP // int(os.environ.get("WORLD_SIZE", 1)), per_device_eval_batch_size=8,
        eval_strategy="steps", eval_steps=STEPS // 2, logging_steps=1, stop_at_target=False, report_to="none",
        disable_tqdm=True, dataloader_pin_memory=False, **settings,
    )  # fmt: skip
    trainer = UnlearningTrainer(
        model, samples[:8], samples[8:32], args, unseen_ds=samples[32:48],
        peft_config=lora_config(model) if weights == "lora" else None,
    )  # fmt: skip
    trainer.train()
    relearning = method == "nabla_tau"
    report = trainer.audit(samples[48:], retrained=retrained, relearning=relearning, resamples=50)
    trainer.save_release(audit=report)
    kept = json.loads(json.dumps(asdict(report)))
    kept["about"] = {key: value for key, value in kept["about"].items() if key not in LEFT_OUT}
    evaluations = [e for e in trainer.state.log_history if "eval_forget_loss" in e]
    times = ("runtime", "per_second")
    return {
        "audit": kept,
        "evaluations": [{k: v for k, v in e.items() if not k.endswith(times)} for e in evaluations],
    }


def work(engine: str, folder: Path, cases: list[str]) -> None:
    """Run cases one after the other; the first process writes what came of them."""
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    settings = prepare_engine(engine)
    for case in cases:
        try:
            result = train(case, folder / case, settings)
        except ValueError as error:
            result = {"refused": str(error)}
        if int(os.environ.get("RANK", 0)) == 0:
            (folder / f"{case}.json").write_text(json.dumps(result))


# ---- starting it, and comparing ----


def start(engine: str, folder: Path, cases: list[str], timeout: float = 3000) -> str:
    """Run cases with an engine; returns the end of what was said where it failed."""
    folder.mkdir(parents=True, exist_ok=True)
    of_models = [[case for case in cases if case.startswith(name)] for name in WRAPPED]
    # accelerate keeps the class that it wraps in the process.
    groups = [group for group in of_models if group] if engine.startswith("fsdp2") else [cases]
    said = ""
    for group in groups:
        command = [sys.executable]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        if engine in ENGINES:
            command += ["-m", "accelerate.commands.launch", f"--config_file={CONFIGS / ENGINES[engine]}.yaml"]
            command += [f"--num_processes={engine.rpartition('-')[2]}"]
            if engine.startswith("fsdp2"):
                command += [f"--fsdp_transformer_layer_cls_to_wrap={WRAPPED[group[0].split('-')[0]]}"]
            if engine.startswith("zero"):
                environment |= {"DS_ACCELERATOR": "cpu"}
        command += [str(Path(__file__)), "--worker", engine, "--folder", str(folder), "--cases", *group]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
        said += "\n".join(_errors(done.stderr)) if done.returncode else ""
    return said


def _errors(said: str) -> list[str]:
    """The lines that name an exception."""
    return [line for line in said.splitlines() if re.match(r"(\[rank\d+\]: )?[\w.]*(Error|NotCovered)\b", line)]


def numbers(one: Any, other: Any, path: str = "") -> Iterator[tuple[float, str]]:
    """The relative difference of every number of two nested results; infinite where anything else differs."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for key in one:
            yield from numbers(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from numbers(a, b, f"{path}/{i}")
    elif isinstance(one, float) and isinstance(other, float):
        both_nan = one != one and other != other
        yield 0.0 if both_nan else abs(one - other) / max(abs(one), 1e-2), path
    elif one != other:
        yield float("inf"), f"{path}: {str(one)[:60]} != {str(other)[:60]}"


def compare_weights(one: Path, other: Path, case: str) -> dict[str, float]:
    """The largest difference of two saved models, as a share of the largest weight; and how far the first has moved.

    Biases of attention keys are told apart: they change nothing, their gradient is rounding, and Adam makes whole
    steps of it.
    """
    import torch

    from hf_unlearn.models.loading import load_model

    dtype = getattr(torch, case.rpartition("-")[2])
    before = build(case.partition("-")[0], case.rpartition("-")[2]).state_dict()
    first, second = (load_model(str(folder)).state_dict() for folder in (one, other))
    assert first.keys() == second.keys() and all(w.dtype == dtype for w in second.values() if w.is_floating_point())
    largest = max(float(weight.abs().max()) for weight in first.values())
    differences = {name: (second[name] - weight).abs() for name, weight in first.items()}
    keys = {name for name in first if name.endswith("k_proj.bias")}
    return {
        "weights": max(float(d.max()) for n, d in differences.items() if n not in keys) / largest,
        "key_biases": max((float(differences[n].max()) for n in keys), default=0.0) / largest,
        "moved": max(float((first[n] - before[n]).abs().max()) for n in first) / largest,
    }


def compare(case: str, one: Path, other: Path, said: str) -> dict[str, Any]:
    """What came of a case, beside the run on one process."""
    if not (other / f"{case}.json").exists():
        return {"status": "failed", "message": said[:600]}
    expected, found = (json.loads((folder / f"{case}.json").read_text()) for folder in (one, other))
    if "refused" in found:
        return {"status": "refused", "message": found["refused"]}
    dtype = case.rpartition("-")[2]
    result: dict[str, Any] = {"status": "same", **compare_weights(one / case, other / case, case)}
    if dtype == "float32":  # rounding parts samples of equal scores, and puts a point between them
        for run in (expected, found):
            del run["audit"]["roc"]
    for part in ("audit", "evaluations"):
        result[part], where = max(numbers(expected[part], found[part]), default=(0.0, ""))
        if result[part] > AUDIT_TOLERANCES[dtype]:
            result |= {"status": "different", f"{part}_at": where}
    if result["weights"] > TOLERANCES[dtype]:
        result["status"] = "different"
    return result


def run_engines(engines: list[str], cases: list[str], folder: Path, timeout: float = 3000) -> dict[str, Any]:
    """Engine to case to what came of it."""
    one, results = folder / "one", {}
    alone = [case for case in cases if not (one / f"{case}.json").exists()]
    if alone and (said := start("one", one, alone, timeout)):
        raise RuntimeError(said)
    for engine in engines:
        began = time.monotonic()
        said = start(engine, folder / engine, cases, timeout)
        results[engine] = {case: compare(case, one, folder / engine, said) for case in cases}
        lines = map(_line, results[engine].items())
        print(f"{engine}: {time.monotonic() - began:.0f} s", *lines, sep="\n  ", flush=True)
    return results


def _line(entry: tuple[str, dict[str, Any]]) -> str:
    case, result = entry
    shown = {k: f"{v:.1e}" if isinstance(v, float) else v for k, v in result.items() if k != "status"}
    return f"{case}: {result['status']} {shown}"


def table(kept: dict[str, Any]) -> str:
    """The largest differences of every engine, as in `benchmarks/README.md`."""
    lines = [
        "| engine, processes | dtype | same, refused | weights | audit | evaluations |",
        "|---|---|---|---|---|---|",
    ]
    for engine, results in kept.items():
        for dtype in TOLERANCES:
            of_dtype = [result for case, result in results.items() if case.endswith(dtype)]
            same = [result for result in of_dtype if result["status"] == "same"]
            largest = [max((r[part] for r in same), default=None) for part in ("weights", "audit", "evaluations")]
            shown = ["-" if value is None else f"{value:.0e}" for value in largest]
            lines.append(f"| {engine} | {dtype} | {len(same)}, {len(of_dtype) - len(same)} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is asked for and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, Path(options.folder), options.cases)
        return
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for engine in options.engines:
            missing = [case for case in options.cases if case not in kept.get(engine, {})]
            if missing:
                kept.setdefault(engine, {}).update(run_engines([engine], missing, Path(folder))[engine])
                kept = {name: kept[name] for name in ENGINES if name in kept}
                RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    print(table(kept))


if __name__ == "__main__":
    main()
