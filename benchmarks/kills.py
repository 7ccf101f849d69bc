"""Whether a run that is killed goes on as if nothing had happened: 50 kills over five methods, one and two processes.

    python benchmarks/kills.py
    python benchmarks/kills.py --kills 2 --cases nabla_tau-1

Every run is in new processes (two: gloo), checkpoints every second step, keeps two, and ends with a release. It is
killed with SIGKILL while a checkpoint is being written, while the release is being written, or at any moment, and
started again until it ends; of two processes both are killed, or one and the other a second later. Then all weights,
optimizer, scheduler, generator states and the release are compared bitwise with those of a run that was left alone.
What is in the results already is not run again.
"""

import argparse
import json
import multiprocessing
import os
import platform
import random
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STEPS, SAVE_STEPS, LIMIT = 8, 2, 2
SEED = 0
RESULTS = Path(__file__).parent / "results" / "kills.json"
# Method, whether the model is a text model, and the adapter.
METHODS = {
    "nabla_tau": ("nabla_tau", False, None),
    "orthograd_lora": ("orthograd", False, "auto"),
    "orthograd_all": ("orthograd", False, None),
    "npo": ("npo", True, None),
    "scrub": ("scrub", False, None),
}
CASES = [f"{name}-{processes}" for name in METHODS for processes in (1, 2)]
IMPORTED = [
    "hf_unlearn.trainer.trainer", "hf_unlearn.auditing.audit", "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.vit.modeling_vit",
]  # fmt: skip
MOMENTS = ["checkpoint", "checkpoint", "release", "any", "any"]


# ---- the run that is killed ----


def images(count: int, seed: int) -> list[dict[str, Any]]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    return [{"pixel_values": torch.randn(3, 16, 16, generator=generator), "labels": i % 3} for i in range(count)]


def texts(count: int, seed: int) -> list[dict[str, Any]]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(3, 40, (8,), generator=generator)} for _ in range(count)]


def build(is_text: bool) -> Any:
    import torch
    import transformers as tf

    torch.manual_seed(SEED)
    if is_text:
        return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2))
    return tf.ViTForImageClassification(
        tf.ViTConfig(
            image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=32, num_labels=3,
        )
    )  # fmt: skip


