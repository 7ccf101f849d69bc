"""Plain training of models that do not take samples as the default collator puts them."""

import copy

import pytest
import tiny_heads
import torch

from hf_unlearn.data.collator import default_collator
from hf_unlearn.losses import head_of
from hf_unlearn.training import train_from_scratch

SETTINGS = {"max_steps": 1, "learning_rate": 1e-2, "optim": "sgd", "max_grad_norm": 0.0, "use_cpu": True}


@pytest.mark.parametrize("name", ["contrastive", "qwen2_vl"])
def test_a_step_is_one_of_the_mean_loss_whatever_the_batches(name, tmp_path):
    """Of samples where images are chosen from captions; of labelled tokens in a language model."""
    model, samples = tiny_heads.make(name, 8)
    batch, head = default_collator(model)(samples), head_of(model)
    expected = copy.deepcopy(model)
    losses = head.losses(head.run(expected, batch), batch)
    weights = torch.ones(8) if name == "contrastive" else (batch["labels"][:, 1:] != -100).sum(1)
    ((losses * weights).sum() / weights.sum()).backward()
    for sizes in (
        {"per_device_train_batch_size": 8},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    ):
        trained = copy.deepcopy(model)
        train_from_scratch(trained, samples, output_dir=str(tmp_path), **sizes, **SETTINGS)
        for (parameter, weight), before in zip(trained.named_parameters(), expected.parameters(), strict=True):
            step = 0 if before.grad is None else 1e-2 * before.grad
            torch.testing.assert_close(weight, before - step, rtol=1e-4, atol=1e-6, msg=parameter)
