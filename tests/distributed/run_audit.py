"""An audit, and audits during a run, on every process; see test_audit_processes.py."""

import json
import os
from pathlib import Path

import torch
from tiny import Samples, make, named, samples

from hf_unlearn import AuditCallback, UnlearningArguments, UnlearningTrainer, audit
from hf_unlearn.auditing.measuring import statistics_of


def run(folder):
    model, make_batch = make("vit")
    retrained = type(model)(model.config)
    data = [{k: torch.as_tensor(v) for k, v in sample.items()} for sample in samples(make_batch(61, seed=1))]
    datasets = {"forget": data[:17], "retain": data[17:40], "unseen": data[40:]}
    settings = {"batch_size": 4, "resamples": 20}
    report = audit(model, **named(datasets), retrained=retrained, relearning=True, **settings)
    cache_dir = f"{folder}/cache"
    first, second = (audit(model, **named(datasets), cache_dir=cache_dir, **settings) for _ in range(2))
    assert first == second
    args = UnlearningArguments(
        output_dir=folder, method="grad_diff", max_steps=4, per_device_train_batch_size=2, report_to="none",
        disable_tqdm=True, use_cpu=True, eval_strategy="steps", eval_steps=2,
    )  # fmt: skip
    trainer = UnlearningTrainer(model, datasets["forget"], datasets["retain"], args, unseen_ds=datasets["unseen"])
    callback = AuditCallback(trainer, retrained=retrained, resamples=10)
    trainer.add_callback(callback)
    trainer.train()
    model, make_batch = make("gpt2")
    data = [{k: v[: 3 + i % 4] for k, v in sample.items()} for i, sample in enumerate(samples(make_batch(13, seed=2)))]
    return {
        "lengths": statistics_of(model, Samples(data), batch_size=2).losses.tolist(),
        "audit": [report.metrics, report.metrics_by_model, report.verdict, report.relearning, report.histograms],
        "cached": first.metrics,
        "during": [report.metrics_by_model["retrained"] for report in callback.reports],
        "last": [report.metrics for report in callback.reports],
    }


def save(folder):
    Path(folder, f"rank{os.environ['RANK']}.json").write_text(json.dumps(run(folder)))
