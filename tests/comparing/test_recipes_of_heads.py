"""The recipes of further heads: each of their models scores each sample, and a digit's target is of other pictures."""

from pathlib import Path

import pytest
import torch

from hf_unlearn.comparing import Comparison
from hf_unlearn.data.collator import readable_collator
from hf_unlearn.losses import head_of

RECIPES = Path(__file__).parents[2] / "benchmarks/recipes"
KINDS = {
    "segmentation": "segmentation", "captions": "contrastive", "answers": "causal_lm", "facts": "multiple_choice",
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_a_model_scores_every_sample_and_learns(name):
    task = Comparison.from_yaml(RECIPES / f"{name}.yaml").load_task_class()(0)
    model = task.build(0)
    head, batch = head_of(model), readable_collator(model)([task.datasets["train"][i] for i in range(8)])
    assert head.kind == KINDS[name]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for _ in range(15):
        losses = head.losses(head.run(model, batch), batch)
        assert losses.shape == (8,)
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append(float(losses.detach().mean()))
    assert history[-1] < 0.9 * history[0]


@pytest.mark.parametrize("name", ["segmentation", "captions", "answers"])
def test_a_digits_target_comes_from_pictures_of_others_that_bear_its_name(name):
    task = Comparison.from_yaml(RECIPES / f"{name}.yaml").load_task_class()(0)
    forget_ds, retain_ds = task.split("digit=3")
    assert set(forget_ds["digit"][:].tolist()) == {3} and 3 not in retain_ds["digit"][:].tolist()
    target_ds = task.target("digit=3", {})["unseen_ds"]
    assert set(target_ds["digit"][:].tolist()) == {3}
    assert set(target_ds["picture"][:].tolist()) <= set(retain_ds["picture"][:].tolist())
    assert task.target("10%", {})["unseen_ds"] is task.datasets["unseen"]
    pictures = [set(task.datasets[part]["picture"][:].tolist()) for part in ("train", "unseen", "test")]
    assert sum(map(len, pictures)) == len(set.union(*pictures)) == 900
