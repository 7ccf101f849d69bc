"""A release in a folder: written beside the weights, and checked before it leaves."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from hf_unlearn.data.files import replacing
from hf_unlearn.hub.errors import PushError
from hf_unlearn.hub.model_card import CardFacts, model_card
from hf_unlearn.hub.record import changed_files, verify
from hf_unlearn.hub.record_schema import read_record
from hf_unlearn.hub.release_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    AUDIT_FILES,
    CARD,
    CLAIMS,
    RECORD_FILE,
    check_plain_file,
    hash_files,
    is_release_file,
    is_weight_file,
)
from hf_unlearn.report.audit_report import AuditReport

logger = logging.getLogger(__name__)


def anonymise_groups(report: AuditReport, label_names: Mapping[Any, str]) -> AuditReport:
    """The report for publication: numbers replace the names of groups (speakers, authors); class labels stay.

    Args:
        report: the audit.
        label_names: `config.id2label`, which is published with the model.
    """
    labels = set(map(str, label_names.values()))
    public_names: dict[str, str] = {}
    entries = sorted(report.breakdown, key=lambda entry: (entry["dataset"], -entry["samples"]))
    for entry in entries:
        group = str(entry["group"])
        public_names.setdefault(group, group if group in labels else f"group {len(public_names) + 1}")
    return replace(report, breakdown=[{**entry, "group": public_names[str(entry["group"])]} for entry in entries])


def write_release_files(
    folder: Path, facts: CardFacts, record: Mapping[str, Any] | None, names: Iterable[str]
) -> Mapping[str, Any] | None:
    """Write card, audit and record to a folder that has the weights, and remove the training arguments.

    The record is written last: it gets the hashes of all other files of the release. An earlier audit and record in
    the folder are removed.

    Args:
        folder: the folder.
        facts: what the card says.
        record: the record; None where nothing is claimed.
        names: the files that model and processor have written for this release; others that lie there are of none.

    Returns:
        The record as it was written.

    Raises:
        PushError: there are no safetensors among them, as after ZeRO-3 without gathered weights.
    """
    names = {name for name in names if name != TRAINING_ARGS_NAME}
    if not any(map(is_weight_file, names)):
        raise PushError(
            "model: was not saved completely, nothing was pushed; under ZeRO-3 set "
            "stage3_gather_16bit_weights_on_model_save"
        )
    for name in (TRAINING_ARGS_NAME, CARD, *CLAIMS):
        (folder / name).unlink(missing_ok=True)  # a link, too: nothing is written through one
    (folder / CARD).write_text(model_card(facts), encoding="utf-8")
    written = {name for name in names if is_release_file(name)} | {CARD}
    if others := sorted(names - written):
        logger.warning(f"Not part of the release, by their names: {', '.join(map(ascii, others))}")
    return write_claims(folder, facts.report, record, written)


def write_claims(
    folder: Path, report: AuditReport | None, record: Mapping[str, Any] | None, written: Iterable[str] = ()
) -> Mapping[str, Any] | None:
    """Write an audit and, last, a record with the hashes of all files.

    Args:
        folder: the folder.
        report: the audit; None where there is none.
        record: the record; None where nothing is claimed.
        written: the other files that belong to them.

    Returns:
        The record as it was written.
    """
    names = {*written}
    if report is not None:
        for name, write in zip(AUDIT_FILES, (report.to_json, report.to_html), strict=True):
            write(folder / name)
            names.add(name)
    if record is not None:
        record = {**record, "files": hash_files(folder, names)}
        text = json.dumps(record, indent=1, allow_nan=False) + "\n"
        with replacing(folder / RECORD_FILE) as temporary:  # last: with it the release is complete
            temporary.write_text(text, encoding="utf-8")
    return record


def check_release(folder: Path) -> list[str]:
    """The files of a saved folder that are uploaded: those that its record has the hashes of, and the record.

    The names are those of a fixed list, see `hf_unlearn.hub.release_files`: what a record says decides about none.

    Raises:
        ValueError: there is no record, it is not valid, or a file is missing, a link, or another than that of the
            run; one line.
    """
    if not (folder / RECORD_FILE).is_file():
        if (folder / TRAINER_STATE_NAME).exists() or any(folder.glob("checkpoint-*")):
            raise ValueError(
                f"folder: {str(folder)!r} has only checkpoints, which still hold the data; let the run end, "
                "hf-unlearn run --resume continues it"
            )
        raise ValueError(f"folder: {str(folder)!r} has no {RECORD_FILE}; give the folder of a run that has ended")
    check_plain_file(folder, RECORD_FILE)
    record = read_record(folder / RECORD_FILE)
    files = record["files"]
    for name in _needed_files(folder, record):
        if name not in files or not os.path.lexists(folder / name):
            what = "the weights" if is_weight_file(name) else name
            raise ValueError(f"folder: {str(folder)!r} lacks {what} of its {RECORD_FILE}; run again")
    if record["audit"] is None and (claims := sorted(files.keys() & {*AUDIT_FILES})):
        raise ValueError(
            f"folder: {claims[0]} in {str(folder)!r} does not match {RECORD_FILE}, which has no audit; run again"
        )
    for name in files:
        check_plain_file(folder, name)
    if (changed := changed_files(folder, record)) and not all(map(is_weight_file, changed)):
        name = next(name for name in changed if not is_weight_file(name))
        advice = "restore the file of the run, or run again"
        if name == CARD:
            advice = (
                "restore it and edit the card on the Hub after the push, or let trainer.save_release(license=..., "
                "language=..., forget_request=...) write it"
            )
        elif name in AUDIT_FILES:
            advice = f"it may name people; {advice}"
        raise ValueError(f"folder: {name} in {str(folder)!r} does not match {RECORD_FILE}; {advice}")
    verification = verify(record, folder)
    if changed or not verification.matches:
        raise ValueError(
            f"folder: {str(folder)!r} does not match its {RECORD_FILE} ({verification}); it has changed, run again"
        )
    return sorted([*files, RECORD_FILE])


def _needed_files(folder: Path, record: Mapping[str, Any]) -> list[str]:
    """The files that a release needs by its record: weights, card, and its audit where it has one."""
    claims = [*AUDIT_FILES] if record["audit"] else []
    if record["weights"]["kind"] == "adapter":
        weights = [ADAPTER_WEIGHTS, ADAPTER_CONFIG]
    elif SAFE_WEIGHTS_INDEX_NAME in record["files"]:
        check_plain_file(folder, SAFE_WEIGHTS_INDEX_NAME)
        weights = [SAFE_WEIGHTS_INDEX_NAME, *_shards(folder / SAFE_WEIGHTS_INDEX_NAME)]
    else:
        weights = [SAFE_WEIGHTS_NAME]
    return [*weights, CARD, *claims, *record["files"]]


def _shards(index: Path) -> list[str]:
    """The files that hold the weights, by their index.

    Raises:
        ValueError: the file is no index.
    """
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"folder: {index.name} in {str(index.parent)!r} is no index of weights; it has changed, run again"
        ) from error
    return sorted(set(map(str, names)))
