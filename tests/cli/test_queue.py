"""`hf-unlearn run --requests`: every line once, a record each; what is refused, and what happens to a failed run."""

import json

import datasets
import pytest
import tiny
import torch
from filelock import FileLock

from hf_unlearn.cli import main
from hf_unlearn.cli.request_queue import QueuedRequest, next_batch, read_requests
from hf_unlearn.hub.record import verify
from hf_unlearn.hub.record_schema import read_record
from hf_unlearn.models.loading import load_model
from hf_unlearn.trainer.trainer import UnlearningTrainer

A, B, C = (
    {"id": "a", "forget": "samples=0..2", "kind": "samples"}, {"id": "b", "forget": "speaker=1"},
    {"id": "c", "forget": "samples=2,3,9", "kind": "samples"},
)  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.chdir(tmp_path)
    model, batch = tiny.make("vit")
    samples = tiny.samples(batch(16, seed=1))
    rows = [{"pixel_values": torch.as_tensor(s["pixel_values"]).tolist(), "labels": s["labels"]} for s in samples]
    datasets.Dataset.from_list([{**row, "speaker": i % 4} for i, row in enumerate(rows)]).save_to_disk("data")
    model.save_pretrained("model")
    return tmp_path


def write(*requests):
    with open("queue.jsonl", "w") as file:
        file.writelines(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in requests)


def run(*flags):
    argv = ["run", "--model=model", "--dataset=data", "--requests=queue.jsonl", "--output_dir=out", "--max_steps=2"]
    return main([*argv, "--use_cpu", "--disable_tqdm=true", "--per_device_train_batch_size=4", *flags])


def events(folder):
    return [json.loads(line) for line in (folder / "out" / "state.jsonl").read_text().splitlines()]


def record(folder, number):
    return read_record(folder / "out" / f"request-{number}" / "unlearning.json")


def samples(*numbers):
    return datasets.load_from_disk("data").select(numbers)


def test_one_after_the_other_and_what_is_written_later(folder, capsys):
    write(A, "", B)
    assert run() == 0
    assert "All 2 requests are done. The model is in out/request-2" in capsys.readouterr().out
    before = (folder / "out/request-2/model.safetensors").read_bytes()
    assert run() == 0  # none is done again
    assert (folder / "out/request-2/model.safetensors").read_bytes() == before
    write(A, B, C)
    assert run() == 0
    assert [event["event"] for event in events(folder)] == ["begin", "done"] * 3
    last = record(folder, 3)
    assert [each["request"]["id"] for each in (*last["chain"], last)] == ["a", "b", "c"]
    # Sample 2 was forgotten by `a`, 9 by `b`: they are left out of what was to keep, and of what is to forget.
    assert [each["request"]["samples"] for each in (*last["chain"], last)] == [3, 3, 1]
    assert [each["request"]["kind"] for each in (*last["chain"], last)] == ["samples", "group", "samples"]
    earlier = [folder / f"out/request-{number}/unlearning.json" for number in (1, 2)]
    assert verify(last, folder / "out/request-3", samples(0, 1, 2, 3, 5, 9, 13), earlier).matches
    assert not verify(last, samples=samples(4)).matches
    # Older models still hold what was forgotten later.
    assert [path.parent.name for path in folder.glob("out/*/model.safetensors")] == ["request-3"]


def test_requests_of_a_kind_in_one_run(folder, capsys):
    write(A, B, C)
    assert run("--batch_requests=2", "--save_steps=1") == 0
    one, two, three = (*record(folder, 3)["chain"], record(folder, 3))
    assert [each["request"]["id"] for each in (one, two, three)] == ["a", "c", "b"]
    assert one["weights"] == two["weights"] and two["weights"]["after"] == three["weights"]["before"]
    assert one["settings"]["requests_together"] == 2 and "requests_together" not in three["settings"]
    assert record(folder, 1) == one and record(folder, 2) == {**two, "chain": [one]}
    assert verify(one, samples=samples(0, 1, 2)).matches and verify(record(folder, 2), samples=samples(3, 9)).matches
    assert verify(record(folder, 3), folder / "out/request-3").matches
    assert not list(folder.glob("out/*/checkpoint-*"))  # they hold the data


def test_a_run_that_failed_is_not_done(folder, capsys, monkeypatch):
    write(A, B)
    assert run("--num_train_epochs=0", "--max_steps=-1") == 3
    printed = capsys.readouterr().out
    assert "not one that has forgotten: the run took no step" in printed and "Stopped: request 'a' is not" in printed
    assert [event["event"] for event in events(folder)] == ["begin", "failed"]
    assert run() == 0
    assert [event["event"] for event in events(folder)] == ["begin", "failed"] + ["begin", "done"] * 2
    assert len(record(folder, 2)["chain"]) == 1


