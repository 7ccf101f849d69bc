"""The whole task in two minutes: a small model forgets handwritten digits, and is compared with a retrained one."""

from __future__ import annotations

import copy
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import dataclass
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
from hf_unlearn.report.plots import plot_loss_curves
from hf_unlearn.report.tables import print_comparison
from hf_unlearn.trainer.arguments import UnlearningArguments
from hf_unlearn.trainer.trainer import UnlearningTrainer
from hf_unlearn.training import ProgressBar, quiet, train_from_scratch

METHODS_SHOWN = {"nabla_tau": "∇τ", "orthograd": "OrthoGrad + LoRA"}
AUDITED_METHOD = "nabla_tau"
TRAINING: dict[str, Any] = {"num_train_epochs": 30, "learning_rate": 1e-3, "per_device_train_batch_size": 64}
COLUMNS = {
    "forget": "forget_accuracy", "retain": "retain_accuracy", "unseen": "unseen_accuracy", "MIA": "mia_accuracy",
    "loss": "forget_loss", "gap": "gap", "s": "seconds",
}  # fmt: skip
CAPTION = (
    "Accuracy in % on forget, retain and unseen samples, and of membership inference\n"
    "(MIA); loss on the forget dataset; gap: mean distance, in points, to the model\n"
    "retrained without the forget dataset"
)


@dataclass
class RequestResult:
    """What the demo finds for one forget request.

    Attributes:
        name: of the request, as in the table.
        metrics_by_model: name of a model to its metrics.
        histories: name of a method to the log history of its run.
        audit_path: the HTML report of the audited method.
    """

    name: str
    metrics_by_model: dict[str, dict[str, float]]
    histories: dict[str, list[dict[str, float]]]
    audit_path: Path


def digits_data(seed: int = 0) -> dict[str, datasets.Dataset]:
    """scikit-learn's handwritten digits (8x8, 10 classes): 997 `train`, 400 `unseen` and 400 `test` samples."""
    digits = load_digits()
    pixels, labels = (digits.images[:, None] / 8 - 1).astype(np.float32), digits.target
    train, rest = train_test_split(np.arange(len(labels)), test_size=800, stratify=labels, random_state=seed)
    unseen, test = train_test_split(rest, test_size=400, stratify=labels[rest], random_state=seed)
    features = datasets.Features(
        {"pixel_values": datasets.Array3D((1, 8, 8), "float32"), "label": datasets.ClassLabel(num_classes=10)}
    )
    samples = datasets.Dataset.from_dict({"pixel_values": pixels, "label": labels}, features).with_format("torch")
    return {name: samples.select(indices) for name, indices in (("train", train), ("unseen", unseen), ("test", test))}


