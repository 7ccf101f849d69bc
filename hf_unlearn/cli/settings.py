"""Settings of a command: dataclasses, filled from a YAML file and from flags."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from hf_unlearn.cli import UsageError
from hf_unlearn.data.loading import split_forget
from hf_unlearn.names import did_you_mean


def setting(default: Any, text: str) -> Any:
    """A field of a settings dataclass, with its help text."""
    return field(default=default, metadata={"help": text})


@dataclass
class DataSettings:
    """Which model, which samples, and what to forget."""

    model: str | None = setting(None, "Name on the Hub or folder of the model.")
    dataset: str | None = setting(None, "Name on the Hub (name@revision), folder, or data file.")
    split: str | None = setting(None, "split or configuration:split that the model was trained on.")
    unseen_dataset: str | None = setting(None, "Where the unseen samples are, if not in the dataset.")
    unseen_split: str | None = setting(None, "split or configuration:split that the model never saw.")
    forget: str | None = setting(None, "What to forget: label=3, speaker=1272,1284, id=190..199, 10%%, indices=FILE.")
    columns: list[str] | None = field(
        default=None, metadata={"help": "Role of a column, where its name does not tell: image=img."}
    )

    def require(self, *names: str) -> None:
        """Refuse settings without one of these, and malformed ones, before anything is loaded.

        Raises:
            UsageError: one line.
        """
        for name in names:
            if getattr(self, name) is None:
                help_text = next(f.metadata["help"] for f in dataclasses.fields(DataSettings) if f.name == name)
                raise UsageError(f"{name}: is missing; give {help_text[0].lower()}{help_text[1:].rstrip('.')}")
        self.columns_by_role()
        if self.forget is not None:
            split_forget(str(self.forget))

    def columns_by_role(self) -> dict[str, str]:
        """`columns` as a mapping; a YAML file may give it as one."""
        if isinstance(self.columns, dict):
            return self.columns
        pairs = [text.partition("=") for text in self.columns or ()]
        for role, sign, name in pairs:
            if not (role and sign and name):
                raise UsageError(f"columns: {role!r} is not of the form ROLE=NAME; write such as image=img")
        return {role: name for role, _, name in pairs}


GENERAL_DS = "Text file of what the model should still know; its perplexity is measured. Causal language models."


def check_at_least(lowest: int, settings: Any, *names: str) -> None:
    """Refuse settings below the least that makes sense.

    Raises:
        UsageError: one line.
    """
    for name in names:
        if getattr(settings, name) < lowest:
            raise UsageError(f"{name}: must be at least {lowest}, got {getattr(settings, name)}")


# Others may read a command line, and a file of settings is soon shared.
TOKENS = ("token", "hub_token", "push_to_hub_token")


# What argparse calls the type of a value.
VALUES = {"int": "a whole number", "float": "a number", "string_to_bool": "true or false"}


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        """argparse's message, `argument --name/--na-me: problem`, in our form."""
        parts = re.match(r"argument (--\w+)\S*: (.*)", message)
        if parts is None:
            raise UsageError(message)
        flag, problem = parts.groups()
        if value := re.match(r"invalid (\w+) value: (.*)", problem):
            problem = f"expected {VALUES.get(value[1], value[1])}, got {value[2]}; write {flag}=VALUE"
        elif choice := re.match(r"invalid choice: '(.*)' \(choose from (.*)\)", problem):
            choices = choice[2].replace("'", "").split(", ")
            problem = f"unknown value {choice[1]!r}, use one of {choices}{did_you_mean(choice[1], choices)}"
        elif problem.startswith("expected"):
            problem = f"{problem}, got none; write {flag}=VALUE"
        raise UsageError(f"{flag}: {problem}")


def parse(command: str, types: Sequence[Any], argv: Sequence[str], **defaults: Any) -> tuple[Any, ...] | None:
    """Parse the settings of a command.

    Args:
        command: its name.
        types: dataclasses whose fields all have defaults.
        argv: flags; those of the file that `--config FILE` names are overridden by the others.
        **defaults: defaults that differ from those of the dataclasses.

    Returns:
        One object a type; None for `--help-all`, which prints all settings.

    Raises:
        UsageError: an unknown or malformed setting.
    """
    for word in argv:
        if word.startswith("--"):
            _refuse_token(word.partition("=")[0])
    parser = _Parser(types, prog=f"hf-unlearn {command}", allow_abbrev=False)
    parser.add_argument("--config", help="YAML file with these settings; flags override it.")
    parser.add_argument("--help-all", action="help", help="Show this list.")
    if "--help-all" in argv:
        parser.print_help()
        return None
    parser.set_defaults(**defaults)
    names = {field.name for cls in types for field in dataclasses.fields(cls) if field.init}
    path = parser.parse_known_args(argv)[0].config
    if path is not None:
        parser.set_defaults(**_read(path, names))
    try:
        *settings, _, unknown = parser.parse_args_into_dataclasses(
            argv, return_remaining_strings=True, look_for_args_file=False
        )
    except UsageError:
        raise
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    if unknown:
        name = unknown[0].partition("=")[0]  # without its value, which may be a token
        if not name.startswith("--"):
            raise UsageError(f"{name!r}: is no flag; write --name=value")
        flags = [f"--{known}" for known in names]
        raise UsageError(f"{name}: there is no such setting; use one of --help-all{did_you_mean(name, flags)}")
    return tuple(settings)


def _refuse_token(name: str) -> None:
    if name.lstrip("-").replace("-", "_") in TOKENS:
        raise UsageError(f"{name}: others may read it; set HF_TOKEN, or log in with `hf auth login`")


def _read(path: str, names: set[str]) -> dict[str, Any]:
    """The settings in a YAML file, whose names must be among `names`."""
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config: {path!r} does not open ({error.strerror}); give a file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        raise UsageError(
            f"--config: {path!r} is not valid YAML{line}; write one setting a line, as `name: value`"
        ) from error
    if not isinstance(settings, dict):
        raise UsageError(f"--config: {path!r} holds no settings; write one a line, as `name: value`")
    for name in settings:
        _refuse_token(str(name))
        if name not in names:
            raise UsageError(
                f"--config: {path!r} has {str(name)!r}, and there is no such setting; use one of --help-all"
                f"{did_you_mean(name, names)}"
            )
    return settings
