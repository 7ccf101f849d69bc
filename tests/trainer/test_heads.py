"""Heads that few trainers know, through a whole run: multiple choice, images among captions, segmentation."""

from types import SimpleNamespace

import pytest
import torch
from tiny_heads import check_gradients, make, unlearned
from torch import nn

from hf_unlearn.data.collator import default_collator
from hf_unlearn.losses import head_of

HEADS = ("multiple_choice", "contrastive", "segmentation")


@pytest.mark.parametrize("method", ["nabla_tau", "orthograd"])
@pytest.mark.parametrize("kind", HEADS)
def test_a_run_moves_the_weights_and_is_audited(kind, method, tmp_path):
    trainer, moved, report = unlearned(*make(kind), method, tmp_path)
    assert trainer.head.kind == kind and moved
    assert all(0 <= report.metrics[f"{part}_accuracy"] <= 1 for part in ("forget", "retain", "unseen"))


@pytest.mark.parametrize("kind", HEADS)
def test_per_sample_gradients_are_those_of_one_sample_at_a_time(kind):
    model, data = make(kind)
    check_gradients(model, data[:5], 1e-9)


def test_choices_are_padded_together():
    model, _ = make("multiple_choice")
    batch = default_collator(model)([
        {"input_ids": [[5, 6, 7], [8]], "labels": 1}, {"input_ids": [[9], [5, 6]], "label": 0}
    ])  # fmt: skip
    assert batch["input_ids"].tolist() == [[[5, 6, 7], [8, 0, 0]], [[9, 0, 0], [5, 6, 0]]]
    assert batch["attention_mask"].tolist() == [[[1, 1, 1], [1, 0, 0]], [[1, 0, 0], [1, 1, 0]]]
    assert batch["labels"].tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"^samples: have \[1, 2\] choices in one batch; give every sample as many"):
        default_collator(model)([{"input_ids": [[5], [8]], "labels": 1}, {"input_ids": [[9]], "labels": 0}])


def test_columns_beside_the_choices_are_one_a_sample():
    model, _ = make("multiple_choice")
    samples = [{"input_ids": [[5, 6], [8]], "labels": 1, "person": person} for person in (3, torch.tensor(4))]
    batch = default_collator(model)(samples)
    assert batch["person"].tolist() == [3, 4] and batch["input_ids"].shape == (2, 2, 2)


def test_a_pixels_loss_by_hand():
    """Logits of one pixel for an image of two: both have its class; pixels of 255 have none."""
    model, _ = make("segmentation")
    head = head_of(model)
    logits = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1)
    batch = {"labels": torch.tensor([[[2, 0], [255, 255]]])}
    outputs = SimpleNamespace(logits=logits)
    total = torch.tensor([1.0, 1.0, torch.e]).sum().log()
    expected = ((total - 1) + total) / 2
    torch.testing.assert_close(head.losses(outputs, batch), expected[None])
    assert head.correct(outputs, batch).tolist() == [0.5]


def test_an_image_is_scored_among_its_own_captions():
    model, data = make("contrastive")
    model, head = model.eval(), head_of(model)
    batch = default_collator(model)(data[:4])
    losses = head.losses(head.run(model, batch), batch)
    for i in range(4):
        own = {n: batch[n][i] for n in ("input_ids", "attention_mask")}
        logits = model(pixel_values=batch["pixel_values"][i : i + 1], **own).logits_per_image
        torch.testing.assert_close(losses[i], nn.functional.cross_entropy(logits, batch["labels"][i : i + 1]))
    one = [{**sample, "input_ids": sample["input_ids"][0]} for sample in data[:2]]
    with pytest.raises(ValueError, match=r"^input_ids: found one text a sample; give each a list of those it chooses"):
        default_collator(model)(one)
    with pytest.raises(ValueError, match="among the captions of other samples a sample has no loss of its own"):
        head.inputs({**batch, "input_ids": batch["input_ids"][:, 0]})
