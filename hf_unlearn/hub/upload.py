"""Upload to the Hub: the files of a release and nothing else, in one commit."""

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
# Files that hold weights or training state: those that an upload does not replace would be another model's.
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".index.json")
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
CARD = "README.md"
TOKENIZER_CONFIG = "tokenizer_config.json"
# Files of a release beside weights, claims and the files of a tokenizer; other files of a folder are not uploaded.
RELEASE_FILES = (
    CARD, "config.json", "generation_config.json", TOKENIZER_CONFIG, "tokenizer.json", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja", "preprocessor_config.json", "video_preprocessor_config.json",
    "processor_config.json",
)  # fmt: skip
ADVICE = {
    401: "the Hub does not accept the token; log in with `hf auth login`, or pass another token",
    403: "the token may not write there; use one with write permission for this repository",
    404: "there is no such repository or revision, or the token may not see it; check repo_id and revision",
    409: "the repository is being changed by another commit; push again",
    412: "the repository has been changed by another commit; push again",
}


class PushError(RuntimeError):
    """An upload that the Hub has not confirmed; the message is one line that says what happened and what to do."""


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


def write_release_files(folder: Path, facts: CardFacts, record: Mapping[str, Any] | None) -> None:
    """Write card, audit and record to a folder that has the weights, and remove the training arguments.

    The record gets the hashes of the audit's files. An earlier audit and record in the folder are removed.

    Raises:
        PushError: there are no safetensors in the folder, as after ZeRO-3 without gathered weights.
    """
    if not any(folder.glob("*.safetensors")):
        raise PushError(
            "model: was not saved completely, nothing was pushed; under ZeRO-3 set "
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
            record = {
                **record,
                "audit": {**record["audit"], "files": {name: _hash(folder / name) for name in AUDIT_FILES}},
            }
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
        token: default: the stored token, or `HF_TOKEN`.
        commit_message: first line of the commit.
        revision: a branch, created if it does not exist; default: main.
        private: whether a new repository is private.
        create_pr: whether to open a pull request instead of committing to the branch.

    Raises:
        ValueError: the folder does not match its record, or an argument is invalid; one line.
        PushError: the Hub has not confirmed the commit.
    """
    check_revision(revision, create_pr)
    folder = Path(folder)
    names = release_files(folder)
    branch = None if create_pr else revision
    full_name = create_repo(repo_id, token, private, branch)
    return send(
        folder, names, full_name, token=token, commit_message=commit_message, revision=branch, create_pr=create_pr
    )


def check_revision(revision: str | None, create_pr: bool) -> None:
    """Refuse a pull request to another branch than main.

    Raises:
        ValueError: one line.
    """
    if create_pr and revision not in (None, "main"):
        raise ValueError(f"create_pr: a pull request goes to main, got revision={revision!r}; leave one of them out")


def release_files(folder: Path) -> list[str]:
    """The files of a saved folder that are uploaded: weights, configuration, processor, card, audit, record.

    Other files (checkpoints, logs, notes) are not.

    Raises:
        ValueError: there is no record, or weights or audit do not match it; one line.
    """
    if not (folder / RECORD_FILE).is_file():
        if (folder / TRAINER_STATE_NAME).exists() or any(folder.glob("checkpoint-*")):
            raise ValueError(
                f"folder: {str(folder)!r} has only checkpoints, which still hold the data; let the run end, "
                "hf-unlearn run --resume continues it"
            )
        raise ValueError(
            f"folder: {str(folder)!r} has no {RECORD_FILE}; give one that hf-unlearn run, or trainer.save_release(), "
            "has saved"
        )
    record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
    weights = _weight_files(folder, record["weights"]["kind"])
    if not (verification := verify(record, folder)).matches:
        raise ValueError(
            f"folder: {str(folder)!r} does not match its {RECORD_FILE} ({verification}); it has changed, run again"
        )
    hashes = (record["audit"] or {}).get("files", {})
    for name in AUDIT_FILES:
        path = folder / name
        if hashes.get(name) != (_hash(path) if path.is_file() else None):
            raise ValueError(
                f"folder: {name} in {str(folder)!r} does not match {RECORD_FILE}, and may name people; restore the "
                "file of the run, or run again"
            )
    vocabulary = (
        AutoTokenizer.from_pretrained(folder).vocab_files_names if (folder / TOKENIZER_CONFIG).exists() else {}
    )
    present = [name for name in {*RELEASE_FILES, *vocabulary.values(), *hashes} if (folder / name).is_file()]
    templates = [path.relative_to(folder).as_posix() for path in folder.glob("additional_chat_templates/*.jinja")]
    return sorted([*weights, *present, *templates, RECORD_FILE])


def _weight_files(folder: Path, kind: str) -> list[str]:
    if kind == "adapter" and (folder / ADAPTER_WEIGHTS).is_file():
        return [ADAPTER_CONFIG, ADAPTER_WEIGHTS]
    if kind == "model" and (folder / SAFE_WEIGHTS_NAME).is_file():
        return [SAFE_WEIGHTS_NAME]
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if kind == "model" and index.is_file():
        return [SAFE_WEIGHTS_INDEX_NAME, *sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    raise ValueError(f"folder: {str(folder)!r} lacks the weights of its {RECORD_FILE}; run again")


def create_repo(repo_id: str, token: str | None, private: bool, revision: str | None = None) -> str:
    """Create the repository and the branch `revision` if they do not exist; returns the full name.

    Args:
        repo_id: `"name"` or `"owner/name"`.
        token: a token; None for the stored one.
        private: whether a new repository is private.
        revision: a branch; None for main.

    Raises:
        ValueError: `repo_id` is not a valid name.
        PushError: the Hub refuses or is not reachable.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        raise ValueError(
            f"repo_id: {repo_id!r} is no name of a repository, give 'owner/name'; a message goes to commit_message="
        ) from None
    with _explained(repo_id, token):
        full_name = _api(token).create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/"):
            _api(token).create_branch(full_name, branch=revision, exist_ok=True)
    return full_name


def upload(folder: tempfile.TemporaryDirectory, repo_id: str, **settings: Any) -> CommitInfo:
    """Send all files of a temporary folder with `send`, and remove the folder."""
    with folder as path:
        names = sorted(file.relative_to(path).as_posix() for file in Path(path).rglob("*") if file.is_file())
        return send(Path(path), names, repo_id, **settings)


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

    The same commit deletes other weights, audits and records that the repository has at this revision:
    `from_pretrained` might load them in place of the new ones, and their claims would no longer hold.

    Raises:
        PushError: the Hub has not confirmed the commit.
        ValueError: the repository has claims of forgetting, and an adapter that has forgotten nothing is sent to it.
    """
    api = _api(token)
    with _explained(repo_id, token):
        existing = api.list_repo_files(repo_id, revision=revision)
    claims = [name for name in CLAIMS if name in existing]
    if claims and RECORD_FILE not in names:
        raise ValueError(
            f"push_adapter: {repo_id} has {', '.join(claims)}, and an adapter alone has forgotten nothing; "
            "push it to another repository"
        )
    stale = [name for name in existing if name not in names and _is_misleading(name)]
    with _explained(repo_id, token):
        # Not upload_folder: it may split the files into several commits.
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
            f"Deleted from {repo_id}, as left from an earlier model: {', '.join(stale)}. Earlier revisions have them"
        )
    logger.info(f"Pushed {len(names)} files in one commit: {commit.pr_url or commit.commit_url}")
    return commit


def _is_misleading(name: str) -> bool:
    return name.endswith(WEIGHT_SUFFIXES) or name in CLAIMS or name.rpartition("/")[2] == ADAPTER_CONFIG


def _api(token: str | None) -> HfApi:
    return HfApi(token=token, library_name="hf_unlearn")


@contextmanager
def writing(folder: str) -> Iterator[None]:
    """Turn an error while writing the files into one line.

    Raises:
        PushError: the files could not be written, for example because the disk is full.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise PushError(
            f"push_to_hub: the files could not be written to {folder}, nothing was pushed; free some space there, or "
            f"set TMPDIR to another disk ({_one_line(error)})"
        ) from error


@contextmanager
def _explained(repo_id: str, token: str | None) -> Iterator[None]:
    """Turn an error of a request to the Hub into one line without the token."""
    try:
        yield
    except Exception as error:
        first = _root_cause(error)
        explanation = _explain(first)
        for secret in {token, huggingface_hub.get_token()} - {None, ""}:
            explanation = explanation.replace(str(secret), "***")
        # The answer of a server may repeat the request, with the token: not for a traceback.
        cause = None if isinstance(first, HfHubHTTPError) else error
        raise PushError(f"push_to_hub: nothing is confirmed as pushed to {repo_id}: {explanation}") from cause


def _root_cause(error: BaseException) -> BaseException:
    """The first error of a chain, or its HTTP error: uploads of single files wrap theirs."""
    while not isinstance(error, HfHubHTTPError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _explain(error: BaseException) -> str:
    if isinstance(error, OfflineModeIsEnabled):
        return "offline mode is on; unset HF_HUB_OFFLINE"
    if not isinstance(error, HfHubHTTPError):
        return f"the transfer failed, push again ({_one_line(error)})"
    status = error.response.status_code
    if status == 429:
        seconds = error.response.headers.get("Retry-After")
        wait = f"wait {seconds} seconds" if seconds else "wait a while"
        advice = f"too many requests; {wait}, then push again"
    elif status >= 500:
        advice = "the Hub has an internal error; push again later"
    else:
        advice = ADVICE.get(status, "the Hub refused")
    answer = f": {' '.join(error.server_message.split())}" if error.server_message else ""
    return f"{advice} (status {status}{answer})"


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
