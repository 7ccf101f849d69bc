"""`hf-unlearn`: the command line. Nothing heavy is imported before a command is known to run."""

from __future__ import annotations

import os
import sys
import traceback
from importlib import import_module

from hf_unlearn import __version__
from hf_unlearn.cli.help_texts import OVERVIEW, PAGES

# A command is the function `main(argv) -> exit code` of a module.
COMMANDS = {
    "run": "hf_unlearn.cli.run",
    "audit": "hf_unlearn.cli.audit",
    "compare": "hf_unlearn.cli.compare",
    "demo": "hf_unlearn.cli.demo",
    "verify": "hf_unlearn.cli.verify",
    "push": "hf_unlearn.cli.push",
}
FAILED, BAD_USAGE, INTERRUPTED = 1, 2, 130


class UsageError(ValueError):
    """A command line or a settings file that cannot be obeyed."""


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the arguments; default: those of the process.

    Returns:
        0 if all went well, 1 if the command failed, 2 if it could not be understood, 130 if it was interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    command, *rest = [word for word in argv if word != "--debug"] or ["--help"]
    if command in ("-h", "--help"):
        print(OVERVIEW)
        return 0
    if command == "--version":
        print(__version__)
        return 0
    try:
        if command not in COMMANDS:
            raise UsageError(f"there is no command {command!r}; use one of {', '.join(COMMANDS)}")
        if command in PAGES and {"-h", "--help"} & set(rest):
            print(PAGES[command])
            return 0
        return import_module(COMMANDS[command]).main(rest)
    except UsageError as error:
        known = f" {command}" if command in COMMANDS else ""
        return _failed(f"hf-unlearn{known}: {_line(error)} (see hf-unlearn{known} --help)", BAD_USAGE, debug)
    except KeyboardInterrupt as stop:
        return _failed(f"hf-unlearn {command}: {str(stop) or 'interrupted'}", INTERRUPTED, debug)
    except Exception as error:
        return _failed(f"hf-unlearn {command}: {_line(error)}", FAILED, debug)


def _line(error: Exception) -> str:
    """An error in one line; of one that was not foreseen, its kind too."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    known = type(error) is ValueError or type(error).__module__.startswith("hf_unlearn.")
    return text if known and text else f"{type(error).__name__}: {text} (--debug shows where)"


def _failed(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    if int(os.environ.get("RANK", 0)) == 0:  # one of several processes speaks for all
        print(message, file=sys.stderr)
    return code
