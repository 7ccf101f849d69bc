"""Docstrings for Sphinx: the package writes Markdown with Google's sections, autodoc reads reStructuredText."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

from sphinx.ext.autodoc.typehints import record_typehints
from sphinx.util import logging

logger = logging.getLogger(__name__)
NAME = re.compile(r"hf_unlearn(\.\w+)+|[A-Z][A-Za-z]+(\.\w+)*")
ITEM = re.compile(r"\s*([-*]|\d+\.) ")
SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Yields|Examples?|Notes?):$")
LINK = re.compile(r"\[([^\]]+)\]\((\S+?)\)")
# Emphasis, and the names of *args and **kwargs, stay; any other star is one.
STAR = re.compile(r"(\*{1,2}\w[^*\n]*\*{1,2}|^ *\*{1,2}\w+:)|\*", re.MULTILINE)
# A constructor with as many settings is unreadable; its class shows them by group.
LONGEST_SIGNATURE = 40


def indent_of(line: str) -> int:
    """Number of leading spaces."""
    return len(line) - len(line.lstrip())


def inline(text: str) -> str:
    """Code and links of a paragraph; names of the package and of classes become references where there is a target."""

    def code(match: re.Match[str]) -> str:
        content = " ".join(match[1].split())
        return f":py:obj:`{content}`" if NAME.fullmatch(content) else f"``{content}``"

    text = LINK.sub(r"`\1 <\2>`__", text) if LINK.search(text) else text
    # Prose and marked-up text take turns.
    parts = re.split(r"(`[^`]+`__|(?<!`)`(?!`)[^`]+`(?!`))", text)
    result = _escape(parts[0])
    for marked, prose in zip(parts[1::2], parts[2::2], strict=True):
        result += (
            marked if marked.endswith("__") else re.sub(r"`([^`]+)`", code, marked)
        )
        # Marks end before a space or punctuation only; before a letter, the space is not shown.
        result += r"\ " * prose[:1].isalnum() + _escape(prose)
    return result


def _escape(text: str) -> str:
    """Marks that mean something to reStructuredText alone: |substitutions|, references_, and a * without its pair."""
    text = re.sub(r"(?<=\w)_(?=\W|$)", r"\\_", text.replace("|", r"\|"))
    return STAR.sub(lambda match: match[1] or r"\*", text)


def table(lines: list[str]) -> Iterator[str]:
    """A Markdown table as a list-table."""
    space = " " * indent_of(lines[0])
    yield from ("", f"{space}.. list-table::", f"{space}   :header-rows: 1", "")
    for line in (lines[0], *lines[2:]):
        cells = [
            cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))
        ]
        for number, cell in enumerate(cells):
            yield f"{space}   {'* -' if number == 0 else '  -'} {inline(cell)}"
    yield ""


def convert(lines: list[str]) -> list[str]:
    """A docstring, line by line."""
    result: list[str] = []
    paragraph: list[str] = []

    def flush() -> None:
        if paragraph:
            result.extend(inline("\n".join(paragraph)).split("\n"))
            paragraph.clear()

    number, in_section = 0, False
    while number < len(lines):
        line, before = lines[number], lines[number - 1].strip() if number else ""
        bare = line.strip()
        in_section = (in_section or bool(SECTION.match(bare))) and bare[:2] != "> "
        if special := block(lines, number, in_section):
            flush()
            converted, number = special
            result += converted
            continue
        # A list needs an empty line before it; an item that goes on with another does not.
        starts = ITEM.match(line) and before and not before.endswith(":")
        if not bare or (starts and not any(map(ITEM.match, paragraph))):
            flush()
            result.append("")
        if bare:
            paragraph.append(line)
        number += 1
    flush()
    return result


def block(
    lines: list[str], start: int, in_section: bool
) -> tuple[list[str], int] | None:
    """What begins at a line and is no prose: converted, and the line after it."""

    def end_of(ends: Callable[[str], bool]) -> int:
        rest = range(start + 1, len(lines))
        return next((n for n in rest if ends(lines[n])), len(lines))

    line, bare = lines[start], lines[start].strip()
    is_first = start == 0 or not lines[start - 1].strip()
    if bare.startswith("```"):
        end = end_of(lambda other: other.strip() == "```")
        head = f"{' ' * indent_of(line)}.. code-block:: {bare[3:] or 'text'}"
        code = [f"   {other}" for other in lines[start + 1 : end]]
        return ["", head, "", *code, ""], end + 1
    if bare.startswith("|") and set(lines[start + 1].strip()) <= set("|-: "):
        end = end_of(lambda other: not other.strip().startswith("|"))
        return list(table(lines[start:end])), end
    if bare.startswith(">>>"):
        end = end_of(lambda other: not other.strip())
        return lines[start:end], end
    if bare.startswith("> "):
        return [f"**{bare[2:]}**"], start + 1
    if bare and not in_section and is_first and indent_of(line) >= 4:
        # Markdown's code by indentation
        end = end_of(lambda other: bool(other.strip()) and indent_of(other) < 4)
        return [".. code-block:: python", "", *lines[start:end], ""], end
    return None


def process(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Convert in place, before napoleon reads the sections."""
    lines[:] = convert(lines)


def signature(
    app: Any,
    what: str,
    name: str,
    obj: Any,
    options: Any,
    text: str | None,
    returns: str | None,
) -> tuple[str, str | None] | None:
    """Nothing but dots for a constructor that nobody could read; its types are those of its own arguments."""
    if what == "class" and inspect.isfunction(obj.__init__):
        # Of a class, autodoc has recorded the types of attributes where an argument has the same name.
        record_typehints(
            app, what, name, obj.__init__, options, text or "", returns or ""
        )
    return ("(...)", None) if text and text.count("=") > LONGEST_SIGNATURE else None


def missing(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Link an attribute to its class, whose page describes it; warn of a name of the package that leads nowhere.

    All other names are plain code.
    """
    target = node.get("reftarget", "")
    if node.get("reftype") != "obj" or not target.startswith("hf_unlearn."):
        return None
    owner, _, attribute = target.rpartition(".")
    domain = env.get_domain("py")
    place = domain.objects.get(owner)
    if place and place.objtype == "class" and attribute in described(owner):
        return domain.resolve_xref(
            env, node["refdoc"], app.builder, "obj", owner, node, content
        )
    logger.warning("there is no %s to refer to", target, location=node)
    return None


def described(owner: str) -> str:
    """The docstring of a class, by its full name."""
    module, _, name = owner.rpartition(".")
    return getattr(importlib.import_module(module), name).__doc__ or ""


def setup(app: Any) -> dict[str, Any]:
    """Connect to autodoc."""
    app.connect("autodoc-process-docstring", process, priority=400)
    app.connect("autodoc-process-signature", signature)
    app.connect("missing-reference", missing)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
