"""Hyper-parameters of methods: a frozen dataclass a method, checked by name, type and range."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from numbers import Integral, Real
from typing import Any, TypeVar, get_type_hints

from hf_unlearn.names import did_you_mean

T = TypeVar("T")


@dataclass(frozen=True)
class NoHyperparameters:
    """For methods without hyper-parameters of their own."""


def hyperparameter(
    default: float,
    help: str,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Any:
    """One field of a method's hyper-parameters, annotated as float or int.

    Args:
        default: its value where `method_kwargs` does not give one.
        help: its meaning, with the paper's symbol, in one line.
        above: values must be greater than this.
        at_least: values must be this or greater.
        at_most: values must be this or smaller.
    """
    bounds = {"above": above, "at_least": at_least, "at_most": at_most}
    return field(default=default, metadata={"help": help, **bounds})


def make_hyperparameters(cls: type[T], method: str, method_kwargs: Mapping[str, Any]) -> T:
    """The hyper-parameters of a method: defaults, and what `method_kwargs` says.

    Args:
        cls: a dataclass. Fields annotated as float or int are checked, and a text that is a number is taken as that
            number; values of others are taken as they are.
        method: its name, for messages.
        method_kwargs: hyper-parameter to value.

    Raises:
        ValueError: an unknown name, or a value that is not finite or out of range.
        TypeError: `method_kwargs` is no mapping, or the value of a number none.

    Examples:
        >>> @dataclass(frozen=True)
        ... class NPOHyperparameters:
        ...     beta: float = hyperparameter(0.1, "beta, inverse temperature", above=0)
        >>> make_hyperparameters(NPOHyperparameters, "npo", {"beta": 1})
        NPOHyperparameters(beta=1.0)
        >>> make_hyperparameters(NPOHyperparameters, "npo", {"betta": 1})
        Traceback (most recent call last):
        ValueError: method_kwargs: npo has no 'betta'; it has beta (did you mean 'beta'?)
    """
    if not isinstance(method_kwargs, Mapping):
        raise TypeError(f"method_kwargs: found {type(method_kwargs).__name__}; give a dict of hyper-parameters")
    fields_by_name: dict[Any, Field[Any]] = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    types, values = get_type_hints(cls), {}
    for name, value in method_kwargs.items():
        if name not in fields_by_name:
            names = ", ".join(fields_by_name) or "no hyper-parameters"
            raise ValueError(
                f"method_kwargs: {method} has no {name!r}; it has {names}{did_you_mean(name, fields_by_name)}"
            )
        if types[name] in (int, float):
            value = _number_in_text(value)
            value = _checked_number(f"method_kwargs: {name} of {method}", value, types[name], fields_by_name[name])
        values[name] = value
    return cls(**values)


def _number_in_text(value: Any) -> Any:
    """The number that a text is, as YAML reads `1e-4` as text; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    return int(number) if number.is_integer() else number


def _checked_number(what: str, value: Any, number_type: type, hyperparameter: Field[Any]) -> float:
    """The value as a number, in the range of its field.

    Args:
        what: how a message begins.
        value: as the user gave it.
        number_type: int or float.
        hyperparameter: the field that it is for.
    """
    if isinstance(value, bool) or not isinstance(value, Integral if number_type is int else Real):
        kind = "an integer" if number_type is int else "a number"
        raise TypeError(f"{what} must be {kind}, got {value!r} ({type(value).__name__})")
    if not math.isfinite(value):
        raise ValueError(f"{what} must be finite, got {value}")
    above, at_least, at_most = (hyperparameter.metadata.get(bound) for bound in ("above", "at_least", "at_most"))
    if above is not None and not value > above:
        raise ValueError(f"{what} must be greater than {above:g}, got {value}")
    if at_least is not None and not value >= at_least:
        raise ValueError(f"{what} must be at least {at_least:g}, got {value}")
    if at_most is not None and not value <= at_most:
        raise ValueError(f"{what} must be at most {at_most:g}, got {value}")
    return number_type(value)
