"""One word a concept: what the glossary has retired stays out of the package, its documentation and the README."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IDENTIFIERS = (
    "Stillness", "Conductor", "Workplace", "settle", "survey", "Survey", "MeasuringTrainer", "SavingTrainer",
    "PushingTrainer", "look_ahead", "unlearning_figures", "figures_before", "row_hashes", "load_rows", "figures",
)  # fmt: skip
PHRASES = (
    'request="rows"', "sets=", "bends gradients", "bend gradients", "drawn to", "lets go", "cannot be had",
    "can be had", "are none", "the network that forgets", "goes along", "whoever drops it", "the model before",
    "house", "scenes", "ours", "yardstick",
)  # fmt: skip
PER_SAMPLE = tuple(
    f"hf_unlearn/per_sample/{name}.py"
    for name in (
        "experts", "factors", "fisher", "gram", "graph_parameters", "layers", "moves", "operations", "recorder",
        "verification",
    )
)  # fmt: skip
REPORT_NAMES = ("charts.py", "comparison.py", "dashboard.py", "html_report.py", "tables.py")
TEMPLATES = ("templates/audit.html", "templates/dashboard.html")
REPORT = tuple(f"hf_unlearn/report/{name}" for name in (*REPORT_NAMES, *TEMPLATES))
# Words that have another meaning too, and the files that use them in that one.
ELSEWHERE = {
    "figure": ("hf_unlearn/report/plots.py", "hf_unlearn/report/templates/audit.html"),  # matplotlib's, HTML's
    "row": (*PER_SAMPLE, *REPORT, "hf_unlearn/report/svg.py", "hf_unlearn/hub/templates/card.md"),  # matrices, tables
    "rows": (*PER_SAMPLE, *REPORT, "docs/_ext/docstrings.py"),
    "reference": (  # the reference-model attack, reference texts of metrics, the API reference
        "hf_unlearn/auditing/attack_scores.py", "hf_unlearn/auditing/transcription.py",
        "hf_unlearn/auditing/metrics.py", "hf_unlearn/auditing/text_metrics.py", "hf_unlearn/report/meanings.py",
        "README.md", "docs/_ext/docstrings.py", "docs/_ext/modules.py", "docs/concepts/audit.md", "docs/index.md",
        "docs/reference/index.md",
    ),
    "cells": (*REPORT, "docs/_ext/docstrings.py"),  # of tables
    "floor": ("hf_unlearn/report/svg.py",),  # of an axis
    "page": (  # of the documentation
        "docs/_ext/docstrings.py", "docs/_ext/generated.py", "docs/_ext/modules.py", "docs/conf.py",
        "docs/concepts/index.md", "docs/howto/audit_a_model.md", "docs/howto/index.md", "docs/installation.md",
        "docs/quickstart.md",
    ),
}  # fmt: skip
AUDIT_ARGUMENTS = re.compile(r"\baudit\([^)]*\b(forget|retain|unseen|reference)=")


def texts():
    listed = subprocess.run(
        ["git", "ls-files", "hf_unlearn", "docs", "README.md"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    names = listed or [str(p.relative_to(ROOT)) for f in ("hf_unlearn", "docs") for p in (ROOT / f).rglob("*")]
    kept = [name for name in {*names, "README.md"} if Path(name).suffix in (".py", ".md", ".html", ".jinja2")]
    return {
        n: (ROOT / n).read_text(encoding="utf-8") for n in sorted(kept) if (ROOT / n).is_file() and "site/" not in n
    }


TEXTS = texts()


def uses(word, allowed=()):
    pattern = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)" if word[-1].isalnum() else re.escape(word))
    return [
        f"{name}:{number}: {line.strip()}"
        for name, text in TEXTS.items()
        if not name.startswith(allowed)
        for number, line in enumerate(text.splitlines(), start=1)
        if pattern.search(line)
    ]


def test_there_is_something_to_look_at():
    assert len(TEXTS) > 100 and "README.md" in TEXTS and "docs/glossary.md" in TEXTS


@pytest.mark.parametrize("word", [*IDENTIFIERS, *PHRASES])
def test_retired(word):
    # The glossary and the changelog say what is not said any more.
    assert uses(word, ("docs/glossary.md", "docs/changelog.md")) == []


@pytest.mark.parametrize("word", sorted(ELSEWHERE))
def test_retired_in_one_meaning(word):
    assert uses(word, (*ELSEWHERE[word], "docs/glossary.md")) == []
    assert uses(word), f"{word} is used nowhere: take it out of the list"


def test_arguments_of_audit():
    wrong = {name: AUDIT_ARGUMENTS.findall(text) for name, text in TEXTS.items() if AUDIT_ARGUMENTS.search(text)}
    assert wrong == {}
