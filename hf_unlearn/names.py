"""Names that somebody mistyped."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


def did_you_mean(name: Any, names: Iterable[Any]) -> str:
    """A suggestion for the end of an error message; empty if no name is close.

    Args:
        name: what was given.
        names: what there is.

    Examples:
        >>> did_you_mean("betta", ["beta", "gamma"])
        " (did you mean 'beta'?)"
        >>> did_you_mean("fraction", ["beta", "gamma"])
        ''
    """
    close = get_close_matches(str(name), [str(known) for known in names if known is not None], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
