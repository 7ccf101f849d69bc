"""Checks of the datasets before training: invalid input raises a one-line error that names the argument."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import numpy as np
import torch

from hf_unlearn.data.columns import LABELS, column_names, is_transformed
from hf_unlearn.data.finite import check_finite
from hf_unlearn.data.hashing import compared_columns, sample_hashes
from hf_unlearn.data.splitting import LABEL_COLUMNS, check_map_style, column_of
from hf_unlearn.data.types import AnyDataset
from hf_unlearn.losses.labels import TOKEN_LABELLED, unscored_tokens


def check_datasets(
    forget_ds: AnyDataset,
    retain_ds: AnyDataset,
    unseen_ds: AnyDataset | None = None,
    columns: Sequence[str] | None = None,
    kind: str = "custom",
) -> None:
    """Refuse datasets that are empty, hold NaN, differ in their columns, share samples or have some without a label.

    Args:
        forget_ds: the forget dataset.
        retain_ds: the retain dataset.
        unseen_ds: data never trained on, or None.
        columns: columns that the model reads; samples are compared on those of them that the datasets have, or on
            all columns (see `compared_columns`).
        kind: of the model's head: samples need something that it scores.

    Raises:
        ValueError: one line that names the argument, what was found and what to do.
    """
    datasets_by_name: dict[str, AnyDataset] = {"forget_ds": forget_ds, "retain_ds": retain_ds}
    if unseen_ds is not None:
        datasets_by_name["unseen_ds"] = unseen_ds
    for name, dataset in datasets_by_name.items():
        check_map_style(name, dataset)
        if len(dataset) == 0:
            raise ValueError(f"{name}: is empty; give at least one sample")
    columns_by_name = {name: sorted(set(column_names(dataset))) for name, dataset in datasets_by_name.items()}
    for name, names in columns_by_name.items():
        if names != columns_by_name["forget_ds"]:
            raise ValueError(
                f"{name}: its columns {names} are not those of forget_ds {columns_by_name['forget_ds']}; "
                "prepare the datasets in the same way"
            )
    for name, dataset in datasets_by_name.items():
        check_finite(name, dataset, column_names(dataset) if columns is None else columns)
        _check_scorable(dataset, name, kind)
    compared = compared_columns(forget_ds, columns)
    if set(compared) <= set(LABELS):
        return  # what the samples are is nowhere stored
    hashes = {
        name: sample_hashes(dataset, compared, f"Comparing {name}") for name, dataset in datasets_by_name.items()
    }
    _refuse_shared(
        hashes, "forget_ds", "retain_ds", "a sample cannot be forgotten and kept; take it out of one of them"
    )
    if unseen_ds is not None:
        advice = "unseen samples must never have been trained on; take them out of unseen_ds"
        _refuse_shared(hashes, "unseen_ds", "forget_ds", advice)
        _refuse_shared(hashes, "unseen_ds", "retain_ds", advice)


def check_classes(forget_ds: AnyDataset, retain_ds: AnyDataset) -> list[int] | None:
    """Refuse a retain dataset that still has a sample of a forgotten class: all of its samples are checked.

    Where a collator or a transform makes the labels, they are checked when the target is made. Of samples with several
    labels those are forgotten which forget samples have and no retain sample has.

    Returns:
        The numbers of the forgotten labels, of samples with several labels.

    Raises:
        ValueError: one line that names the argument, what was found and what to do.
    """
    for name in set(LABEL_COLUMNS) & set(column_names(forget_ds)):
        if np.ndim(forget_ds[0].get(name, 0)) == 0:
            check_disjoint_classes(set(column_of(forget_ds, name)), set(column_of(retain_ds, name)))
        elif len(forget_ds[0][name]) > 1:
            return _forgotten_labels(*(list(_entries(dataset, name)) for dataset in (forget_ds, retain_ds)))
    return None


def _forgotten_labels(forget: Sequence[Any], retain: Sequence[Any]) -> list[int] | None:
    """The labels that no retain sample has, of samples with a value in [0, 1] for every label."""
    if len({np.shape(values) for values in (*forget, *retain)}) > 1:
        return None  # refused when they are measured
    has, kept = np.stack(forget) > 0.5, (np.stack(retain) > 0.5).any(0)
    if left := int((~(has & ~kept).any(1)).sum()):
        raise ValueError(
            f'request: "class", but retain_ds holds samples of every label that {left} of {len(has)} forget samples '
            'have; take those of a label out of it, or use request="samples"'
        )
    return np.flatnonzero(has.any(0) & ~kept).tolist()


def check_disjoint_classes(forget_classes: set, retain_classes: set) -> None:
    """Refuse classes that are both in the forget and in the retain dataset.

    Raises:
        ValueError: one line that names the argument, what was found and what to do.
    """
    if both := sorted(forget_classes & retain_classes):
        raise ValueError(
            f'request: "class", but retain_ds still holds samples of the forgotten classes {both}; take them out, or '
            'use request="samples"'
        )


def check_alternatives(method: str, needed: bool, forget_ds: AnyDataset, alternative_ds: AnyDataset | None) -> None:
    """Refuse alternative answers that are missing, unused, or do not match the forget dataset sample by sample.

    Args:
        method: its name, for the errors.
        needed: whether it uses alternatives.
        forget_ds: the forget dataset.
        alternative_ds: the same samples with other answers, or None.

    Raises:
        ValueError: one line that names the argument, what was found and what to do.
    """
    if alternative_ds is None:
        if needed:
            raise ValueError(
                f"alternative_ds: is missing; {method} needs, for every sample of forget_ds, the same sample with the "
                "answer to give instead, tokenised in the same way (its question with labels of -100)"
            )
        return
    if not needed:
        raise ValueError(f'alternative_ds: {method} does not use it; leave it out, or set method="idk_dpo"')
    if len(alternative_ds) != len(forget_ds):
        raise ValueError(
            f"alternative_ds: has {len(alternative_ds)} samples for {len(forget_ds)} of forget_ds; give one for each, "
            "in order"
        )
    if set(column_names(alternative_ds)) != set(column_names(forget_ds)):
        raise ValueError(
            f"alternative_ds: its columns {sorted(column_names(alternative_ds))} are not those of forget_ds "
            f"{sorted(column_names(forget_ds))}; prepare both in the same way"
        )


def _check_scorable(dataset: AnyDataset, name: str, kind: str) -> None:
    """Refuse samples all labels of which are -100; where a transform or a collator makes them, batches are checked."""
    if kind not in TOKEN_LABELLED or is_transformed(dataset) or "labels" not in column_names(dataset):
        return
    labels = map(torch.as_tensor, _entries(dataset, "labels"))
    missing = [i for i, cell in enumerate(labels) if cell.ndim == 1 and unscored_tokens(kind, cell[None]).item()]
    if missing:
        raise ValueError(
            f"{name}: {len(missing)} of {len(dataset)} samples have nothing to score (the first is sample "
            f"{missing[0]}: all of its labels are -100); take them out, or a loss of 0 counts as memory"
        )


def _entries(dataset: Any, column: str) -> Iterator[Any]:
    if isinstance(dataset, datasets.Dataset):
        for batch in dataset.with_format("numpy").select_columns([column]).iter(1000):
            yield from map(np.array, batch[column])  # copies: Arrow's arrays cannot be written
    else:
        yield from (dataset[i][column] for i in range(len(dataset)))


def _refuse_shared(hashes: dict[str, list[bytes]], one: str, other: str, advice: str) -> None:
    numbers = {content: i for i, content in enumerate(hashes[other])}
    shared = [(i, numbers[content]) for i, content in enumerate(hashes[one]) if content in numbers]
    if shared:
        first, same = shared[0]
        raise ValueError(
            f"{one} and {other} share {len(shared)} samples (sample {first} of {one} is sample {same} of {other}): "
            f"{advice}"
        )
