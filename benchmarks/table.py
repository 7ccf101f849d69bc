"""Writes the tables of README.md from the JSON files in benchmarks/results, and from the methods.

python benchmarks/table.py            # rewrites the parts of README.md between the markers
python benchmarks/table.py --check    # exits with 1 if README.md is not up to date
"""

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path

from hf_unlearn.methods import METHODS
from hf_unlearn.report import comparison

ROOT = Path(__file__).parents[1]
ENGINES = {
    "nabla_tau": "∇τ step",
    "ours": "OrthoGrad step",
    "loop": "by the loop",
    "vmap": "by vmap",
    "opacus": "by Opacus",
    "torchjd": "by TorchJD",
}
RECIPES = {
    "digits": "digits",
    "fashion": "Fashion-MNIST",
    "banking77": "Banking77",
    "spoken_digits": "spoken digits",
    "tofu": "TOFU",
    "speech": "speech",
    "words": "speech",
}
HEADS = {
    "image, audio, text classification": ("single_label",),
    "multi-label, regression": ("multi_label", "regression"),
    "token classification, question answering": ("token", "question_answering"),
    "causal and seq2seq language models, Whisper": ("causal_lm", "seq2seq_lm"),
    "masked language models": ("masked_lm",),
    "CTC": ("ctc",),
    "your own `per_sample_loss`": ("custom",),
}
OURS = ("nabla_tau", "orthograd")


def reports():
    """The comparisons that are shown, in the order of `RECIPES`."""
    paths = [ROOT / f"benchmarks/results/compare/{name}.json" for name in RECIPES]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def caption():
    seeds = dict.fromkeys(f"{RECIPES[each['name']]} {', '.join(map(str, each['seeds']))}" for each in reports())
    devices = sorted({c["device"] for each in reports() for c in each["cells"] if "device" in c})
    return f"\nMean ± deviation over seeds ({'; '.join(seeds)}), one thread a run. Device: {', '.join(devices)}."


def spread(values, digits=2):
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def quality_table():
    """Our two methods beside retraining, by recipe and request."""
    models = ("original", "retrained 2", *OURS)
    rows = [
        "| gap to the retrained model (points) | seeds | original | retrained, other seed | ∇τ | OrthoGrad + LoRA | "
        "forget loss / retrained: other seed, ∇τ, OrthoGrad | time / retraining: ∇τ, OrthoGrad |",
        "|---" * 8 + "|",
    ]
    for report in reports():
        found = {(line.request, line.model): line.values for line in comparison.lines(report)}
        for request in report["requests"]:
            each = {model: found[request, model] for model in models}
            gaps = [spread(values["gap"]) for values in each.values()]
            losses = [spread(each[model]["forget loss / retrained"]) for model in models[1:]]
            times = [f"{statistics.mean(each[model]['time / retraining']):.2f}" for model in OURS]
            name = f"{RECIPES[report['name']]}, {request}"
            seeds = len(each["original"]["gap"])
            rows.append(f"| {name} | {seeds} | {' | '.join(gaps)} | {', '.join(losses)} | {', '.join(times)} |")
    return "\n".join([*rows, caption()])


def compare_table():
    """Gap of every method to the retrained model, by recipe and request; best mean rank first.

    Ranks are those among all methods in the requests that have all, and among the best six in those that have the six.
    """
    read = reports()
    found = {each["name"]: comparison.lines(each) for each in read}
    models = defaultdict(set)
    for name, each in found.items():
        for line in each:
            models[name, line.request].add(line.model)
    everything = set().union(*models.values())  # a rank among six methods is none among twenty
    whole = [x for name, each in found.items() for x in each if models[name, x.request] == everything]
    ranks = comparison.mean_ranks(whole)
    kept = {"retrained", *[model for model in ranks if model in METHODS][:6]}  # no published form of one of them
    among = [{**each, "cells": [c for c in each["cells"] if c["model"] in kept]} for each in read]
    shared = [x for each in among for x in comparison.lines(each) if kept <= models[each["name"], x.request]]
    six_ranks = comparison.mean_ranks(shared)
    columns = [(name, request) for name, each in found.items() for request in dict.fromkeys(x.request for x in each)]
    cells = {(name, x.request, x.model): x for name, each in found.items() for x in each}
    headings = [f"{RECIPES[name]}, {request}" for name, request in columns]
    rows = [
        f"| method | mean rank | of the best six | time / retraining | {' | '.join(headings)} |",
        "|---" * (len(columns) + 4) + "|",
    ]
    for model in ["original", "retrained 2", *ranks]:
        shown = [cells.get((*column, model)) for column in columns]
        gaps = [spread(x.values["gap"]) if x and "gap" in x.values else "-" for x in shown]
        times = [t for x in shown if x for t in x.values.get("time / retraining", [])]
        places = ("{:.1f} ± {:.1f}".format(*each[model]) if model in each else "-" for each in (ranks, six_ranks))
        time = f"{statistics.mean(times):.2f}" if times and model in ranks else "-"
        rows.append(f"| {model} | {' | '.join(places)} | {time} | {' | '.join(gaps)} |")
    return "\n".join([*rows, caption()])


def per_sample_table():
    """Time and memory of every way to exact gradient surgery, relative to the plain gradient-difference step."""
    lines = []
    for path in sorted((ROOT / "benchmarks/results/per_sample").glob("*.json")):
        report = json.loads(path.read_text())
        engines = list(max((r["engines"] for r in report["results"]), key=len))[1:]
        lines.append("| model | k | " + " | ".join(ENGINES[e] for e in engines) + " | error, ours against the loop |")
        lines.append("|---" * (len(engines) + 3) + "|")
        for result in sorted(report["results"], key=lambda r: (r["case"], r["k"])):
            shown = []
            for engine in engines:
                each = result["engines"].get(engine, {})
                ran = f"{each['time']:.2f}, {each['memory']:.2f}" if "time" in each else "-"
                shown.append("cannot" if "failed" in each else ran)
            error = result["engines"]["ours"].get("error")
            error = "-" if error is None else f"{error:.0e}"
            lines.append(f"| {result['case']} | {result['k']} | {' | '.join(shown)} | {error} |")
        versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
        lines.append(f"\nDevice: {report['device']}, {report['threads']} thread; {versions}.")
    return "\n".join(lines)


def methods_table():
    """Methods by the heads that they work on; those that work on the same ones share a row."""
    rows = {}
    for name, method in METHODS.items():
        works = tuple(not method.heads or set(kinds) <= set(method.heads) for kinds in HEADS.values())
        rows.setdefault(works, []).append(f"`{name}`")
    lines = [f"| method | {' | '.join(HEADS)} |", "|---" * (len(HEADS) + 1) + "|"]
    for works, names in sorted(rows.items(), key=lambda row: -sum(row[0])):
        lines.append(f"| {', '.join(names)} | {' | '.join('yes' if each else '-' for each in works)} |")
    return "\n".join(lines)


def tables():
    """What stands between the markers of README.md, by their names."""
    return {
        "methods": methods_table(),
        "quality": quality_table(),
        "compare": compare_table(),
        "per-sample": per_sample_table(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    readme = ROOT / "README.md"
    text = readme.read_text()
    wanted = text
    for name, content in tables().items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        before, rest = wanted.split(begin)
        wanted = f"{before}{begin}\n{content}\n{end}{rest.split(end)[1]}"
    if parser.parse_args().check:
        raise SystemExit(wanted != text)
    readme.write_text(wanted)


if __name__ == "__main__":
    main()
