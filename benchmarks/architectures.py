"""Are per-sample gradients exact for every architecture? Every class of transformers' auto mappings.

    python benchmarks/architectures.py
    python benchmarks/architectures.py --only 'Qwen3' --out /tmp/qwen.json
    python benchmarks/architectures.py --shard 1/4 --out /tmp/part1.json        # parts are merged by --merge
    python benchmarks/architectures.py --merge /tmp/part*.json

Every class that is listed for a task (`TASKS` in `tests/architectures/building.py`) is built small from its
configuration class, gets an adapter or trains all its weights, and has its per-sample gradients compared with one
backward pass a sample, on batches of three sizes and two lengths, in a process of its own. Results go to
`benchmarks/results/architectures.json`, with a table beside it. A class that crashes or hangs is a line of it
and stops nothing.
"""

import argparse
import json
import multiprocessing
import platform
import re
import resource
import sys
import time
import warnings
from collections import Counter
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "architectures"))

import torch  # noqa: E402
import transformers  # noqa: E402
from building import Architecture, architectures  # noqa: E402
from sweep import MODES, OUTCOMES, sweep  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "architectures.json"
SEED = 0
SECONDS, GIGABYTES = 180, 6


def _run(connection, architecture, mode) -> None:
    """In a process of its own: no other architecture's memory, patches or crash."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    resource.setrlimit(resource.RLIMIT_AS, (GIGABYTES * 2**30, GIGABYTES * 2**30))
    connection.send(sweep(architecture, mode, SEED))


def isolated(architecture: Architecture, mode: str) -> dict:
    """The result of an architecture, also of one that ends its process or does not end."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_run, args=(sender, architecture, mode))
    process.start()
    sender.close()
    try:
        if receiver.poll(SECONDS):
            return receiver.recv()
        message = f"took more than {SECONDS} s"
    except EOFError:
        process.join()
        message = f"its process ended with exit code {process.exitcode}"
    finally:
        process.kill()
        process.join()
    names = {"name": architecture.name, "model_type": architecture.model_type, "task": architecture.task}
    return {**names, "mode": mode, "outcome": "crashed", "message": message, "fallback": [], "error": 0.0}


def run(chosen: list[Architecture], modes: list[str]) -> list[dict]:
    results, start = [], time.monotonic()
    for number, architecture in enumerate(chosen, 1):
        for mode in modes:
            result = isolated(architecture, mode)
            results.append(result)
            detail = result["message"] or (f"{result['error']:.0e}" if "error" in result else "")
            print(
                f"[{time.monotonic() - start:5.0f} s] {number}/{len(chosen)} {architecture.name} {mode}: "
                f"{result['outcome']} {detail[:150]}",
                flush=True,
            )
            if result["outcome"] == "not built":
                break
    return results


def write(results: list[dict], path: Path) -> None:
    results = sorted(results, key=lambda result: (result["name"], result["mode"]))
    about = {
        "command": "python benchmarks/architectures.py", "date": date.today().isoformat(), "seed": SEED,
        "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__,
        "counts": counts(results),
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about | {"results": results}, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(results, about))


def counts(results: list[dict]) -> dict:
    return {mode: dict(Counter(r["outcome"] for r in results if r["mode"] == mode)) for mode in MODES}


def table(results: list[dict], about: dict) -> str:
    """Counts, then every architecture that is not exact by hooks alone, then those not built."""
    built = {r["name"]: r for r in results if r["outcome"] != "not built"}
    missing = {r["name"]: r for r in results if r["outcome"] == "not built"}
    kinds = len({r["model_type"] for r in built.values()})
    lines = [
        "# Per-sample gradients of every architecture", "",
        f"transformers {about['transformers']}, torch {about['torch']}, {about['date']}, `{about['command']}`: "
        f"{len(built)} classes of {kinds} model types built, {len(missing)} not.", "",
        "| trained | " + " | ".join(OUTCOMES) + " |", "|---|" + "---:|" * len(OUTCOMES),
    ]  # fmt: skip
    for mode, label in (("all", "all weights"), ("lora", "LoRA")):
        numbers = about["counts"][mode] if mode == "all" else {"not built": len(missing), **about["counts"][mode]}
        lines.append(f"| {label} | " + " | ".join(str(numbers.get(outcome, 0)) for outcome in OUTCOMES) + " |")
    lines += [
        "",
        "## Not exact by hooks alone",
        "",
        "| class | trained | outcome | error | why |",
        "|---|---|---|---:|---|",
    ]
    for r in results:
        if r["outcome"] not in ("exact", "not built"):
            why = r["message"] or ", ".join(r["fallback"])
            lines.append(f"| {r['name']} | {r['mode']} | {r['outcome']} | {r['error']:.0e} | {_cell(why)} |")
    lines += ["", "## Not built", "", "| class | why |", "|---|---|"]
    lines += [f"| {name} | {_cell(r['message'])} |" for name, r in missing.items()]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")[:200]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--shard", default="1/1", help="I/N: every N-th class, beginning with the I-th")
    parser.add_argument("--only", default="", help="regular expression of class names")
    parser.add_argument("--mode", choices=MODES, action="append", help="default: both")
    parser.add_argument("--merge", type=Path, nargs="+", help="results of shards, instead of running")
    options = parser.parse_args()
    if options.merge:
        results = [r for path in options.merge for r in json.loads(path.read_text())["results"]]
    else:
        index, parts = map(int, options.shard.split("/"))
        chosen = [a for a in architectures()[index - 1 :: parts] if re.search(options.only, a.name)]
        results = run(chosen, options.mode or list(MODES))
    write(results, options.out)
    print(json.dumps(counts(results)))


if __name__ == "__main__":
    main()
