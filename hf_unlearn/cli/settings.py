"""Settings of a command: dataclasses, filled from a YAML file and from flags."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from hf_unlearn.cli import UsageError


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
        """Raise `UsageError` if one of these settings is None."""
        for name in names:
            if getattr(self, name) is None:
                raise UsageError(f"--{name} is missing")

    def columns_by_role(self) -> dict[str, str]:
        """`columns` as a mapping; a YAML file may give it as one."""
        if isinstance(self.columns, dict):
            return self.columns
        pairs = [text.partition("=") for text in self.columns or ()]
        for role, sign, name in pairs:
            if not (role and sign and name):
                raise UsageError(f"--columns: {role!r} is not of the form ROLE=NAME, such as image=img")
        return {role: name for role, _, name in pairs}


# Others may read a command line, and a file of settings is soon shared.
TOKENS = ("token", "hub_token", "push_to_hub_token")


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


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
        # Without its value, which may be a token.
        raise UsageError(f"there is no setting {unknown[0].partition('=')[0]!r}")
    return tuple(settings)


def _refuse_token(name: str) -> None:
    if name.lstrip("-").replace("-", "_") in TOKENS:
        raise UsageError(f"{name}: others may read it; set HF_TOKEN, or log in with `hf auth login`")


def _read(path: str, names: set[str]) -> dict[str, Any]:
    """The settings in a YAML file, whose names must be among `names`."""
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config: {path!r} does not open ({error.strerror})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        raise UsageError(f"--config: {path!r} is not valid YAML{line}") from error
    if not isinstance(settings, dict):
        raise UsageError(f"--config: {path!r} holds no settings; write one a line, as `name: value`")
    for name in settings:
        _refuse_token(str(name))
        if name not in names:
            raise UsageError(f"--config: {path!r} has {str(name)!r}, and there is no such setting")
    return settings
