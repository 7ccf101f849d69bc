"""README.md, as a new user would use it: its code is run, its commands are parsed, its tables are up to date."""

import importlib.util
import re
import subprocess
import sys

import pytest
import torch
import transformers as tf
import yaml
from blocks import ROOT, blocks, check, commands, run
from hub_server import TOKEN

import hf_unlearn
from hf_unlearn.hub.record import verify
from hf_unlearn.methods import METHODS

README = (ROOT / "README.md").read_text(encoding="utf-8")


# huggingface_hub streams files in a way that its own HTTP client has deprecated; Trainer asks for pinned memory.
@pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator:UserWarning")
def test_the_code_runs(hub, tmp_path, monkeypatch):
    """All blocks in order, with nothing but their own names; the models are trained for a moment only."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("hf_unlearn.trainer.defaults.default_steps", lambda *sizes: 2)
    monkeypatch.setitem(hf_unlearn.demo.TRAINING, "num_train_epochs", 1)
    names = {}
    run(README, "README.md", names)
    forgot = tf.ViTForImageClassification.from_pretrained("model-that-forgot").state_dict()
    trained = names["trainer"].model.state_dict()
    assert all(torch.equal(forgot[key], value) for key, value in trained.items())
    assert set(map(int, names["forget_ds"]["label"])) == {3} and (tmp_path / "audit.html").stat().st_size > 1000
    record = tmp_path / "unlearning.json"
    record.write_bytes(hub.repos["me/model-that-forgot"].files()["unlearning.json"])
    assert verify(record, names["trainer"].model, names["forget_ds"]).matches


@pytest.mark.slow
def test_the_quickstart_runs_as_it_stands(tmp_path):
    """The first block in an interpreter of its own, in an empty folder, whole."""
    (first,) = [content for language, content in blocks(README) if language == "python"][:1]
    subprocess.run([sys.executable, "-c", first], cwd=tmp_path, check=True, timeout=300)
    assert (tmp_path / "model-that-forgot" / "model.safetensors").is_file()


def test_it_fits():
    assert len(README.splitlines()) <= 150
    assert len([line for line in README.splitlines() if line.startswith("![")]) == 1


def test_every_command_is_one():
    assert {check(words) for words in commands(README)} >= {"make", "pip", "run", "audit", "verify", "push", "compare"}


def test_every_link_leads_somewhere():
    images = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    links = [target.partition("#")[0] for target in re.findall(r"(?<!!)\[[^\]]*\]\(([^)#]+)\)", README)]
    # A package index shows the page without the repository beside it.
    [repository] = re.findall(r'^Repository = "https://github.com/(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    raw = f"https://raw.githubusercontent.com/{repository}/main/"
    assert all(image.startswith(raw) for image in images)
    for link in [*links, *(image.removeprefix(raw) for image in images)]:
        assert (ROOT / link).exists(), link
    for path in (ROOT / "examples").glob("*.py"):
        assert path.stem in ("_tiny", "common") or f"examples/{path.name}" in links


def test_every_method_is_named():
    listed = set(re.findall(r"`(\w+)`", README[README.index("## Methods") : README.index("## Command line")]))
    assert METHODS.keys() <= listed


def test_tables_are_up_to_date():
    spec = importlib.util.spec_from_file_location("table", ROOT / "benchmarks" / "table.py")
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    for path in table.FILES:
        assert table.filled(path) == path.read_text(encoding="utf-8"), "python benchmarks/table.py"


def test_citation_has_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == hf_unlearn.__version__ and citation["license"] == "Apache-2.0"
