"""Are the audit's numbers right, and what do they cost? Every number that README.md quotes for it.

    python benchmarks/audit.py --shadows DIR

Shadow models of scikit-learn's digits are trained once (DIR keeps them; any number of processes may share the work,
see `--process-index`). Each never saw half of the samples: ground truth.

- coverage: for 40 models, the samples that a model never saw are split at random into "forget" and "unseen". Nothing
  tells them apart, and the interval of an attack should hold chance in 38 of 40 (LiRA, RMIA: from the other 39).
- power: the same models, samples that they were trained on against samples that they were not. The task is over-fitted: 500
  samples, a tenth of their labels wrong, learned by heart.
- time: threshold attacks with 1,000 bootstraps on 10,000 samples, and signals against a plain evaluation loop.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from torch.utils.data import DataLoader
from transformers import TrainingArguments, ViTForImageClassification

import hf_unlearn
from hf_unlearn import train_shadows
from hf_unlearn.auditing import comparisons
from hf_unlearn.auditing.attacks import RATES
from hf_unlearn.auditing.estimates import attack_estimates
from hf_unlearn.auditing.measuring import statistics_of
from hf_unlearn.auditing.shadows import Shadows
from hf_unlearn.data.collator import default_collator
from hf_unlearn.demo import digits_data, digits_model

COUNT, ROWS, WRONG = 40, 1000, 0.1
RESULTS = Path(__file__).parent / "results" / "audit"


def pool():
    """The samples, a tenth of them with the next label."""
    data = digits_data(0)
    samples = [dict(sample) for name in ("train", "unseen") for sample in data[name]][:ROWS]
    for i in np.random.default_rng(0).choice(ROWS, int(WRONG * ROWS), replace=False):
        samples[i]["label"] = (samples[i]["label"] + 1) % 10
    return samples


def select(signals, samples):
    mask = torch.zeros(len(signals), dtype=torch.bool)
    mask[torch.as_tensor(samples)] = True
    return signals.select(mask)


def attacks(number, known, signals, forget, unseen):
    """Every attack on one model, the other models being its shadow models."""

    def sets(found):
        return {"forget": select(found, forget), "unseen": select(found, unseen)}

    others = [i for i in range(COUNT) if i != number]
    masks = {name: known[others][:, np.sort(samples)] for name, samples in (("forget", forget), ("unseen", unseen))}
    shadows = Shadows((), masks, {name: ~mask for name, mask in masks.items()})
    compared, found = np.ones(len(unseen), bool), sets(signals[number])
    theirs = [sets(signals[i]) for i in others]
    scores = comparisons.every_score(found, compared, number, shadows=shadows, theirs=theirs)
    return attack_estimates(scores, seed=number)[0]


def chance(name):
    return next((rate for figure, rate in RATES.items() if name.endswith(figure)), 0.5)


def ground_truth(folder, process_index, num_processes):
    samples = pool()
    args = TrainingArguments(
        output_dir=str(folder / "runs"), num_train_epochs=60, learning_rate=1e-3, per_device_train_batch_size=64,
        report_to="none", disable_tqdm=True, logging_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    started = time.process_time()
    shadows = train_shadows(
        digits_model, {"pool": samples}, folder, args, count=COUNT,
        process_index=process_index, num_processes=num_processes,
    )  # fmt: skip
    print("shadow models:", len(shadows), "in", round(time.process_time() - started), "s", flush=True)
    if len(shadows) < COUNT:
        return None
    signals = [statistics_of(model, samples, scores=True) for model in shadows.models()]
    known = shadows.members["pool"]
    held, power = {}, {}
    for i in range(COUNT):
        generator = np.random.default_rng(i)
        never, trained = (generator.permutation(np.flatnonzero(mask)) for mask in (~known[i], known[i]))
        for name, e in attacks(i, known, signals, never[: len(never) // 2], never[len(never) // 2 :]).items():
            held.setdefault(name, []).append(e.low <= chance(name) <= e.high)
        for name, e in attacks(i, known, signals, trained, never).items():
            power.setdefault(name, []).append(e.value)
        print(".", end="", flush=True)
    correct = [
        [float(s.correct[torch.from_numpy(m)].mean()) for m in (k, ~k)] for s, k in zip(signals, known, strict=True)
    ]
    return {
        "models": COUNT,
        "accuracy": dict(zip(("trained", "never seen"), np.mean(correct, axis=0).tolist(), strict=True)),
        "coverage": {name: int(sum(values)) for name, values in held.items()},
        "power": {name: [float(np.mean(v)), float(np.std(v, ddof=1))] for name, v in power.items()},
    }


def cost():
    """Processor seconds of the attacks, and of signals over those of a plain evaluation loop (medians)."""
    generator = np.random.default_rng(0)
    scores = {
        name: (generator.normal(0.2, 1, 5000), generator.normal(0, 1, 5000))
        for name in ("loss", "confidence", "margin", "entropy")
    }
    started = time.process_time()
    attack_estimates(scores)
    found = {"attacks_seconds": time.process_time() - started}
    config = transformers.ViTConfig(
        image_size=64, patch_size=8, hidden_size=192, num_hidden_layers=6, num_attention_heads=3,
        intermediate_size=768, num_labels=100,
    )  # fmt: skip
    model = ViTForImageClassification(config).eval()
    samples = [{"pixel_values": torch.randn(3, 64, 64), "labels": i % 100} for i in range(512)]

    @torch.no_grad()
    def plain():
        right = 0
        for batch in DataLoader(samples, batch_size=64, collate_fn=default_collator(model)):
            outputs = model(**batch)
            right += int((outputs.logits.argmax(-1) == batch["labels"]).sum()) + float(outputs.loss) * 0
        return right

    def ours():
        return statistics_of(model, samples, batch_size=64, scores=True)

    seconds = {plain: [], ours: []}
    for _ in range(7):
        for way, times in seconds.items():
            started = time.process_time()
            way()
            times.append(time.process_time() - started)
    found["signals_over_plain_evaluation"] = float(np.median(seconds[ours]) / np.median(seconds[plain]))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shadows", type=Path, required=True, help="folder that keeps the shadow models")
    parser.add_argument("--process-index", type=int, default=0)
    parser.add_argument("--num-processes", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = ground_truth(options.shadows, options.process_index, options.num_processes)
    if found is None:
        return
    versions = {m.__name__: m.__version__ for m in (hf_unlearn, torch, transformers)}
    report = {"device": platform.machine(), "versions": versions, "seed": 0, "ground_truth": found, "cost": cost()}
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "cpu.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
