"""`hf-unlearn`: the command line. A command's module, and torch with it, is imported only when the command runs."""

from __future__ import annotations

import os
import re
import sys
import traceback
from importlib import import_module

from hf_unlearn import __version__
from hf_unlearn.cli.help_texts import HELP, OVERVIEW

# A command is the function `main(argv) -> exit code` of a module.
COMMANDS = {
    "run": "hf_unlearn.cli.run",
    "audit": "hf_unlearn.cli.audit",
    "compare": "hf_unlearn.cli.compare",
    "demo": "hf_unlearn.cli.demo",
    "verify": "hf_unlearn.cli.verify",
    "push": "hf_unlearn.cli.push",
}
FAILED, BAD_USAGE, NOT_FORGOTTEN, INTERRUPTED = 1, 2, 3, 130


class UsageError(ValueError):
    """A command line or a settings file that is not valid."""


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the arguments; default: those of the process.

    Returns:
        0 if the command succeeded, 1 if it failed, 2 if the command line is not valid, 3 if a run ended with a model
        that has not forgotten or is damaged, 130 if it was interrupted.
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
        if command in HELP and {"-h", "--help"} & set(rest):
            print(HELP[command])
            return 0
        return import_module(COMMANDS[command]).main(rest)
    except UsageError as error:
        prefix = f"hf-unlearn {command}" if command in COMMANDS else "hf-unlearn"
        return _report_error(f"{prefix}: {_message(error, rest)} (see {prefix} --help)", BAD_USAGE, debug)
    except KeyboardInterrupt as interrupt:
        return _report_error(f"hf-unlearn {command}: {str(interrupt) or 'interrupted'}", INTERRUPTED, debug)
    except Exception as error:
        return _report_error(f"hf-unlearn {command}: {_message(error, rest)}", FAILED, debug)


def _message(error: Exception, argv: list[str]) -> str:
    """The first line of an error's message, `name: ...` with the flag that gave the value; unexpected ones by type."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    expected = type(error) is ValueError or type(error).__module__.startswith("hf_unlearn.")
    if not expected or not text:
        return f"{type(error).__name__}: {text} (--debug shows where)"
    name = re.match(r"(\w+): ", text)
    flags = {word.partition("=")[0] for word in argv}
    return f"--{text}" if name and f"--{name[1]}" in flags else text


def _report_error(message: str, code: int, debug: bool) -> int:
    """Print an error message; returns the exit code."""
    if debug:
        traceback.print_exc()
    if int(os.environ.get("RANK", 0)) == 0:  # only one of several processes prints it
        print(message, file=sys.stderr)
    return code
