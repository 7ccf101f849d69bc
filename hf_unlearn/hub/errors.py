"""What goes wrong while a release is written or sent, in one line without a token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from safetensors import SafetensorError

ADVICE = {
    401: "the Hub does not accept the token; log in with `hf auth login`, or pass another token",
    403: "the token may not write there; use one with write permission for this repository",
    404: "there is no such repository or revision, or the token may not see it; check repo_id and revision",
    409: "the repository is being changed by another commit; push again",
    412: "the repository has been changed by another commit; push again",
}


class PushError(RuntimeError):
    """An upload that the Hub has not confirmed; the message is one line that says what happened and what to do."""


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
def explained(repo_id: str, token: str | None) -> Iterator[None]:
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
