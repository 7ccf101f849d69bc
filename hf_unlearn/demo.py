"""The main job in two minutes: a real model forgets real handwritten digits, beside a model retrained without them."""

from __future__ import annotations

import copy
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from rich.console import Console
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from transformers import PrinterCallback, ViTConfig, ViTForImageClassification, set_seed

from hf_unlearn.auditing.measuring import average_gap, measure
from hf_unlearn.data.splitting import in_memory, split_forget_retain
from hf_unlearn.report.plots import loss_curves
from hf_unlearn.report.tables import print_comparison
from hf_unlearn.trainer.arguments import UnlearningArguments
from hf_unlearn.trainer.trainer import UnlearningTrainer
from hf_unlearn.training import ProgressBar, quiet, train_from_scratch

METHODS_SHOWN = {"nabla_tau": "∇τ", "orthograd": "OrthoGrad + LoRA"}


def digits_data(seed: int = 0) -> dict[str, datasets.Dataset]:
    """scikit-learn's bundled handwritten digits (8x8, 10 classes): 997 `train`, 400 `unseen` and 400 `test` samples."""
    digits = load_digits()
    pixels, labels = (digits.images[:, None] / 8 - 1).astype(np.float32), digits.target
    train, rest = train_test_split(np.arange(len(labels)), test_size=800, stratify=labels, random_state=seed)
    unseen, test = train_test_split(rest, test_size=400, stratify=labels[rest], random_state=seed)
    features = datasets.Features(
        {"pixel_values": datasets.Array3D((1, 8, 8), "float32"), "label": datasets.ClassLabel(num_classes=10)}
    )
    samples = datasets.Dataset.from_dict({"pixel_values": pixels, "label": labels}, features).with_format("torch")
    return {name: samples.select(chosen) for name, chosen in (("train", train), ("unseen", unseen), ("test", test))}


def digits_model(seed: int = 0) -> ViTForImageClassification:
    """A ViT of about 100 thousand weights with fresh weights."""
    set_seed(seed)
    config = ViTConfig(
        image_size=8, patch_size=2, num_channels=1, hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=128, id2label={i: str(i) for i in range(10)},
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return ViTForImageClassification(config)


def scenes(train: datasets.Dataset, seed: int) -> dict[str, tuple[Any, Any]]:
    """What the demo forgets: one class, and a random 10 %."""
    return {
        "class 3": split_forget_retain(train, column="label", values=[3]),
        "random 10 %": split_forget_retain(train, fraction=0.1, seed=seed),
    }


TRAINING: dict[str, Any] = {"num_train_epochs": 30, "learning_rate": 1e-3, "per_device_train_batch_size": 64}
SHOWN = {
    "forget": "forget_accuracy", "retain": "retain_accuracy", "unseen": "unseen_accuracy", "MIA": "mia_accuracy",
    "loss": "forget_loss", "gap": "gap", "s": "seconds",
}  # fmt: skip
CAPTION = (
    "Accuracy in % on forget, retain and unseen samples, and of membership inference\n"
    "(MIA); loss on the forget dataset; gap: mean distance, in points, to the model\n"
    "retrained without the forget dataset"
)


def run_demo(output_dir: str = "unlearn-demo", seed: int = 0) -> dict[str, dict[str, dict[str, float]]]:
    """Train, forget, retrain for retrained; print one table, draw the loss curves.

    The two scenes run in two processes of one thread each: a model this small loses time to threads.

    Args:
        output_dir: where the pictures (`curves-*.png`), the audits of ∇τ (`audit-*.html`) and the metrics
            (`demo.json`) go.
        seed: seed of everything.

    Returns:
        Scene to model to metrics; the gap is in points, to the model retrained without the forget dataset.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        # Started first: importing torch takes the processes as long as the training below.
        warm = [pool.submit(torch.set_num_threads, 1) for _ in range(2)]
        torch.set_num_threads(1)
        data = digits_data(seed)
        original = digits_model(seed)
        samples = in_memory(data["train"])
        train_from_scratch(
            original, samples, description="Training a ViT on digits", output_dir=output_dir, **TRAINING
        )
        wait(warm)
        running = [pool.submit(_run_scene, number, original, output_dir, seed) for number in range(2)]
        found = [scene.result() for scene in running]
    results = {scene: metrics for scene, metrics, _ in found}
    pictures = [
        loss_curves(runs, metrics, scene, folder / f"curves-{scene.split()[0]}.png") for scene, metrics, runs in found
    ]
    print_comparison(results, SHOWN, CAPTION)
    (folder / "demo.json").write_text(json.dumps({"seed": seed, "scenes": results}, indent=1) + "\n")
    audits = [folder / f"audit-{scene.split()[0]}.html" for scene in results]
    for what, paths in (("Loss curves", pictures), ("Audits", audits), ("Metrics", [folder / "demo.json"])):
        Console().print(f"{what}: {', '.join(map(str, paths))}")
    return results


def _run_scene(number: int, original: Any, output_dir: str, seed: int) -> tuple[str, dict, dict]:
    """One scene: its name, model to metrics, and method to log history. Its progress bars stand in line `number`."""
    torch.set_num_threads(1)
    quiet()
    data = digits_data(seed)
    scene, sets = list(scenes(data["train"], seed).items())[number]
    forget, retain = (in_memory(samples) for samples in sets)
    audited = {"forget_ds": forget, "retain_ds": retain, "unseen_ds": in_memory(data["test"])}
    work = {"output_dir": output_dir, "line": number, **TRAINING}
    retrained = digits_model(seed + 1)
    seconds = train_from_scratch(retrained, retain, seed=seed + 1, description=f"{scene}: retraining", **work)
    found = {
        "original": measure(original, **audited),
        "retrained": {**measure(retrained, **audited), "seconds": seconds},
    }
    runs = {}
    for method, name in METHODS_SHOWN.items():
        args = UnlearningArguments(
            output_dir, method=method, seed=seed, report_to="none", disable_tqdm=True, dataloader_pin_memory=False
        )
        model, unseen = copy.deepcopy(original), in_memory(data["unseen"])
        trainer = UnlearningTrainer(model, forget, retain, args, unseen_ds=unseen)
        trainer.pop_callback(PrinterCallback)
        trainer.add_callback(ProgressBar(f"{scene}: {name}", number))
        started = time.perf_counter()
        trainer.train()
        found[name] = {"seconds": time.perf_counter() - started, **measure(trainer.model, **audited)}
        runs[name] = trainer.state.log_history
        if method == "nabla_tau":
            report = trainer.audit(audited["unseen_ds"], original=original, retrained=retrained)
            report.to_html(Path(output_dir) / f"audit-{scene.split()[0]}.html")
    for metrics in found.values():
        metrics["gap"] = average_gap(metrics, found["retrained"])
    return scene, found, runs
