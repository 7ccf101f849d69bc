"""A short run of every loss method, with and without DeepSpeed; see test_deepspeed.py."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from peft import LoraConfig
from safetensors.torch import load_file
from tiny import make, samples
from transformers import TrainerCallback

from hf_unlearn import UnlearningArguments, UnlearningTrainer
from hf_unlearn.auditing.caching import fingerprint
from hf_unlearn.methods import METHODS


class Fingerprints(TrainerCallback):
    """Takes the fingerprint of the model after every step."""

    def __init__(self, prints):
        self.prints = prints

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.prints.append(fingerprint(model))


def run(folder, method, stage, adapter):
    model, make_batch = make("vit")
    data = [{k: torch.as_tensor(v) for k, v in sample.items()} for sample in samples(make_batch(24, seed=1))]
    zero = {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True}
    config = {
        "zero_optimization": zero, "zero_force_ds_cpu_optimizer": False, "zero_allow_untested_optimizer": True,
        "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto", "gradient_clipping": "auto",
    }  # fmt: skip
    args = UnlearningArguments(
        output_dir=folder, method=method, max_steps=3, per_device_train_batch_size=4, gradient_accumulation_steps=2,
        report_to="none", disable_tqdm=True, stop_at_target=False, logging_steps=1, optim="adamw_torch",
        deepspeed=config if stage else None,
    )  # fmt: skip
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"]) if adapter else None
    trainer = UnlearningTrainer(model, data[:6], data[6:16], args, unseen_ds=data[16:], peft_config=lora)
    prints = []
    trainer.add_callback(Fingerprints(prints))
    trainer.train()
    assert trainer.is_deepspeed_enabled == bool(stage)
    assert len(set(prints)) == 3  # what an audit has measured is kept under another one after every step
    trainer.save_model()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"losses": torch.tensor(losses), **load_file(f"{folder}/model.safetensors")}


if __name__ == "__main__":
    folder, stage = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(1)
    # The model is an image classifier.
    methods = {
        n: method
        for n, method in METHODS.items()
        if not (method.is_gradient_surgery or method.needs_full_weights or method.needs_original_model)
    }
    names = [n for n, method in methods.items() if "single_label" in (method.head_kinds or ("single_label",))]
    states = {
        f"{name} {adapter}": run(f"{folder}/{name}-{adapter}", name, stage, adapter)
        for name in names
        for adapter in (False, True)
    }
    torch.save(states, f"{folder}/{stage}.pt")
