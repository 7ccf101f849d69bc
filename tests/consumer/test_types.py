"""What the editor of a user sees: the README's calls type-check in strict mode, wrong ones do not."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    """Runs mypy as in a project of a user's, where this library is an installed package; file to its output."""
    folder = tmp_path_factory.mktemp("project")
    names = ("calls.py", "wrong_calls.py")
    for name in names:
        shutil.copy(HERE / name, folder)
    command = [sys.executable, "-m", "mypy", "--strict", "--ignore-missing-imports", "--no-error-summary", *names]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return {name: [line for line in done.stdout.splitlines() if line.startswith(f"{name}:")] for name in names}


def test_the_calls_of_the_readme_type_check(check):
    # Third parties' own lack of annotations is not this library's.
    ours = [line for line in check["calls.py"] if "[no-untyped-call]" not in line]
    assert ours == []


def test_wrong_calls_do_not(check):
    text = (HERE / "wrong_calls.py").read_text().splitlines()
    wrong = {number for number, line in enumerate(text, start=1) if line.endswith("# wrong")}
    found = {
        int(re.match(r"wrong_calls.py:(\d+): error", line)[1]) for line in check["wrong_calls.py"] if "error" in line
    }
    assert len(wrong) >= 10 and found == wrong
