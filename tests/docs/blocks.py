"""Fenced blocks of README and documentation, run and parsed as a reader would use them."""

import doctest
import re
import shlex
from itertools import takewhile
from pathlib import Path

from hf_unlearn import UnlearningArguments
from hf_unlearn.cli import COMMANDS
from hf_unlearn.cli.audit import AuditSettings
from hf_unlearn.cli.benchmark import BenchmarkSettings
from hf_unlearn.cli.compare import CompareSettings
from hf_unlearn.cli.dashboard import DashboardSettings
from hf_unlearn.cli.demo import DemoSettings
from hf_unlearn.cli.push import PushSettings
from hf_unlearn.cli.run import RunSettings
from hf_unlearn.cli.settings import parse
from hf_unlearn.cli.verify import VerifySettings
from hf_unlearn.comparing import Comparison

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```([\w{}-]*)[^\n`]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = ("", "bash")
SETTINGS = {
    "run": [RunSettings, UnlearningArguments], "audit": [AuditSettings], "compare": [CompareSettings],
    "demo": [DemoSettings], "verify": [VerifySettings], "push": [PushSettings], "benchmark": [BenchmarkSettings],
    "dashboard": [DashboardSettings],
}  # fmt: skip
BEFORE_FLAGS = {"benchmark": 1, "compare": 1, "verify": 1, "push": 2, "dashboard": 2}  # verify: one or more
assert SETTINGS.keys() == set(COMMANDS)


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of every fenced block, in order."""
    return FENCE.findall(text)


def run(text: str, name: str, namespace: dict) -> None:
    """Run the Python blocks of a page in order, in one namespace; blocks with prompts are doctests."""
    for number, (language, content) in enumerate(blocks(text)):
        if language == "python":
            exec(compile(content, f"{name}, block {number}", "exec"), namespace)
        elif language == "pycon":
            test = doctest.DocTestParser().get_doctest(content, namespace, name, name, 0)
            test.globs = namespace  # not a copy: later blocks see what this one has made
            said: list[str] = []
            failed = doctest.DocTestRunner().run(test, out=said.append, clear_globs=False).failed
            assert not failed, "".join(said)


def commands(text: str) -> list[list[str]]:
    """The command lines of a page's shell blocks, in words; settings of the environment are left out."""
    scripts = [content.replace("\\\n", " ") for language, content in blocks(text) if language in SHELL]
    lines = [line for script in scripts for line in script.splitlines()]
    found = [shlex.split(line, comments=True) for line in lines]
    return [[word for word in words if not re.match(r"[A-Z_]+=", word)] for words in found if words]


def check(words: list[str]) -> str:
    """Parse a command line as its program would; returns the command of hf-unlearn, or the program.

    Recipes and scripts are those of the repository, configurations stand in the working directory.
    """
    if words[:2] == ["accelerate", "launch"]:
        if words[2] == "--config_file":
            assert (ROOT / words[3]).is_file(), words
            words = [*words[:2], *words[4:]]
        assert words[2] == "my_script.py" or words[2:4] == ["-m", "hf_unlearn.cli"], words
        words = ["hf-unlearn", *words[4:]] if words[2] == "-m" else ["accelerate"]
    program, *rest = words
    if program == "make":
        assert rest[0] in re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE), words
    elif program == "python":
        assert (ROOT / rest[0]).is_file(), words
    elif program == "pip":
        assert rest[0] == "install", words
    elif program != "accelerate":
        assert program == "hf-unlearn", words
        command, *flags = rest
        if command == "compare":
            assert Comparison.from_yaml(ROOT / flags[0]).load_task_class()
        before = len(list(takewhile(lambda word: not word.startswith("-"), flags)))
        assert before == BEFORE_FLAGS.get(command, 0) or (command == "verify" and before), words
        assert parse(command, SETTINGS[command], flags[before:]) is not None
        return command
    return program
