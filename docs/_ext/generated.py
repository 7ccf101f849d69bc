"""What pages take from the code when the site is built: `<!-- generated: KIND NAME -->` is replaced by Markdown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import catalogue
import modules
import tutorials

MARK = re.compile(r"^<!-- generated: (\w+)(?: ([\w.]+))? -->$", re.MULTILINE)
KINDS = {
    "methods": catalogue.methods,
    "heads": catalogue.heads,
    "modules": modules.modules,
    "names": modules.names,
    "tutorial": tutorials.tutorial,
}


def fill(text: str) -> str:
    """A page with what is generated in it."""
    return MARK.sub(lambda mark: KINDS[mark[1]](*filter(None, [mark[2]])), text)


def read(app: Any, page: str, source: list[str]) -> None:
    """Fill in a page before it is parsed."""
    source[0] = fill(source[0])


def stale(app: Any, env: Any, added: Any, changed: Any, removed: Any) -> list[str]:
    """Pages to read again although they have not changed: what is generated in them may have."""
    return [
        page
        for page in env.found_docs
        if MARK.search(Path(env.doc2path(page)).read_text(encoding="utf-8"))
    ]


def setup(app: Any) -> dict[str, Any]:
    """Connect to Sphinx."""
    app.connect("source-read", read)
    app.connect("env-get-outdated", stale)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
