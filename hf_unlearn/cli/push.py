"""`hf-unlearn push`: a folder that `run` saved, to the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile

from hf_unlearn.cli import UsageError, before_work
from hf_unlearn.cli.settings import parse, setting
from hf_unlearn.hub.upload import push_folder
from hf_unlearn.training import quiet


@dataclass
class PushSettings:
    """The settings of `push`."""

    commit_message: str = setting("End of unlearning", "First line of the commit.")
    revision: str | None = setting(None, "A branch, which is made if it does not exist; default: main.")
    private: bool = setting(True, "Whether a new repository is private.")
    create_pr: bool = setting(False, "Open a pull request instead of committing to the branch.")


SETTINGS = (PushSettings,)


def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    positional = list(takewhile(lambda word: not word.startswith("-"), argv))
    parsed = parse("push FOLDER REPO", SETTINGS, argv[len(positional) :])
    if parsed is None:
        return 0
    if len(positional) != 2:
        names = " ".join(positional) or "nothing"
        raise UsageError(f"FOLDER REPO: expected two words first, got {names}; give the folder and owner/name")
    [settings] = parsed
    quiet()
    with before_work():  # what the Hub refuses is no ValueError
        commit = push_folder(*positional, **vars(settings))
    print(f"Pushed to {commit.pr_url or commit.commit_url}")
    return 0
