"""`output_dir`: a run writes neither over another run's files, nor over the user's, nor over the original model."""

import os

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import make
from transformers import ViTForImageClassification

from hf_unlearn import UnlearningArguments, UnlearningTrainer
from hf_unlearn.trainer.manifest import remove_older
from hf_unlearn.trainer.output_folder import files_of_runs


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "name", ["README.md", "model.safetensors", "tokenizer.json", "unlearning.json", "config.json"]
)
def test_files_that_a_run_would_overwrite_are_refused_before_work(unlearn, tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    (tmp_path / "out" / "notes.txt").write_text("mine, and not in the way")
    trainer = unlearn()
    with pytest.raises(ValueError, match=rf"^output_dir: '.*out' has {name}, which this run would overwrite; resume"):
        trainer.train()
    assert trainer.state.global_step == 0 and (tmp_path / "out" / name).read_text() == "mine"


def test_another_run_is_refused_and_resumed_and_the_same_trainer_goes_on(unlearn, tmp_path):
    first = unlearn(max_steps=2, save_steps=1)
    first.train()
    before = content(tmp_path / "out")
    with pytest.raises(ValueError, match=r"^output_dir: '.*' has checkpoint-1 and 1 more, which this run would"):
        unlearn(max_steps=2, save_steps=1, seed=1).train()
    assert content(tmp_path / "out") == before
    unlearn(max_steps=2, save_steps=1).train(resume_from_checkpoint=True)
    first.train()  # its own folder


def run_in_default_folder(**settings):
    return make_trainer(UnlearningArguments(use_cpu=True, report_to="none", disable_tqdm=True, **settings))


def make_trainer(args, model=None):
    own, batch = make("vit")
    data = batch(24, seed=1)
    samples = [{name: values[i] for name, values in data.items()} for i in range(24)]
    return UnlearningTrainer(own if model is None else model, samples[:6], samples[6:16], args, unseen_ds=samples[16:])


def test_the_default_folder_gets_a_number(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    folders = []
    for _ in range(3):
        trainer = run_in_default_folder(max_steps=1)
        trainer.train()
        trainer.save_model()
        folders.append(trainer.args.output_dir)
    assert folders == ["unlearned", "unlearned-2", "unlearned-3"]
    assert "unlearned has the files of another run: this one writes to unlearned-3" in caplog.text
    last = run_in_default_folder(max_steps=2, save_steps=1)
    last.train()
    assert last.args.output_dir == "unlearned-4"
    resumed = run_in_default_folder(max_steps=2, save_steps=1)
    assert resumed.train(resume_from_checkpoint=True).global_step == 2
    assert resumed.args.output_dir == "unlearned-4"


def test_the_original_model_is_not_overwritten(tmp_path):
    make("vit")[0].save_pretrained(tmp_path / "original")
    os.symlink(tmp_path / "original", tmp_path / "link")
    before = content(tmp_path / "original")
    model = ViTForImageClassification.from_pretrained(tmp_path / "original")
    adapted = get_peft_model(
        ViTForImageClassification.from_pretrained(tmp_path / "original"), LoraConfig(target_modules=["q_proj"])
    )
    for folder in ("original", "link", "original/../original"):
        args = UnlearningArguments(str(tmp_path / folder), use_cpu=True, report_to="none")
        for given in (model, str(tmp_path / "original"), adapted):
            with pytest.raises(ValueError, match=r"^output_dir: '.*' is the folder of the original model, which"):
                make_trainer(args, given)
    args = UnlearningArguments(str(tmp_path / "out"), use_cpu=True, report_to="none", max_steps=1, disable_tqdm=True)
    trainer = make_trainer(args, model)
    trainer.train()
    for save in (trainer.save_model, trainer.save_release):
        with pytest.raises(ValueError, match=r"^output_dir: '.*original' is the folder of the original model"):
            save(str(tmp_path / "original"))
    assert content(tmp_path / "original") == before


def test_weights_that_are_replaced_have_no_record(unlearn, tmp_path):
    """So that a release that was interrupted is not taken for one."""
    trainer = unlearn(max_steps=1)
    trainer.train()
    trainer.save_release()
    assert "unlearning.json" in files_of_runs(tmp_path / "out")
    with torch.no_grad():
        next(trainer.model.parameters()).add_(1)
    trainer.save_model()
    assert "unlearning.json" not in files_of_runs(tmp_path / "out")


def test_checkpoints_of_another_program_are_neither_resumed_nor_removed(unlearn, tmp_path):
    model = make("vit")[0]
    for name in ("checkpoint-2", "checkpoint-500"):
        model.save_pretrained(tmp_path / "out" / name)
    before = content(tmp_path / "out")
    run = {"max_steps": 2, "save_steps": 2, "save_total_limit": 1}
    with pytest.raises(ValueError, match=r"^output_dir: '.*' has checkpoint-2 and 1 more, which this run would"):
        unlearn(**run).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match=r"^output_dir: '.*out' is the folder of the original model, which"):
        unlearn(**run, model=ViTForImageClassification.from_pretrained(tmp_path / "out" / "checkpoint-2"))
    assert content(tmp_path / "out") == before
    remove_older(tmp_path / "out", 1, set())
    assert content(tmp_path / "out") == before


def test_a_run_that_goes_on_elsewhere_overwrites_nothing_there(unlearn, tmp_path):
    run = {"max_steps": 2, "save_steps": 1}
    for folder in ("one", "other"):
        unlearn(**run, folder=folder).train()
    before = content(tmp_path / "other")
    checkpoint = str(tmp_path / "one" / "checkpoint-1")
    with pytest.raises(ValueError, match=r"^output_dir: '.*other' has checkpoint-1 and 1 more, which this run would"):
        unlearn(**run, folder="other").train(resume_from_checkpoint=checkpoint)
    assert content(tmp_path / "other") == before
    for folder in ("one", "new"):
        assert unlearn(**run, folder=folder).train(resume_from_checkpoint=checkpoint).global_step == 2
