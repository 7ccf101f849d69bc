"""Bad input, refused by name in one line before any step is taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_unlearn.data.hashing import compared_columns, sample_hashes
from hf_unlearn.data.splitting import column_of


def check_datasets(
    forget_ds: Any, retain_ds: Any, unseen_ds: Any = None, columns: Sequence[str] | None = None
) -> None:
    """Refuse sets that are empty, of different columns, or that share samples (compared by content).

    Args:
        forget_ds: the forget dataset.
        retain_ds: the retain dataset.
        unseen_ds: data never trained on, or None.
        columns: columns that the model reads; samples are compared on those of them that the sets have, or on all
            (see `compared_columns`).

    Raises:
        ValueError: one line that names the argument, what was found and what to do.
    """
    named = {"forget_ds": forget_ds, "retain_ds": retain_ds} | ({} if unseen_ds is None else {"unseen_ds": unseen_ds})
    for name, dataset in named.items():
        if len(dataset) == 0:
            raise ValueError(f"{name}: is empty; give at least one sample")
    columns_of = {name: set(_columns(dataset)) for name, dataset in named.items()}
    for name, its_columns in columns_of.items():
        if its_columns != columns_of["forget_ds"]:
            raise ValueError(
                f"{name}: its columns {sorted(its_columns)} are not those of forget_ds {sorted(columns_of['forget_ds'])}; "
                "prepare the datasets in the same way"
            )
    read = compared_columns(forget_ds, columns)
    hashes = {name: sample_hashes(dataset, read, f"Comparing {name}") for name, dataset in named.items()}
    _refuse_shared(
        hashes, "forget_ds", "retain_ds", "a sample cannot be forgotten and kept; take it out of one of them"
    )
    if unseen_ds is not None:
        why = "unseen samples must never have been trained on; take them out of unseen_ds"
        _refuse_shared(hashes, "unseen_ds", "forget_ds", why)
        _refuse_shared(hashes, "unseen_ds", "retain_ds", why)


def check_classes(forget: Any, retain: Any) -> None:
    """Refuse a retain dataset in which a sample of a forgotten class is left: all of its samples are looked at.

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
            f'request: "class", but retain_ds still holds samples of the forgotten classes {both}; take them out, or '
            'use request="samples"'
        )


def check_alternatives(method: str, needed: bool, forget: Any, alternative: Any) -> None:
    """Refuse alternative answers that are missing, not asked for, or do not go with the forget dataset sample by sample.

    Args:
        method: its name, for the errors.
        needed: whether it uses alternatives.
        forget: the forget dataset.
        alternative: the same samples with other answers, or None.

    Raises:
        ValueError: one line that names the argument, what was found and what to do.
    """
    if alternative is None:
        if needed:
            raise ValueError(
                f"alternative_ds: is missing; {method} needs, for every sample of forget_ds, the same sample with the "
                "answer to give instead, tokenised in the same way (its question with labels of -100)"
            )
        return
    if not needed:
        raise ValueError(f'alternative_ds: {method} does not use it; leave it out, or set method="idk_dpo"')
    if len(alternative) != len(forget):
        raise ValueError(
            f"alternative_ds: has {len(alternative)} samples for {len(forget)} of forget_ds; give one for each, in order"
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
            f"{one} and {other} share {len(shared)} samples (sample {shared[0][0]} of {one} is sample {shared[0][1]} of "
            f"{other}): {advice}"
        )
