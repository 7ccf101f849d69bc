"""Tutorials: each of the examples, from its own source."""

from __future__ import annotations

import ast
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def fenced(text: str) -> str:
    """The docstring of an example as Markdown: its indented lines are what one types."""
    lines: list[str] = []
    for line in text.strip().splitlines():
        lines += (
            ["", "```bash", line.strip(), "```", ""]
            if line.startswith("    ")
            else [line]
        )
    return "\n".join(lines)


def code(text: str) -> str:
    """A block of Python."""
    return "```python\n" + text.strip("\n") + "\n```\n"


def tutorial(name: str) -> str:
    """An example as Markdown: what it does, how to run it, its code, and the small model that stands in for yours."""
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    lines, tree = text.splitlines(), ast.parse(text)
    title, _, usage = (ast.get_docstring(tree) or "").partition("\n")
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    first = functions[0].lineno - 1 if functions else len(lines)
    parts = [
        f"# {title.rstrip('.')}",
        "## Run it",
        fenced(usage) if usage.strip() else "",
    ]
    parts.append("" if functions else fenced(f"    python examples/{name}.py"))
    parts += ["## The code", code("\n".join(lines[tree.body[0].end_lineno : first]))]
    for node in functions:
        docstring = node.body[0]
        source = (
            lines[node.lineno - 1 : docstring.lineno - 1]
            + lines[docstring.end_lineno : node.end_lineno]
        )
        parts += [
            f"### `{node.name}`",
            ast.get_docstring(node) or "",
            code("\n".join(source)),
        ]
    parts.append(f"All of it is in `examples/{name}.py`.")
    return "\n\n".join(part for part in parts if part)
