"""What a run costs: sample passes by purpose, seconds, and the share of what retraining would take."""

import json
from pathlib import Path

import pytest
import torch
from tiny import make
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_unlearn.hub.record_schema import check_record
from hf_unlearn.models.types import inner_model
from hf_unlearn.trainer.cost import CostCounter, training_epochs

# Six forget, eight of ten retain and eight unseen samples: measured before and after.
MEASURED = 2 * (6 + 8 + 8)


def cost_of(trainer):
    return trainer.outcome.cost.passes


def test_steps_count_three_passes_a_sample_and_measuring_one(unlearn):
    trainer = unlearn(max_steps=3)
    metrics = trainer.train().metrics
    assert cost_of(trainer) == {"steps": 3 * 3 * (4 + 4), "calibration": 0, "measuring": MEASURED}
    assert metrics["sample_passes"] == 72 + MEASURED and metrics["sample_passes_measuring"] == MEASURED
    assert metrics["processor_seconds"] > 0 and metrics["wall_seconds"] > 0
    assert any("final_sample_passes" in entry for entry in trainer.state.log_history)


def test_every_run_counts_from_its_beginning(unlearn):
    trainer = unlearn(max_steps=2)
    trainer.train()
    trainer.evaluate()
    trainer.train()
    assert cost_of(trainer)["steps"] == 2 * 3 * 8 and cost_of(trainer)["measuring"] == MEASURED


@pytest.mark.parametrize(
    ("method", "settings", "steps"),
    [
        # Scores of the whole step are computed before its first batch: one pass more a forget sample.
        ("nabla_tau", {"gradient_accumulation_steps": 2}, 2 * (8 * 4 + 8 * 3)),
        ("grad_ascent", {"gradient_accumulation_steps": 2}, 2 * 8 * 3),
        ("finetune", {}, 2 * 4 * 3),
        ("kl", {"name": "gpt2"}, 2 * (4 * 3 + 4 * 4)),  # the original looks at the retain samples
        ("bad_teacher", {}, 2 * (4 * 4 + 4 * 4)),
        ("idk_dpo", {"name": "gpt2"}, 2 * (8 * 3 + 4 * 3)),  # with the other answers
        # A sample alone where gradients are checked: at the first step, and as long as a fresh adapter has none.
        ("orthograd", {}, 2 * (4 * 3 + 4 * 3) + 2),
        ("orthograd", {"per_sample_engine": "loop"}, 2 * (4 * 3 + 4 * 3)),
        ("orthograd", {"gradient_accumulation_steps": 2}, 2 * (8 * 4 + 8 * 3) + 3),
    ],
)
def test_steps_of_all_kinds(unlearn, method, settings, steps):
    trainer = unlearn(method=method, retain=16, stop_at_target=False, **settings)
    trainer.train()
    assert cost_of(trainer)["steps"] == steps


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("nabla_tau", {"gradient_accumulation_steps": 2}),
        ("orthograd", {"gram_cache": "recompute"}),
        ("orthograd", {"gram_cache": "recompute", "gradient_accumulation_steps": 2, "projection": "update"}),
        ("scrub", {}),
        ("salun", {}),
        ("rmu", {"name": "gpt2"}),
        ("npo", {"name": "gpt2"}),
    ],
)
def test_the_count_is_that_of_the_samples_that_went_through_the_model(unlearn, method, settings):
    trainer = unlearn(method=method, retain=16, stop_at_target=False, **settings)
    seen = []

    def count(model, args, kwargs):
        first = next(value for value in kwargs.values() if isinstance(value, torch.Tensor))
        seen.append(len(first) * (3 if torch.is_grad_enabled() else 1))

    # A frozen copy of the model takes the hook along.
    inner_model(trainer.model).register_forward_pre_hook(count, with_kwargs=True)
    trainer.train()
    # A language model shows once, with two samples, that its logits at some positions are those at all of them.
    shown = 4 if settings.get("name") == "gpt2" else 0
    # Nor is it counted that the memory of one and two samples of each dataset is traced: forward alone, with a graph.
    traced = 2 * (1 + 2) * (4 if method in ("scrub", "rmu") else 3)
    assert trainer.outcome.cost.sample_passes == sum(seen) - shown - traced


def test_planned_steps_are_those_that_are_counted(unlearn):
    for settings in ({"gradient_accumulation_steps": 2}, {"method": "finetune"}, {"method": "scrub"}):
        trainer = unlearn(max_steps=4, stop_at_target=False, **settings)
        trainer.train()
        weights = [trainer.method.retain_weight(step / 4, step) for step in range(4)]
        batches = trainer.args.gradient_accumulation_steps
        planned = trainer.step.planned_passes(weights, 4 * batches, 4 * batches, batches)
        assert planned == cost_of(trainer)["steps"], settings


def test_a_method_without_steps_costs_its_calibration(unlearn):
    trainer = unlearn(method="ssd", forget=1, retain=30)
    trainer.train()
    assert cost_of(trainer) == {"steps": 0, "calibration": 3 * 31 + 2, "measuring": 2 * (1 + 8 + 8)}  # 8 drawn; checks


def test_checks_targets_and_evaluations_count_as_measuring(unlearn):
    trainer = unlearn(max_steps=20, retain=12)
    trainer.train()
    assert cost_of(trainer)["measuring"] == MEASURED
    evaluates = {"eval_strategy": "steps", "eval_steps": 2, "stop_at_target": False}
    watched = unlearn(max_steps=4, retain=12, method="grad_diff", **evaluates)
    watched.train()
    assert cost_of(watched)["measuring"] == MEASURED + 2 * (6 + 12 + 8)
    ascent = unlearn(max_steps=5, method="grad_diff", forget_target=100.0)
    ascent.train()
    assert cost_of(ascent)["measuring"] == MEASURED  # the steps say whether it is there


