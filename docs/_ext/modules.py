"""The API reference: every public name once, where a user imports it from."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache
from typing import Any

PACKAGE = "hf_unlearn"


@cache
def module_names() -> tuple[str, ...]:
    """Every module that may be imported, the package first."""
    package = importlib.import_module(PACKAGE)
    names = (info.name for info in pkgutil.walk_packages(package.__path__, f"{PACKAGE}."))
    return (PACKAGE, *sorted(name for name in names if "._" not in name))


def public(name: str) -> dict[str, Any]:
    """The public names of a module: those in `__all__`, else the functions and classes that it defines."""
    module = importlib.import_module(name)
    if hasattr(module, "__all__"):
        return {key: getattr(module, key) for key in module.__all__ if not key.startswith("__")}
    members = {key: value for key, value in vars(module).items() if inspect.isroutine(value) or inspect.isclass(value)}
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


def entry(module: str, name: str, value: Any) -> list[str]:
    """One public name, in reStructuredText."""
    full = f"{module}.{name}"
    if inspect.isclass(value):
        return [f".. autoclass:: {full}", "   :members:", "   :show-inheritance:", "   :member-order: bysource", ""]
    if inspect.isroutine(value):
        return [f".. autofunction:: {full}", ""]
    return [f".. py:data:: {name}", f"   :module: {module}", f"   :type: {type(value).__name__}", ""]


def section(name: str, level: int) -> str:
    """A module: what it says of itself, and its names."""
    own = {key: value for key, value in public(name).items() if homes().get(id(value), name) == name}
    text = [f"{'#' * level} `{name}`", "", "```{eval-rst}", f".. automodule:: {name}", ""]
    for key, value in own.items():
        text += entry(name, key, value)
    return "\n".join([*text, "```", ""])


def modules(package: str) -> str:
    """A module and all below it, as Markdown."""
    names = [name for name in module_names() if name == package or name.startswith(f"{package}.")]
    if not names:
        raise ValueError(f"there is no module {package}")
    return "\n".join(section(name, 2) for name in names)


def names() -> str:
    """What `hf_unlearn` itself offers, as Markdown."""
    return "\n".join(
        "\n".join([f"## `{key}`", "", "```{eval-rst}", *entry(PACKAGE, key, value), "```", ""])
        for key, value in public(PACKAGE).items()
    )
