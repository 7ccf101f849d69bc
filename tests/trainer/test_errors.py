"""Bad input: one line that names the argument, before any step is taken."""

import pytest
import torch
from datasets import Dataset
from tiny import make

from hf_unlearn import UnlearningArguments, UnlearningTrainer

# Older releases of transformers say gradient_checkpointing.
NEW = hasattr(UnlearningArguments, "activation_checkpointing_kwargs")
CHECKPOINTING = f"{'activation' if NEW else 'gradient'}_checkpointing_kwargs"


def settings(tmp_path, **values):
    return UnlearningArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True, **values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "forget_it"}, "method: unknown value 'forget_it', use one of .*nabla_tau"),
        ({"forgetting_loss": "npo2"}, "forgetting_loss: unknown value"),
        ({"forget_target": "median"}, "forget_target: unknown value 'median'"),
        ({"forget_target": []}, "forget_target: an empty sample"),
        ({"forget_target": [[1.0, 2.0], [1.0]]}, "forget_target: expected a name, a number, losses or loss profiles"),
        ({"forget_target": [[1.0, 2.0]]}, r"forget_target: .* profiles \[samples, 8\], got \[1, 2\]"),
        ({"hinge": "cubic"}, "hinge: unknown value"),
        ({"request": "person"}, "request: unknown value"),
        ({"projection_scope": "layer"}, "projection_scope: unknown value"),
        (
            {"method": "orthograd", "deepspeed": {"zero_optimization": {"stage": 2}}},
            "deepspeed: orthograd writes the grad",
        ),
        ({"gram_cache": "disk"}, "gram_cache: unknown value 'disk', use one of"),
        ({"per_sample_engine": "vmap"}, "per_sample_engine: unknown value"),
        ({"retain_weight": 1.5}, r"retain_weight: must lie in \[0, 1\]"),
        ({"retain_batch_size": 0}, "retain_batch_size: must be at least 1"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor: must be 0"),
        (
            {"method": "orthograd", CHECKPOINTING: {"use_reentrant": True}},
            "activation_checkpointing_kwargs: use_reentrant=True hides the layers from orthograd",
        ),
        ({"method": "orthograd", "projection": "weights"}, "projection: unknown value 'weights', use one of"),
        ({"push_to_hub": True, "hub_strategy": "checkpoint"}, 'hub_strategy: must be "end"'),
    ],
)
def test_arguments(tmp_path, values, message):
    with pytest.raises(ValueError, match=message) as error:
        settings(tmp_path, **values)
    assert "\n" not in str(error.value)


def test_sets_are_checked_by_content(unlearn):
    def same(forget, retain, unseen):
        retain.items[3] = {k: v.clone() for k, v in forget.items[1].items()}
        return forget, retain, unseen

    with pytest.raises(ValueError, match="sample 1 of forget_ds is sample 3 of retain_ds"):
        unlearn(sets=same)

    def seen(forget, retain, unseen):
        unseen.items[0] = retain.items[2]
        return forget, retain, unseen

    with pytest.raises(ValueError, match=r"^unseen_ds and retain_ds share 1 samples"):
        unlearn(sets=seen)

    def empty(forget, retain, unseen):
        forget.items = []
        return forget, retain, unseen

    with pytest.raises(ValueError, match=r"^forget_ds: is empty"):
        unlearn(sets=empty)

    def columns(forget, retain, unseen):
        retain.items = [{"pixel_values": r["pixel_values"]} for r in retain.items]
        return forget, retain, unseen

    with pytest.raises(ValueError, match=r"^retain_ds: its columns"):
        unlearn(sets=columns)


def test_labels_out_of_range(unlearn):
    def wrong(forget, retain, unseen):
        forget.items[2] = {**forget.items[2], "labels": torch.tensor(17)}
        return forget, retain, unseen

    trainer = unlearn(sets=wrong)
    before = {n: p.clone() for n, p in trainer.model.named_parameters()}
    with pytest.raises(ValueError, match=r"labels.*17"):
        trainer.train()
    assert all(torch.equal(p, before[n]) for n, p in trainer.model.named_parameters())


def test_published_nabla_tau_needs_unseen_data(unlearn):
    with pytest.raises(ValueError, match="forget_target: 'mean' needs unseen_ds"):
        unlearn(unseen=0, method="nabla_tau", forget_target="mean")


def test_without_unseen_data_a_fixed_budget_and_one_warning(unlearn, caplog):
    trainer = unlearn(unseen=0, max_steps=-1)
    assert caplog.text.count("No unseen_ds") == 1
    assert trainer.args.max_steps == 30 and trainer.method.retain_weight(0.5) == 0.9
    assert any(type(callback).__name__ == "TargetStoppingCallback" for callback in trainer.callback_handler.callbacks)
    trainer.train()
    assert trainer.state.global_step <= 30


def test_nothing_to_train(unlearn):
    model, _ = make("vit")
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="model: all parameters are frozen"):
        unlearn(model=model)


def test_lora_targets_that_match_nothing(unlearn):
    from peft import LoraConfig

    with pytest.raises(ValueError, match=r"peft_config: .*query_key_value"):
        unlearn(method="orthograd", peft_config=LoraConfig(target_modules=["query_key_value"]))


def test_a_second_adapter_is_refused(unlearn):
    from peft import LoraConfig

    from hf_unlearn.models.adapters import add_adapter

    with pytest.raises(ValueError, match="peft_config: the model already has an adapter"):
        unlearn(model=add_adapter(make("vit")[0]), peft_config=LoraConfig(target_modules=["q_proj"]))


