"""Are the audit's numbers right, and what do they cost? Every number that the documentation quotes for it.

    python benchmarks/audit.py --shadows DIR

Shadow models of scikit-learn's digits are trained once (DIR keeps them; any number of processes may share the work,
see `--process-index`). None of them was trained on more than half of the samples, which gives the ground truth:

- coverage: for 40 models, the samples that a model was not trained on are split at random into "forget" and "unseen".
  Nothing distinguishes them, and the interval of an attack should hold chance in 38 of 40 (LiRA, RMIA: from the other
  39 models).
- power: the same models, samples that they were trained on against samples that they were not. The models overfit: 500
  samples, of which a tenth have a wrong label.
- cost: threshold attacks with 1,000 bootstraps on 10,000 samples, and per-sample statistics against a plain evaluation
  loop.
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
from hf_unlearn.auditing.attack_scores import attack_scores
from hf_unlearn.auditing.attacks import RATES
from hf_unlearn.auditing.estimates import attack_estimates
from hf_unlearn.auditing.measuring import statistics_of
from hf_unlearn.auditing.shadows import Shadows
from hf_unlearn.data.collator import default_collator
from hf_unlearn.demo import digits_data, digits_model

MODELS, SAMPLES, WRONG_LABELS = 40, 1000, 0.1
RESULTS = Path(__file__).parent / "results" / "audit"


def all_samples():
    """The samples, a tenth of them with a wrong label: the next one."""
    data = digits_data(0)
    samples = [dict(sample) for name in ("train", "unseen") for sample in data[name]][:SAMPLES]
    for i in np.random.default_rng(0).choice(SAMPLES, int(WRONG_LABELS * SAMPLES), replace=False):
        samples[i]["label"] = (samples[i]["label"] + 1) % 10
    return samples


def select(statistics, indices):
    mask = torch.zeros(len(statistics), dtype=torch.bool)
    mask[torch.as_tensor(indices)] = True
    return statistics.select(mask)


def attack(number, trained, statistics, forget, unseen):
    """Estimates of every attack on one model, with the others as its shadow models.

    `trained` [models, samples] says which samples a model was trained on; `forget` and `unseen` are sample numbers.
    """

    def statistics_by_dataset(number):
        return {"forget": select(statistics[number], forget), "unseen": select(statistics[number], unseen)}

    others = [i for i in range(MODELS) if i != number]
    members = {name: trained[others][:, np.sort(ids)] for name, ids in (("forget", forget), ("unseen", unseen))}
    scores = attack_scores(
        statistics_by_dataset(number), np.ones(len(unseen), bool), number,
        shadows=Shadows((), members, {name: ~mask for name, mask in members.items()}),
        shadow_statistics=[statistics_by_dataset(i) for i in others],
    )  # fmt: skip
    return attack_estimates(scores, seed=number)[0]


def chance(metric):
    return next((rate for suffix, rate in RATES.items() if metric.endswith(suffix)), 0.5)


def train_models(samples, folder, process_index, num_processes):
    """The shadow models: each is trained on a random half of all samples, whatever dataset they are in."""
    args = TrainingArguments(
        output_dir=str(folder / "runs"), num_train_epochs=60, learning_rate=1e-3, per_device_train_batch_size=64,
        report_to="none", disable_tqdm=True, logging_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    started = time.process_time()
    shadows = train_shadows(
        digits_model, samples, [], [], folder, args, count=MODELS,
        process_index=process_index, num_processes=num_processes,
    )  # fmt: skip
    print("shadow models:", len(shadows), "in", round(time.process_time() - started), "s", flush=True)
    return shadows


def ground_truth(folder, process_index, num_processes):
    """Coverage of the intervals and power of the attacks; None while other processes train their models."""
    samples = all_samples()
    shadows = train_models(samples, folder, process_index, num_processes)
    if len(shadows) < MODELS:
        return None
    statistics = [statistics_of(model, samples, scores=True) for model in shadows.models()]
    trained = shadows.members["forget"]
    covered, power = {}, {}
    for i in range(MODELS):
        generator = np.random.default_rng(i)
        unseen, seen = (generator.permutation(np.flatnonzero(mask)) for mask in (~trained[i], trained[i]))
        half = len(unseen) // 2
        for name, estimate in attack(i, trained, statistics, unseen[:half], unseen[half:]).items():
            covered.setdefault(name, []).append(estimate.low <= chance(name) <= estimate.high)
        for name, estimate in attack(i, trained, statistics, seen, unseen).items():
            power.setdefault(name, []).append(estimate.value)
        print(".", end="", flush=True)
    accuracies = [
        [float(of_model.correct[torch.from_numpy(mask)].mean()) for mask in (seen, ~seen)]
        for of_model, seen in zip(statistics, trained, strict=True)
    ]
    return {
        "models": MODELS,
        "accuracy": dict(zip(("trained", "never seen"), np.mean(accuracies, axis=0).tolist(), strict=True)),
        "coverage": {name: int(sum(values)) for name, values in covered.items()},
        "power": {name: [float(np.mean(values)), float(np.std(values, ddof=1))] for name, values in power.items()},
    }


def cost():
    """Processor seconds of the attacks, and of statistics relative to a plain evaluation loop (medians)."""
    generator = np.random.default_rng(0)
    scores = {
        name: (generator.normal(0.2, 1, 5000), generator.normal(0, 1, 5000)) for name in ("loss", "margin", "entropy")
    }
    started = time.process_time()
    attack_estimates(scores)
    attacks_seconds = time.process_time() - started
    config = transformers.ViTConfig(
        image_size=64, patch_size=8, hidden_size=192, num_hidden_layers=6, num_attention_heads=3,
        intermediate_size=768, num_labels=100,
    )  # fmt: skip
    model = ViTForImageClassification(config).eval()
    samples = [{"pixel_values": torch.randn(3, 64, 64), "labels": i % 100} for i in range(512)]

    @torch.no_grad()
    def evaluate():
        correct = 0
        for batch in DataLoader(samples, batch_size=64, collate_fn=default_collator(model)):
            outputs = model(**batch)
            correct += int((outputs.logits.argmax(-1) == batch["labels"]).sum()) + float(outputs.loss) * 0
        return correct

    def collect():
        return statistics_of(model, samples, batch_size=64, scores=True)

    seconds = {evaluate: [], collect: []}
    for _ in range(7):
        for function, times in seconds.items():
            started = time.process_time()
            function()
            times.append(time.process_time() - started)
    ratio = float(np.median(seconds[collect]) / np.median(seconds[evaluate]))
    return {"attacks_seconds": attacks_seconds, "statistics_over_plain_evaluation": ratio}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shadows", type=Path, required=True, help="folder that keeps the shadow models")
    parser.add_argument("--process-index", type=int, default=0)
    parser.add_argument("--num-processes", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    truth = ground_truth(options.shadows, options.process_index, options.num_processes)
    if truth is None:
        return
    versions = {m.__name__: m.__version__ for m in (hf_unlearn, torch, transformers)}
    results = {"device": platform.machine(), "versions": versions, "seed": 0, "ground_truth": truth, "cost": cost()}
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "cpu.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
