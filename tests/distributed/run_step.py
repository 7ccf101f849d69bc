"""Runs two optimizer steps of every case on every process, and saves the gradients; see test_processes.py."""

import os

import torch
from tiny import make, samples
from transformers import TrainerCallback

from hf_unlearn import UnlearningArguments, UnlearningTrainer


class GradientRecorder(TrainerCallback):
    """Records the gradients of every step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


def run(folder, name, method, target, weights, batch, accumulation):
    model, make_batch = make(name)
    data = [{k: torch.as_tensor(v) for k, v in sample.items()} for sample in samples(make_batch(24, seed=1))]
    data = [{k: v.double() if v.is_floating_point() else v for k, v in sample.items()} for sample in data]
    recorder = GradientRecorder()
    args = UnlearningArguments(
        output_dir=folder, method=method, forget_target=target, max_steps=2, per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation, max_grad_norm=0.0, report_to="none", disable_tqdm=True,
        use_cpu=True, stop_at_target=False, logging_steps=1, sharpness_radius=0.05 if weights == "smoothed" else 0.0,
    )  # fmt: skip
    trainer = UnlearningTrainer(model.double(), data[:6], data[6:16], args, unseen_ds=data[16:], callbacks=[recorder],
                                peft_config=None if weights == "all" else "auto")  # fmt: skip
    seen = []
    get_batch_samples = trainer.get_batch_samples

    def record(*args, **kwargs):
        batches, count = get_batch_samples(*args, **kwargs)
        seen.extend(int(i) for b in batches for i in b["index"])
        return batches, count

    trainer.get_batch_samples = record
    trainer.train()
    return {
        "gradients": recorder.steps,
        "seen": seen,
        "loss": [e["loss"] for e in trainer.state.log_history if "loss" in e],
        "metrics": trainer.unlearning_state.metrics_before,
        "passes": dict(trainer.outcome.cost.passes),
        "looks_for_unused": trainer.accelerator.ddp_handler.find_unused_parameters,
        "weights": {n: p.detach().clone() for n, p in trainer.model.named_parameters()},
    }


def save(folder, cases):
    torch.save([run(folder, *case) for case in cases], f"{folder}/rank{os.environ['RANK']}.pt")
