"""Loading a checkpoint: all weights are its own, or it is refused; `from_pretrained` would draw new ones."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import ARCHITECTURES, make
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
)

from hf_unlearn.models.loading import load_model, load_whole
from hf_unlearn.trainer.checkpointing import load_weights


def edit(folder, change):
    """Change the tensors of a checkpoint, which are a dict by name."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def configure(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


@pytest.fixture
def vit(tmp_path):
    make("vit")[0].save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_loads_whole(tmp_path, name):
    """Tied weights, which are saved once, and buffers are not taken for missing."""
    model = make(name)[0]
    model.save_pretrained(tmp_path)
    loaded = load_whole(type(model), str(tmp_path)).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("key", ["classifier.weight", "vit.encoder.layer.0.layernorm_before.bias"])
def test_missing_weights_are_refused(vit, key):
    edit(vit, lambda tensors: tensors.pop(key))
    for load in (load_model, lambda name: load_weights(make("vit")[0], name)):
        with pytest.raises(ValueError, match=rf"^model: '{vit}' lacks .*as a ViTForImageClassification; give a check"):
            load(str(vit))


def test_weights_of_another_shape_are_refused(vit):
    edit(vit, lambda tensors: tensors.update({"classifier.bias": torch.zeros(7)}))
    with pytest.raises(ValueError, match=r"has other shapes of classifier.bias \(\[7\] for \[\d+\]\), as a ViT"):
        load_model(str(vit))


@pytest.mark.parametrize(("layers", "words"), [(1, "has more layers than its configuration says: "), (9, "lacks ")])
def test_another_depth_is_refused(vit, layers, words):
    configure(vit, num_hidden_layers=layers)
    with pytest.raises(ValueError, match=words):
        load_model(str(vit))


def test_weights_of_another_architecture_are_refused(vit):
    configure(vit, architectures=["DeiTForImageClassification"], model_type="deit")
    with pytest.raises(ValueError, match=r" lacks .* and \d+ more, as a DeiTForImageClassification"):
        load_model(str(vit))


def bert(cls):
    return cls(
        BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    )


def test_heads_that_the_class_does_not_have_are_left_out(tmp_path):
    """As in the published BERT, which has the head of its second task beside the one that its configuration names."""
    bert(BertForPreTraining).save_pretrained(tmp_path)
    configure(tmp_path, architectures=["BertForMaskedLM"])
    assert isinstance(load_model(str(tmp_path)), BertForMaskedLM)


def test_the_mask_of_pretraining_may_be_missing(tmp_path):
    """As in the published wav2vec 2.0 recognisers."""
    make("wav2vec2_ctc")[0].save_pretrained(tmp_path)
    edit(tmp_path, lambda tensors: tensors.pop("wav2vec2.masked_spec_embed"))
    load_model(str(tmp_path))


def test_a_fresh_head_is_new_and_nothing_else_is(vit, tmp_path_factory):
    load = AutoModelForImageClassification, str(vit)
    fresh = load_whole(*load, fresh_head=True, num_labels=11)
    assert fresh.classifier.weight.shape[0] == 11
    with pytest.raises(ValueError, match="has other shapes of classifier"):
        load_whole(*load, num_labels=11)
    edit(vit, lambda tensors: tensors.pop("vit.layernorm.weight"))
    with pytest.raises(ValueError, match=r"lacks vit\.layernorm\.weight, as a"):
        load_whole(*load, fresh_head=True, num_labels=11)
    # A base model without the pooler that the head reads.
    folder = tmp_path_factory.mktemp("bert")
    bert(BertForMaskedLM).save_pretrained(folder)
    load_whole(AutoModelForSequenceClassification, str(folder), fresh_head=True, num_labels=2)
