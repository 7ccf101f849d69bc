"""Every architecture with every method: what should move moves, nothing else does, and what is saved loads back."""

import copy

import pytest
import torch
from tiny import ARCHITECTURES, Samples, make

from hf_unlearn.methods import METHODS
from hf_unlearn.per_sample import PerSampleGradients
from hf_unlearn.trainer.surgery_step import SurgeryStep

NAMES = [name for name in ARCHITECTURES if name not in ("wav2vec2_ctc", "gpt2_classifier", "bert_lm")]


def gradient_reaches(trainer):
    """Names of trainable parameters that the loss depends on, by autograd on the method's own batches."""
    model, loader = trainer.model.eval(), trainer.get_train_dataloader()
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    reached = set()
    for batch in loader:
        for part in ("forget", "retain"):
            losses = trainer.head.losses(model(**trainer.head.inputs(batch[part])), batch[part])
            grads = torch.autograd.grad(losses.sum(), list(parameters.values()), allow_unused=True)
            # A gradient that is rounding alone (attention's key bias: the softmax does not see it) need not move.
            reached |= {n for n, g in zip(parameters, grads, strict=True) if g is not None and g.abs().max() > 1e-7}
    return reached


# These differ from orthograd in k + 1 numbers, or from grad_diff in a sample's weight, not in what they do to a model.
SOME = dict.fromkeys(("conegrad", "pcgrad", "gdr_gma", "ngdiff"), ("vit", "resnet", "gpt2", "whisper"))
SOME |= dict.fromkeys(("neggrad_plus", "random_label"), ("vit", "bert"))
SOME |= dict.fromkeys(("simnpo", "wga", "satimp", "ceu", "undial", "idk_dpo"), ("gpt2",)) | {
    "npo": ("gpt2", "whisper")
}
SOME |= dict.fromkeys(("bad_teacher", "scrub", "l1_sparse", "undo"), ("vit", "whisper")) | {
    "kl": ("vit", "gpt2", "whisper")
}
# Their losses are the parts of nabla_tau's, which every architecture trains with.
SOME |= dict.fromkeys(
    ("finetune", "grad_ascent", "grad_diff"), ("vit", "resnet", "bert", "wav2vec2", "gpt2", "whisper")
)
# Half of the weights, some of them, or whole layers are to stay.
SOME |= {"salun": ("vit", "bert"), "ssd": ("vit", "whisper"), "rmu": ("vit", "swin", "gpt2", "whisper", "t5")}
SOME |= dict.fromkeys(("cf_k", "eu_k"), ("vit", "bert", "gpt2", "whisper")) | {
    "msg": ("vit", "resnet", "gpt2", "whisper")
}
CHOOSY = {"salun", "ssd", "rmu", "cf_k", "eu_k"}