def run(name: str, folder: str) -> None:
    """Run a method from its newest complete checkpoint, or from the beginning, to the release."""
    from transformers import TrainerCallback

    from hf_unlearn import UnlearningArguments, UnlearningTrainer

    class Report(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            print(f"begins at step {state.global_step}", flush=True)

    method, is_text, adapter = METHODS[name]
    make = texts if is_text else images
    processes = int(os.environ.get("WORLD_SIZE", 1))
    args = UnlearningArguments(
        folder, method=method, max_steps=STEPS, save_steps=SAVE_STEPS, save_total_limit=LIMIT, seed=SEED,
        per_device_train_batch_size=8 // processes, retain_batch_size=8 // processes, stop_at_target=False,
        learning_rate=1e-3, report_to="none", disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
        request="samples",
    )  # fmt: skip
    trainer = UnlearningTrainer(
        build(is_text), make(16, 1), make(32, 2), args, unseen_ds=make(16, 3), peft_config=adapter,
        callbacks=[Report()],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=any(Path(folder).glob("checkpoint-*")))
    audit = trainer.audit(resamples=20)
    print("release", flush=True)
    trainer.save_release(audit=audit)
    print("released", flush=True)


# ---- starting and killing it ----


class Process:
    """A new process, forked from a server that has imported the modules and done nothing else."""

    def __init__(self, name: str, folder: Path, rank: int, environment: dict[str, str]):
        arguments = (name, str(folder), rank, environment)
        self._process = multiprocessing.get_context("forkserver").Process(target=run_logged, args=arguments)
        self._process.start()

    def is_running(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()

    def wait(self) -> int | None:
        """The exit code, minus the signal for a process that was killed; None after ten minutes."""
        self._process.join(600)
        return self._process.exitcode


def run_logged(name: str, folder: str, rank: int, environment: dict[str, str]) -> None:
    import torch

    os.environ |= environment
    torch.set_num_threads(1)
    log = os.open(f"{folder}-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    run(name, folder)


def start(case: str, folder: Path) -> list[Process]:
    multiprocessing.set_forkserver_preload(IMPORTED)
    name, processes = case.rsplit("-", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(int(processes)):
        Path(f"{folder}-{rank}.log").write_text("")
        environment = {} if processes == "1" else {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
        }  # fmt: skip
        started.append(Process(name, folder, rank, environment))
    return started


def said(folder: Path) -> str:
    """What the first process has printed since it was started."""
    return Path(folder.parent / f"{folder.name}-0.log").read_text(encoding="utf-8")


def finish(case: str, folder: Path) -> int:
    """Start a run and wait for its end; returns the step that it began at."""
    processes = start(case, folder)
    codes = [process.wait() for process in processes]
    if any(codes):
        raise RuntimeError(f"{case}: exit codes {codes}\n{said(folder)[-3000:]}")
    return int(said(folder).partition("begins at step ")[2].split()[0])


def wait_until(processes: list[Process], condition: Any) -> bool:
    """Wait for a condition; False if a process has ended before it held."""
    while all(process.is_running() for process in processes):
        if condition():
            return True
        time.sleep(0.0005)
    return False


def kill(
    case: str, folder: Path, moment: str, draw: random.Random, seconds: dict[str, float]
) -> dict[str, Any] | None:
    """Start a run and kill it; None if it ended before its time had come."""
    processes = start(case, folder)
    step = draw.randrange(SAVE_STEPS, STEPS + 1, SAVE_STEPS)
    wait = draw.random()
    if moment == "checkpoint":
        checkpoint = folder / f"checkpoint-{step}"
        alive = wait_until(processes, checkpoint.exists)
        wait *= 0.03  # a checkpoint of these models takes about so long
    elif moment == "release":
        alive = wait_until(processes, (folder / "config.json").exists)  # the first file of a release
        wait *= seconds["release"]
    else:
        alive = wait_until(processes, lambda: "begins at" in said(folder))
        wait *= seconds["run"]
    time.sleep(wait)
    killed = processes if not alive or draw.random() < 0.5 else [draw.choice(processes)]
    is_running = alive and all(process.is_running() for process in processes)
    for process in killed:
        process.kill()
    if len(killed) < len(processes):
        time.sleep(1)
    for process in processes:
        process.kill()
        process.wait()
    if not is_running:
        return None
    return {
        "moment": moment, "seconds_after": round(wait, 4), "killed": "all" if len(killed) == len(processes) else "one",
        "left": state(folder),
    }  # fmt: skip


def state(folder: Path) -> dict[str, Any]:
    """What a kill has left: checkpoints that are complete, and that are not, and whether a release is."""
    from hf_unlearn.trainer.manifest import checkpoints, find_damage

    found = {path.name: find_damage(path) for path in reversed(checkpoints(folder))}
    return {
        "complete": [name for name, damage in found.items() if damage is None],
        "partial": {name: damage for name, damage in found.items() if damage is not None},
        "weights": any(folder.glob("*.safetensors")), "record": (folder / "unlearning.json").exists(),
    }  # fmt: skip


def contents(folder: Path) -> Iterator[tuple[str, Any]]:
    """All numbers that a run has ended with: weights, the last checkpoint's state, and the release's record."""
    import torch
    from safetensors.torch import load_file

    for path in sorted([*folder.glob("*.safetensors"), *folder.glob(f"checkpoint-{STEPS}/*")]):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".safetensors":
            yield name, load_file(path)
        elif path.suffix in (".pt", ".pth") and path.stem != "unlearning_state":
            yield name, torch.load(path, weights_only=False)
    yield "record", json.loads((folder / "unlearning.json").read_text(encoding="utf-8"))["weights"]


def same(one: Any, other: Any) -> bool:
    """Whether two values are bitwise equal."""
    import numpy as np
    import torch

    if isinstance(one, (torch.Tensor, np.ndarray)):
        return (
            type(one) is type(other)
            and one.shape == other.shape
            and np.asarray(one).tobytes() == np.asarray(other).tobytes()
        )
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and (vars(one) == vars(other) if hasattr(one, "__dict__") else one == other)


def left_alone(case: str, folder: Path) -> dict[str, float]:
    """Run a case to its end without a kill; returns the seconds that the run and its release take."""
    processes = start(case, folder)
    times = {}
    for mark, words in (("begin", "begins at"), ("release", "release\n"), ("released", "released\n")):
        wait_until(processes, lambda words=words: words in said(folder))
        times[mark] = time.monotonic()
    if codes := [code for process in processes if (code := process.wait()) != 0]:
        raise RuntimeError(f"{case}: exit codes {codes}\n{said(folder)[-3000:]}")
    return {"run": time.monotonic() - times["begin"], "release": times["released"] - times["release"]}


def try_kill(case: str, number: int, whole: Path, folder: Path, seconds: dict[str, float]) -> dict[str, Any]:
    """One kill, the resumed run, and the comparison."""
    moment = MOMENTS[number % len(MOMENTS)]
    draw = random.Random(f"{SEED} {case} {number}")
    for attempt in range(10):
        folder_of_try = folder / f"{case}-{number}-{attempt}"
        folder_of_try.mkdir()
        if (killed := kill(case, folder_of_try, moment, draw, seconds)) is not None:
            break
        seconds = {name: value / 2 for name, value in seconds.items()}  # the machine is less busy than it was
    else:
        raise RuntimeError(f"{case}: ten runs ended before they were killed")
    begins = finish(case, folder_of_try)
    one, other = dict(contents(whole)), dict(contents(folder_of_try))
    different = sorted(name for name in {*one, *other} if not same(one.get(name), other.get(name)))
    return {
        "case": case, "number": number, **killed, "resumed_from_step": begins, "compared": sorted(one),
        "different": different, "bitwise": not different,
    }  # fmt: skip


def environment() -> dict[str, Any]:
    import torch
    import transformers

    import hf_unlearn

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    return {
        "seed": SEED, "device": f"{os.cpu_count()} cores, {cpu}", "python": platform.python_version(),
        "torch": torch.__version__, "transformers": transformers.__version__, "hf_unlearn": hf_unlearn.__version__,
        "steps": STEPS, "save_steps": SAVE_STEPS, "save_total_limit": LIMIT,
    }  # fmt: skip


def main() -> None:
    from tqdm.auto import tqdm

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES)
    parser.add_argument("--kills", type=int, default=5, help="of every case")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text()) if arguments.results.exists() else {"kills": []}
    command = " ".join(["python", "benchmarks/kills.py", *sys.argv[1:]])
    results = {"command": command, **environment(), "kills": results["kills"]}
    done = {(kill["case"], kill["number"]) for kill in results["kills"]}
    with tempfile.TemporaryDirectory() as name, tqdm(total=len(arguments.cases) * arguments.kills) as bar:
        for case in arguments.cases:
            missing = [number for number in range(arguments.kills) if (case, number) not in done]
            bar.update(arguments.kills - len(missing))
            if not missing:
                continue
            whole = Path(name) / case
            whole.mkdir()
            seconds = left_alone(case, whole)
            for number in missing:
                results["kills"].append(try_kill(case, number, whole, Path(name), seconds))
                arguments.results.parent.mkdir(parents=True, exist_ok=True)
                arguments.results.write_text(json.dumps(results, indent=1) + "\n")
                bar.set_postfix_str(f"{case} {sum(kill['bitwise'] for kill in results['kills'])} bitwise")
                bar.update()
    print(f"{sum(kill['bitwise'] for kill in results['kills'])} of {len(results['kills'])} kills ended bitwise equal")


if __name__ == "__main__":
    main()
