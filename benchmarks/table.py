"""Writes the tables of results from the JSON files in benchmarks/results, into README.md and RESULTS.md.

python benchmarks/table.py            # rewrites what stands between the markers of both files
python benchmarks/table.py --check    # exits with 1 if a file is not up to date
"""

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path

from hf_unlearn.methods import METHODS
from hf_unlearn.report import comparison

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FILES = {
    ROOT / "README.md": ("results",),
    ROOT / "benchmarks" / "RESULTS.md": ("quality", "compare", "heads", "per-sample"),
}
# Keys of the files in results/compare and results/per_sample.
RUNS, ENGINE = "runs", "hooks"
# An update that differs by more than this, of its norm, is not the same one.
WRONG = 1e-3
ENGINES = {
    "nabla_tau": "∇τ step",
    ENGINE: "OrthoGrad step",
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
    "segmentation": "segmentation",
    "captions": "an image among captions",
    "answers": "images and text",
    "facts": "multiple choice",
}
# What README.md shows: comparisons with attempts to bring data back.
DEEP = {
    "compare/recovery": "digits, from scratch",
    "real/fashion": "Fashion-MNIST, a ViT pretrained on eight classes",
    "real/intents": "Banking77, MiniLM",
}
RECOMMENDED = ("nabla_tau", "orthograd")
MODELS = ("original", "retrained 2", *RECOMMENDED)
DEEPEST = "nabla_tau_deep"


def reports():
    """The comparisons that are shown, in the order of `RECIPES`."""
    paths = [RESULTS / "compare" / f"{name}.json" for name in RECIPES]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def caption():
    seeds = dict.fromkeys(f"{RECIPES[r['name']]} {', '.join(map(str, r['seeds']))}" for r in reports())
    devices = sorted({run["device"] for report in reports() for run in report[RUNS] if "device" in run})
    return f"\nMean ± deviation over seeds ({'; '.join(seeds)}), one thread a run. Device: {', '.join(devices)}."


def spread(values, digits=2):
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def requests():
    """Recipe, request, and model to values over seeds, of every request in every comparison."""
    for report in reports():
        values = {(line.request, line.model): line.values for line in comparison.lines(report)}
        for request in report["requests"]:
            yield report["name"], request, {model: values[request, model] for model in MODELS}


def times(values):
    return [f"{statistics.mean(values[model]['time / retraining']):.2f}" for model in RECOMMENDED]


def results_table():
    """The small table: cost, gap, depth and accuracies of the two recommended methods, and ∇τ at a retrained depth."""
    lines = [
        "| request (seeds) | cost / retraining: ∇τ, OrthoGrad | gap: two retrained; ∇τ, OrthoGrad | depth: original; "
        '∇τ, OrthoGrad; ∇τ with `depth="retrained"` | accuracy on retain, unseen samples: retrained; ∇τ; OrthoGrad |',
        "|---" * 5 + "|",
    ]
    for name, title in DEEP.items():
        if not (path := RESULTS / f"{name}.json").exists():
            continue
        report = json.loads(path.read_text())
        values = {(line.request, line.model): line.values for line in comparison.lines(report)}
        for request in report["requests"]:
            of = {model: values[request, model] for model in (*MODELS, "retrained")}
            deepest = values.get((request, DEEPEST), {}).get("depth")
            gaps, depths = (
                [spread(of[model][column], 1) for model in models]
                for column, models in (("gap", MODELS[1:]), ("depth", ("original", *RECOMMENDED)))
            )
            accuracies = [
                f"{statistics.mean(of[model]['retain']):.1f}, {statistics.mean(of[model]['unseen']):.1f}"
                for model in ("retrained", *RECOMMENDED)
            ]
            lines.append(
                f"| {title}: {request} ({len(of['original']['gap'])}) | {', '.join(times(of))} | "
                f"{gaps[0]}; {', '.join(gaps[1:])} | {depths[0]}; {', '.join(depths[1:])}; "
                f"{spread(deepest, 1) if deepest else '-'} | {'; '.join(accuracies)} |"
            )
    return "\n".join(lines)


def quality_table():
    """The two recommended methods beside retraining, by recipe and request."""
    lines = [
        "| average gap to the retrained model (points) | seeds | original | retrained, other seed | ∇τ | "
        "OrthoGrad + LoRA | forget loss / retrained: other seed, ∇τ, OrthoGrad | time / retraining: ∇τ, OrthoGrad |",
        "|---" * 8 + "|",
    ]
    for recipe, request, values in requests():
        gaps = [spread(values[model]["gap"]) for model in MODELS]
        losses = [spread(values[model]["forget loss / retrained"]) for model in MODELS[1:]]
        seeds = len(values["original"]["gap"])
        lines.append(
            f"| {RECIPES[recipe]}, {request} | {seeds} | {' | '.join(gaps)} | {', '.join(losses)} | "
            f"{', '.join(times(values))} |"
        )
    return "\n".join([*lines, caption()])


