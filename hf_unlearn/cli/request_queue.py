"""A file of requests, and which of them are done: read from and written to disk so that a crash loses none."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from hf_unlearn.data.files import append_line
from hf_unlearn.data.loading import split_forget
from hf_unlearn.data.types import RequestKind
from hf_unlearn.names import did_you_mean

STATE = "state.jsonl"
EXAMPLE = '{"id": "2026-017", "forget": "speaker=1272", "kind": "group"}'


@dataclass(frozen=True)
class QueuedRequest:
    """A line of the file of requests.

    Attributes:
        id: a name of its own; it stands in the record.
        forget: what to forget, as `--forget` takes it.
        kind: `"samples"`, `"class"` or `"group"`; None: by the column that `forget` names.
    """

    id: str
    forget: str
    kind: RequestKind | None = None

    def to_dict(self) -> dict[str, str]:
        """The line as a JSON object."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def read_requests(path: str | Path) -> list[QueuedRequest]:
    """The requests in a file, one JSON object a line, in order; empty lines do not count.

    Raises:
        ValueError: a line is no request, or has the id of another one; one line that says which.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        what = getattr(error, "strerror", None) or "it is no text"
        raise ValueError(f"requests: {str(path)!r} does not open ({what}); give a file of requests") from error
    requests: dict[str, QueuedRequest] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                request = _parse(line)
                if request.id in requests:
                    raise ValueError(f"has the id {request.id!r} of another line; give each its own")
            except ValueError as error:
                raise ValueError(f"requests: line {number} {error}") from error
            requests[request.id] = request
    if not requests:
        raise ValueError(f"requests: {str(path)!r} has no request; write one a line, such as {EXAMPLE}")
    return list(requests.values())


def _parse(line: str) -> QueuedRequest:
    try:
        values: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not valid JSON; write it as {EXAMPLE}") from error
    if not isinstance(values, Mapping) or not all(isinstance(value, str) for value in values.values()):
        raise ValueError(f"is no object of texts; write it as {EXAMPLE}")
    names = [each.name for each in fields(QueuedRequest)]
    if unknown := sorted(values.keys() - set(names)):
        raise ValueError(f"has {unknown[0]!r}; use {', '.join(names)}{did_you_mean(unknown[0], names)}")
    for name in ("id", "forget"):
        if not values.get(name):
            raise ValueError(f"has no {name}; write it as {EXAMPLE}")
    if (kind := values.get("kind")) is not None and kind not in get_args(RequestKind):
        raise ValueError(f"has the kind {kind!r}; use one of {', '.join(get_args(RequestKind))}")
    split_forget(values["forget"])
    return QueuedRequest(**values)


@dataclass
class QueueState:
    """Which requests are done, and which have begun, in `state.jsonl`: a line an event, that is there or is not.

    Attributes:
        path: of the file.
        done: the requests that are done, in the order in which the model has forgotten them.
        begun: the requests of a run that has begun and is neither done nor failed.
        used: the number of folders that this queue has written to.
    """

    path: Path
    done: list[QueuedRequest] = field(default_factory=list)
    begun: list[QueuedRequest] = field(default_factory=list)
    used: int = 0

    @classmethod
    def read(cls, folder: Path) -> QueueState:
        """The state of the queue in a folder; nothing is done in an empty one."""
        state = cls(folder / STATE)
        for line in state.path.read_text(encoding="utf-8").splitlines() if state.path.exists() else ():
            event = json.loads(line)
            state._apply(event["event"], [QueuedRequest(**request) for request in event["requests"]])
        return state

    def begin(self, requests: Sequence[QueuedRequest]) -> None:
        """Say that a run begins."""
        self._write("begin", requests)

    def finish(self, records: Iterable[str]) -> None:
        """Say that the requests of the run that has begun are done.

        Args:
            records: the hashes of their records.
        """
        self._write("done", self.begun, records=list(records))

    def fail(self, reason: str) -> None:
        """Say that the run has ended, and its requests are not done."""
        self._write("failed", self.begun, reason=reason)

    def _write(self, event: str, requests: Sequence[QueuedRequest], **more: Any) -> None:
        line = {"event": event, "requests": [request.to_dict() for request in requests], **more}
        append_line(self.path, json.dumps(line))
        self._apply(event, list(requests))

    def _apply(self, event: str, requests: list[QueuedRequest]) -> None:
        if event == "done":
            self.done += requests
        self.begun = requests if event == "begin" else []
        self.used = max(self.used, len(self.done) + len(self.begun))


def next_batch(requests: Sequence[QueuedRequest], done: Sequence[QueuedRequest], size: int) -> list[QueuedRequest]:
    """The first request that is not done and, where it names its kind, the next ones of that kind.

    Args:
        requests: all of them.
        done: those that are done.
        size: requests at most.

    Raises:
        ValueError: a request that is done reads otherwise now.
    """
    finished = {request.id: request for request in done}
    for request in requests:
        if finished.get(request.id, request) != request:
            raise ValueError(f"requests: {request.id!r} is done, and reads otherwise now; give what is new a new id")
    pending = [request for request in requests if request.id not in finished]
    if not pending:
        return []
    alike = [request for request in pending if request.kind == pending[0].kind is not None] or pending[:1]
    return alike[:size]
