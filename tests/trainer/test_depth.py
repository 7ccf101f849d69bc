"""A forgotten class does not come back by training on others, or by one number; weights go back before a run."""

import copy

import pytest
import tiny
import torch
import transformers as tf
from peft.tuners.lora import LoraLayer
from tiny import Samples

from hf_unlearn import UnlearningArguments, UnlearningTrainer
from hf_unlearn.auditing.measuring import statistics_of
from hf_unlearn.auditing.one_offset import class_margins, one_offset
from hf_unlearn.auditing.relearning import finetune
from hf_unlearn.demo import digits_data
from hf_unlearn.models.adapters import add_adapter, merged
from hf_unlearn.models.resetting import base_weights, go_back
from hf_unlearn.training import train_from_scratch

FORGOTTEN = 3


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A small ViT that was trained on 500 digits, these, and those that it never saw."""
    data = digits_data(0)
    train, test = Samples(list(data["train"])[:500]), Samples(list(data["test"]))
    tf.set_seed(0)
    config = tf.ViTConfig(
        image_size=8, patch_size=4, num_channels=1, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, num_labels=10, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = tf.ViTForImageClassification(config)
    train_from_scratch(
        model, train, num_train_epochs=30, learning_rate=2e-3, per_device_train_batch_size=32, use_cpu=True,
        output_dir=str(tmp_path_factory.mktemp("out")),
    )  # fmt: skip
    return model.eval(), train, test


def forgotten(model, train, folder, **settings):
    forget = Samples([sample for sample in train if sample["label"] == FORGOTTEN])
    retain = Samples([sample for sample in train if sample["label"] != FORGOTTEN])
    args = UnlearningArguments(
        str(folder), request="class", report_to="none", disable_tqdm=True, use_cpu=True, **settings
    )
    trainer = UnlearningTrainer(model, forget, retain, args)
    trainer.train()
    return trainer, forget, retain


@pytest.mark.parametrize("method", ["nabla_tau", "orthograd"])
def test_a_forgotten_class_stays_forgotten(digits, tmp_path, method):
    model, train, test = digits
    trainer, forget, retain = forgotten(copy.deepcopy(model), train, tmp_path, method=method)
    unlearned = trainer.model.eval()
    before, after = (finetune(m, retain, forget, measure_every=50)["forget_accuracy"][-1] for m in (model, unlearned))
    assert before > 0.5 and after < 0.05

    def offset(model):
        forget_, unseen = (statistics_of(model, samples, log_probs=True) for samples in (forget, test))
        return min(one_offset(margins) for margins in class_margins(forget_, unseen, [FORGOTTEN], []))

    assert offset(model) < 0.05 and offset(unlearned) > 0.4


# ---- the way back ----


def moved(model, base, weights):
    """How far each weight has gone on the way to the base, where there is a way."""
    base = base.state_dict()
    return {
        name: float((p.detach() - weights[name]).norm() / (base[name] - weights[name]).norm())
        for name, p in model.named_parameters()
        if not torch.equal(base[name], weights[name])
    }


@pytest.fixture
def pretrained():
    base, _ = tiny.make("vit")
    with torch.no_grad():
        for p in base.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return base


def test_every_weight_goes_back_a_share_of_the_way_before_the_first_step(unlearn, pretrained, tmp_path):
    pretrained.save_pretrained(tmp_path / "base")
    for base_model in (pretrained, str(tmp_path / "base")):
        trainer = unlearn("vit", reset=0.25, max_steps=1, learning_rate=0.0, base_model=base_model)
        before = {name: w.clone() for name, w in trainer.model.state_dict().items()}
        trainer.train()
        shares = moved(trainer.model, pretrained, before)
        assert len(shares) > 20 and all(share == pytest.approx(0.25, rel=1e-3) for share in shares.values())
        assert trainer.unlearning_state.retain_after_reset is not None


def test_without_a_base_it_goes_towards_a_fresh_initialisation_and_says_so(unlearn, caplog):
    trainer = unlearn("vit", reset=1.0, max_steps=1, learning_rate=0.0)
    assert "base_model: is not given" in caplog.text
    before = trainer.model.classifier.weight.clone()
    trainer.train()
    assert not torch.equal(trainer.model.classifier.weight, before)
    assert trainer.model.vit.layernorm.weight.eq(1).all()


def test_an_adapter_starts_as_the_part_of_the_difference_that_it_can_hold(pretrained):
    model, _ = tiny.make("vit")
    before = {name: w.clone() for name, w in model.state_dict().items()}
    adapted = add_adapter(model)
    go_back(adapted, base_weights(adapted, pretrained, 0), 0.5, added_adapter=True)
    plain = merged(adapted)
    name = "vit.layers.0.attention.q_proj.weight"
    difference = 0.5 * (pretrained.state_dict()[name] - before[name])
    rank = next(m.r["default"] for m in adapted.modules() if isinstance(m, LoraLayer))
    left, values, right = torch.linalg.svd(difference)
    held = left[:, :rank] * values[:rank] @ right[:rank]
    torch.testing.assert_close(plain.state_dict()[name] - before[name], held, atol=1e-5, rtol=1e-4)
    head = before["classifier.weight"].lerp(pretrained.classifier.weight, 0.5)
    torch.testing.assert_close(plain.classifier.weight, head)


def test_an_adapter_of_the_users_shrinks_towards_its_base(pretrained):
    adapted = add_adapter(pretrained)
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
    name = "vit.layers.0.attention.q_proj.weight"
    bare, full = pretrained.state_dict()[name.replace(".weight", ".base_layer.weight")].clone(), merged(adapted)
    go_back(adapted, {}, 0.25, added_adapter=False)
    torch.testing.assert_close(merged(adapted).state_dict()[name], full.state_dict()[name].lerp(bare, 0.25))


def test_a_deep_run_takes_its_steps_and_goes_half_of_the_way_where_no_base_is_known(unlearn, pretrained):
    deep = unlearn("vit", depth="retrained", max_steps=-1)
    assert deep.args.max_steps >= 80 and deep._reset_share == 0.5 and deep.args.learning_rate == pytest.approx(1e-3)
    of_base = unlearn("vit", depth="retrained", max_steps=-1, base_model=pretrained)
    assert of_base.args.max_steps >= 80 and of_base._reset_share == 0 and of_base.args.learning_rate == 3e-4

    def one_class(forget, retain, unseen):
        forget.items, retain.items = (
            [{**sample, "labels": torch.tensor(label)} for sample in samples.items]
            for label, samples in enumerate((forget, retain))
        )
        return forget, retain, unseen

    of_class = unlearn("vit", depth="retrained", max_steps=-1, request="class", sets=one_class)
    assert of_class.args.max_steps >= 80 and of_class._reset_share == 0
    explicit = unlearn("vit", depth="retrained", reset=0.0, max_steps=-1)
    assert explicit._reset_share == 0 and unlearn("vit")._reset_share == 0


def test_a_run_that_does_not_come_back_leaves_the_original(unlearn, caplog):
    """The guard gives it time: until retain samples are back, the last good weights are those before the reset."""
    trainer = unlearn("vit", reset=0.0, max_steps=12, learning_rate=0.0, seed=1)
    guard = trainer.guard
    trainer.train()
    state, loss = trainer.unlearning_state, guard.retain_loss()
    state.metrics_before = {**state.metrics_before, "retain_loss": loss - 1.0}
    guard.begin(0)
    assert not guard.is_good(5)
    guard.begin(0)
    state.retain_after_reset = loss
    assert guard.is_good(5) and guard.good_step == 0
    guard.good_step = 5  # once they were back
    assert not guard.is_good(10) and "the retain loss rose" in guard.reason


@pytest.mark.parametrize(
    ("settings", "given", "message"),
    [
        ({"reset": 1.5}, {}, r'^reset: must be "auto" or a share in \[0, 1\], got 1.5'),
        ({"reset": "half"}, {}, r'^reset: must be "auto" or a share in \[0, 1\], got \'half\''),
        ({"depth": "deep"}, {}, r"^depth: unknown value 'deep', use one of \['retrained'\]"),
        ({"reset": 0.5}, {"base_model": "auto"}, r'^base_model: "auto" finds no checkpoint in the configuration'),
        ({"reset": 0.5}, {"base_model": "no/such-model"}, r"^base_model: 'no/such-model' does not load"),
    ],
)
def test_what_is_refused(unlearn, settings, given, message):
    with pytest.raises(ValueError, match=message):
        unlearn("vit", **settings, **given)


def test_a_base_that_is_the_model_itself_is_refused():
    model, _ = tiny.make("vit")
    with pytest.raises(ValueError, match=r"^base_model: has the weights of the model itself"):
        base_weights(model, copy.deepcopy(model), 0)
    other, _ = tiny.make("bert")
    with pytest.raises(
        ValueError, match=r"^base_model: a BertForSequenceClassification lacks most weights of the model"
    ):
        base_weights(model, other, 0)
