"""Language models that read images: one image a sample, images of several sizes, and several images a sample."""

import pytest
import tiny
import torch
import transformers as tf
from datasets import Dataset
from datasets import Image as Images
from PIL import Image
from torch import nn

from hf_unlearn import UnlearningArguments, UnlearningTrainer, audit
from hf_unlearn.data.collator import default_collator
from hf_unlearn.data.preprocessing import prepare
from hf_unlearn.losses import head_of
from hf_unlearn.losses.images import unpadded_images
from hf_unlearn.per_sample import PerSampleGradients

IMAGE = 5  # the token in whose place an image is put
SPECIAL = {"vocab_size": tiny.VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BLOCKS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
DECODER = {**SPECIAL, **BLOCKS, "num_key_value_heads": 1, "max_position_embeddings": 64}


def llava():
    vision = {"model_type": "clip_vision_model", **BLOCKS, "image_size": 16, "patch_size": 8, "projection_dim": 16}
    config = tf.LlavaConfig(
        text_config={"model_type": "llama", **DECODER}, vision_config=vision, image_token_index=IMAGE,
        vision_feature_layer=-1,
    )  # fmt: skip
    return tf.LlavaForConditionalGeneration(config)


def qwen2_vl():
    text = {**DECODER, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
    config = tf.Qwen2VLConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=6, vision_start_token_id=7,
        vision_end_token_id=8,
    )  # fmt: skip
    return tf.Qwen2VLForConditionalGeneration(config)


def idefics3():
    vision = {**BLOCKS, "image_size": 16, "patch_size": 4}
    config = tf.Idefics3Config(
        text_config={"model_type": "llama", **DECODER}, vision_config=vision, image_token_id=IMAGE, scale_factor=2
    )
    return tf.Idefics3ForConditionalGeneration(config)


def text(images, i, generator):
    """The tokens of images, each between two of its own, and a text of six to eight tokens."""
    tokens = torch.randint(9, tiny.VOCAB, (6 + i % 3,), generator=generator).tolist()
    return torch.tensor([t for count in images for t in (7, *[IMAGE] * count, 8)] + tokens)


def one_image(n, generator):
    """An image of four patches."""
    return [
        {"input_ids": text([4], i, generator), "pixel_values": torch.randn(3, 16, 16, generator=generator)}
        for i in range(n)
    ]


def images_of_several_sizes(n, generator):
    """One or two images of 4 x 4 or 4 x 8 patches, four of which make a token, or none."""
    samples = []
    for i in range(n):
        grid = torch.tensor([[1, 4, 4], [1, 4, 8]][: i % 3] or [[0, 0, 0]])
        patches = int(grid.prod(1).sum())
        ids = text((grid.prod(1) // 4).tolist(), i, generator)
        samples.append({
            "input_ids": ids, "mm_token_type_ids": (ids == IMAGE).long(), "image_grid_thw": grid,
            "pixel_values": torch.randn(patches, 3 * 2 * 4 * 4, generator=generator),
        })  # fmt: skip
    return samples


def two_images(n, generator):
    """Two images of four tokens each."""
    return [
        {"input_ids": text([4, 4], i, generator), "pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
        for i in range(n)
    ]


MODELS = {
    "llava": (llava, one_image), "llava, two": (llava, two_images), "qwen2_vl": (qwen2_vl, images_of_several_sizes),
    "idefics3": (idefics3, two_images),
}  # fmt: skip


def make(name):
    build, samples = MODELS[name]
    torch.manual_seed(0)
    model = build().eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=0.2)
    return model, samples(20, torch.Generator().manual_seed(0))


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
    model = model.double()
    head, batch = head_of(model), default_collator(model)(data[:4])
    batch = {n: v.double() if v.is_floating_point() else v for n, v in batch.items()}

    def losses(batch):
        return head.losses(head.run(model, batch), batch)

    engine, loop = PerSampleGradients(model, losses), PerSampleGradients(model, losses, "loop")
    gradients, expected = engine(batch).gradients(engine.parameters), loop(batch).gradients(loop.parameters)
    scale = max(float(value.norm()) for value in expected.values())
    for n, value in expected.items():
        assert float((gradients[n] - value).norm()) <= 1e-5 * max(float(value.norm()), 1e-3 * scale), n


@pytest.mark.parametrize("method", ["nabla_tau", "orthograd"])
@pytest.mark.parametrize("name", MODELS)
def test_a_run_moves_the_weights_and_is_audited(name, method, tmp_path):
    model, data = make(name)
    forget_ds, retain_ds, unseen_ds = data[:5], data[5:13], data[13:]
    args = UnlearningArguments(
        output_dir=str(tmp_path), method=method, max_steps=2, learning_rate=1e-2, per_device_train_batch_size=4,
        report_to="none", use_cpu=True, disable_tqdm=True, stop_at_target=False,
    )  # fmt: skip
    trainer = UnlearningTrainer(model, forget_ds, retain_ds, args, unseen_ds=unseen_ds)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    moved = {n for n, p in trainer.model.named_parameters() if n in before and not torch.equal(p, before[n])}
    assert any("vis" in n for n in moved) and any("vis" not in n for n in moved)
    report = audit(trainer.model, forget_ds=forget_ds, retain_ds=retain_ds, unseen_ds=unseen_ds)
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
