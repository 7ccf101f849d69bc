"""Checkpoints in half precision: in which dtype their weights train, and that it is said."""

import json

import pytest
import tiny
import torch
from peft import LoraConfig

from hf_unlearn import UnlearningArguments, UnlearningTrainer
from hf_unlearn.hub.record import verify


@pytest.fixture(params=[torch.bfloat16, torch.float16], ids=str)
def checkpoint(request, tmp_path):
    tiny.make("llama")[0].to(request.param).save_pretrained(tmp_path / "half")
    return tmp_path / "half"


def build(model, folder, **settings):
    samples = tiny.samples(tiny.make("llama")[1](12, seed=1))
    parts = (tiny.Samples(samples[:4]), tiny.Samples(samples[4:8]))
    peft_config = settings.pop("peft_config", "auto")
    args = UnlearningArguments(
        str(folder),
        max_steps=2,
        per_device_train_batch_size=2,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **settings,
    )
    return UnlearningTrainer(model, *parts, args, unseen_ds=tiny.Samples(samples[8:]), peft_config=peft_config)


def dtypes(model, trains):
    return {weight.dtype for weight in model.parameters() if weight.requires_grad == trains}


def test_a_checkpoint_by_name_trains_in_float32(checkpoint, tmp_path, caplog):
    trainer = build(str(checkpoint), tmp_path / "out", method="grad_diff", learning_rate=1e-5)
    before = [weight.detach().clone() for weight in trainer.model.parameters()]
    assert dtypes(trainer.model, True) == {torch.float32}
    assert f"model: '{checkpoint}' is in {trainer_dtype(checkpoint)!s}, and trains in float32" in caplog.text
    assert "small steps are lost" not in caplog.text
    trainer.train()
    moved = sum((weight != old).sum() for weight, old in zip(trainer.model.parameters(), before, strict=True))
    assert moved > 0.9 * sum(weight[weight != 0].numel() for weight in before if weight.dim() > 1 and weight.any())
    trainer.audit(resamples=20)
    trainer.save_release()
    record = json.loads((tmp_path / "out" / "unlearning.json").read_text())
    assert verify(record, tmp_path / "out").matches
    assert str(verify(record, checkpoint)) == "weights: those from BEFORE unlearning"


def trainer_dtype(checkpoint):
    return json.loads((checkpoint / "config.json").read_text())["dtype"]


@pytest.mark.parametrize("settings", [{"method": "orthograd"}, {"peft_config": LoraConfig(target_modules=["q_proj"])}])
def test_adapters_are_float32_on_a_base_as_it_was_saved(settings, checkpoint, tmp_path, caplog):
    trainer = build(str(checkpoint), tmp_path / "out", **settings)
    assert dtypes(trainer.model, True) == {torch.float32}
    assert dtypes(trainer.model, False) == {getattr(torch, trainer_dtype(checkpoint))}
    assert "trains in float32" not in caplog.text and "lost to rounding" not in caplog.text


def test_a_model_that_the_user_has_loaded_keeps_its_dtype(tmp_path, caplog):
    model = tiny.make("llama")[0].to(torch.bfloat16)
    trainer = build(model, tmp_path / "out", method="grad_diff")
    assert dtypes(trainer.model, True) == {torch.bfloat16}
    assert caplog.text.count("small steps are lost to rounding") == 1


def test_heads_beside_an_adapter_train_in_float32(tmp_path):
    batch_fn = tiny.make("bert")[1]
    model = tiny.make("bert")[0].to(torch.bfloat16)
    samples = tiny.samples(batch_fn(12, seed=1))
    args = UnlearningArguments(
        str(tmp_path), method="orthograd", max_steps=3, learning_rate=1e-4, per_device_train_batch_size=2,
        report_to="none", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    trainer = UnlearningTrainer(model, tiny.Samples(samples[:4]), tiny.Samples(samples[4:8]), args)
    assert dtypes(trainer.model, True) == {torch.float32} and dtypes(trainer.model, False) == {torch.bfloat16}
    before = {name: w.detach().clone() for name, w in trainer.model.named_parameters() if "modules_to_save" in name}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    assert all((after[name] != weight).float().mean() > 0.9 for name, weight in before.items())
    trainer.save_model(str(tmp_path / "saved"))
    loaded = type(model).from_pretrained(tmp_path / "saved").eval()
    assert loaded.dtype == torch.bfloat16 == loaded.classifier.weight.dtype
    inputs = {key: value for key, value in batch_fn(3).items() if key != "labels"}
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(**inputs).logits.float(), trainer.model.eval()(**inputs).logits.float(), rtol=0.05, atol=0.01
        )
