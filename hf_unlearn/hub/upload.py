"""What leaves this machine: a folder with the promised files and nothing else, sent to the Hub in one commit."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from transformers import AutoTokenizer
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from hf_unlearn.hub.model_card import CardFacts, model_card
from hf_unlearn.hub.record import RECORD_FILE, verify
from hf_unlearn.report.audit_report import AuditReport

logger = logging.getLogger(__name__)
AUDIT_FILES = ("audit.json", "audit.html")
CLAIMS = (*AUDIT_FILES, RECORD_FILE)
# What else holds weights or training state: of a commit that does not bring them, they would be another model's.
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".index.json")
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
CARD = "README.md"
TOKENIZER_CONFIG = "tokenizer_config.json"
# What may go along from a folder that lies open on a disk, beside weights, claims and a tokenizer's own files.
SENT = (
    CARD, "config.json", "generation_config.json", TOKENIZER_CONFIG, "tokenizer.json", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja", "preprocessor_config.json", "video_preprocessor_config.json",
    "processor_config.json",
)  # fmt: skip
ADVICE = {
    401: "the Hub does not accept the token; log in with `hf auth login`, or pass another token",
    403: "the token may not write there; use one with write permission for this repository",
    404: "there is no such repository or revision, or the token may not see it; check repo_id and revision",
    409: "somebody else is changing the repository; push again",
    412: "somebody else has changed the repository; push again",
}


class PushError(RuntimeError):
    """A push that the Hub has not confirmed; one line that says what happened and what to do."""


def published(report: AuditReport, label_names: Mapping[Any, str]) -> AuditReport:
    """A report that may leave the machine: groups that are no labels of the model (speakers, authors) get numbers.

    Args:
        report: the audit.
        label_names: `config.id2label`, which is public with the model.
    """
    public = set(map(str, label_names.values()))
    numbers: dict[str, str] = {}
    entries = sorted(report.breakdown, key=lambda entry: (entry["set"], -entry["samples"]))
    for entry in entries:
        group = str(entry["group"])
        numbers.setdefault(group, group if group in public else f"group {len(numbers) + 1}")
    return replace(report, breakdown=[{**entry, "group": numbers[str(entry["group"])]} for entry in entries])


def complete(folder: Path, facts: CardFacts, record: Mapping[str, Any] | None) -> None:
    """Put card, audit and record beside the weights in `folder`, and take out what is for this machine alone.

    The record gets the hashes of the audit's files. Claims that stood in the folder before go.

    Raises:
        PushError: there are no safetensors in the folder, as after ZeRO-3 without gathered weights.
    """
    if not any(folder.glob("*.safetensors")):
        raise PushError(
            "model: was not saved whole, nothing was pushed; under ZeRO-3 set "
            "stage3_gather_16bit_weights_on_model_save"
        )
    (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
    for name in CLAIMS:
        (folder / name).unlink(missing_ok=True)
    (folder / CARD).write_text(model_card(facts), encoding="utf-8")
    if facts.report is not None:
        for name, write in zip(AUDIT_FILES, (facts.report.to_json, facts.report.to_html), strict=True):
            write(folder / name)
    if record is not None:
        if record["audit"] is not None:
            record = {**record, "audit": {**record["audit"], "files": {n: _hash(folder / n) for n in AUDIT_FILES}}}
        text = json.dumps(record, indent=1, allow_nan=False) + "\n"
        (folder / RECORD_FILE).write_text(text, encoding="utf-8")


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    token: str | None = None,
    commit_message: str = "End of unlearning",
    revision: str | None = None,
    private: bool = True,
    create_pr: bool = False,
) -> CommitInfo:
    """Push a folder that `trainer.save_release()` or `hf-unlearn run` saved, in one commit: see `release_files`.

    Args:
        folder: the folder.
        repo_id: `"owner/name"`.
        token: default: the one that is stored, or `HF_TOKEN`.
        commit_message: first line of the commit.
        revision: a branch, made where there is none; default: main.
        private: of a new repository.
        create_pr: whether to open a pull request instead of committing to the branch.

    Raises:
        ValueError: the folder is not what its record says, or an argument cannot be; one line.
        PushError: the Hub has not confirmed the commit.
    """
    check_revision(revision, create_pr)
    folder = Path(folder)
    names = release_files(folder)
    branch = None if create_pr else revision
    name = create_repo(repo_id, token, private, branch)
    return send(folder, names, name, token=token, commit_message=commit_message, revision=branch, create_pr=create_pr)


def check_revision(revision: str | None, create_pr: bool) -> None:
    """Refuse a pull request to anything but main.

    Raises:
        ValueError: in one line.
    """
    if create_pr and revision not in (None, "main"):
        raise ValueError(f"create_pr: a pull request goes to main, got revision={revision!r}; leave one of them out")


def release_files(folder: Path) -> list[str]:
    """The files of a saved folder that leave this machine: weights, configuration, processor, card, audit, record.

    Whatever else lies there (checkpoints, logs, notes) stays.

    Raises:
        ValueError: there is no record, or weights or audit are not those that it tells of; one line.
    """
    if not (folder / RECORD_FILE).is_file():
        if (folder / TRAINER_STATE_NAME).exists() or any(folder.glob("checkpoint-*")):
            raise ValueError(
                f"folder: {str(folder)!r} has checkpoints alone, which still hold the data; let the run end, "
                "hf-unlearn run --resume goes on"
            )
        raise ValueError(
            f"folder: {str(folder)!r} has no {RECORD_FILE}; give one that hf-unlearn run, or trainer.save_release(), "
            "has saved"
        )
    record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
    weights = _weights(folder, record["weights"]["kind"])
    if not (found := verify(record, folder)).matches:
        raise ValueError(
            f"folder: {str(folder)!r} is not what its {RECORD_FILE} says ({found}); it has changed since, run again"
        )
    hashes = (record["audit"] or {}).get("files", {})
    for name in AUDIT_FILES:
        path = folder / name
        if hashes.get(name) != (_hash(path) if path.is_file() else None):
            raise ValueError(
                f"folder: {name} in {str(folder)!r} is not the one that {RECORD_FILE} tells of, and may name people; "
                "put the run's own back, or run again"
            )
    own = AutoTokenizer.from_pretrained(folder).vocab_files_names if (folder / TOKENIZER_CONFIG).exists() else {}
    there = [name for name in {*SENT, *own.values(), *hashes} if (folder / name).is_file()]
    templates = [path.relative_to(folder).as_posix() for path in folder.glob("additional_chat_templates/*.jinja")]
    return sorted([*weights, *there, *templates, RECORD_FILE])


def _weights(folder: Path, kind: str) -> list[str]:
    if kind == "adapter" and (folder / ADAPTER_WEIGHTS).is_file():
        return [ADAPTER_CONFIG, ADAPTER_WEIGHTS]
    if kind == "model" and (folder / SAFE_WEIGHTS_NAME).is_file():
        return [SAFE_WEIGHTS_NAME]
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if kind == "model" and index.is_file():
        return [SAFE_WEIGHTS_INDEX_NAME, *sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    raise ValueError(f"folder: {str(folder)!r} lacks the weights that its {RECORD_FILE} tells of; run again")


def create_repo(repo_id: str, token: str | None, private: bool, revision: str | None = None) -> str:
    """Make the repository, and the branch `revision`, where there is none; returns its full name.

    Args:
        repo_id: `"name"` or `"owner/name"`.
        token: a token; None for the one that is stored.
        private: for a new repository.
        revision: a branch; None for main.

    Raises:
        ValueError: `repo_id` is no name of a repository.
        PushError: the Hub refuses, or cannot be reached.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        raise ValueError(
            f"repo_id: {repo_id!r} is no name of a repository, give 'owner/name'; a message goes to commit_message="
        ) from None
    with _explained(repo_id, token):
        found = _api(token).create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/"):
            _api(token).create_branch(found, branch=revision, exist_ok=True)
    return found


