"""What a run calls is what the stock `Trainer` calls: names, order and counts, and what it does beside the loss."""

import pytest
import torch
import transformers.trainer
from tiny import Samples, make, samples
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

METHODS = ("nabla_tau", "orthograd", "grad_diff", "ssd")
EVENTS = [name for name in dir(TrainerCallback) if name.startswith("on_")]
SETTINGS = {
    "max_steps": 5, "logging_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps",
    "save_steps": 3, "report_to": "none", "disable_tqdm": True, "use_cpu": True,
    "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2,
}  # fmt: skip


class Calls(TrainerCallback):
    """Keeps the names of the calls, with the step at which they came."""

    def __init__(self):
        self.calls = []


def record(name):
    def call(self, args, state, control, **kwargs):
        self.calls.append((name, state.global_step))

    return call


for event in EVENTS:
    setattr(Calls, event, record(event))


def flat_samples(count):
    _, batch = make("vit")
    return Samples([{k: torch.as_tensor(v) for k, v in sample.items()} for sample in samples(batch(count, seed=9))])


def stock_calls(folder, eval_dataset, steps_in_epoch):
    """Of a `Trainer` with as many batches in an epoch."""
    calls = Calls()
    args = TrainingArguments(str(folder), **SETTINGS)
    train_dataset = flat_samples(steps_in_epoch * 4)
    Trainer(make("vit")[0], args, train_dataset=train_dataset, eval_dataset=eval_dataset, callbacks=[calls]).train()
    return calls.calls


@pytest.mark.parametrize("datasets", [1, 2], ids=["a dataset", "a dict"])
@pytest.mark.parametrize("method", ["nabla_tau", "orthograd", "grad_diff"])
def test_calls_are_those_of_the_stock_trainer(unlearn, tmp_path, method, datasets):
    eval_dataset = flat_samples(5) if datasets == 1 else {"one": flat_samples(5), "two": flat_samples(3)}
    calls = Calls()
    trainer = unlearn(
        method=method, forget=8, retain=12, retain_batch_size=2, callbacks=[calls], eval_dataset=eval_dataset,
        stop_at_target=False, **SETTINGS,
    )  # fmt: skip
    trainer.train()
    # The metrics after the run are logged once more, when its other callbacks know that it has ended.
    assert calls.calls[-2:] == [("on_train_end", 5), ("on_log", 5)]
    assert calls.calls[:-1] == stock_calls(tmp_path / "stock", eval_dataset, steps_in_epoch=3)


def test_an_evaluation_without_a_dataset_is_one_call(unlearn):
    calls = Calls()
    trainer = unlearn(callbacks=[calls], eval_strategy="steps", eval_steps=1, max_steps=2)
    trainer.train()
    assert [call for call in calls.calls if call[0] == "on_evaluate"] == [("on_evaluate", 1), ("on_evaluate", 2)]
    entries = [entry for entry in trainer.state.log_history if "eval_forget_loss" in entry]
    assert [entry["step"] for entry in entries] == [1, 2] and all("eval_retain_accuracy" in entry for entry in entries)
    metrics = trainer.evaluate()
    assert metrics["eval_forget_loss"] == trainer.unlearning_metrics()["forget_loss"]


def test_the_unlearning_metrics_join_those_of_the_first_dataset(unlearn):
    trainer = unlearn(eval_dataset={"one": flat_samples(5), "two": flat_samples(3)})
    metrics = trainer.evaluate(metric_key_prefix="test")
    assert {"test_one_loss", "test_two_loss", "test_forget_loss", "test_unseen_accuracy"} <= metrics.keys()
    assert "eval_forget_loss" not in trainer.evaluate(flat_samples(4))