@pytest.mark.parametrize(
    ("name", "method"), [(n, m) for n in NAMES for m in sorted(METHODS) if n in SOME.get(m, NAMES)]
)
def test_two_steps_save_and_reload(unlearn, tmp_path, name, method):
    sizes = {"forget": 1, "retain": 30} if method == "ssd" else {}
    rate = 1e-3 if method == "grad_ascent" else 1e-2  # ascent alone soon does harm that the guard takes back
    trainer = unlearn(
        name, method=method, learning_rate=rate, stop_at_target=False, lr_scheduler_type="constant", **sizes
    )
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainable = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved <= trainable
    missing = gradient_reaches(trainer) - moved
    assert moved if method in CHOOSY else not missing, f"did not move: {sorted(missing)}"

    original, batch = make(name)
    inputs = trainer.head.inputs(batch(3, seed=5))
    trainer.save_model(str(tmp_path / "saved"))
    loaded = type(original).from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        expected, actual = trainer.model.eval()(**inputs).logits, loaded(**inputs).logits
        assert not torch.allclose(expected, original.eval()(**inputs).logits, atol=1e-6)
    torch.testing.assert_close(expected, actual, rtol=1e-5, atol=1e-6 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("name", ["vit", "whisper", "gpt2", "llama", "bert", "distilbert", "t5", "wav2vec2", "dinov2"])
def test_hooks_equal_the_loop_for_lora(unlearn, name):
    trainer = unlearn(name, method="orthograd", learning_rate=1e-2)
    trainer.train()  # lora_A has no gradient before lora_B has moved
    assert isinstance(trainer.step, SurgeryStep)
    losses = trainer.step.per_sample.losses
    batch = trainer.data_collator(trainer.retain_ds.items[:5])
    model = trainer.model.eval()
    engine, oracle = PerSampleGradients(model, losses, "hooks"), PerSampleGradients(model, losses, "loop")
    recording, expected = engine(batch), oracle(batch)
    torch.testing.assert_close(recording.losses, expected.losses, rtol=1e-5, atol=1e-8)
    samples, expected = recording.gradients(engine.parameters), expected.gradients(engine.parameters)
    assert (
        samples.keys() == expected.keys()
        and any("lora_A" in n for n in samples)
        and any("lora_B" in n for n in samples)
    )
    scale = max(float(r.norm()) for r in expected.values())
    for n in samples:
        assert float((samples[n] - expected[n]).norm()) <= 1e-5 * max(float(expected[n].norm()), 1e-3 * scale), n
    # The mean over the samples is the gradient of the batch.
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(losses(batch).mean(), list(parameters.values()))
    for n, g in zip(parameters, grads, strict=True):
        assert float((samples[n].mean(0) - g.flatten()).norm()) <= 1e-5 * max(float(g.norm()), 1e-3 * scale), n


def test_a_merged_model_has_forgotten_without_its_adapter(unlearn, tmp_path):
    """Without its added adapter the model is the original again; what save_model writes is merged."""
    original, batch = make("vit")
    trainer = unlearn("vit", model=copy.deepcopy(original), method="orthograd", max_steps=5, learning_rate=1e-2)
    trainer.train()
    inputs = trainer.head.inputs(batch(4, seed=3))
    with torch.no_grad(), trainer.model.disable_adapter():
        dropped = trainer.model.eval()(**inputs).logits
    with torch.no_grad():
        torch.testing.assert_close(dropped, original.eval()(**inputs).logits, rtol=1e-5, atol=1e-6)
    trainer.save_model(str(tmp_path / "merged"))
    files = {f.name for f in (tmp_path / "merged").iterdir()}
    assert "model.safetensors" in files and not any("adapter" in f for f in files)


def test_saving_the_adapter_alone_is_a_choice_with_a_warning(unlearn, tmp_path, caplog):
    trainer = unlearn("vit", method="orthograd")
    trainer.save_adapter(str(tmp_path / "adapter"))
    assert "base model still holds the data" in caplog.text
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    with pytest.raises(
        ValueError, match=r"^output_dir: '.*adapter' has an adapter \(adapter_config\.json\), which would"
    ):
        trainer.save_model(str(tmp_path / "adapter"))
    trainer.save_model(str(tmp_path / "merged"))
    with pytest.raises(
        ValueError, match=r"^save_adapter: '.*merged' has a model \(config\.json\), to which the adapter"
    ):
        trainer.save_adapter(str(tmp_path / "merged"))
    with pytest.raises(ValueError, match="there is no adapter; use save_model"):
        unlearn("vit", method="nabla_tau").save_adapter(str(tmp_path / "none"))


def test_a_users_adapter_is_unlearned_in_place_and_saved_as_an_adapter(unlearn, tmp_path):
    from peft import PeftModel

    from hf_unlearn.models.adapters import add_adapter

    base, batch = make("bert")
    adapted = add_adapter(copy.deepcopy(base))
    with torch.no_grad():
        for n, p in adapted.named_parameters():
            if "lora_B" in n:
                p.normal_(std=0.1)
    start = {n: p.clone() for n, p in adapted.named_parameters()}
    trainer = unlearn("bert", model=adapted, method="orthograd", learning_rate=1e-2)
    trainer.train()
    assert trainer.model is adapted
    moved = {n for n, p in adapted.named_parameters() if not torch.equal(p, start[n])}
    assert moved and all("lora_" in n or "modules_to_save" in n for n in moved)
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "adapter_model.safetensors").exists()
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "saved")).eval()
    inputs = trainer.head.inputs(batch(3, seed=5))
    with torch.no_grad():
        torch.testing.assert_close(adapted.eval()(**inputs).logits, loaded(**inputs).logits, rtol=1e-5, atol=1e-6)


# The heads that the test above leaves out for some methods; the first ones always, because a method takes a second.
HEADS = ["wav2vec2_ctc", "multi_label", *(pytest.param(name, marks=pytest.mark.slow) for name in (
    "vit", "bert_lm", "gpt2", "t5", "whisper", "regression"
))]  # fmt: skip
OTHER = {"multi_label": "vit", "regression": "vit"}


@pytest.mark.parametrize("head", HEADS)
def test_every_method_works_on_a_head_or_refuses_it_by_name(unlearn, head):
    for number, method in enumerate(sorted(METHODS)):
        name, options = OTHER.get(head, head), {}
        if name != head:
            model, _ = make(name)
            model.config.problem_type = head.replace("multi_label", "multi_label_classification")
            classes = model.num_labels
            options = {
                "model": model,
                "sets": lambda *datasets, c=classes: [relabelled(dataset, head, c) for dataset in datasets],
            }
        settings = {"method": method, "max_steps": 1, "stop_at_target": False, "folder": f"{head}{number}", **options}
        sizes = {"forget": 1, "retain": 30} if method == "ssd" else {}
        try:
            trainer = unlearn(name, **settings, **sizes)
        except ValueError as refusal:
            assert method in str(refusal) and "\n" not in str(refusal)
            continue
        before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
        trainer.train()
        after = dict(trainer.model.named_parameters())
        assert all(p.isfinite().all() for p in after.values()), method
        assert any(not torch.equal(p, before[n]) for n, p in after.items()), method


def relabelled(samples, kind, classes):
    """Samples with several labels, or with as many numbers."""
    generator = torch.Generator().manual_seed(0)
    numbers = [torch.randn(classes, generator=generator) for _ in samples]
    labels = [(n > 0).float() if kind == "multi_label" else n for n in numbers]
    return Samples([{**sample, "labels": label} for sample, label in zip(samples, labels, strict=True)])
