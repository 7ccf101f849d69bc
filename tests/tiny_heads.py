"""Tiny models of heads that few trainers know, samples for them, and what is checked of each."""

import tiny
import torch
import transformers as tf
from torch import nn

from hf_unlearn import UnlearningArguments, UnlearningTrainer, audit
from hf_unlearn.data.collator import default_collator
from hf_unlearn.losses import head_of
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


def choices(n, generator):
    """Questions with three answers of different lengths, not padded."""
    lengths = torch.randint(4, 8, (n, 3), generator=generator).tolist()
    return [
        {
            "input_ids": [torch.randint(4, tiny.VOCAB, (t,), generator=generator).tolist() for t in sample],
            "attention_mask": [[1] * t for t in sample],
            "labels": i % 3,
        }
        for i, sample in enumerate(lengths)
    ]


def regions(n, generator):
    """Images of 32 x 32 with a class for every pixel; a corner has none."""
    samples = []
    for _ in range(n):
        labels = torch.randint(tiny.NUM_LABELS, (32, 32), generator=generator)
        labels[:4, :4] = 255
        samples.append({"pixel_values": torch.randn(3, 32, 32, generator=generator), "labels": labels})
    return samples


def captions(n, generator):
    """Images, each with captions to choose from."""
    samples = choices(n, generator)
    return [{**sample, "pixel_values": torch.randn(3, 16, 16, generator=generator)} for sample in samples]


def bert():
    return tf.BertForMultipleChoice(tf.BertConfig(**tiny.DECODER))


def segformer():
    config = tf.SegformerConfig(
        hidden_sizes=[8] * 4, depths=[1] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8, **tiny.CLASSES
    )
    return tf.SegformerForSemanticSegmentation(config)


def clip():
    vision = {**tiny.BLOCKS, "image_size": 16, "patch_size": 8}
    return tf.CLIPModel(tf.CLIPConfig(text_config=tiny.DECODER, vision_config=vision, projection_dim=16))


BUILT = {
    "multiple_choice": (bert, choices), "contrastive": (clip, captions), "segmentation": (segformer, regions),
    "llava": (llava, one_image), "llava, two": (llava, two_images), "qwen2_vl": (qwen2_vl, images_of_several_sizes),
    "idefics3": (idefics3, two_images),
}  # fmt: skip


def make(name, count=24):
    """A model in eval mode, with weights so large that nothing vanishes, and its samples."""
    build, samples = BUILT[name]
    torch.manual_seed(0)
    model = build().eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=0.2)
    return model, samples(count, torch.Generator().manual_seed(0))


def check_gradients(model, samples, tolerance):
    """Per-sample gradients are those of one sample at a time."""
    model = model.double()
    head, batch = head_of(model), default_collator(model)(samples)
    batch = {name: v.double() if v.is_floating_point() else v for name, v in batch.items()}

    def losses(batch):
        return head.losses(head.run(model, batch), batch)

    engine, loop = PerSampleGradients(model, losses), PerSampleGradients(model, losses, "loop")
    gradients, expected = engine(batch).gradients(engine.parameters), loop(batch).gradients(loop.parameters)
    scale = max(float(value.norm()) for value in expected.values())
    for name, value in expected.items():
        assert float((gradients[name] - value).norm()) <= tolerance * max(float(value.norm()), 1e-3 * scale), name


def unlearned(model, samples, method, folder):
    """The trainer after two steps, the names of the weights that moved, and an audit."""
    forget_ds, retain_ds, unseen_ds = samples[:6], samples[6:16], samples[16:]
    args = UnlearningArguments(
        output_dir=str(folder), method=method, max_steps=2, learning_rate=1e-2, per_device_train_batch_size=4,
        report_to="none", use_cpu=True, disable_tqdm=True, stop_at_target=False,
    )  # fmt: skip
    trainer = UnlearningTrainer(model, forget_ds, retain_ds, args, unseen_ds=unseen_ds)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    moved = {n for n, p in trainer.model.named_parameters() if n in before and not torch.equal(p, before[n])}
    return trainer, moved, audit(trainer.model, forget_ds=forget_ds, retain_ds=retain_ds, unseen_ds=unseen_ds)