def test_early_stopping_counts_an_evaluation_once(unlearn):
    """Nothing gets better at a learning rate of 0: patience 4 ends after the fifth evaluation."""
    trainer = unlearn(
        eval_dataset=flat_samples(5), callbacks=[EarlyStoppingCallback(early_stopping_patience=4)], max_steps=9,
        learning_rate=0.0, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
        load_best_model_at_end=True, metric_for_best_model="eval_loss",
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == 5


class ScheduleFree(torch.optim.SGD):
    """As schedule-free optimizers are: a step outside of train mode is an error, and evaluation leaves it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.mode = "eval"

    def train(self):
        self.mode = "train"

    def eval(self):
        self.mode = "eval"

    def step(self, closure=None):
        if self.mode != "train":
            raise RuntimeError("optimizer.train() was not called")
        return super().step(closure)


@pytest.mark.parametrize("method", ["nabla_tau", "orthograd", "conegrad", "npo"])
def test_optimizers_with_modes_are_told_to_train(unlearn, method):
    trainer = unlearn(
        "gpt2", method=method, max_steps=3, eval_strategy="steps", eval_steps=1,
        optimizer_cls_and_kwargs=(ScheduleFree, {"lr": 1e-2}),
    )  # fmt: skip
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    assert trainer.optimizer.optimizer.mode == "train"
    assert any(not torch.equal(p, before[name]) for name, p in trainer.model.named_parameters() if name in before)


@pytest.mark.parametrize("method", ["nabla_tau", "orthograd"])
def test_the_cache_is_emptied_every_few_steps(unlearn, monkeypatch, method):
    emptied = []
    monkeypatch.setattr(transformers.trainer, "clear_device_cache", lambda *args, **kwargs: emptied.append(1))
    unlearn(method=method, max_steps=4, torch_empty_cache_steps=2).train()
    assert len(emptied) == 2


def test_model_init_may_take_the_trial(unlearn):
    trials = []

    def fresh(trial):
        trials.append(trial)
        return make("vit")[0]

    trainer = unlearn(model_init=fresh, without_model=True)
    trainer.train()
    assert trials == [None, None, None]  # the model that is checked, `Trainer`'s first, and the one that trains


def test_an_optimizer_given_twice_is_refused(unlearn):
    optimizer = torch.optim.SGD(make("vit")[0].parameters(), lr=0.1)
    with pytest.raises(ValueError, match="optimizer_cls_and_kwargs: optimizers is given as well"):
        unlearn(optimizers=(optimizer, None), optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.1}))


@pytest.mark.parametrize("method", ["nabla_tau", "orthograd", "kl"])
def test_a_model_made_anew_is_the_one_that_is_unlearned(unlearn, method):
    """With `model_init`, a second run begins with a new model: the step and what it compares with are made of it."""
    name = "gpt2" if method == "kl" else "vit"
    trainer = unlearn(name, method=method, model_init=lambda: make(name)[0], without_model=True, learning_rate=1e-2)
    trainer.train()
    first, weights = trainer.model, {n: p.detach().clone() for n, p in trainer.model.state_dict().items()}
    trainer.train()
    assert trainer.model is not first
    assert all(torch.equal(p, weights[n]) for n, p in trainer.model.state_dict().items())
    moved = [n for n, p in make(name)[0].state_dict().items() if n in weights and not torch.equal(p, weights[n])]
    assert moved or method == "orthograd"
    if method == "orthograd":
        assert trainer.step.model is trainer.model
        assert any("lora_B" in n and w.abs().max() > 0 for n, w in weights.items())


def test_later_epochs_go_on_with_the_stream_of_pairs(unlearn):
    """Every pass over the forget dataset has an order of its own, also where an epoch is one pass."""
    numbers = []
    trainer = unlearn(forget=6, retain=6, per_device_train_batch_size=3, max_steps=6)
    take = trainer.compute_loss

    def spy(model, inputs, *args, **kwargs):
        numbers.extend(inputs["index"].tolist())
        return take(model, inputs, *args, **kwargs)

    trainer.compute_loss = spy
    trainer.train()
    expected = [trainer.train_dataset[position].number for position in range(18)]
    assert numbers == expected and len({tuple(numbers[i : i + 6]) for i in (0, 6, 12)}) > 1


def test_a_dataset_is_evaluated_after_an_evaluation_without_one(unlearn):
    """Loaders of evaluation datasets are kept while workers persist: not the one that nothing is read from."""
    trainer = unlearn(dataloader_num_workers=1, dataloader_persistent_workers=True)
    trainer.evaluate()
    dataset = flat_samples(5)
    expected = unlearn().evaluate(dataset)["eval_loss"]
    assert trainer.evaluate(dataset)["eval_loss"] == pytest.approx(expected, rel=1e-6)
    assert expected != pytest.approx(trainer.unlearning_metrics()["forget_loss"], rel=1e-3)


class Weights(TrainerCallback):
    """Keeps the weights after the optimizer's step, and at the step's end."""

    def __init__(self):
        self.after_optimizer, self.at_end = [], []

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.after_optimizer.append({n: p.detach().clone() for n, p in model.named_parameters()})

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.at_end.append({n: p.detach().clone() for n, p in model.named_parameters()})


@pytest.mark.parametrize("added_later", [False, True])
def test_callbacks_see_the_weights_that_a_step_ends_with(unlearn, added_later):
    """Also where the step is corrected (an average of weights is taken there), and in a second run."""
    weights = Weights()
    settings = {"method": "orthograd", "projection": "update", "peft_config": None, "learning_rate": 1e-2}
    trainer = unlearn(callbacks=[] if added_later else [weights], **settings)
    if added_later:
        trainer.add_callback(weights)
    for _ in range(2):
        trainer.train()
    assert len(weights.at_end) == 4
    for after, end in zip(weights.after_optimizer, weights.at_end, strict=True):
        for name, weight in end.items():
            torch.testing.assert_close(after[name], weight, rtol=0, atol=0)


def test_a_second_run_has_one_step_callback(unlearn):
    trainer = unlearn()
    names = []
    for _ in range(2):
        trainer.train()
        names.append([type(callback).__name__ for callback in trainer.callback_handler.callbacks])
    assert names[0] == names[1] and names[0].count("StepCallback") == 1


def test_a_loss_may_be_logged_outside_of_a_run(unlearn):
    trainer = unlearn()
    trainer.log({"loss": 1.0})
    trainer.train()
    trainer.log({"loss": 2.0})
    assert [entry["loss"] for entry in trainer.state.log_history if entry.get("loss") == 2.0] == [2.0]
