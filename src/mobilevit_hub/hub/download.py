"""Files of a Hub repository: fetched by name, verified, and every failure explained."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import InputError, IntegrityError
from ..files import sha256_of
from .failures import explained

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
    from huggingface_hub import _CACHED_NO_EXIST, constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    if filename not in ALLOWED_FILES:
        raise InputError(f"{filename!r} is not a file that is fetched from the Hub.", field="filename")
    pinned = options if commit is None else {**options, "revision": commit}
    revision, local = options.get("revision"), options.get("local_files_only") or constants.HF_HUB_OFFLINE
    cache = os.fspath(options.get("cache_dir") or constants.HF_HUB_CACHE)
    not_here = (
        f"{filename} of {repo_id!r} (revision {revision or 'main'}) is not in the cache {cache!r}: load it once with "
        "network, or copy that cache folder here; 'mobilevit-xxs-tiny-imagenet' needs no network."
    )
    with explained(repo_id, revision, filename, offline=not_here):
        if commit and try_to_load_from_cache(repo_id, filename, options.get("cache_dir"), commit) is _CACHED_NO_EXIST:
            raise EntryNotFoundError
        for force in (False,) if local else (False, True):
            path = Path(hf_hub_download(repo_id, filename, force_download=force, **pinned))
            if _is_intact(path):
                return path
    with suppress(OSError):  # a cache that may only be read
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    raise IntegrityError(
        f"{filename} of {repo_id!r} does not have the hash that the Hub states; it was removed from the cache. "
        + ("Connect to the network and load it again." if local else "Load it again later."),
        path=path,
        found=filename,
    )


def _is_intact(path: Path) -> bool:
    """Compares a cached file with its hash, which is its name in the cache where the Hub knows it."""
    blob = path.resolve()
    if not blob.exists():
        return False
    return not _SHA256.fullmatch(blob.name) or sha256_of(blob) == blob.name
