"""What the output layer knows of a class, and how it is taken out."""

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from hf_unlearn.models.adapters import add_adapter
from hf_unlearn.models.output_layer import output_layer, reset_outputs


@pytest.mark.parametrize(
    ("name", "layer"),
    [("vit", "classifier"), ("bert", "classifier"), ("gpt2_classifier", "score"), ("wav2vec2", "classifier")],
)
def test_the_outputs_of_a_class_are_set_to_the_mean_of_the_others(name, layer):
    model, batch = tiny.make(name)
    model.eval()
    found = output_layer(model)
    assert found is model.get_submodule(layer)
    before, inputs = {k: v.clone() for k, v in model.state_dict().items()}, batch(4)
    logits = model(**inputs).logits
    assert reset_outputs(model, [1])
    others = [i for i in range(found.out_features) if i != 1]
    torch.testing.assert_close(model(**inputs).logits[:, 1], logits[:, others].mean(1))
    assert torch.equal(model(**inputs).logits[:, others], logits[:, others])
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert f"{layer}.weight" in changed and changed <= {f"{layer}.weight", f"{layer}.bias"}


def test_of_an_adapter_the_copy_that_trains_is_changed():
    model, batch = tiny.make("vit")
    inputs = batch(4)
    adapted = add_adapter(model).eval()
    original = adapted(**inputs).logits
    assert reset_outputs(adapted, [0])
    assert not torch.allclose(adapted(**inputs).logits[:, 0], original[:, 0], atol=1e-4)
    with adapted.disable_adapter():
        assert torch.equal(adapted(**inputs).logits, original)


def test_an_adapter_on_the_head_is_no_output_layer():
    model, _ = tiny.make("vit")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "classifier"]))
    assert output_layer(model) is model.classifier.base_layer
    assert not reset_outputs(adapted, [0])  # its own weights do not train


def test_where_one_output_is_left_the_others_are_zero():
    model, _ = tiny.make("vit")
    kept = model.classifier.weight[2].clone()
    assert reset_outputs(model, [0, 1])
    assert model.classifier.weight[:2].eq(0).all() and torch.equal(model.classifier.weight[2], kept)


def test_what_does_not_train_or_is_not_linear_stays():
    model, _ = tiny.make("vit")
    before = model.classifier.weight.clone()
    model.classifier.requires_grad_(False)
    assert not reset_outputs(model, [0]) and torch.equal(model.classifier.weight, before)
    model.classifier = nn.Sequential(nn.Conv1d(1, 2, 1))
    assert not reset_outputs(model, [0])
    with pytest.raises(ValueError, match=r"^model: ViTForImageClassification has no linear layer with 3 outputs"):
        output_layer(model)