def upload(folder: tempfile.TemporaryDirectory, repo_id: str, **where: Any) -> CommitInfo:
    """Send all files of a folder, as `send` does, and remove the folder."""
    with folder as place:
        names = sorted(path.relative_to(place).as_posix() for path in Path(place).rglob("*") if path.is_file())
        return send(Path(place), names, repo_id, **where)


def send(
    folder: Path,
    names: Sequence[str],
    repo_id: str,
    *,
    token: str | None,
    commit_message: str,
    revision: str | None,
    create_pr: bool,
) -> CommitInfo:
    """Send the named files of a folder to a repository in one commit.

    Other weights, audits and records that the repository has at this revision are deleted by the same commit:
    `from_pretrained` might load them in place of the new ones, and they would say what is no longer so.

    Raises:
        PushError: the Hub has not confirmed the commit.
        ValueError: an adapter that has forgotten nothing would stand beside a claim of forgetting.
    """
    api = _api(token)
    with _explained(repo_id, token):
        present = api.list_repo_files(repo_id, revision=revision)
    claims = [name for name in CLAIMS if name in present]
    if claims and RECORD_FILE not in names:
        raise ValueError(
            f"push_adapter: {repo_id} has {', '.join(claims)}, and an adapter alone has forgotten nothing; "
            "push it to another repository"
        )
    stale = [name for name in present if name not in names and _misleading(name)]
    with _explained(repo_id, token):
        # Not upload_folder: it may split what it sends into several commits.
        commit = api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in names),
                *(CommitOperationDelete(path_in_repo=name) for name in stale),
            ],
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
        )
    if stale:
        logger.warning(
            f"Taken out of {repo_id}, as it was there from before: {', '.join(stale)}. Earlier revisions still have it"
        )
    logger.info(f"Pushed {len(names)} files in one commit: {commit.pr_url or commit.commit_url}")
    return commit


