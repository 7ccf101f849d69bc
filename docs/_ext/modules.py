"""The API reference: every public name once, where a user imports it from."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Sequence
from functools import cache
from typing import Any

PACKAGE = "hf_unlearn"
# The order of the page of public names; new ones come at its end.
FIRST = "UnlearningTrainer UnlearningArguments split_forget_retain audit AuditReport AuditCallback train_shadows"


@cache
def module_names() -> tuple[str, ...]:
    """Every module that may be imported, the package first."""
    package = importlib.import_module(PACKAGE)
    names = (
        info.name for info in pkgutil.walk_packages(package.__path__, f"{PACKAGE}.")
    )
    return (PACKAGE, *sorted(name for name in names if "._" not in name))


def public(name: str) -> dict[str, Any]:
    """The public names of a module: those in `__all__`, else the functions and classes that it defines."""
    module = importlib.import_module(name)
    if hasattr(module, "__all__"):
        return {
            key: getattr(module, key)
            for key in module.__all__
            if not key.startswith("__")
        }
    members = {
        key: value
        for key, value in vars(module).items()
        if inspect.isroutine(value) or inspect.isclass(value)
    }
    return {
        key: value
        for key, value in members.items()
        if value.__module__ == name and not key.startswith("_") and value.__doc__
    }


@cache
def homes() -> dict[int, str]:
    """Identity of a function or class to the module that it is documented in: the outermost that offers it."""
    result: dict[int, str] = {}
    for name in sorted(module_names(), key=lambda name: name.count(".")):
        for value in public(name).values():
            if inspect.isroutine(value) or inspect.isclass(value):
                result.setdefault(id(value), name)
    return result


def entry(module: str, name: str, value: Any, options: Sequence[str] = ()) -> list[str]:
    """One public name, in reStructuredText; `options` are those of a class."""
    full = f"{module}.{name}"
    if inspect.isclass(value):
        bases = [] if value.__bases__ == (object,) else ["   :show-inheritance:"]
        return [f".. autoclass:: {full}", "   :members:", *bases, *options, ""]
    if inspect.isroutine(value):
        return [f".. autofunction:: {full}", ""]
    return [
        f".. py:data:: {name}",
        f"   :module: {module}",
        f"   :type: {type(value).__name__}",
        "",
    ]


def section(name: str, level: int) -> str:
    """A module: what it says of itself, and its names."""
    members = {
        key: value
        for key, value in public(name).items()
        if homes().get(id(value), name) == name
    }
    text = [
        f"{'#' * level} `{name.removeprefix(PACKAGE + '.')}`",
        "",
        "```{eval-rst}",
        f".. automodule:: {name}",
        "",
    ]
    for key, value in members.items():
        text += entry(name, key, value)
    return "\n".join([*text, "```", ""])


def modules(package: str) -> str:
    """A module and all below it, as Markdown."""
    names = [
        name
        for name in module_names()
        if name == package or name.startswith(f"{package}.")
    ]
    if not names:
        raise ValueError(f"there is no module {package}")
    return "\n".join(section(name, 2) for name in names)


def inherited(value: Any) -> list[str]:
    """Show what a class has of the package's own base classes, too: for the others they have pages of their own."""
    foreign = [
        base.__name__
        for base in getattr(value, "__mro__", ())
        if not base.__module__.startswith(PACKAGE)
    ]
    return [f"   :inherited-members: {', '.join(foreign)}"] if foreign else []


def names() -> str:
    """What `hf_unlearn` itself offers, as Markdown, in the order in which one needs it."""
    offered = public(PACKAGE)
    entries = [
        line
        for key in sorted(offered, key=lambda key: (key not in FIRST, FIRST.find(key)))
        for line in entry(PACKAGE, key, offered[key], inherited(offered[key]))
    ]
    return "\n".join(
        ["```{eval-rst}", f".. automodule:: {PACKAGE}", "", *entries, "```"]
    )
