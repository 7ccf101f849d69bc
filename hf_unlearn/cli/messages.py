"""Errors in the words of the command line: flags, where Python has arguments."""

from __future__ import annotations

import re
from collections.abc import Set

# What gave an argument that is no flag by its name.
SOURCES = {
    **dict.fromkeys(("split_forget_retain", "column", "values", "fraction", "indices"), "--forget"),
    **dict.fromkeys(("samples", "label", "labels", "forget_ds", "retain_ds"), "--dataset"),
    **dict.fromkeys(("processor", "per_sample_loss"), "--model"),
    "alternative_ds": "--method",
    "unseen_ds": "--unseen_split",
    "config": "CONFIG.yaml",
    "name": "NAME",
    "record": "RECORD",
    "folder": "FOLDER",
    "repo_id": "REPO",
}
DATASETS = {"forget_ds": "forget dataset", "retain_ds": "retain dataset", "unseen_ds": "unseen dataset"}
# Quoted values stay as they were given; but `name="value"` is a setting.
WORDS = re.compile(
    r"""\b(?P<name>\w+)=(?P<value>"[^"]*"|'[^']*')|(?<!\w)(?:"[^"]*"|'[^']*')(?!\w)|(?<![\w/.-])\w+=?"""
)


def in_flags(text: str, settings: Set[str]) -> str:
    """An error message of the library for those who gave flags.

    Args:
        text: one line, `name: what was found; what to do`.
        settings: names of the command's settings: each is a flag.

    Examples:
        >>> in_flags("column: 'lable' is not in the dataset", {"forget"})
        "--forget: 'lable' is not in the dataset"
        >>> in_flags('alternative_ds: npo does not use it; set method="idk_dpo"', {"method"})
        '--method: npo does not use it; set --method=idk_dpo'
    """
    name = re.match(r"(\w+)(?: \d+)?: ", text)
    if name and name[1] in settings:
        return f"--{name[1]}{_translated(text[name.end(1) :], settings)}"
    if name and name[1] in SOURCES:
        return f"{SOURCES[name[1]]}{_translated(text[name.end(1) :], settings)}"
    first = re.match(r"\w+", text)
    source = SOURCES.get(first[0]) if first and not name else None
    return (f"{source}: " if source else "") + _translated(text, settings)


def _translated(text: str, settings: Set[str]) -> str:
    def translate(word: re.Match[str]) -> str:
        if word["name"]:
            return f"--{word['name']}={word['value'][1:-1]}" if word["name"] in settings else word[0]
        name = word[0].removesuffix("=")
        if name in DATASETS:
            return f"the {DATASETS[name]}"
        # Without `=` only what is no word of English, too.
        return f"--{word[0]}" if name in settings and (name != word[0] or "_" in name) else word[0]

    return WORDS.sub(translate, text)
