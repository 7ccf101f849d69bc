"""Is a wrecked model ever called forgotten? Runs with 1, 10, 100 and 1,000 times the default learning rate.

    python benchmarks/wrecks.py --out benchmarks/results/wrecks.json

Five methods on two models that have learned something: a ViT on scikit-learn's digits, and a GPT-2 on arithmetic
sequences with tails that can only be memorised (`npo` has no formula for the ViT); a random tenth is forgotten, in 60
steps at most. With `--classes` also a class of the digits. Runs that the file has are left out, so that it can be
stopped and begun again.

A model is wrecked when its accuracy on unseen samples (of a class request: of the other classes) is over 10 points
below the original's, or its unseen loss more than ln 2 above. Each run ends as `hf-unlearn run` does: the guard,
the release with its audit, the exit code.
"""

import argparse
import copy
import json
import math
import platform
import shlex
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel

import hf_unlearn
from hf_unlearn import UnlearningArguments, UnlearningTrainer, split_forget_retain
from hf_unlearn.cli.run import exit_code
from hf_unlearn.demo import TRAINING, digits_data, digits_model
from hf_unlearn.training import quiet, train_from_scratch

METHODS = ("nabla_tau", "orthograd", "grad_ascent", "npo", "grad_diff")
FACTORS = (1, 10, 100, 1000)
POINTS, RISE = 0.10, math.log(2)
MAX_STEPS = 60
MODULUS, STEPS, TAIL = 31, 12, 4


def digits(request):
    data = digits_data(0)
    model = digits_model(0)
    train_from_scratch(model, data["train"], description="ViT on digits", **TRAINING)
    choice = {"column": "label", "values": [3]} if request == "class" else {"fraction": 0.1, "seed": 0}
    return model, *split_forget_retain(data["train"], **choice), data["unseen"]


def sequences(count, generator):
    """a, a + d, a + 2 d, ... modulo 31, and a tail of random tokens; the tail has to be memorised."""
    start, step = (torch.randint(low, MODULUS, (count, 1), generator=generator) for low in (0, 1))
    rule = (start + step * torch.arange(STEPS)) % MODULUS
    tail = torch.randint(MODULUS, (count, TAIL), generator=generator)
    tokens = torch.cat([rule, tail], dim=1)
    return [{"input_ids": t, "attention_mask": torch.ones_like(t), "labels": t.clone()} for t in tokens]


def gpt2(request):
    torch.manual_seed(0)
    sizes = {"vocab_size": MODULUS + 1, "n_positions": 32, "n_embd": 64, "n_layer": 2, "n_head": 4}
    special = {"bos_token_id": MODULUS, "eos_token_id": MODULUS, "pad_token_id": MODULUS}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model = GPT2LMHeadModel(GPT2Config(**sizes, **special, **dropout))
    samples = sequences(900, torch.Generator().manual_seed(0))
    train_from_scratch(
        model, samples[:600], description="GPT-2 on sequences", num_train_epochs=60, learning_rate=2e-3,
        per_device_train_batch_size=32, max_grad_norm=1.0,
    )  # fmt: skip
    return model, *split_forget_retain(samples[:600], indices=range(60), request=request), samples[600:]


def run(original, forget_ds, retain_ds, unseen_ds, method, factor, seed):
    """One run, as `hf-unlearn run` makes it: its outcome, its verdict, and what unseen samples cost."""

    def trainer(folder, **settings):
        args = UnlearningArguments(
            folder, method=method, seed=seed, report_to="none", disable_tqdm=True, dataloader_pin_memory=False,
            logging_strategy="no", max_steps=MAX_STEPS, **settings,
        )  # fmt: skip
        return UnlearningTrainer(copy.deepcopy(original), forget_ds, retain_ds, args, unseen_ds=unseen_ds)

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        learning_rate = factor * trainer(folder).args.learning_rate
        unlearning = trainer(folder, learning_rate=learning_rate)
        unlearning.pop_callback(transformers.PrinterCallback)
        unlearning.train()
        unlearning.save_release(folder)
        record = json.loads((Path(folder) / "unlearning.json").read_text())
    outcome, verdict = unlearning.outcome, unlearning.audit_report.verdict
    before, after = outcome.before, outcome.after
    wrecked = (
        after["unseen_accuracy"] < before["unseen_accuracy"] - POINTS
        or not after["unseen_loss"] <= before["unseen_loss"] + RISE
    )
    return {
        "learning_rate": learning_rate, "steps": outcome.steps, "ending": outcome.ending, "reason": outcome.reason,
        "verdict": verdict["level"], "verdict_sentence": verdict["sentence"],
        "exit_code": exit_code(outcome, verdict["level"]), "wrecked": bool(wrecked),
        "called_forgotten": verdict["level"] == "consistent" and exit_code(outcome, verdict["level"]) == 0,
        "before": before, "after": after, "target_loss": outcome.target_loss, "sentence": outcome.sentence,
        "record_says": [record["outcome"]["ending"], record["audit"]["level"]],
        "seconds": round(time.perf_counter() - started, 1),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "wrecks.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", nargs="+", default=["vit", "gpt2"])
    parser.add_argument("--classes", action="store_true", help="also forget a class of the digits")
    options = parser.parse_args()
    torch.set_num_threads(1)
    quiet()
    tasks = [("vit", "samples", digits), ("gpt2", "samples", gpt2)]
    tasks += [("vit", "class", digits)] if options.classes else []
    result = json.loads(options.out.read_text()) if options.out.exists() else {"runs": {}}
    result |= {
        "command": shlex.join(["python", *sys.argv]), "seed": options.seed, "device": platform.processor() or "cpu",
        "versions": {
            "hf_unlearn": hf_unlearn.__version__, "torch": torch.__version__, "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }  # fmt: skip
    for model_name, request, make in (task for task in tasks if task[0] in options.models):
        methods = [method for method in METHODS if model_name == "gpt2" or method != "npo"]
        names = {f"{model_name} {request} {m} x{f}": (m, f) for m in methods for f in FACTORS}
        missing = {name: settings for name, settings in names.items() if name not in result["runs"]}
        if not missing:
            continue
        data = make(request)
        for name, (method, factor) in (bar := tqdm(missing.items(), desc=f"{model_name} {request}")):
            bar.set_postfix_str(name)
            found = run(*data, method, factor, options.seed)
            result["runs"][name] = found
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(result, indent=1) + "\n")
            tqdm.write(f"{name}: {found['ending']}, {found['verdict']}, exit code {found['exit_code']}")
    runs = result["runs"].values()
    result["summary"] = {
        "runs": len(runs), "wrecked": sum(r["wrecked"] for r in runs),
        "diverged": sum(r["ending"] == "diverged" for r in runs),
        "called_forgotten": sum(r["called_forgotten"] for r in runs),
        "wrecked_and_called_forgotten": sum(r["wrecked"] and r["called_forgotten"] for r in runs),
    }  # fmt: skip
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["summary"]))


if __name__ == "__main__":
    main()
