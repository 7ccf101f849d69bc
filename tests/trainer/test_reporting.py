"""`report_to`: curves of forgetting, the metrics after a run and its cost arrive in TensorBoard, W&B and MLflow."""

import json
import math
import re
import struct

import pytest

# What a run logs, by step; and once, when it has ended.
CURVES = ("loss", "forget_loss", "retain_loss", "target", "retain_weight", "learning_rate")
ENDING = (
    "final_forget_loss", "final_retain_loss", "final_unseen_loss", "final_forget_accuracy", "final_target_reached",
    "final_target_loss", "final_diverged", "final_sample_passes", "final_processor_seconds",
    "final_cost_of_retraining",
)  # fmt: skip
STEPS = 3


def run(unlearn, name):
    """A run with an evaluation after each step; its log."""
    trainer = unlearn(
        report_to=name, max_steps=STEPS, training_passes=3.0, stop_at_target=False, eval_strategy="steps",
        eval_steps=1, method_kwargs={},
    )  # fmt: skip
    trainer.train()
    return trainer.state.log_history


def check(curves, log):
    """Every metric has arrived as it was logged: `curves` has step and value by the name in the log."""
    for name in (*CURVES, *(f"eval_{name}" for name in ("forget_loss", "retain_loss", "target_distance")), *ENDING):
        logged = [(entry["step"], entry[name]) for entry in log if name in entry]
        assert len(logged) == (1 if name in ENDING else STEPS), name
        assert [step for step, _ in curves[name]] == [step for step, _ in logged], name
        assert all(math.isclose(a, b, rel_tol=1e-5) for (_, a), (_, b) in zip(curves[name], logged, strict=True)), name


def in_log(name):
    """The name of a metric in the log, of one in TensorBoard or W&B."""
    return name.removeprefix("train/").replace("eval/", "eval_")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard(unlearn, tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    log = run(unlearn, "tensorboard")
    (file,) = (tmp_path / "events").iterdir()  # nothing is written after the run has ended, to a file of its own
    events = accumulator.EventAccumulator(str(file)).Reload()
    check({in_log(name): [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}, log)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_mlflow(unlearn, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    address = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    log = run(unlearn, "mlflow")
    assert mlflow.active_run() is None
    client = mlflow.tracking.MlflowClient(address)
    (found,) = client.search_runs(["0"])  # one run, and it is closed
    assert found.info.status == "FINISHED" and found.data.params["method"] == "nabla_tau"
    curves = {name: [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, name)]
              for name in found.data.metrics}  # fmt: skip
    check(curves, log)


def records(content):
    """The records of a file of W&B, which has them in the blocks of LevelDB's log: checksum, length, kind, part."""
    parts, at = b"", 0
    while at < len(content):
        left = 32768 - (at + 7) % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        parts, at = parts + content[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # whole, or the last part of one
            yield parts
            parts = b""


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_wandb_offline(unlearn, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true", "CONSOLE": "off"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    log = run(unlearn, "wandb")
    wandb.teardown()  # ends its process, which writes the file
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    from wandb.proto import wandb_internal_pb2

    curves = {}
    for data in records(file.read_bytes()[7:]):
        record = wandb_internal_pb2.Record.FromString(data)
        items = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
        for name in filter(re.compile("(train|eval)/").match, items):
            curves.setdefault(in_log(name), []).append((items["train/global_step"], items[name]))
    check(curves, log)
