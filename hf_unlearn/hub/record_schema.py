"""What an unlearning record has to look like: it is data from elsewhere, of which nothing is believed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from hf_unlearn.data.types import RequestKind
from hf_unlearn.hub.release_files import is_release_file

SCHEMA_VERSION = 3
ADVICE = "give the file unlearning.json that was saved with the model"
# Six million samples. Larger ones are no records, and would fill the memory.
MAX_BYTES = 256 * 2**20
Rule = tuple[str, Callable[[Any], bool], str]


def _is_hex(length: int) -> Callable[[Any], bool]:
    pattern = re.compile(rf"[0-9a-f]{{{length}}}")
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping) and all(map(_is_text, value))


def _is_optional(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_list(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, Sequence) and not isinstance(value, str) and all(map(check, value))


def _is_files(value: Any) -> bool:
    return _is_mapping(value) and all(map(is_release_file, value)) and all(map(_is_hex(64), value.values()))


# Fields that are not named here are not read.
RULES: tuple[Rule, ...] = (
    ("schema_version", lambda value: type(value) is int and value == SCHEMA_VERSION, str(SCHEMA_VERSION)),
    ("request", _is_mapping, "an object"),
    ("request.id", _is_optional(_is_text), "a text or null"),
    ("request.kind", lambda value: value in get_args(RequestKind), f"one of {', '.join(get_args(RequestKind))}"),
    ("request.samples", _is_count, "a number of samples"),
    ("request.columns", _is_list(_is_text), "a list of names"),
    ("method", _is_mapping, "an object"),
    ("settings", _is_mapping, "an object"),
    ("weights", _is_mapping, "an object"),
    ("weights.kind", lambda value: value in ("model", "adapter"), "model or adapter"),
    ("weights.before", _is_optional(_is_hex(64)), "64 hexadecimal digits or null"),
    ("weights.after", _is_optional(_is_hex(64)), "64 hexadecimal digits or null"),
    ("audit", _is_optional(_is_mapping), "an object or null"),
    ("salt", _is_hex(32), "32 hexadecimal digits"),
    ("sample_hashes", _is_list(_is_hex(32)), "a list of hashes of 32 hexadecimal digits"),
    ("files", _is_files, "SHA-256 hashes by names of files of a release, in no folder"),
)  # fmt: skip


def read_record(path: str | Path) -> Mapping[str, Any]:
    """The content of a file `unlearning.json`, checked by `check_record`.

    Raises:
        ValueError: it is no record; one line.
    """
    path = Path(path)
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"record: {str(path)!r} has {size} bytes, more than {MAX_BYTES}; give another file")
    try:
        record = json.loads(
            path.read_bytes().decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_unique
        )
    except (ValueError, RecursionError) as error:
        text = " ".join(str(error).split())[:100]
        raise ValueError(
            f"record: {str(path)!r} is not valid JSON ({type(error).__name__}: {text}); {ADVICE}"
        ) from None
    return check_record(record)


def check_record(record: Any) -> Mapping[str, Any]:
    """Refuse a record that does not have the fields of one, with values of their kinds.

    Raises:
        ValueError: a field is missing, or its value is of another kind; one line that names it.
        TypeError: it is no mapping.
    """
    if not isinstance(record, Mapping):
        raise TypeError(f"record: expected the content of an unlearning.json, got {type(record).__name__}")
    for field, is_valid, expected in RULES:
        value: Any = record
        for name in field.split("."):
            if name not in value:
                raise ValueError(f"record: has no {field}; {ADVICE}")
            value = value[name]
        if not is_valid(value):
            raise ValueError(f"record: {field} is {_shown(value)}, expected {expected}; {ADVICE}")
    if len(record["sample_hashes"]) != record["request"]["samples"]:
        raise ValueError(
            f"record: has {len(record['sample_hashes'])} sample_hashes for {record['request']['samples']} samples; "
            f"{ADVICE}"
        )
    _check_links(record)
    return record


def _check_links(record: Mapping[str, Any]) -> None:
    """The two fields that only the record of a later request has, and every record before it."""
    previous, chain = record.get("previous"), record.get("chain", [])
    if not _is_optional(_is_hex(64))(previous):
        raise ValueError(f"record: previous is {_shown(previous)}, expected 64 hexadecimal digits; {ADVICE}")
    if not _is_list(_is_mapping)(chain) or any("chain" in earlier for earlier in chain):
        raise ValueError(f"record: chain is {_shown(chain)}, expected a list of records without chains; {ADVICE}")
    for number, earlier in enumerate(chain, start=1):
        try:
            check_record(earlier)
        except ValueError as error:
            raise ValueError(f"record: {number} in its chain: {str(error).removeprefix('record: ')}") from None


def _shown(value: Any) -> str:
    """A value in one short line of printable characters."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name comes twice in one object")
    return content
