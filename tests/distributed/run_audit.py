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
    sets = {"forget": data[:17], "retain": data[17:40], "unseen": data[40:]}
    settings = {"batch_size": 4, "resamples": 20}
    report = audit(model, **named(sets), retrained=retrained, relearning=True, **settings)
    kept = f"{folder}/kept"
    first, second = (audit(model, **named(sets), cache_dir=kept, **settings) for _ in range(2))
    assert first == second
    args = UnlearningArguments(
        output_dir=folder, method="grad_diff", max_steps=4, per_device_train_batch_size=2, report_to="none",
        disable_tqdm=True, use_cpu=True, eval_strategy="steps", eval_steps=2,
    )  # fmt: skip
    trainer = UnlearningTrainer(model, sets["forget"], sets["retain"], args, unseen_ds=sets["unseen"])
    callback = AuditCallback(trainer, retrained=retrained, resamples=10)
    trainer.add_callback(callback)
    trainer.train()
    model, make_batch = make("gpt2")
    data = [{k: v[: 3 + i % 4] for k, v in sample.items()} for i, sample in enumerate(samples(make_batch(13, seed=2)))]
    return {
        "lengths": statistics_of(model, Samples(data), batch_size=2).losses.tolist(),
        "audit": [report.metrics, report.metrics_by_model, report.verdict, report.relearning, report.histograms],
        "kept": first.metrics,
        "during": [each.metrics_by_model["retrained"] for each in callback.reports],
        "last": [each.metrics for each in callback.reports],
    }


def keep(folder):
    Path(folder, f"rank{os.environ['RANK']}.json").write_text(json.dumps(run(folder)))
