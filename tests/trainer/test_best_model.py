"""Which checkpoint is kept: the one nearest to the target; by a loss it is the one that has forgotten least."""

from pathlib import Path

import pytest
import torch
from transformers import EarlyStoppingCallback, TrainerCallback

EVERY_STEP = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1,
              "load_best_model_at_end": True, "max_steps": 12, "method": "grad_diff", "forget_target": 1.6,
              "stop_at_target": False, "learning_rate": 5e-3, "lr_scheduler_type": "constant"}  # fmt: skip


def history(trainer, name):
    return {entry["step"]: entry[name] for entry in trainer.state.log_history if name in entry}


@pytest.fixture
def trained():
    """A ViT that remembers samples."""

    def train(trainer):
        optimizer = torch.optim.Adam(trainer.model.parameters(), 1e-2)
        samples = [*trainer.forget_ds, *trainer.retain_ds]
        batch = trainer.data_collator(samples)
        for _ in range(30):
            trainer.model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return trainer

    return train


def test_the_best_model_is_nearest_to_the_target(unlearn, trained, caplog):
    by_distance = trained(unlearn(**EVERY_STEP))
    by_distance.train()
    assert by_distance.args.metric_for_best_model == "target_distance" and "least is forgotten" not in caplog.text
    distances = history(by_distance, "eval_target_distance")
    best = by_distance.state.best_global_step
    assert best == min(distances, key=distances.get) and best > 1
    by_loss = trained(unlearn(**EVERY_STEP, metric_for_best_model="retain_loss", greater_is_better=False, folder="b"))
    by_loss.train()
    assert "metric_for_best_model: 'retain_loss' is best where least is forgotten; 'target_distance'" in caplog.text
    forget = history(by_distance, "eval_forget_loss")
    target = 1.6
    assert abs(forget[best] - target) < abs(forget[by_loss.state.best_global_step] - target)


@pytest.mark.parametrize(
    ("metric", "greater", "is_warned"),
    [("loss", False, True), ("eval_forget_loss", False, True), ("forget_accuracy", True, True),
     ("mia_loss_auc", True, True), ("forget_loss", True, False), ("gap", False, False)],
)  # fmt: skip
def test_a_warning_says_what_a_metric_keeps(unlearn, caplog, metric, greater, is_warned):
    trainer = unlearn(
        max_steps=1, eval_strategy="no", metric_for_best_model=metric, greater_is_better=greater,
        callbacks=[EarlyStoppingCallback()],
    )  # fmt: skip
    with pytest.raises(AssertionError, match="requires IntervalStrategy"):
        trainer.train()
    assert ("is best where least is forgotten" in caplog.text) is is_warned


def test_without_a_target_another_metric_is_asked_for(unlearn):
    with pytest.raises(
        ValueError, match=r"^metric_for_best_model: 'target_distance' needs a target, and there is none"
    ):
        unlearn(unseen=0, **{**EVERY_STEP, "forget_target": "none"}).train()


def test_a_damaged_best_checkpoint_is_not_loaded(unlearn):
    class Damage(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            path = Path(state.best_model_checkpoint) / "model.safetensors"
            path.write_bytes(path.read_bytes()[:-4] + bytes([1, 2, 3, 4]))

    with pytest.raises(
        ValueError, match=r"^load_best_model_at_end: '.*' has other contents in model\.safetensors than"
    ):
        unlearn(**{**EVERY_STEP, "max_steps": 1}, callbacks=[Damage()]).train()
    unlearn(**{**EVERY_STEP, "max_steps": 1}, save_only_model=True, folder="alone").train()
