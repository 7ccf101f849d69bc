"""Bad input, refused by name in one line before any step is taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_unlearn.data.hashing import compared_columns, row_hashes
from hf_unlearn.data.splitting import column_of


def check_sets(
    forget: Any, retain: Any, unseen: Any = None, columns: Sequence[str] | None = None, suffix: str = "_ds"
) -> None:
    """Refuse sets that are empty, of different columns, or that share rows (compared by content).

    Args:
        forget: the forget set.
        retain: the retain set.
        unseen: data never trained on, or None.
        columns: columns that the model reads; rows are compared on those of them that the sets have, or on all
            (see `compared_columns`).
        suffix: of the sets' names in errors.

    Raises:
        ValueError: one line that names the argument, what was found and what to do.
    """
    first, second, third = (name + suffix for name in ("forget", "retain", "unseen"))
    sets = {first: forget, second: retain} | ({} if unseen is None else {third: unseen})
    for name, dataset in sets.items():
        if len(dataset) == 0:
            raise ValueError(f"{name}: is empty; give at least one row")
    names = {name: set(_columns(dataset)) for name, dataset in sets.items()}
    for name, found in names.items():
        if found != names[first]:
            raise ValueError(
                f"{name}: its columns {sorted(found)} are not those of {first} {sorted(names[first])}; "
                "prepare the sets in the same way"
            )
    read = compared_columns(forget, columns)
    hashes = {name: row_hashes(dataset, read, f"Comparing {name}") for name, dataset in sets.items()}
    _refuse_shared(hashes, first, second, "a row cannot be forgotten and kept; take it out of one of them")
    if unseen is not None:
        why = f"unseen rows must never have been trained on; take them out of {third}"
        _refuse_shared(hashes, third, first, why)
        _refuse_shared(hashes, third, second, why)


def check_classes(forget: Any, retain: Any) -> None:
    """Refuse a retain set in which a row of a forgotten class is left: all of its rows are looked at.

    Sets that store no label, as a collator or a transform makes it, are looked at where the target is made of them.

    Raises:
        ValueError: one line that names the argument, what was found and what to do.
    """
    for name in {"label", "labels", "label_ids"} & set(_columns(forget)):
        if np.ndim(forget[0].get(name, 0)) == 0:
            refuse_kept(set(column_of(forget, name)), set(column_of(retain, name)))


def refuse_kept(forgotten: set, kept: set) -> None:
    """Refuse classes that are forgotten and kept.

    Raises:
        ValueError: one line that names the argument, what was found and what to do.
    """
    if both := sorted(forgotten & kept):
        raise ValueError(
            f'request: "class", but retain_ds still holds rows of the forgotten classes {both}; take them out, or '
            'use request="rows"'
        )


def check_alternatives(method: str, needed: bool, forget: Any, alternative: Any) -> None:
    """Refuse alternative answers that are missing, not asked for, or do not go with the forget set row by row.

    Args:
        method: its name, for the errors.
        needed: whether it uses alternatives.
        forget: the forget set.
        alternative: the same rows with other answers, or None.

    Raises:
        ValueError: one line that names the argument, what was found and what to do.
    """
    if alternative is None:
        if needed:
            raise ValueError(
                f"alternative_ds: is missing; {method} needs, for every row of forget_ds, the same row with the "
                "answer to give instead, tokenised in the same way (its question with labels of -100)"
            )
        return
    if not needed:
        raise ValueError(f'alternative_ds: {method} does not use it; leave it out, or set method="idk_dpo"')
    if len(alternative) != len(forget):
        raise ValueError(
            f"alternative_ds: has {len(alternative)} rows for {len(forget)} of forget_ds; give one for each, in order"
        )
    if set(_columns(alternative)) != set(_columns(forget)):
        raise ValueError(
            f"alternative_ds: its columns {sorted(_columns(alternative))} are not those of forget_ds "
            f"{sorted(_columns(forget))}; prepare both in the same way"
        )


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
