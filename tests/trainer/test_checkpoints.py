"""Checkpoints: complete or skipped, resumed by the run that wrote them, and ended once the run has ended."""

import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from tiny import make
from transformers import TrainerCallback

from hf_unlearn import UnlearningArguments
from hf_unlearn.trainer import resuming
from hf_unlearn.trainer.identity import CHOOSES_BEST, MAY_DIFFER
from hf_unlearn.trainer.manifest import MANIFEST, checkpoints, find_damage, is_finished, remove_older, write_manifest

STATE = ["model.safetensors", "config.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json",
         "unlearning_state.pt"]  # fmt: skip
RUN = {"method": "nabla_tau", "max_steps": 6, "save_steps": 2}


def weights(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def change(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGES = {
    **{f"without {name}": lambda folder, name=name: (folder / name).unlink() for name in [*STATE, MANIFEST]},
    **{f"changed {name}": lambda folder, name=name: change(folder / name) for name in [*STATE, MANIFEST]},
    **{f"truncated {name}": lambda folder, name=name: truncate(folder / name) for name in STATE[:3]},
    "empty": empty,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_or_refused_by_name(unlearn, tmp_path, caplog, damage):
    whole = unlearn(**RUN)
    whole.train()
    last = tmp_path / "out" / "checkpoint-6"
    DAMAGES[damage](last)
    with pytest.raises(ValueError, match=r"^resume_from_checkpoint: '.*checkpoint-6' (has|lacks) ") as refused:
        unlearn(**RUN).train(resume_from_checkpoint=str(last))
    if damage != f"changed {MANIFEST}":  # which then has the name, the size or the hash of some file wrong
        assert (damage.partition(" ")[2] or MANIFEST) in str(refused.value)
    resumed = unlearn(**RUN)
    resumed.train(resume_from_checkpoint=True)
    assert f"Skipped in {tmp_path / 'out'}, resuming from checkpoint-4: checkpoint-6 " in caplog.text
    assert equal(weights(resumed), weights(whole))
    assert find_damage(last) is None  # written anew


def test_without_a_complete_checkpoint(unlearn, tmp_path, caplog):
    with pytest.raises(ValueError, match=r"^resume_from_checkpoint: there is no checkpoint in "):
        unlearn(**RUN).train(resume_from_checkpoint=True)
    whole = unlearn(**RUN)
    whole.train()
    for path in checkpoints(tmp_path / "out"):
        (path / MANIFEST).unlink()
    again = unlearn(**RUN)
    again.train(resume_from_checkpoint=True)
    assert (
        "starting from the beginning: checkpoint-6 has no manifest.json: it was not written to its end;" in caplog.text
    )
    assert equal(weights(again), weights(whole))
    for path in checkpoints(tmp_path / "out"):
        change(path / "optimizer.pt")
    with pytest.raises(ValueError, match=r"^resume_from_checkpoint: no checkpoint in .* is complete .*optimizer\.pt"):
        unlearn(**RUN).train(resume_from_checkpoint=True)


def test_the_model_alone_is_no_run(unlearn, tmp_path):
    unlearn(**RUN, save_only_model=True).train()
    with pytest.raises(ValueError, match=r"checkpoint-6' holds the model only \(save_only_model=True\)"):
        unlearn(**RUN).train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-6"))


# ---- the same run, or none ----


def more_samples(forget_ds, retain_ds, unseen_ds):
    return forget_ds, [*retain_ds, *unseen_ds[:1]], unseen_ds[1:]


def other_order(forget_ds, retain_ds, unseen_ds):
    return [*forget_ds][::-1], retain_ds, unseen_ds


def other_labels(forget_ds, retain_ds, unseen_ds):
    return forget_ds, retain_ds, [{**sample, "labels": 1 - sample["labels"].clamp(max=1)} for sample in unseen_ds]


OTHERS = {
    "forget_ds": {"sets": other_order},
    "forget_ds, fewer": {"forget": 5},
    "retain_ds": {"sets": more_samples},
    "unseen_ds": {"sets": other_labels},
    "unseen_ds, none": {"unseen": 0},
    "method": {"method": "grad_diff"},
    "method_kwargs": {"method": "scrub"},
    "retain_weight": {"retain_weight": 0.7},
    "seed": {"seed": 1},
    "data_seed": {"data_seed": 1},
    "learning_rate": {"learning_rate": 1e-2},
    "max_steps": {"max_steps": 8},
    "lr_scheduler_type": {"lr_scheduler_type": "linear"},
    "warmup_steps": {"warmup_steps": 2},
    "optim": {"optim": "sgd"},
    "weight_decay": {"weight_decay": 0.1},
    "max_grad_norm": {"max_grad_norm": 0.5},
    "per_device_train_batch_size": {"per_device_train_batch_size": 2},
    "retain_batch_size": {"retain_batch_size": 2},
    "gradient_accumulation_steps": {"gradient_accumulation_steps": 2},
    "forget_target": {"forget_target": 0.5},
    "hinge": {"hinge": "linear"},
    "request": {"request": "group"},
    "bf16": {"bf16": True},
    "model": {"dtype": torch.float64},
    "peft_config": {"peft_config": LoraConfig(r=2, target_modules=["q_proj"])},
    "optimizers": {"optimizers": (lambda model: torch.optim.SGD(model.parameters(), lr=0.1), None)},
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A run with checkpoints, made by the first test that asks for it."""
    return tmp_path_factory.mktemp("written")


@pytest.mark.parametrize("name", OTHERS)
def test_another_run_is_refused_with_the_difference_named(unlearn, written, name):
    if not checkpoints(written):
        unlearn(**RUN, request="samples").train()
        unlearn(**RUN, request="samples", output_dir=str(written)).train()
    settings = {**RUN, "request": "samples", "output_dir": str(written), **OTHERS[name]}
    if "optimizers" in settings:
        settings["model"] = make("vit")[0]
        settings["optimizers"] = (settings["optimizers"][0](settings["model"]), None)
    trainer = unlearn(**settings)
    before = weights(trainer)
    with pytest.raises(ValueError, match=rf"\b{name.partition(',')[0]}: (was|had) .* in the checkpoint, (is|has) "):
        trainer.train(resume_from_checkpoint=True)
    assert equal(weights(trainer), before)


def test_what_may_differ_is_a_list_and_ends_the_same(unlearn, tmp_path):
    names = {field.name for field in fields(UnlearningArguments)}
    # Arguments of some releases of transformers only.
    assert MAY_DIFFER - names <= {
        "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "enable_jit_checkpoint",
        "dataloader_multiprocessing_context", "ddp_static_graph", "local_rank",
    }  # fmt: skip
    assert CHOOSES_BEST <= MAY_DIFFER
    whole = unlearn(**RUN)
    whole.train()
    (tmp_path / "out").rename(tmp_path / "moved")
    others = {
        "logging_steps": 3,
        "save_steps": 3,
        "save_total_limit": 1,
        "per_device_eval_batch_size": 3,
        "run_name": "b",
    }
    resumed = unlearn(**{**RUN, **others}, eval_strategy="steps", eval_steps=1, folder="elsewhere")
    resumed.train(resume_from_checkpoint=str(tmp_path / "moved" / "checkpoint-2"))
    assert equal(weights(resumed), weights(whole))
    assert [path.name for path in checkpoints(tmp_path / "elsewhere")] == ["checkpoint-6"]


def test_the_best_checkpoint_depends_on_when_it_is_looked_for(unlearn):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "retain_loss", "eval_strategy": "steps"}
    unlearn(**RUN, **best, eval_steps=2).train()
    with pytest.raises(ValueError, match=r"^eval_steps: was 2 in the checkpoint, is 1; "):
        unlearn(**RUN, **best, eval_steps=1).train(resume_from_checkpoint=True)


def test_an_adapter_is_resumed_on_the_weights_that_it_was_trained_on(unlearn):
    run = {**RUN, "method": "orthograd"}
    unlearn(**run).train()
    other = make("vit")[0]
    with torch.no_grad():
        other.classifier.bias += 1
    with pytest.raises(ValueError, match=r"^model: has other weights than the original model of the run"):
        unlearn(model=other, **run).train(resume_from_checkpoint=True)


class Augmented(list):
    """Samples with noise, other noise each time."""

    def __getitem__(self, i):
        sample = super().__getitem__(i)
        return {**sample, "pixel_values": sample["pixel_values"] + 0.01 * torch.randn_like(sample["pixel_values"])}


def test_random_augmentation_is_no_other_dataset(unlearn):
    run = {**RUN, "sets": lambda *datasets: [Augmented(list(dataset)) for dataset in datasets]}
    unlearn(**run).train()
    unlearn(**run).train(resume_from_checkpoint=True)


def test_measuring_draws_no_random_numbers_of_the_run(unlearn):
    trainer = unlearn()
    state = torch.get_rng_state()
    trainer.evaluate()
    assert torch.equal(torch.get_rng_state(), state)


# ---- a run that has ended ----


class Steps(TrainerCallback):
    def __init__(self):
        self.count = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.count += 1


# 10 retain samples, batches of 4: the end of an epoch, and the middle of one.
@pytest.mark.parametrize("max_steps", [6, 7])
def test_a_finished_run_takes_no_further_step(unlearn, caplog, max_steps):
    run = {**RUN, "max_steps": max_steps, "save_steps": 1}
    whole, steps = unlearn(**run), Steps()
    expected = whole.train()
    again = unlearn(**run, callbacks=[steps])
    output = again.train(resume_from_checkpoint=True)
    assert (steps.count, output.global_step) == (0, max_steps)
    assert f"The run had ended at step {max_steps}: no further step was taken" in caplog.text
    assert output.metrics["forget_loss"] == expected.metrics["forget_loss"]
    assert equal(weights(again), weights(whole))


def test_a_run_at_its_target_stays_there(unlearn, tmp_path, caplog):
    # A target below every loss is reached at the second step, where nothing else would be saved.
    run = {"method": "grad_diff", "forget_target": -1.0, "max_steps": 20, "save_steps": 1}
    whole, steps = unlearn(**run), Steps()
    whole.train()
    assert whole.state.global_step == 2 and is_finished(tmp_path / "out" / "checkpoint-2")
    again = unlearn(**run, callbacks=[steps])
    again.train(resume_from_checkpoint=True)
    assert steps.count == 0 and equal(weights(again), weights(whole))
    assert "The run had ended at step 2: no further step was taken" in caplog.text
    from_before = unlearn(**run)
    from_before.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))
    assert from_before.state.global_step == 2 and equal(weights(from_before), weights(whole))


# ---- kept and removed ----


def folder_of(parent: Path, step, finished=True):
    path = parent / f"checkpoint-{step}"
    path.mkdir()
    (path / "rng_state.pth").write_text(str(step))
    (path / "unlearning_state.pt").touch()
    if finished:
        write_manifest(path)
    return path


@pytest.mark.parametrize("text", ["", "[]", "{}x", '{"a": 1}', '{"rng_state.pth": {"size": 1}}'])
def test_a_manifest_that_is_none_is_damage(tmp_path, text):
    path = folder_of(tmp_path, 2)
    assert find_damage(path) is None
    (path / MANIFEST).write_text(text)
    assert find_damage(path) == f"has a {MANIFEST} that has changed"


def test_older_checkpoints_go_when_the_new_one_is_complete(unlearn, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    def killed(folder):
        if folder.name == "checkpoint-4":
            raise Killed
        write_manifest(folder)

    monkeypatch.setattr(resuming, "write_manifest", killed)
    trainer = unlearn(**RUN, save_total_limit=1)
    with pytest.raises(Killed):
        trainer.train()
    assert trainer.args.save_total_limit == 1
    assert [find_damage(path) is None for path in checkpoints(tmp_path / "out")] == [False, True]
    monkeypatch.undo()
    unlearn(**RUN, save_total_limit=1).train(resume_from_checkpoint=True)
    assert [path.name for path in checkpoints(tmp_path / "out")] == ["checkpoint-6"]


def test_partial_checkpoints_go_first_and_protected_ones_stay(tmp_path):
    best, _, _, partial, last = (folder_of(tmp_path, step, step != 9) for step in (2, 4, 6, 9, 8))
    remove_older(tmp_path, 2, {best, last})
    assert checkpoints(tmp_path) == [last, best] and not partial.exists()


def test_half_of_a_removed_checkpoint_is_none(tmp_path, monkeypatch):
    old, new = folder_of(tmp_path, 2), folder_of(tmp_path, 4)
    monkeypatch.setattr("hf_unlearn.trainer.manifest.shutil.rmtree", lambda path, ignore_errors: None)
    remove_older(tmp_path, 1, {new})
    assert old.exists() and find_damage(old) is not None and find_damage(new) is None
