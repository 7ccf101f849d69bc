"""Whether a queue of requests that is killed does every request exactly once: twenty kills at random moments.

    python benchmarks/queue_kills.py
    python benchmarks/queue_kills.py --kills 3

A tiny model forgets five requests (two of them in one run, with checkpoints every second step) by `hf-unlearn run
--requests`, in a new process that is killed with SIGKILL at a random moment and started again, up to three times,
until it ends. Then every request has to be done once, in records that follow each other, and the weights have to be,
bitwise, those of a queue that was left alone.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import kills

RESULTS = Path(__file__).parent / "results" / "queue_kills.json"
REQUESTS = [
    {"id": "a", "forget": "samples=0..3", "kind": "samples"}, {"id": "b", "forget": "speaker=1"},
    {"id": "c", "forget": "samples=4..7", "kind": "samples"}, {"id": "d", "forget": "speaker=2", "kind": "group"},
    {"id": "e", "forget": "20%"},
]  # fmt: skip
STEPS, KILLS = 4, 3  # optimizer steps of a run, kills of a queue at most


def prepare(folder: Path) -> None:
    """A model, samples that are ready for it, and the requests."""
    from datasets import Dataset

    for name, count, seed in (("train", 40, 1), ("unseen", 100, 2)):
        samples = [{**s, "speaker": i % 5} for i, s in enumerate(kills.images(count, seed))]
        Dataset.from_list([{**s, "pixel_values": s["pixel_values"].tolist()} for s in samples]).save_to_disk(
            str(folder / name)
        )
    kills.build(False).save_pretrained(folder / "model")
    (folder / "queue.jsonl").write_text("".join(f"{json.dumps(request)}\n" for request in REQUESTS))


def words(folder: Path, name: str) -> list[str]:
    return [
        "run", f"--model={folder}/model", f"--dataset={folder}/train", f"--unseen_dataset={folder}/unseen",
        f"--requests={folder}/queue.jsonl", "--batch_requests=2", f"--output_dir={folder}/{name}",
        f"--max_steps={STEPS}", "--save_steps=2", "--save_total_limit=1", "--per_device_train_batch_size=4",
        "--learning_rate=1e-6", "--stop_at_target=false", "--use_cpu", "--disable_tqdm=true", "--report_to=none",
    ]  # fmt: skip


def run(folder: str, name: str) -> None:
    """The command, in a process that was forked from one that has imported everything."""
    import torch

    from hf_unlearn.cli import main

    torch.set_num_threads(1)
    log = os.open(f"{folder}/{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout.reconfigure(line_buffering=True)
    sys.exit(main(words(Path(folder), name)))


def start(folder: Path, name: str) -> Any:
    import multiprocessing

    multiprocessing.set_forkserver_preload([*kills.IMPORTED, "hf_unlearn.cli.run"])
    process = multiprocessing.get_context("forkserver").Process(target=run, args=(str(folder), name))
    process.start()
    return process


def left_alone(folder: Path) -> float:
    """Run the queue to its end; returns the seconds that it takes once it has begun."""
    process = start(folder, "whole")
    while not (folder / "whole" / "state.jsonl").exists() and process.is_alive():
        time.sleep(0.001)
    began = time.monotonic()
    process.join(600)
    check_end(process, folder, "whole")
    return time.monotonic() - began


def check_end(process: Any, folder: Path, name: str) -> None:
    if process.exitcode != 0:
        log = (folder / f"{name}.log").read_text()[-3000:]
        raise RuntimeError(f"{name}: exit code {process.exitcode}\n{log}")


def try_kills(folder: Path, number: int, seconds: float) -> dict[str, Any]:
    """Run the queue, killed up to three times, and look at what it has done."""
    draw, name, killed = random.Random(f"queue {number}"), f"killed-{number}", []
    wanted = draw.randint(1, KILLS)
    while len(killed) < wanted:
        process = start(folder, name)
        state = folder / name / "state.jsonl"
        while not state.exists() and process.is_alive():
            time.sleep(0.001)
        time.sleep(draw.random() * seconds)
        if process.is_alive():
            process.kill()
            process.join()
            killed.append(events(state))
        elif not killed:
            shutil.rmtree(folder / name)  # it ended before its time had come
        else:
            break
    process = start(folder, name)
    process.join(600)
    check_end(process, folder, name)
    return {"number": number, "kills": len(killed), "events_at_kill": killed, **what_is_done(folder, name)}


def events(state: Path) -> list[str]:
    return [json.loads(line)["event"] for line in state.read_text().splitlines()] if state.exists() else []


def what_is_done(folder: Path, name: str) -> dict[str, Any]:
    """Which requests are done, whether their records are whole, and the weights those of a queue left alone."""
    from safetensors.torch import load_file

    from hf_unlearn.hub.record import verify
    from hf_unlearn.hub.record_schema import read_record

    lines = [json.loads(line) for line in (folder / name / "state.jsonl").read_text().splitlines()]
    done = [request["id"] for line in lines if line["event"] == "done" for request in line["requests"]]
    last, whole = (folder / each / f"request-{len(REQUESTS)}" for each in (name, "whole"))
    earlier = [folder / name / f"request-{n}" / "unlearning.json" for n in range(1, len(REQUESTS))]
    weights = list((folder / name).rglob("*.safetensors"))
    return {
        "done": done, "recorded": [r["request"]["id"] for r in (*read_record(last / "unlearning.json")["chain"],
                                                                read_record(last / "unlearning.json"))],
        "verified": verify(last / "unlearning.json", last, earlier=earlier).matches,
        "audits": sum((path.parent / "audit.json").exists() for path in (*earlier, last / "unlearning.json")),
        "only_the_last_weights": weights == [last / "model.safetensors"],
        "bitwise": kills.same(load_file(last / "model.safetensors"), load_file(whole / "model.safetensors")),
    }  # fmt: skip


def is_right(result: dict[str, Any]) -> bool:
    ids = [request["id"] for request in REQUESTS]
    order = ["a", "c", "b", "d", "e"]  # a and c are forgotten together
    assert sorted(order) == ids
    return (
        result["done"] == result["recorded"] == order and result["audits"] == len(ids)
        and result["verified"] and result["only_the_last_weights"] and result["bitwise"]
    )  # fmt: skip


def main() -> None:
    from tqdm.auto import tqdm

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    environment = {**kills.environment(), "steps": STEPS, "save_total_limit": 1}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        seconds = left_alone(folder)
        results = [try_kills(folder, number, seconds) for number in tqdm(range(arguments.kills))]
    right = sum(map(is_right, results))
    command = " ".join(["python", "benchmarks/queue_kills.py", *sys.argv[1:]])
    content = {"command": command, **environment, "requests": len(REQUESTS), "right": right, "queues": results}
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{right} of {len(results)} queues that were killed did every request exactly once")


if __name__ == "__main__":
    main()
