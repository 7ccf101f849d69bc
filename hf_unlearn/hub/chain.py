"""Records that follow each other: the requests that a model has forgotten one after the other."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

from datasets import IterableDataset

from hf_unlearn.data.columns import LABELS, column_names
from hf_unlearn.data.hashing import sample_hashes
from hf_unlearn.data.types import AnyDataset, StreamedDataset


def salted(content_hash: bytes, salt: str) -> str:
    """The hash of a sample in a record: of its content hash, keyed with the record's salt (hexadecimal digits)."""
    return hashlib.blake2b(content_hash, digest_size=16, key=bytes.fromhex(salt)).hexdigest()


def record_hash(record: Mapping[str, Any]) -> str:
    """SHA-256 of a record, however its file is laid out; the records before it count by the hash that it has of them.

    Examples:
        >>> first = {"salt": "00", "files": {}}
        >>> record_hash(first) == record_hash({"files": {}, "salt": "00", "chain": [{"salt": "01"}]})
        True
    """
    text = json.dumps(_alone(record), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def records_of(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """All records of the requests that a model has forgotten, the first request's first, `record` last."""
    return [*record.get("chain", ()), record]


def links(after: Mapping[str, Any] | None) -> dict[str, Any]:
    """The fields of a record that follows `after`: the hash of that one, and all records before, each as it was.

    A first record has none of them.
    """
    if after is None:
        return {}
    return {"previous": record_hash(after), "chain": [_alone(record) for record in records_of(after)]}


def _alone(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "chain"}


def find_break(record: Mapping[str, Any]) -> str | None:
    """Where the chain of a record is broken; None where it is whole.

    Every record has to have the hash of the one before it, and to begin with the weights that that one ended with;
    those of requests that were forgotten in one run have both weights in common.
    """
    records = records_of(record)
    hashes = [record_hash(each) for each in records]
    if records[0].get("previous") is not None:
        return f"{_name(records, 0)} follows a record that is missing"
    for number, (earlier, later) in enumerate(pairwise(records), start=1):
        previous = later.get("previous")
        if previous in hashes and previous != hashes[number - 1]:
            return f"{_name(records, number)} follows {_name(records, hashes.index(previous))}: the order has changed"
        if previous != hashes[number - 1]:
            return f"{_name(records, number)} does not follow {_name(records, number - 1)}: one of them has changed"
        before, after = earlier["weights"], later["weights"]
        same_run = (before["before"], before["after"]) == (after["before"], after["after"])
        if before["after"] != after["before"] and not same_run:
            return f"{_name(records, number)} begins with other weights than {_name(records, number - 1)} ended with"
    return None


def find_missing(record: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]]) -> str | None:
    """Which of some earlier records, in their order, is not in the chain of a record; None where all are."""
    hashes = [record_hash(each) for each in records_of(record)]
    place = -1
    for number, other in enumerate(map(record_hash, earlier)):
        if other not in hashes:
            return f"record {number + 1} of those given is not in the chain of the last"
        if hashes.index(other) <= place:
            return f"record {number + 1} of those given comes before record {number}: the order has changed"
        place = hashes.index(other)
    return None


def _name(records: Sequence[Mapping[str, Any]], number: int) -> str:
    identifier = records[number]["request"]["id"]
    return f"record {number + 1} of {len(records)}" + (f" ({identifier!a})" if identifier else "")


def in_records(records: Sequence[Mapping[str, Any]], samples: AnyDataset) -> list[int | None]:
    """For every sample the number of the first of some records that has its hash; None where none has.

    A sample that is given twice has to be in the records twice.

    Raises:
        ValueError: the samples lack a column of a record.
    """
    names = column_names(samples)
    found: list[int | None] = [None] * len(samples)
    hashes: dict[tuple[str, ...], list[bytes]] = {}
    for number, record in enumerate(records):
        columns = tuple(record["request"]["columns"])
        if missing := [name for name in columns if name not in names]:
            raise ValueError(
                f"samples: have no column {missing[0]!r} of the record, only {names}; preprocess them like "
                "the forget dataset"
            )
        recorded = Counter(record["sample_hashes"])
        hashes[columns] = hashes.get(columns) or sample_hashes(samples, columns)
        for i, content in enumerate(hashes[columns]):
            key = salted(content, record["salt"])
            if found[i] is None and recorded[key] > 0:
                recorded[key] -= 1
                found[i] = number
    return found


def refuse_forgotten(record: Mapping[str, Any], datasets: Mapping[str, AnyDataset | StreamedDataset | None]) -> None:
    """Refuse samples that earlier requests have made a model forget: training on them would bring them back.

    Args:
        record: of the last request, with those before it.
        datasets: the retain and the unseen dataset, by the names of the arguments.

    Raises:
        ValueError: there is one, a dataset is a stream, or it lacks a column of a record; one line that names it.
    """
    records = records_of(record)
    # Of samples that were nowhere stored the records have labels alone.
    telling = [each for each in records if not set(each["request"]["columns"]) <= set(LABELS)]
    for name, dataset in datasets.items():
        if dataset is None:
            continue
        if isinstance(dataset, IterableDataset):
            raise ValueError(
                f"{name}: is a stream, in which samples that were forgotten before would not be found; load it whole "
                "(streaming=False)"
            )
        try:
            found = in_records(telling, cast(AnyDataset, dataset))
        except ValueError as error:
            raise ValueError(f"{name}{str(error).removeprefix('samples')}") from error
        numbers = [i for i, number in enumerate(found) if number is not None]
        if numbers:
            earlier = records.index(telling[found[numbers[0]] or 0])
            raise ValueError(
                f"{name}: has {len(numbers)} samples that were forgotten before (sample {numbers[0]} by "
                f"{_name(records, earlier)}); take them out, they would come back"
            )
