"""What it means when the Hub refuses, fails or is not there: explained once for downloads, uploads and data sets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import AccessError, ConfigError, MobileViTHubError, NotFoundError, OfflineError, SourceError


@contextmanager
def explained(repo_id: str, revision: str | None, filename: str | None = None, *, offline: str) -> Iterator[None]:
    """Turns what huggingface_hub, its storage and its network layer raise into this package's errors.

    Args:
        repo_id: The repository.
        revision: Branch, tag or commit; default: `main`.
        filename: What is downloaded; None for an upload.
        offline: What follows where the network may not or cannot be used, and what to do then.
    """
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    uploads, revision = filename is None, revision or "main"
    what = f"the upload to {repo_id!r}" if uploads else f"the download of {filename} from {repo_id!r}"
    try:
        yield
    except MobileViTHubError:
        raise
    except (hub.HTTPError, hub.EntryNotFoundError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        # What neither the cache nor the Hub gives, and the upload of a single file, have their reason behind them.
        wrapped = isinstance(error, hub.LocalEntryNotFoundError | RuntimeError) and error.__cause__ is not None
        cause: Any = error.__cause__ if wrapped else error
        reason = " ".join(str(cause).split())[:300] or type(cause).__name__
        kind: type[MobileViTHubError] = SourceError
        details: dict[str, Any] = {"path": repo_id}
        message = f"T{what[1:]} failed: {reason}"
        if isinstance(cause, hub.EntryNotFoundError) and not isinstance(cause, hub.LocalEntryNotFoundError):
            kind, message = NotFoundError, f"{repo_id!r} (revision {revision}) has no file {filename}."
        elif isinstance(cause, hub.HfHubHTTPError):
            kind, message = _refusal(cause, what, repo_id, revision, uploads)
            details["found"] = cause.response.status_code
        elif isinstance(cause, hub.HTTPError) and (wrapped or uploads):  # else it broke off in the middle
            kind = OfflineError
            message = f"{constants.ENDPOINT} cannot be reached ({type(cause).__name__}); check the network. {offline}"
        elif isinstance(cause, hub.OfflineModeIsEnabled | hub.LocalEntryNotFoundError):
            option = "HF_HUB_OFFLINE is set" if isinstance(cause, hub.OfflineModeIsEnabled) else "local_files_only=True"
            kind, message = OfflineError, f"{option}. {offline}"
        elif isinstance(cause, PermissionError) and uploads:
            kind, message = AccessError, f"T{what[1:]} was refused: {reason}; pass a token= that may write there."
        elif isinstance(cause, hub.FileMetadataError | json.JSONDecodeError | KeyError | TypeError):
            why = "check HF_ENDPOINT, or the login page of this network"
            message = f"{constants.ENDPOINT} does not answer like the Hub to {what}; {why}."
        elif "Invalid metadata in README.md" in reason:
            kind, message = ConfigError, f"{constants.ENDPOINT} does not accept the model card: {reason}"
            details["field"] = "README.md"
        raise kind(message, **details) from error


def _refusal(error: Any, what: str, repo_id: str, revision: str, uploads: bool) -> tuple[type[MobileViTHubError], str]:
    """What the Hub's answer to a refused or failed request means."""
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    status, said = error.response.status_code, " ".join((error.server_message or "").split())[:200]
    if isinstance(error, hub.GatedRepoError):
        return (
            AccessError,
            f'{repo_id!r} is gated: accept its terms on the Hub, then pass token= or run "hf auth login".',
        )
    if isinstance(error, hub.RevisionNotFoundError):
        return NotFoundError, f"{repo_id!r} has no {'branch' if uploads else 'revision'} {revision!r}."
    if status == 404 if uploads else isinstance(error, hub.RepositoryNotFoundError):
        remedy = "check the spelling, or pass token="
        return NotFoundError, f"No repository {repo_id!r} on {constants.ENDPOINT}, or it is private: {remedy}."
    if status in (401, 403):
        remedy = f"pass a token= that {'may write there' if uploads else 'is valid'}"
        return AccessError, f"{constants.ENDPOINT} refused access for {what} (status {status}); {remedy}."
    if uploads and status in (409, 412):
        return SourceError, f"{repo_id!r} changed during {what} (status {status}); push again."
    return SourceError, f"{constants.ENDPOINT} answered with status {status} to {what}: {said or 'try again later'}."


@contextmanager
def explained_data_set(hub_id: str, opened: bool = False) -> Iterator[None]:
    """Turns what `datasets` and its network layer raise into this package's errors; `opened`: after it was found."""
    try:
        yield
    except MobileViTHubError:
        raise
    except Exception as error:  # of many classes: HTTP, file systems, Arrow, its own
        chain = f"{type(error).__name__} {error} {error.__cause__} {error.__context__}"
        if "gated" in chain.lower() or "403 " in chain:  # 401 is also the answer to a name that is not there
            raise AccessError(
                f"The data set {hub_id!r} is gated or private: accept its terms on https://huggingface.co/datasets/"
                f'{hub_id}, then run "hf auth login" or set HF_TOKEN.',
                path=hub_id,
            ) from error
        if opened:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise SourceError(f"Reading the data set {hub_id!r} failed: {reason}.", path=hub_id) from error
        raise NotFoundError(
            f"No data set {hub_id!r}: it is neither a folder here nor reachable on the Hub ({type(error).__name__}).",
            path=hub_id,
        ) from error