def digits_model(seed: int = 0) -> ViTForImageClassification:
    """A ViT of about 100 thousand weights, newly initialised."""
    set_seed(seed)
    config = ViTConfig(
        image_size=8, patch_size=2, num_channels=1, hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=128, id2label={i: str(i) for i in range(10)},
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return ViTForImageClassification(config)


def forget_requests(train_ds: datasets.Dataset, seed: int) -> dict[str, tuple[datasets.Dataset, datasets.Dataset]]:
    """Forget and retain dataset of each request of the demo: one class, and a random 10 %."""
    return {
        "class 3": split_forget_retain(train_ds, column="label", values=[3]),
        "random 10 %": split_forget_retain(train_ds, fraction=0.1, seed=seed),
    }


def run_demo(output_dir: str = "unlearn-demo", seed: int = 0) -> dict[str, dict[str, dict[str, float]]]:
    """Train a model, unlearn two requests, compare with retrained models; prints a table and draws the loss curves.

    The two requests run in two processes of one thread each, because more threads slow down so small a model.

    Args:
        output_dir: folder of the pictures (`curves-*.png`), the audits of ∇τ (`audit-*.html`) and the metrics
            (`demo.json`).
        seed: seed of everything.

    Returns:
        Request to model to metrics; the average gap, to the retrained model, is in points.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        # Started first: importing torch takes the processes as long as the training below.
        started = [pool.submit(torch.set_num_threads, 1) for _ in range(2)]
        torch.set_num_threads(1)
        original = _train_original(output_dir, seed)
        wait(started)
        futures = [pool.submit(_run_request, number, original, output_dir, seed) for number in range(2)]
        results = [future.result() for future in futures]
    return _report(results, folder, seed)


def _train_original(output_dir: str, seed: int) -> ViTForImageClassification:
    train_ds = in_memory(digits_data(seed)["train"])
    model = digits_model(seed)
    train_from_scratch(model, train_ds, description="Training a ViT on digits", output_dir=output_dir, **TRAINING)
    return model


def _run_request(number: int, original: ViTForImageClassification, output_dir: str, seed: int) -> RequestResult:
    """Retrain and unlearn for one request, whose progress bars stand in line `number` of the terminal."""
    torch.set_num_threads(1)
    quiet()
    data = digits_data(seed)
    name, (forget_ds, retain_ds) = list(forget_requests(data["train"], seed).items())[number]
    audit_datasets = {
        "forget_ds": in_memory(forget_ds), "retain_ds": in_memory(retain_ds), "unseen_ds": in_memory(data["test"]),
    }  # fmt: skip
    retrained = digits_model(seed + 1)
    seconds = train_from_scratch(
        retrained, audit_datasets["retain_ds"], seed=seed + 1, description=f"{name}: retraining",
        output_dir=output_dir, line=number, **TRAINING,
    )  # fmt: skip
    audit_path = Path(output_dir) / f"audit-{name.split()[0]}.html"
    result = RequestResult(name, {}, {}, audit_path)
    result.metrics_by_model["original"] = measure(original, **audit_datasets)
    result.metrics_by_model["retrained"] = {**measure(retrained, **audit_datasets), "seconds": seconds}
    for method, label in METHODS_SHOWN.items():
        args = UnlearningArguments(
            output_dir, method=method, seed=seed, report_to="none", disable_tqdm=True, dataloader_pin_memory=False
        )
        trainer = UnlearningTrainer(
            copy.deepcopy(original), audit_datasets["forget_ds"], audit_datasets["retain_ds"], args,
            unseen_ds=in_memory(data["unseen"]),
        )  # fmt: skip
        trainer.pop_callback(PrinterCallback)
        trainer.add_callback(ProgressBar(f"{name}: {label}", number))
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        result.metrics_by_model[label] = {"seconds": seconds, **measure(trainer.model, **audit_datasets)}
        result.histories[label] = trainer.state.log_history
        if method == AUDITED_METHOD:
            report = trainer.audit(audit_datasets["unseen_ds"], original=original, retrained=retrained)
            report.to_html(audit_path)
    for metrics in result.metrics_by_model.values():
        metrics["gap"] = average_gap(metrics, result.metrics_by_model["retrained"])
    return result


def _report(results: list[RequestResult], folder: Path, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """Draw the loss curves, print the table, save the metrics, and say where all is; returns the metrics."""
    pictures = _draw(results, folder)
    metrics = {result.name: result.metrics_by_model for result in results}
    print_comparison(metrics, COLUMNS, CAPTION)
    metrics_path = folder / "demo.json"
    metrics_path.write_text(json.dumps({"seed": seed, "requests": metrics}, indent=1) + "\n")
    audits = [result.audit_path for result in results]
    for content, paths in (("Loss curves", pictures), ("Audits", audits), ("Metrics", [metrics_path])):
        Console().print(f"{content}: {', '.join(map(str, paths))}", markup=False)
    return metrics


def _draw(results: list[RequestResult], folder: Path) -> list[Path | str]:
    """The pictures of the loss curves, or what is missing to draw them."""
    try:
        return [
            plot_loss_curves(
                result.histories, result.metrics_by_model["retrained"]["forget_loss"], result.name,
                folder / f"curves-{result.name.split()[0]}.png",
            )
            for result in results
        ]  # fmt: skip
    except ImportError:
        return ["not drawn, which takes matplotlib: pip install 'hf-unlearn[report]'"]