def tokenizer():
    words = {"[PAD]": 0, "[EOS]": 1, "[UNK]": 2, **{f"word{i}": i for i in range(3, 60)}}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", eos_token="[EOS]")


def test_what_is_transcribed_counts(unlearn):
    trainer = unlearn("whisper", processing_class=tokenizer(), predict_with_generate=True, generation_max_length=4)
    trainer.train()
    # Losses and transcripts, before and after.
    assert cost_of(trainer)["measuring"] == 2 * MEASURED


def test_answers_that_are_asked_for_count(unlearn):
    trainer = unlearn("gpt2", processing_class=tokenizer())
    trainer.train()
    assert cost_of(trainer)["measuring"] == MEASURED + 2 * 2 * 4  # written and looked at, before and after


def test_a_resumed_run_goes_on_counting(unlearn):
    first = unlearn(max_steps=4, folder="parts", save_strategy="steps", save_steps=2)
    first.train()
    saved = torch.load(f"{first.args.output_dir}/checkpoint-2/unlearning_state.pt", weights_only=True)["cost"]
    assert saved["steps"] == 2 * 24 and saved["processor_seconds"] > 0
    resumed = unlearn(max_steps=4, folder="again", save_strategy="steps", save_steps=2)
    resumed.train(resume_from_checkpoint=f"{first.args.output_dir}/checkpoint-2")
    assert cost_of(resumed) == cost_of(first)
    assert resumed.outcome.cost.processor_seconds > saved["processor_seconds"]


# ---- beside retraining -----------------------------------------------------------------------------------------


def test_the_share_of_retraining(unlearn):
    trainer = unlearn(max_steps=3, retain=40, training_passes=5)
    metrics = trainer.train().metrics
    assert metrics["retraining_sample_passes"] == 3 * 5 * 40
    assert metrics["cost_of_retraining"] == pytest.approx(metrics["sample_passes"] / 600)
    assert "0.19 of the 600 passes of retraining" in trainer.outcome.sentence
    assert trainer.audit().about["cost"] == trainer.outcome.cost.sentence
    trainer.save_release()
    record = json.loads((Path(trainer.args.output_dir) / "unlearning.json").read_text())
    assert check_record(record)["outcome"]["cost_of_retraining"] == metrics["cost_of_retraining"]
    assert "0.19 of the 600 passes of retraining" in (Path(trainer.args.output_dir) / "README.md").read_text()


def test_without_the_epochs_of_training_there_is_no_ratio(unlearn):
    trainer = unlearn()
    metrics = trainer.train().metrics
    assert "cost_of_retraining" not in metrics and "training_passes" in trainer.outcome.sentence


def write_state(folder, **state):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trainer_state.json").write_text(json.dumps(state))


def test_epochs_are_read_from_the_checkpoint_that_the_model_came_from(tmp_path, unlearn):
    write_state(tmp_path / "run" / "checkpoint-9", epoch=2.0, num_train_epochs=4)
    write_state(tmp_path / "run" / "checkpoint-10", epoch=3.0, num_train_epochs=4)
    assert training_epochs(str(tmp_path / "run")) == 3 and training_epochs(str(tmp_path / "run/checkpoint-9")) == 2
    write_state(tmp_path / "run", epoch=4.0, num_train_epochs=4)
    assert training_epochs(str(tmp_path / "run")) == 4
    model, _ = make("vit")
    model.save_pretrained(tmp_path / "run")
    trainer = unlearn(model=type(model).from_pretrained(tmp_path / "run"))
    assert trainer.train().metrics["retraining_sample_passes"] == 3 * 4 * 10
    given = unlearn(model=type(model).from_pretrained(tmp_path / "run"), training_passes=2, folder="given")
    assert given.train().metrics["retraining_sample_passes"] == 3 * 2 * 10


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"epoch": null}', '{"epoch": "many"}', '{"epoch": 0}'])
def test_a_state_that_says_nothing(tmp_path, content):
    (tmp_path / "trainer_state.json").write_text(content)
    assert training_epochs(str(tmp_path)) is None
    assert training_epochs("") is None and training_epochs("org/name") is None


def test_the_epochs_of_an_unlearning_run_are_none_of_training(tmp_path, unlearn):
    trainer = unlearn(save_strategy="steps", save_steps=2)
    trainer.train()
    trainer.save_release()
    assert training_epochs(str(trainer.args.output_dir)) is None
    assert training_epochs(f"{trainer.args.output_dir}/checkpoint-2") is None


def test_a_run_that_would_cost_more_than_retraining_says_so_once_before_the_first_step(unlearn, caplog):
    unlearn(max_steps=3, training_passes=3).train()
    warnings = [record.message for record in caplog.records if "more than retraining" in record.message]
    assert warnings == [
        f"Unlearning would cost more than retraining: up to {72 + MEASURED} sample passes, of which 72 are steps and "
        "the rest is measured; training on the retain dataset again takes 90. Lower max_steps, or retrain"
    ]
    caplog.clear()
    unlearn(max_steps=3, training_passes=5).train()
    assert "more than retraining" not in caplog.text


def test_a_counter_goes_on_from_a_checkpoint_on_one_process_alone():
    class First:
        is_main_process = True

    counter = CostCounter()
    counter.add("steps", 4, gradient=True)
    counter.add("measuring", 5)
    counter.resume({"steps": 100, "wall_seconds": 7.0}, First())
    totals = counter.totals()
    assert totals["steps"] == 112 and totals["measuring"] == 5 and totals["wall_seconds"] >= 7


def test_training_passes_that_are_none(unlearn):
    with pytest.raises(ValueError, match="training_passes: must be above 0, got 0"):
        unlearn(training_passes=0)
