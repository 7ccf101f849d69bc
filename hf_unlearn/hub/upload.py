"""Upload to the Hub: the files of a release and nothing else, in one commit."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_unlearn.hub.errors import explained
from hf_unlearn.hub.release import check_release
from hf_unlearn.hub.release_files import ADAPTER_CONFIG, CLAIMS, RECORD_FILE, is_release_file, remaining_names

logger = logging.getLogger(__name__)
# Files that hold weights or training state: those that an upload does not replace would be another model's.
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".index.json")


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
    """Push a folder that `trainer.save_release()` or `hf-unlearn run` saved, in one commit.

    What is sent are the files of the release, each with the hash that its record has; what else lies in the folder is
    named in a warning, and stays. See `hf_unlearn.hub.release.check_release`.

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
    names = check_release(folder)
    if others := remaining_names(folder, names):
        logger.warning(f"Not pushed, as no files of the release: {_listed(others)}")
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
    with explained(repo_id, token):
        full_name = _api(token).create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/"):
            _api(token).create_branch(full_name, branch=revision, exist_ok=True)
    return full_name


def upload(folder: tempfile.TemporaryDirectory, repo_id: str, **settings: Any) -> CommitInfo:
    """Send the files of a release in a temporary folder with `send`, and remove the folder."""
    with folder as path:
        names = sorted(name for name in os.listdir(path) if is_release_file(name) or name == RECORD_FILE)
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
    with explained(repo_id, token):
        existing = api.list_repo_files(repo_id, revision=revision)
    claims = [name for name in CLAIMS if name in existing]
    if claims and RECORD_FILE not in names:
        raise ValueError(
            f"push_adapter: {repo_id} has {', '.join(claims)}, and an adapter alone has forgotten nothing; "
            "push it to another repository"
        )
    stale = [name for name in existing if name not in names and _is_misleading(name)]
    with explained(repo_id, token):
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


def _listed(names: Sequence[str]) -> str:
    """Names that anybody may have chosen, in printable characters; sixteen at most."""
    more = f" and {len(names) - 16} more" if len(names) > 16 else ""
    return ", ".join(name if name.isascii() and name.isprintable() else ascii(name) for name in names[:16]) + more


def _is_misleading(name: str) -> bool:
    return name.endswith(WEIGHT_SUFFIXES) or name in CLAIMS or name.rpartition("/")[2] == ADAPTER_CONFIG


def _api(token: str | None) -> HfApi:
    return HfApi(token=token, library_name="hf_unlearn")
