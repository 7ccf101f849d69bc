"""A forgotten class does not come back by training on others, or by one number; weights go back before a run."""

import copy

import pytest
import tiny
import torch
import transformers as tf
from peft import IA3Config, LoraConfig
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


@pytest.fixture(scope="module")
def learned():
    """A tiny ViT that knows its 48 samples, of three labels, and these samples."""
    model, batch = tiny.make("vit")
    samples = tiny.samples(batch(48))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    together = batch(48)
    for _ in range(80):
        model(**together).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), samples


def run(learned, folder, split=None, steps=None, **settings):
    model, samples = learned
    first, rest = samples[:12], samples[12:36]
    if split is not None:
        first = [sample for sample in samples if int(sample["labels"]) in split]
        rest = [sample for sample in samples if int(sample["labels"]) not in split]
    given = {name: settings.pop(name) for name in ("base_model", "callbacks", "peft_config") if name in settings}
    defaults = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "seed": 3}
    args = UnlearningArguments(str(folder), **{**defaults, **settings})
    unseen = Samples(samples[36:]) if split is None else None
    return UnlearningTrainer(copy.deepcopy(model), Samples(first), Samples(rest), args, unseen_ds=unseen, **given)


@pytest.mark.parametrize("method", ["nabla_tau", "orthograd"])
def test_all_classes_but_one_are_forgotten(learned, tmp_path, method):
    trainer = run(learned, tmp_path, split=(0, 1), request="class", method=method)
    trainer.train()
    assert trainer.guard.reason is None
    assert trainer.outcome.after["forget_accuracy"] <= 0.5 and trainer.outcome.after["retain_loss"] < 0.5


class Stop(tf.TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = control.should_training_stop or state.global_step >= self.step


def test_a_run_is_resumed_before_retain_samples_are_back(learned, tmp_path):
    settings = {"reset": 1.0, "max_steps": 40, "learning_rate": 2e-3, "save_steps": 5}
    whole = run(learned, tmp_path / "a", **settings)
    whole.train()
    assert whole.guard.reason is None
    stopped = run(learned, tmp_path / "b", **settings, callbacks=[Stop(5)])
    stopped.train()
    resumed = run(learned, tmp_path / "b", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-5"))
    assert resumed.guard.reason is None
    for (name, p), q in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_where_they_do_not_come_back_the_original_is_left(learned, tmp_path, caplog):
    trainer = run(learned, tmp_path, reset=1.0, max_steps=3, learning_rate=1e-5)
    original = copy.deepcopy(learned[0]).state_dict()
    trainer.train()
    assert "the weights of step 0 were put back" in caplog.text
    assert all(torch.equal(p, original[name]) for name, p in trainer.model.named_parameters())


def test_a_run_that_is_begun_again_for_want_of_memory_goes_on_with_what_is_known(learned, tmp_path):
    class Short(UnlearningTrainer):
        tries = 0

        def training_step(self, *args, **kwargs):
            self.tries += 1
            if self.tries == 1:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().training_step(*args, **kwargs)

    model, samples = learned
    values = {}
    for cls in (UnlearningTrainer, Short):
        args = UnlearningArguments(
            str(tmp_path / cls.__name__), reset=0.9, max_steps=1, learning_rate=0.0, auto_find_batch_size=True,
            report_to="none", disable_tqdm=True, use_cpu=True, per_device_train_batch_size=8,
        )  # fmt: skip
        datasets_by_name = {"forget_ds": Samples(samples[:12]), "retain_ds": Samples(samples[12:36])}
        trainer = cls(copy.deepcopy(model), **datasets_by_name, args=args, unseen_ds=Samples(samples[36:]))
        trainer.train()
        state = trainer.unlearning_state
        values[cls] = state.target.value, state.metrics_before["forget_loss"], state.retain_after_reset
    assert values[Short] == values[UnlearningTrainer]


def test_layers_that_are_trained_again_survive_a_bad_end_and_a_second_run(learned, tmp_path, caplog):
    trainer = run(learned, tmp_path / "a", method="eu_k", max_steps=2)
    trainer.train()
    assert "were put back" in caplog.text and trainer.outcome.after["retain_loss"] < 0.1
    trainer = run(learned, tmp_path / "b", method="eu_k", max_steps=60, learning_rate=3e-3)
    for _ in range(2):
        trainer.train()
        assert trainer.guard.reason is None and trainer.outcome.after["retain_loss"] < 0.5
    with pytest.raises(ValueError, match=r"^method_kwargs: k of ViTForImageClassification can be 1 to 3"):
        run(learned, tmp_path / "c", method="cf_k", method_kwargs={"k": 9})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "grad_diff", "reset": 0.5}, "^reset: grad_diff is stopped at its target"),
        ({"method": "grad_diff", "depth": "retrained"}, "^depth: grad_diff is stopped at its target"),
        ({"depth": "retrained", "unseen": 0}, "^depth: needs a target that says where to end; give unseen_ds"),
        ({"reset": True}, r'^reset: must be "auto" or a share'),
        ({"reset": 0.5, "base_model": 3}, "^base_model: found a int; give a model"),
        (
            {"reset": 0.5, "peft_config": LoraConfig(target_modules=["q_proj"], init_lora_weights="pissa")},
            "^reset: an adapter of LORA layers cannot go back; use plain LoRA, or reset=0",
        ),
        (
            {"reset": 0.5, "peft_config": IA3Config(target_modules=["q_proj"], feedforward_modules=[])},
            "^reset: an adapter of IA3 layers cannot go back",
        ),
    ],
)
def test_what_cannot_go_back_is_refused(unlearn, settings, message):
    with pytest.raises(ValueError, match=message):
        unlearn("vit", **settings)


def test_a_base_of_other_labels_is_refused():
    model, _ = tiny.make("vit")
    config = copy.deepcopy(model.config)
    config.num_labels = 5
    with pytest.raises(ValueError, match=r"^base_model: its classifier.weight has shape \[5, 16\], the model's"):
        base_weights(model, tf.ViTForImageClassification(config), 0)
