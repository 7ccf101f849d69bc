"""A layer imports only layers below it: the contracts of pyproject.toml, and that they see what they are there for."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def lint(folder):
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    environment = {"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def copy(tmp_path):
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "hf_unlearn", tmp_path / "hf_unlearn", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_every_import_goes_down(copy):
    done = lint(copy)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "planted", "complaint"),
    [
        ("losses/labels.py", "from hf_unlearn.trainer.arguments import UnlearningArguments", "losses is not allowed"),
        ("methods/ascent.py", "import hf_unlearn.trainer.trainer", "methods is not allowed"),
        ("models/eval_mode.py", "from hf_unlearn.data import hashing", "models is not allowed"),
        (
            "per_sample/loop.py",
            "from hf_unlearn.per_sample import basis",
            "No cycles are allowed in hf_unlearn.per_sample",
        ),
        ("targets/choosing.py", "def late():\n    from hf_unlearn import audit", "targets is not allowed"),
    ],
)
def test_a_planted_import_is_seen(copy, module, planted, complaint):
    path = copy / "hf_unlearn" / module
    path.write_text(path.read_text() + f"\n{planted}\n")
    done = lint(copy)
    assert done.returncode == 1 and complaint in " ".join(done.stdout.split())
