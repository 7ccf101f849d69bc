"""How the cost of a run grows with the samples that are forgotten, and with those that are kept.

    python benchmarks/growth.py --data ../shared/data --pretrained ../checkpoints/vit-eight-classes

The stand-in for a pretrained image model (benchmarks/recipes/real/fashion.yaml) is fine-tuned for 4 epochs on 1,200
and on 12,000 samples of Fashion-MNIST, and a random part of them is forgotten with default settings. Costs are sample
passes (forward 1, forward and backward 3, measuring included); retraining takes 3 times 4 times the retain samples.
"""

import argparse
import json
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).parent / "recipes"), str(Path(__file__).parent / "recipes" / "real")]
import tasks  # noqa: E402
from checkpoints import PretrainedFashion  # noqa: E402

from hf_unlearn import UnlearningArguments, UnlearningTrainer, split_forget_retain  # noqa: E402
from hf_unlearn.training import train_from_scratch  # noqa: E402

TRAINED, FORGOTTEN, SEEDS, EPOCHS = (1200, 12000), (12, 36, 120, 360, 1200, 3600), (0, 1, 2), 4
METHODS = ("nabla_tau", "orthograd")


def run(task: PretrainedFashion, trained: int, seed: int, methods: list[str]) -> list[dict]:
    train_ds = tasks._tiny.Vit.ready(task.data_dir, "train", 6000, 6000 + trained, seed)
    unseen_ds = tasks._tiny.Vit.ready(task.data_dir, "test", 0, 2000, seed)
    original = task.build(seed)
    train_from_scratch(original, train_ds, seed=seed, **{**task.training, "num_train_epochs": EPOCHS})
    rows = []
    for forgotten in (n for n in FORGOTTEN if n <= 0.3 * trained):
        forget_ds, retain_ds = split_forget_retain(train_ds, indices=range(forgotten))
        for method in methods:
            model = task.build(seed)
            model.load_state_dict(original.state_dict())
            with tempfile.TemporaryDirectory() as folder:
                args = UnlearningArguments(
                    output_dir=folder, method=method, seed=seed, training_passes=EPOCHS, report_to="none",
                    disable_tqdm=True, save_strategy="no",
                )  # fmt: skip
                trainer = UnlearningTrainer(model, forget_ds, retain_ds, args, unseen_ds=unseen_ds, peft_config=None)
                trainer.train()
            cost = trainer.outcome.cost.metrics()
            rows.append({
                "trained": trained, "forgotten": forgotten, "seed": seed, "method": method,
                "steps": trainer.state.global_step, **{
                    name: cost[name] for name in ("sample_passes", "sample_passes_measuring", "cost_of_retraining")
                },
            })  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
    return rows


def exponent(rows: list[dict], by: str, fixed: str) -> float:
    """Of the power law between sample passes and one number of samples, the other one being fixed."""
    slopes = []
    for value in {row[fixed] for row in rows}:
        points = {}
        for row in (row for row in rows if row[fixed] == value):
            points.setdefault(row[by], []).append(np.log(row["sample_passes"]))
        if len(points) > 1:
            slopes.append(np.polyfit(np.log(list(points)), [np.mean(values) for values in points.values()], 1)[0])
    return float(np.mean(slopes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--pretrained", required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "growth.json")
    parser.add_argument("--method", choices=METHODS, action="append")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, methods = [], options.method or list(METHODS)
    for trained in TRAINED:
        for seed in SEEDS:
            task = PretrainedFashion(seed, data=options.data, pretrained=options.pretrained)
            task.data_dir = options.data
            rows += run(task, trained, seed, methods)
    of_method = {method: [row for row in rows if row["method"] == method] for method in methods}
    about = {
        "command": "python " + " ".join(["benchmarks/growth.py", *sys.argv[1:]]), "device": "cpu",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "hf-unlearn")},
        "law": {
            method: {
                "passes_by_forgotten": exponent(found, "forgotten", "trained"),
                "passes_by_retained": exponent(found, "trained", "forgotten"),
            }
            for method, found in of_method.items()
        },
    }  # fmt: skip
    options.out.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
