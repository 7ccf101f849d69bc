"""Bad input, refused by name in one line before any step is taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hf_unlearn.data import row_hashes


def check_sets(forget: Any, retain: Any, unseen: Any = None, columns: Sequence[str] | None = None) -> None:
    """Refuse sets that are empty, of different columns, or that share rows (compared by content).

    Args:
        forget: the forget set.
        retain: the retain set.
        unseen: data never trained on, or None.
        columns: columns that the model reads; rows are compared on those of them that the sets have, or on all.

    Raises:
        ValueError: one line that names the argument, what was found and what to do.
    """
    sets = {"forget_ds": forget, "retain_ds": retain} | ({} if unseen is None else {"unseen_ds": unseen})
    for name, dataset in sets.items():
        if len(dataset) == 0:
            raise ValueError(f"{name}: is empty; give at least one row")
    names = {name: set(_columns(dataset)) for name, dataset in sets.items()}
    for name, found in names.items():
        if found != names["forget_ds"]:
            raise ValueError(
                f"{name}: its columns {sorted(found)} are not those of forget_ds {sorted(names['forget_ds'])}; "
                "prepare the sets in the same way"
            )
    read = sorted(names["forget_ds"] & set(columns or ())) or None
    hashes = {name: row_hashes(dataset, read, f"Comparing {name}") for name, dataset in sets.items()}
    _refuse_shared(hashes, "forget_ds", "retain_ds", "a row cannot be forgotten and kept; take it out of one of them")
    if unseen is not None:
        why = "unseen rows set the target and must never have been trained on; take them out of unseen_ds"
        _refuse_shared(hashes, "unseen_ds", "forget_ds", why)
        _refuse_shared(hashes, "unseen_ds", "retain_ds", why)


def _columns(dataset: Any) -> list[str]:
    return list(dataset.column_names if hasattr(dataset, "column_names") else dataset[0])


def _refuse_shared(hashes: dict[str, list[bytes]], one: str, other: str, advice: str) -> None:
    places = {value: i for i, value in enumerate(hashes[other])}
    shared = [(i, places[value]) for i, value in enumerate(hashes[one]) if value in places]
    if shared:
        raise ValueError(
            f"{one} and {other} share {len(shared)} rows (row {shared[0][0]} of {one} is row {shared[0][1]} of "
            f"{other}): {advice}"
        )