def compare_table():
    """Average gap of every method to the retrained model, by recipe and request; best mean rank first.

    Ranks are those among all methods in the requests that have all, and among the best six in those that have the six.
    """
    read = reports()
    lines_by_recipe = {report["name"]: comparison.lines(report) for report in read}
    models = defaultdict(set)
    for name, lines in lines_by_recipe.items():
        for line in lines:
            models[name, line.request].add(line.model)
    everything = set().union(*models.values())  # a rank among six methods is none among twenty
    whole = [x for name, lines in lines_by_recipe.items() for x in lines if models[name, x.request] == everything]
    ranks = comparison.mean_ranks(whole)
    six = {"retrained", *[model for model in ranks if model in METHODS][:6]}  # no published form of one of them
    among = [{**report, RUNS: [run for run in report[RUNS] if run["model"] in six]} for report in read]
    shared = [x for report in among for x in comparison.lines(report) if six <= models[report["name"], x.request]]
    six_ranks = comparison.mean_ranks(shared)
    columns = [
        (name, request)
        for name, lines in lines_by_recipe.items()
        for request in dict.fromkeys(x.request for x in lines)
    ]
    entries = {(name, x.request, x.model): x for name, lines in lines_by_recipe.items() for x in lines}
    headings = [f"{RECIPES[name]}, {request}" for name, request in columns]
    table = [
        f"| method | mean rank | of the best six | time / retraining | {' | '.join(headings)} |",
        "|---" * (len(columns) + 4) + "|",
    ]
    for model in ["original", "retrained 2", *ranks]:
        shown = [entries.get((*column, model)) for column in columns]
        gaps = [spread(x.values["gap"]) if x and "gap" in x.values else "-" for x in shown]
        shares = [share for x in shown if x for share in x.values.get("time / retraining", [])]
        places = ("{:.1f} ± {:.1f}".format(*means[model]) if model in means else "-" for means in (ranks, six_ranks))
        time = f"{statistics.mean(shares):.2f}" if shares and model in ranks else "-"
        table.append(f"| {model} | {' | '.join(places)} | {time} | {' | '.join(gaps)} |")
    return "\n".join([*table, caption()])


def heads_table():
    """Every model of the recipes of further heads, with its verdict; one line a request and model."""
    columns = [column for column in comparison.COLUMNS if column != comparison.DEPTH]
    table = [f"| head, request | model | {' | '.join(columns)} | verdict |", "|---" * (len(columns) + 3) + "|"]
    seeds = []
    for name, title in HEADS.items():
        if not (path := RESULTS / "heads" / f"{name}.json").exists():
            continue
        report = json.loads(path.read_text())
        verdicts = {(run["request"], run["model"]): run["metrics"]["verdict"] for run in report[RUNS]}
        lines = comparison.lines(report)
        for line, (request, model, *texts) in zip(lines, comparison.table_rows(lines, columns), strict=True):
            verdict = verdicts[line.request, line.model]
            table.append(f"| {title}: {request} | {model} | {' | '.join(texts)} | {verdict} |")
        seeds.append(f"{title} {', '.join(map(str, report['seeds']))}")
    return "\n".join([*table, f"\nSeeds: {'; '.join(seeds)}. Device: cpu, one thread."])


def per_sample_table():
    """Time and memory of every way to exact gradient surgery, relative to the plain gradient-difference step."""
    lines = []
    for path in sorted((RESULTS / "per_sample").glob("*.json"), reverse=True):
        report = json.loads(path.read_text())
        headings = " | ".join(ENGINES.values())
        lines.append(f"| model | k | plain step | {headings} | error, OrthoGrad step against the loop |")
        lines.append("|---" * (len(ENGINES) + 4) + "|")
        reasons = {}
        for result in sorted(report["results"], key=lambda r: (r["case"], r["k"])):
            plain, shown = result["engines"]["grad_diff"], []
            for engine, title in ENGINES.items():
                measured = result["engines"].get(engine, {})
                ran = f"{measured['time']:.2f}, {measured['memory']:.2f}" if "time" in measured else "-"
                if measured.get("error", 0) > WRONG:
                    ran += f", wrong by {measured['error']:.0%}"
                if "failed" in measured:
                    ran = "cannot"
                    reasons[title, result["case"]] = measured["failed"]
                shown.append(ran)
            error = result["engines"][ENGINE].get("error")
            error = "-" if error is None else f"{error:.0e}"
            absolute = f"{plain['seconds']:.2g} s, {plain['peak_bytes'] / 2**20:.0f} MiB"
            lines.append(f"| {result['case']} | {result['k']} | {absolute} | {' | '.join(shown)} | {error} |")
        versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
        lines.append(f"\nDevice: {report['device']}, {report['threads']} thread; {versions}.")
        lines += ["\nWhat cannot be run:\n"] if reasons else []
        lines += [f"- {title}: {case} (`{reason[:100]}`)" for (title, case), reason in reasons.items()]
        lines.append("")
    return "\n".join(lines[:-1])


TABLES = {
    "results": results_table,
    "quality": quality_table,
    "compare": compare_table,
    "heads": heads_table,
    "per-sample": per_sample_table,
}


def filled(path):
    """The text of a file with its tables as the results have them now."""
    text = path.read_text(encoding="utf-8")
    for name in FILES[path]:
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{TABLES[name]()}\n{end}{rest.split(end)[1]}"
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    texts = {path: filled(path) for path in FILES}
    if check:
        raise SystemExit(any(path.read_text(encoding="utf-8") != text for path, text in texts.items()))
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
