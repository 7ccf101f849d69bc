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
    """A field of a settings dataclass, with its help."""
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
        default=None, metadata={"help": "What a column is, where its name does not say: image=img."}
    )

    def require(self, *names: str) -> None:
        """Refuse to go on without these settings."""
        for name in names:
            if getattr(self, name) is None:
                raise UsageError(f"--{name} is missing")

    def named_columns(self) -> dict[str, str]:
        """`columns` as a mapping, which a YAML file may give right away."""
        if isinstance(self.columns, dict):
            return self.columns
        pairs = [item.partition("=") for item in self.columns or ()]
        for what, sign, name in pairs:
            if not (what and sign and name):
                raise UsageError(f"--columns: {what!r} is no WHAT=NAME, such as image=img")
        return {what: name for what, _, name in pairs}


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def parse(command: str, types: Sequence[Any], argv: Sequence[str], **defaults: Any) -> list[Any] | None:
    """The settings of a command, one object a type; None where all of them were asked for and have been printed.

    Args:
        command: its name.
        types: dataclasses, all of whose fields have defaults.
        argv: flags, among them `--config FILE`, whose settings give way to the other flags.
        **defaults: defaults that differ from the dataclasses' own.

    Raises:
        UsageError: an unknown or malformed setting.
    """
    parser = _Parser(types, prog=f"hf-unlearn {command}", allow_abbrev=False)
    parser.add_argument("--config", help="YAML file with these settings; flags win.")
    parser.add_argument("--help-all", action="help", help="Show this list.")
    if "--help-all" in argv:
        parser.print_help()
        return None
    parser.set_defaults(**defaults)
    known = {each.name for kind in types for each in dataclasses.fields(kind) if each.init}
    path = parser.parse_known_args(argv)[0].config
    if path is not None:
        parser.set_defaults(**_read(path, known))
    try:
        *found, _, strange = parser.parse_args_into_dataclasses(
            argv, return_remaining_strings=True, look_for_args_file=False
        )
    except UsageError:
        raise
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    if strange:
        # Without its value, which may be a token.
        raise UsageError(f"there is no setting {strange[0].partition('=')[0]!r}")
    return found


def _read(path: str, known: set[str]) -> dict[str, Any]:
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config: {path!r} does not open ({error.strerror})") from error
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        raise UsageError(f"--config: {path!r} is no YAML" + (f" (line {place.line + 1})" if place else "")) from error
    if not isinstance(found, dict):
        raise UsageError(f"--config: {path!r} holds no settings; write one a line, as `name: value`")
    strange = [str(name) for name in found if name not in known]
    if strange:
        raise UsageError(f"--config: {path!r} has {strange[0]!r}, and there is no such setting")
    return found
