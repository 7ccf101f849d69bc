"""`hf-unlearn`: the command line. A command's module, and torch with it, is imported only when the command runs."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import fields
from importlib import import_module

from hf_unlearn import __version__
from hf_unlearn.cli.help_texts import HELP, OVERVIEW
from hf_unlearn.cli.messages import in_flags
from hf_unlearn.names import did_you_mean

# A command is the function `main(argv) -> exit code` of a module, whose `SETTINGS` are dataclasses of its flags.
COMMANDS = {
    "run": "hf_unlearn.cli.run",
    "audit": "hf_unlearn.cli.audit",
    "benchmark": "hf_unlearn.cli.benchmark",
    "compare": "hf_unlearn.cli.compare",
    "dashboard": "hf_unlearn.cli.dashboard",
    "demo": "hf_unlearn.cli.demo",
    "verify": "hf_unlearn.cli.verify",
    "push": "hf_unlearn.cli.push",
}
FAILED, BAD_USAGE, NOT_FORGOTTEN, INTERRUPTED = 1, 2, 3, 130


class UsageError(ValueError):
    """A command line or a settings file that is not valid."""


@contextmanager
def before_work() -> Iterator[None]:
    """What is refused here is bad usage: nothing has been trained, measured or written."""
    try:
        yield
    except (ValueError, TypeError) as error:
        if not _is_expected(error):
            raise
        raise UsageError(str(error)) from error


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
            raise UsageError(
                f"COMMAND: there is no {command!r}; use one of {', '.join(COMMANDS)}{did_you_mean(command, COMMANDS)}"
            )
        if command in HELP and {"-h", "--help"} & set(rest):
            print(HELP[command])
            return 0
        return import_module(COMMANDS[command]).main(rest)
    except UsageError as error:
        prefix = f"hf-unlearn {command}" if command in COMMANDS else "hf-unlearn"
        return _report_error(f"{prefix}: {_message(error, command)} (see {prefix} --help)", BAD_USAGE, debug)
    except KeyboardInterrupt as interrupt:
        return _report_error(f"hf-unlearn {command}: {str(interrupt) or 'interrupted'}", INTERRUPTED, debug)
    except Exception as error:
        return _report_error(f"hf-unlearn {command}: {_message(error, command)}", FAILED, debug)


def _is_expected(error: Exception) -> bool:
    return type(error) in (ValueError, TypeError) or type(error).__module__.startswith("hf_unlearn.")


def _message(error: Exception, command: str) -> str:
    """The first line of an error's message, in flags; unexpected errors by type."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if not _is_expected(error) or not text:
        return f"{type(error).__name__}: {text} (--debug shows where)"
    return in_flags(text, _settings(command))


def _settings(command: str) -> Set[str]:
    """The names of a command's settings; its module has been imported by the time that there is an error."""
    module = sys.modules.get(COMMANDS.get(command, ""))
    return {field.name for cls in getattr(module, "SETTINGS", ()) for field in fields(cls) if field.init}


def _report_error(message: str, code: int, debug: bool) -> int:
    """Print an error message; returns the exit code."""
    if debug:
        traceback.print_exc()
    if int(os.environ.get("RANK", 0)) == 0:  # only one of several processes prints it
        print(message, file=sys.stderr)
    return code
