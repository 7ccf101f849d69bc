"""Heads that few trainers know, through a whole run: multiple choice, images among captions, segmentation."""

from types import SimpleNamespace

import pytest
import tiny
import torch
import transformers as tf
from torch import nn

from hf_unlearn import UnlearningArguments, UnlearningTrainer, audit
from hf_unlearn.data.collator import default_collator
from hf_unlearn.losses import head_of
from hf_unlearn.per_sample import PerSampleGradients

CHOICES = 3


def choices(n, generator):
    """Questions with three answers of different lengths, not padded."""
    lengths = torch.randint(4, 8, (n, CHOICES), generator=generator).tolist()
    return [
        {
            "input_ids": [torch.randint(4, tiny.VOCAB, (t,), generator=generator).tolist() for t in sample],
            "attention_mask": [[1] * t for t in sample],
            "labels": i % CHOICES,
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


HEADS = {"multiple_choice": (bert, choices), "contrastive": (clip, captions), "segmentation": (segformer, regions)}


def make(kind):
    build, samples = HEADS[kind]
    torch.manual_seed(0)
    model = build()
    for weight in model.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=0.2)
    return model, samples(24, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", ["nabla_tau", "orthograd"])
@pytest.mark.parametrize("kind", HEADS)
def test_a_run_moves_the_weights_and_is_audited(kind, method, tmp_path):
    model, data = make(kind)
    forget_ds, retain_ds, unseen_ds = data[:6], data[6:16], data[16:]
    args = UnlearningArguments(
        output_dir=str(tmp_path), method=method, max_steps=2, learning_rate=1e-2, per_device_train_batch_size=4,
        report_to="none", use_cpu=True, disable_tqdm=True, stop_at_target=False,
    )  # fmt: skip
    trainer = UnlearningTrainer(model, forget_ds, retain_ds, args, unseen_ds=unseen_ds)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    assert trainer.head.kind == kind
    assert any(not torch.equal(p, before[n]) for n, p in trainer.model.named_parameters() if n in before)
    report = audit(trainer.model, forget_ds=forget_ds, retain_ds=retain_ds, unseen_ds=unseen_ds)
    assert all(0 <= report.metrics[f"{part}_accuracy"] <= 1 for part in ("forget", "retain", "unseen"))


@pytest.mark.parametrize("kind", HEADS)
def test_per_sample_gradients_are_those_of_one_sample_at_a_time(kind):
    model, data = make(kind)
    model = model.double().eval()
    head, batch = head_of(model), default_collator(model)(data[:5])
    batch = {name: v.double() if v.is_floating_point() else v for name, v in batch.items()}

    def losses(batch):
        return head.losses(head.run(model, batch), batch)

    engine, loop = PerSampleGradients(model, losses), PerSampleGradients(model, losses, "loop")
    gradients, expected = engine(batch).gradients(engine.parameters), loop(batch).gradients(loop.parameters)
    scale = max(float(value.norm()) for value in expected.values())
    for name, value in expected.items():
        assert float((gradients[name] - value).norm()) <= 1e-9 * max(float(value.norm()), 1e-3 * scale), name


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
