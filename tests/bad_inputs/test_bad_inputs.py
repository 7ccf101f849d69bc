"""Bad inputs, by tables: one line that names the argument, what was found and what to do; nothing is left behind."""

import logging
import re

import datasets
import pytest
from calls import CALLS
from command_lines import COMMAND_LINES, LOADED, USAGE
from given import Given

from hf_unlearn.cli import main

# What to do, in one of the ways of saying it.
ADVICE = re.compile(r"; |\b(must|use|give|expected|write|leave out|did you mean|has|needs|pass|holds|would|only)\b")
# What only Python has: arguments of datasets, calls, keywords.
PYTHON = re.compile(r"(?<!--)\b\w+_ds\b|\w\(\)|(?<!-)\b(request|method|column|values|model|revision|unseen_dataset)=")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield Given(tmp_path_factory.mktemp("given"))


@pytest.fixture(autouse=True)
def place(given, tmp_path, monkeypatch):
    """An empty folder to be in, and files that none of it touches."""
    monkeypatch.chdir(tmp_path)
    level = logging.getLogger("transformers").level
    before = contents(given.folder)
    weights = given.model.state_dict()
    yield
    logging.getLogger("transformers").setLevel(level)
    assert contents(given.folder) == before and not list(tmp_path.iterdir()), "something is left behind"
    assert given.model.state_dict().keys() == weights.keys(), "the model has changed"


def contents(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_there_are_enough_of_them():
    assert sum(map(len, CALLS.values())) >= 150 and len(COMMAND_LINES) >= 90


@pytest.mark.parametrize(
    ("error", "call", "message"),
    [pytest.param(*row, id=f"{surface}-{n}") for surface, rows in CALLS.items() for n, row in enumerate(rows)],
)
def test_calls(given, error, call, message):
    with pytest.raises(error) as raised:
        call(given)
    text = str(raised.value)
    assert type(raised.value) is error and re.match(message, text), text
    assert "\n" not in text and re.match(r"\w+( \d+| and \w+ share)?[: ]", text) and ADVICE.search(text), text


@pytest.mark.parametrize(("line", "message"), [pytest.param(*row, id=row[0]) for row in COMMAND_LINES])
def test_command_lines(given, line, message, capsys):
    argv = [word.format(given.folder) for word in line.split()]
    capsys.readouterr()
    code = main(argv)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-unlearn")]
    assert code == 2 and len(lines) == 1, lines
    text = re.sub(r"^hf-unlearn( \w+)?: | \(see [^()]* --help\)$", "", lines[0])
    assert re.match(message, text), text
    assert re.match(r"(--\w+|[A-Z]+|FOLDER REPO|CONFIG.yaml): ", text) and ADVICE.search(text), text
    assert not PYTHON.search(re.sub(r"'[^']*'", "", text)), text


def test_what_is_refused_by_itself_loads_nothing(given, monkeypatch, capsys):
    def load(*_, **__):
        raise AssertionError("something is loaded")

    for name in ("run", "audit", "verify"):
        monkeypatch.setattr(f"hf_unlearn.cli.{name}.load_model", load)
    monkeypatch.setattr("hf_unlearn.cli.datasets.load_samples", load)
    for line, _ in USAGE:
        assert main([word.format(given.folder) for word in line.split()]) == 2, line
    capsys.readouterr()
    assert main([word.format(given.folder) for word in LOADED[-1][0].split()]) == 1
    assert "something is loaded" in capsys.readouterr().err