def test_no_loss_can_be_formed(unlearn):
    from transformers import ViTConfig, ViTForMaskedImageModeling

    config = ViTConfig(image_size=32, patch_size=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                       intermediate_size=16, encoder_stride=16)  # fmt: skip
    with pytest.raises(ValueError, match="per_sample_loss"):
        unlearn(model=ViTForMaskedImageModeling(config))


def test_wrong_kinds_of_argument(unlearn, tmp_path):
    from transformers import TrainingArguments

    trainer = unlearn()
    sets = trainer.forget_ds, trainer.retain_ds
    with pytest.raises(TypeError, match="args: expected UnlearningArguments, got TrainingArguments"):
        UnlearningTrainer(trainer.model, *sets, TrainingArguments(output_dir=str(tmp_path)))
    with pytest.raises(ValueError, match="retain_ds: is missing"):
        UnlearningTrainer(trainer.model, sets[0])
    with pytest.raises(ValueError, match="model: is missing"):
        UnlearningTrainer(None, *sets)
    with pytest.raises(ValueError, match=r"compute_loss_func: .*per_sample_loss"):
        UnlearningTrainer(trainer.model, *sets, compute_loss_func=lambda *a, **k: 0)


def test_a_forget_batch_larger_than_the_set_works(unlearn):
    trainer = unlearn(forget=2, per_device_train_batch_size=16)
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("stored", ["lists", "arrow", "transform"])
def test_one_row_of_a_forgotten_class_among_thousands_that_are_kept(unlearn, stored):
    def sets(forget, retain, unseen):
        def some(label, count):
            return [{"pixel_values": torch.randn(3, 16, 16), "labels": torch.tensor(label)} for _ in range(count)]

        found = [some(1, 2), [*some(0, 2500), *some(1, 1)], some(2, 2)]
        if stored == "lists":
            return found
        found = [
            Dataset.from_list([{k: v.tolist() for k, v in sample.items()} for sample in samples]) for samples in found
        ]
        for samples in found if stored == "transform" else ():
            samples.set_transform(lambda samples: {"pixel_values": samples["pixel_values"]})
        return found

    with pytest.raises(ValueError, match=r"^request: .*retain_ds still holds samples of the forgotten classes \[1\]"):
        unlearn(request="class", sets=sets)


def test_a_refused_model_is_left_as_it_was(unlearn):
    model, _ = make("vit")
    names = [n for n, _ in model.named_parameters()]

    def empty(forget, retain, unseen):
        retain.items = []
        return forget, retain, unseen

    with pytest.raises(ValueError, match=r"^retain_ds: is empty"):
        unlearn(model=model, method="orthograd", sets=empty)
    assert [n for n, _ in model.named_parameters()] == names


def test_a_forgotten_label_may_not_be_in_the_retain_set(unlearn):
    def several(forget, retain, unseen):
        for samples in (forget, retain, unseen):
            samples.items = [{**sample, "labels": torch.tensor([1.0, 0.0, 1.0])} for sample in samples.items]
        return forget, retain, unseen

    with pytest.raises(ValueError, match=r"^request: \"class\", but retain_ds holds samples of every label that 6"):
        unlearn("bert", sets=several, request="class")


@pytest.mark.parametrize(
    ("given", "kwargs"),
    [
        ('{"gamma": 1e-4}', {"gamma": 1e-4}),
        ("{gamma: 0.0001}", {"gamma": 1e-4}),
        ({"gamma": 1}, {"gamma": 1}),
        (None, None),
    ],
)
def test_method_kwargs_are_read_from_json_and_yaml(tmp_path, given, kwargs):
    assert UnlearningArguments(str(tmp_path), method="l1_sparse", method_kwargs=given).method_kwargs == kwargs


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("{gamma", ValueError, "method_kwargs: '{gamma' is neither JSON nor YAML"),
        ("gamma", TypeError, "method_kwargs: expected names and values, got 'gamma'"),
        ([0.1], TypeError, r"method_kwargs: expected names and values, got \[0.1\]"),
        ({1: 2}, TypeError, "method_kwargs: expected names and values"),
        ({"gama": 1}, ValueError, r"method_kwargs: l1_sparse has no 'gama'; it has gamma \(did you mean 'gamma'\?\)"),
        ({"gamma": "much"}, TypeError, "method_kwargs: gamma of l1_sparse must be a number, got 'much'"),
        ({"gamma": float("nan")}, ValueError, "method_kwargs: gamma of l1_sparse must be finite"),
    ],
)
def test_bad_method_kwargs_are_refused(tmp_path, given, error, message):
    with pytest.raises(error, match=f"^{message}") as raised:
        UnlearningArguments(str(tmp_path), method="l1_sparse", method_kwargs=given)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["forget_ds", "retain_ds", "unseen_ds"])
def test_streams_and_dicts_of_splits_are_refused(unlearn, name):
    samples = Dataset.from_dict({"pixel_values": torch.rand(9, 1, 8, 8).tolist(), "labels": [0] * 9})
    stream = (samples.to_iterable_dataset(), "a IterableDataset")
    for given, found in [({"train": samples}, "a dict of"), *([stream] if name != "retain_ds" else [])]:
        with pytest.raises(ValueError, match=f"^{name}: got {found}"):
            unlearn(sets=lambda *datasets, given=given: [
                given if argument == name else dataset
                for argument, dataset in zip(("forget_ds", "retain_ds", "unseen_ds"), datasets, strict=True)
            ])  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "strategy"),
    [
        ({}, "no"),
        ({"save_steps": 5}, "steps"),
        ({"save_steps": 500}, "steps"),
        ({"save_steps": 5, "save_strategy": "no"}, "no"),
        ({"save_strategy": "epoch"}, "epoch"),
    ],
)
def test_save_steps_save(tmp_path, settings, strategy):
    assert UnlearningArguments(str(tmp_path), **settings).save_strategy == strategy
