"""Language models that read images: one image a sample, images of several sizes, and several images a sample."""

import pytest
import torch
from datasets import Dataset
from datasets import Image as Images
from PIL import Image
from tiny_heads import IMAGE, check_gradients, llava, make, unlearned

from hf_unlearn.data.collator import default_collator
from hf_unlearn.data.preprocessing import prepare
from hf_unlearn.losses import head_of
from hf_unlearn.losses.images import unpadded_images

MODELS = ("llava", "llava, two", "qwen2_vl", "idefics3")


@pytest.mark.parametrize("name", MODELS)
def test_losses_are_the_models_own_on_each_sample_and_need_the_image(name):
    model, data = make(name)
    head, collate = head_of(model), default_collator(model)
    assert head.kind == "causal_lm"
    batch = collate(data[:4])
    assert all(len(value) == 4 for value in batch.values())
    assert not (batch["labels"] == IMAGE).any() and (batch["labels"] != -100).any(1).all()
    losses = head.losses(head.run(model, batch), batch)
    for i, sample in enumerate(data[:4]):
        alone = collate([sample])
        if "image_grid_thw" in alone and not alone["image_grid_thw"].any():
            alone = {n: v for n, v in alone.items() if n not in ("image_grid_thw", "pixel_values")}
        own = model(**unpadded_images(model, alone)).loss
        torch.testing.assert_close(losses[i], own, rtol=1e-4, atol=1e-5)
    others = {**batch, "pixel_values": batch["pixel_values"].flip(1)}
    assert not torch.allclose(head.losses(head.run(model, others), others), losses)


@pytest.mark.parametrize("name", MODELS)
def test_per_sample_gradients_are_those_of_one_sample_at_a_time(name):
    model, data = make(name)
    check_gradients(model, data[:4], 1e-5)


@pytest.mark.parametrize("method", ["nabla_tau", "orthograd"])
@pytest.mark.parametrize("name", MODELS)
def test_a_run_moves_the_weights_and_is_audited(name, method, tmp_path):
    _, moved, report = unlearned(*make(name), method, tmp_path)
    assert any("vis" in n for n in moved) and any("vis" not in n for n in moved)
    assert all(report.metrics[f"{part}_loss"] > 0 for part in ("forget", "retain", "unseen"))


def test_patches_of_the_images_alone_reach_the_model():
    model, data = make("qwen2_vl")
    batch = default_collator(model)(data[:3])  # none, one and two images
    assert batch["image_grid_thw"].tolist() == [[[0] * 3] * 2, [[1, 4, 4], [0] * 3], [[1, 4, 4], [1, 4, 8]]]
    assert batch["pixel_values"].shape == (3, 48, 96)
    inputs = head_of(model).inputs(batch)
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 4], [1, 4, 4], [1, 4, 8]]
    own = torch.cat([sample["pixel_values"] for sample in data[:3]])
    assert torch.equal(inputs["pixel_values"], own)


def test_prepare_does_not_drop_images():
    samples = Dataset.from_dict({"image": [Image.new("RGB", (16, 16))], "text": ["a"]}).cast_column("image", Images())
    with pytest.raises(ValueError, match=r"^pictures: column 'image' holds images, and prepare reads text alone for"):
        prepare(samples, llava(), object(), name="pictures")
