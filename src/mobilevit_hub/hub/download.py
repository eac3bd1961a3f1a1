"""Files of a Hub repository: fetched by name, verified, and every failure explained."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import AccessError, InputError, IntegrityError, NotFoundError, OfflineError, SourceError
from ..files import sha256_of

CONFIG_FILE = "config.json"
PROCESSOR_FILE = "preprocessor_config.json"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
KERAS_FILE = "tf_model.h5"
"""Weights of transformers' former Keras models, which only the Keras twin reads."""
# What a repository may be asked for: no code is ever fetched.
ALLOWED_FILES = frozenset({CONFIG_FILE, PROCESSOR_FILE, *WEIGHT_FILES, KERAS_FILE})
_SHA256 = re.compile(r"[0-9a-f]{64}")


def looks_like_hub_id(name: str) -> bool:
    """Whether a name has the form `owner/repository` or `repository` that the Hub allows."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def fetch(repo_id: str, filename: str, *, commit: str | None = None, **options: Any) -> Path:
    """Returns the local path of one file of a repository, downloading it when needed.

    Files that the Hub stores by hash are hashed again; one that does not match is fetched once more.

    Args:
        repo_id: `owner/repository`.
        filename: One of `ALLOWED_FILES`.
        commit: The commit that the revision stands for, when it is known: a file of it that is cached is not asked
            for again.
        options: `revision`, `token`, `cache_dir` and `local_files_only` of `hf_hub_download`.

    Raises:
        NotFoundError: The repository, revision or file does not exist.
        OfflineError: The file is not cached and the network may not or cannot be used.
        AccessError: The Hub refused.
        IntegrityError: The file is damaged, and fetching it again did not help.
    """
    from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache

    if filename not in ALLOWED_FILES:
        raise InputError(f"{filename!r} is not a file that is fetched from the Hub.", field="filename")
    pinned = options if commit is None else {**options, "revision": commit}
    with _explained(repo_id, filename, options):
        if commit and try_to_load_from_cache(repo_id, filename, options.get("cache_dir"), commit) is _CACHED_NO_EXIST:
            raise _no_file(repo_id, filename, options)
        path = Path(hf_hub_download(repo_id, filename, **pinned))
    if _is_intact(path):
        return path
    offline = options.get("local_files_only") or _offline_by_environment()
    if not offline:
        with _explained(repo_id, filename, options):
            path = Path(hf_hub_download(repo_id, filename, force_download=True, **pinned))
        if _is_intact(path):
            return path
    with suppress(OSError):  # a cache that may only be read
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    raise IntegrityError(
        f"{filename} of {repo_id!r} does not have the hash that the Hub states; it was removed from the cache. "
        + ("Connect to the network and load it again." if offline else "Load it again later."),
        path=path,
        found=filename,
    )


def _is_intact(path: Path) -> bool:
    """Compares a cached file with its hash, which is its name in the cache where the Hub knows it."""
    blob = path.resolve()
    if not blob.exists():
        return False
    return not _SHA256.fullmatch(blob.name) or sha256_of(blob) == blob.name


def _offline_by_environment() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


@contextmanager
def _explained(repo_id: str, filename: str, options: dict[str, Any]) -> Iterator[None]:
    """Turns what huggingface_hub and its network layer raise into this package's errors."""
    from huggingface_hub import constants
    from huggingface_hub import errors as hub_errors

    revision = options.get("revision") or "main"
    cache = options.get("cache_dir") or constants.HF_HUB_CACHE
    try:
        yield
    except hub_errors.GatedRepoError as error:
        raise AccessError(
            f'{repo_id!r} is gated: accept its terms on the Hub, then pass token= or run "hf auth login".',
            path=repo_id,
        ) from error
    except hub_errors.LocalEntryNotFoundError as error:
        if options.get("local_files_only") or _offline_by_environment():
            why = "HF_HUB_OFFLINE is set" if _offline_by_environment() else "local_files_only=True"
            raise OfflineError(
                f"{filename} of {repo_id!r} (revision {revision}) is not in the cache {os.fspath(cache)!r} and {why}. "
                "Load it once with network, or copy that cache folder here.",
                path=repo_id,
            ) from error
        if isinstance(error.__cause__, hub_errors.HfHubHTTPError):
            raise _bad_status(repo_id, filename, error.__cause__) from error
        if isinstance(error.__cause__, hub_errors.FileMetadataError):
            raise SourceError(
                f"{constants.ENDPOINT} does not answer like the Hub for {filename} of {repo_id!r}; check HF_ENDPOINT, "
                "or the login page of this network.",
                path=repo_id,
            ) from error
        raise OfflineError(
            f"{filename} of {repo_id!r} (revision {revision}) is not in the cache {os.fspath(cache)!r} and "
            f"{constants.ENDPOINT} cannot be reached. Check the network, or copy a filled cache folder here; "
            "'mobilevit-xxs-tiny-imagenet' needs no network.",
            path=repo_id,
        ) from error
    except hub_errors.RevisionNotFoundError as error:
        raise NotFoundError(f"{repo_id!r} has no revision {revision!r}.", path=repo_id, found=revision) from error
    except hub_errors.RepositoryNotFoundError as error:
        raise NotFoundError(
            f"No repository {repo_id!r} on {constants.ENDPOINT}, or it is private: check the spelling, or pass token=.",
            path=repo_id,
        ) from error
    except hub_errors.EntryNotFoundError as error:
        raise _no_file(repo_id, filename, options) from error
    except hub_errors.HfHubHTTPError as error:
        raise _bad_status(repo_id, filename, error) from error
    except (hub_errors.HTTPError, OSError, ValueError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(
            f"Fetching {filename} of {repo_id!r} failed: {str(error).splitlines()[0] if str(error) else error!r}.",
            path=repo_id,
        ) from error


def _no_file(repo_id: str, filename: str, options: dict[str, Any]) -> NotFoundError:
    revision = options.get("revision") or "main"
    return NotFoundError(f"{repo_id!r} (revision {revision}) has no file {filename}.", path=repo_id)


def _bad_status(repo_id: str, filename: str, error: Any) -> SourceError:
    """What the Hub's answer to a refused or failed request means."""
    from huggingface_hub import constants

    status = error.response.status_code
    kind = AccessError if status in (401, 403) else SourceError
    what = "refused access; pass a valid token=" if kind is AccessError else f"answered with status {status}"
    return kind(f"{constants.ENDPOINT} {what} for {filename} of {repo_id!r}.", path=repo_id, found=status)
