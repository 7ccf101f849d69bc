"""The records, audits and comparisons below folders, gathered for one dashboard."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

from hf_unlearn.data.files import replacing
from hf_unlearn.hub.chain import record_hash, records_of
from hf_unlearn.hub.record_schema import read_record
from hf_unlearn.hub.release_files import AUDIT_FILES, RECORD_FILE, hash_files
from hf_unlearn.report.audit_result import AuditResult
from hf_unlearn.report.dashboard import (
    ENDINGS,
    ComparisonTable,
    Curve,
    RequestEntry,
    comparison_table,
    forgetting_curve,
    write_dashboard,
)
from hf_unlearn.report.html_report import BADGES

RESULTS_FILE = "results.json"
# What a file from elsewhere may do to those who read it as if this library had written it.
UNREADABLE = (ArithmeticError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError)


def make_dashboard(folders: Sequence[str | Path], path: str | Path) -> Path:
    """Write one HTML file of all that lies below some folders.

    A request is an unlearning record (`unlearning.json`, with the audit beside it, and the earlier requests that it
    follows), or an audit alone: an HTML report with the JSON of the same name. A comparison is the `results.json` of
    `hf_unlearn.comparing.compare`. The file loads nothing, and shows no sample and no name of a group. Files that are
    damaged are named in it, and left out.

    Args:
        folders: links in them are not followed.
        path: the file to write; it links to the HTML reports by their places relative to it.

    Returns:
        `path`.

    Raises:
        ValueError: a folder does not exist, or there is nothing to show in any; one line.
    """
    for folder in folders:
        if not Path(folder).is_dir():
            raise ValueError(f"folder: there is no folder {str(folder)!r}; give those of runs, audits or comparisons")
    home = Path(path).absolute().parent
    requests: list[RequestEntry] = []
    own: set[str] = set()  # hashes of the records that have a file of their own
    earlier: dict[str, RequestEntry] = {}  # by hash, those that stand in the records of later requests
    comparisons: list[ComparisonTable] = []
    unread: list[str] = []
    for file in sorted({file for folder in folders for file in _candidates(Path(folder))}):
        try:
            if file.name == RECORD_FILE:
                *before, record = records_of(read_record(file))
                requests.append(_entry_of_release(record, file, home))
                own.add(record_hash(record))
                earlier |= {record_hash(each): _entry_of_record(each, _place(file, home)) for each in before}
            elif file.name == RESULTS_FILE:
                comparisons += _comparisons(file, home)
            else:
                requests += _entries_of_audit(file, home)
        except UNREADABLE as error:
            text = " ".join(str(error).split())[:200]
            unread.append(f"{_place(file, home)}: {type(error).__name__}: {text}")
    if not requests and not comparisons and not unread:
        names = ", ".join(repr(str(folder)) for folder in folders)
        raise ValueError(
            f"folder: no {RECORD_FILE}, HTML report with its JSON or {RESULTS_FILE} of a comparison below {names}; "
            "give the folders of runs, audits or comparisons"
        )
    requests += [entry for key, entry in earlier.items() if key not in own]
    requests.sort(key=lambda entry: entry.date, reverse=True)
    with replacing(path) as temporary:
        write_dashboard(temporary, requests, comparisons, unread)
    return Path(path)


def _candidates(folder: Path) -> Iterator[Path]:
    """Records, results, and the JSON of HTML reports that have no record beside them."""
    for root, _, names in os.walk(folder.absolute()):
        for name in names:
            stem, ending = os.path.splitext(name)
            is_audit = ending == ".json" and f"{stem}.html" in names
            in_release = name in AUDIT_FILES and RECORD_FILE in names
            if name in (RECORD_FILE, RESULTS_FILE) or (is_audit and not in_release):
                yield Path(root, name)


def _entry_of_record(record: Mapping[str, Any], place: str) -> RequestEntry:
    """Of a record alone."""
    request, outcome, verdict = record["request"], record.get("outcome") or {}, record["audit"]
    entry = RequestEntry(
        name=request["id"] or place, place=place, kind=request["kind"],
        samples=request["samples"], date=str(record.get("date", "")), method=str(record["method"].get("name", "")),
        target_loss=_number(outcome, "target_loss"), passes=_number(outcome, "sample_passes"),
        ending=_one_of(ENDINGS, outcome.get("ending", "")),
        cost_of_retraining=_number(outcome, "cost_of_retraining"), seconds=_number(outcome, "processor_seconds"),
    )  # fmt: skip
    if verdict is None:
        return entry
    return replace(
        entry, level=_one_of(BADGES, verdict["level"]), sentence=str(verdict["sentence"]),
        depth=_number(verdict["metrics"], "depth"),
    )  # fmt: skip


def _entry_of_release(record: Mapping[str, Any], file: Path, home: Path) -> RequestEntry:
    """Of a record with the audit beside it: only if it is the record's is it shown."""
    entry = _entry_of_record(record, _place(file.parent, home))
    if record["audit"] is None:
        return entry
    audit, report = (file.with_name(name) for name in AUDIT_FILES)
    names = [name for name in (audit.name, report.name) if (file.parent / name).is_file()]
    if changed := [n for n, digest in hash_files(file.parent, names).items() if digest != record["files"].get(n)]:
        return replace(entry, warning=f"{', '.join(changed)} not as the run wrote it")
    curve = _curve(AuditResult.from_json(audit)) if audit.name in names else None
    return replace(entry, curve=curve, link=_link(report, home) if report.name in names else "")


def _entries_of_audit(file: Path, home: Path) -> list[RequestEntry]:
    """Of an audit without a record; none where the file is something else."""
    content = json.loads(file.read_text(encoding="utf-8"))
    if not (isinstance(content, Mapping) and {"schema_version", "verdict", "metrics_by_model"} <= content.keys()):
        return []
    report = AuditResult.from_dict(content)
    targets = [entry["target"] for entry in report.training if "target" in entry]
    entry = RequestEntry(
        name=_place(file.with_suffix(""), home), place=_place(file, home), link=_link(file.with_suffix(".html"), home),
        kind=str(report.about.get("request", "")), samples=_number(report.about, "forget_samples"),
        method=str(report.about.get("method", "")), curve=_curve(report),
        target_loss=_finite(targets[-1]) if targets else None, level=_one_of(BADGES, report.verdict["level"]),
        sentence=str(report.verdict["sentence"]), depth=_number(report.metrics, "depth"),
    )  # fmt: skip
    return [entry]


def _curve(report: AuditResult) -> Curve | None:
    return forgetting_curve([{name: _finite(value) for name, value in each.items()} for each in report.training])


def _comparisons(file: Path, home: Path) -> list[ComparisonTable]:
    """The table of a comparison; none where the file is something else."""
    results = json.loads(file.read_text(encoding="utf-8"))
    if not (isinstance(results, Mapping) and {"name", "requests", "runs"} <= results.keys()):
        return []
    return [comparison_table(results, _place(file, home))]


def _number(values: Mapping[str, Any], name: str) -> float | None:
    return None if values.get(name) is None else _finite(values[name])


def _finite(value: Any) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{value} is not finite")
    return float(value)


def _one_of(names: Mapping[str, Any], value: Any) -> str:
    if value and value not in names:
        raise ValueError(f"{value!a} is none of {', '.join(names)}")
    return value


def _place(path: Path, home: Path) -> str:
    """A path as text, from the folder of the dashboard."""
    return os.path.relpath(path, home)


def _link(path: Path, home: Path) -> str:
    """The same for a browser: every character that could mean something is encoded."""
    return quote_from_bytes(os.fsencode(_place(path, home)))