def test_a_run_that_was_killed_before_it_was_noted_is_not_run_again(folder, monkeypatch):
    write(A)
    assert run() == 0
    state = folder / "out" / "state.jsonl"
    state.write_text(state.read_text().splitlines()[0] + "\n")  # killed before "done" was written
    monkeypatch.setattr(UnlearningTrainer, "train", None)
    assert run() == 0
    assert [event["event"] for event in events(folder)] == ["begin", "done"]


def test_a_queue_that_was_killed_before_older_weights_were_removed(folder):
    write(A, B)
    assert run() == 0
    (folder / "out/request-1/model.safetensors").touch()
    assert run() == 0 and not (folder / "out/request-1/model.safetensors").exists()


def test_a_request_that_was_changed_after_it_began(folder):
    write(A)
    assert run() == 0
    state = folder / "out" / "state.jsonl"
    state.write_text(state.read_text().splitlines()[0] + "\n")
    write({**A, "forget": "samples=5"})
    assert run() == 0
    assert record(folder, 1)["request"]["samples"] == 1 and verify(record(folder, 1), samples=samples(5)).matches


def test_after_a_record(folder):
    write(A)
    assert run() == 0
    write(B)
    argv = ["run", "--after=out/request-1/unlearning.json", "--dataset=data", "--requests=queue.jsonl"]
    assert main([*argv, "--output_dir=later", "--max_steps=1", "--use_cpu", "--disable_tqdm=true"]) == 0
    assert len(read_record(folder / "later/request-1/unlearning.json")["chain"]) == 1


@pytest.mark.parametrize(
    ("lines", "flags", "message"),
    [
        (["{"], [], "--requests: line 1 is not valid JSON; write it as"),
        (["[]"], [], "--requests: line 1 is no object of texts; write it as"),
        ([A, {"id": "b", "forget": "label"}], [], "line 2 forget: 'label' is no forget request; use"),
        ([{"id": "b"}], [], "--requests: line 1 has no forget; write it as"),
        ([{**A, "kynd": "class"}], [], "line 1 has 'kynd'; use id, forget, kind (did you mean 'kind'?)"),
        ([{**A, "kind": "row"}], [], "line 1 has the kind 'row'; use one of samples, class, group"),
        ([A, B, A], [], "line 3 has the id 'a' of another line; give each its own"),
        ([], [], "'queue.jsonl' has no request; write one a line"),
        ([A], ["--requests=gone.jsonl"], "--requests: 'gone.jsonl' does not open (No such file"),
        ([A], ["--forget=1%"], "--forget: does not go together with requests; every request has its own"),
        ([A], ["--resume"], "--resume: does not go together with requests; the same command goes on"),
        ([A], ["--batch_requests=0"], "--batch_requests: must be at least 1, got 0"),
        ([{**A, "forget": "speakr=1"}], [], "--requests: 'a': forget: there is no column 'speakr'"),
        ([A], ["--output_dir=model"], "--output_dir: 'model' is the folder of the original model"),
    ],
)
def test_what_is_refused(capsys, lines, flags, message):
    write(*lines)
    assert run(*flags) == 2
    assert message in capsys.readouterr().err


def test_a_request_that_is_done_cannot_be_changed_nor_done_again(folder, capsys):
    write(A)
    assert run() == 0
    write({**A, "forget": "samples=5"})
    assert run() == 2 and "'a' is done, and reads otherwise now; give what is new a new id" in capsys.readouterr().err
    write(A, {"id": "again", "forget": "samples=1,2"})
    assert run() == 2 and "'again' asks for samples that were all forgotten before" in capsys.readouterr().err
    (folder / "out/request-3").mkdir()
    write(A, {"id": "x", "forget": "samples=5"}, {"id": "y", "forget": "samples=6"})
    assert run() == 2 and "request-3' is there already, by others; use another folder" in capsys.readouterr().err


def test_two_processes_do_not_share_a_queue(folder, capsys):
    write(A)
    (folder / "out").mkdir()
    with FileLock("out/lock"):
        assert run() == 2
    assert "--output_dir: another process works on requests in 'out'; wait for it" in capsys.readouterr().err


def test_batches():
    requests = [
        QueuedRequest(str(i), "1%", kind) for i, kind in enumerate(["class", None, "samples", "class", "class"])
    ]
    assert [r.id for r in next_batch(requests, [], 2)] == ["0", "3"]
    assert [r.id for r in next_batch(requests, [requests[0]], 2)] == ["1"]  # without a kind: alone
    assert [r.id for r in next_batch(requests, requests[:2], 9)] == ["2"]
    assert next_batch(requests, requests, 2) == []
    write(*[request.to_dict() for request in requests])
    assert read_requests("queue.jsonl") == requests


def test_the_final_model_loads(folder):
    write(A)
    assert run() == 0
    assert all(weight.isfinite().all() for weight in load_model("out/request-1").state_dict().values())