def _misleading(name: str) -> bool:
    return name.endswith(WEIGHTS) or name in CLAIMS or name.rpartition("/")[2] == ADAPTER_CONFIG


def _api(token: str | None) -> HfApi:
    return HfApi(token=token, library_name="hf_unlearn")


@contextmanager
def writing(folder: str) -> Iterator[None]:
    """Says in one line that the files could not be written here.

    Raises:
        PushError: the disk is full, for one.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise PushError(
            f"push_to_hub: the files could not be written to {folder}, nothing was pushed; free some space there, or "
            f"set TMPDIR to another disk ({_line(error)})"
        ) from error


@contextmanager
def _explained(repo_id: str, token: str | None) -> Iterator[None]:
    """Turns whatever goes wrong between here and the Hub into one line without the token."""
    try:
        yield
    except Exception as error:
        first = _first(error)
        said = _explain(first)
        for secret in {token, huggingface_hub.get_token()} - {None, ""}:
            said = said.replace(str(secret), "***")
        # What a server answers may repeat what it was sent: not for a traceback.
        cause = None if isinstance(first, HfHubHTTPError) else error
        raise PushError(f"push_to_hub: nothing is confirmed as pushed to {repo_id}: {said}") from cause


def _first(error: BaseException) -> BaseException:
    """The error that began it: uploads of single files wrap theirs."""
    while not isinstance(error, HfHubHTTPError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _explain(error: BaseException) -> str:
    if isinstance(error, OfflineModeIsEnabled):
        return "offline mode is on; unset HF_HUB_OFFLINE"
    if not isinstance(error, HfHubHTTPError):
        return f"the transfer failed, push again ({_line(error)})"
    status = error.response.status_code
    if status == 429:
        seconds = error.response.headers.get("Retry-After")
        wait = f"wait {seconds} seconds" if seconds else "wait a while"
        advice = f"too many requests; {wait}, then push again"
    elif status >= 500:
        advice = "the Hub has trouble; push again later"
    else:
        advice = ADVICE.get(status, "the Hub refused")
    answer = f": {' '.join(error.server_message.split())}" if error.server_message else ""
    return f"{advice} (status {status}{answer})"


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
