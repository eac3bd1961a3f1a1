"""Writing files and folders so that a reader finds the old content or the new, never half of either."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import SaveError

TEMPORARY_PREFIX = ".tmp-mvh-"
STALE_SECONDS = 3600
# Written last, because a folder is only opened through it.
LAST_FILE = "config.json"


def sha256_of(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_bytes(data: Any) -> bytes:
    """JSON with sorted keys and a final newline: equal data gives equal bytes."""
    return (json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def write_file(path: str | Path, content: bytes) -> None:
    """Writes one file atomically, with ordinary permissions.

    Raises:
        SaveError: It could not be written; what was there before is unchanged.
    """
    path = _writable_target(Path(path))
    with _saving(path, len(content)):
        temporary = _stage(path.parent, content)
        _give_mode(temporary, path)
        _rename(temporary, path)
        _sync_folder(path.parent)


def write_folder(folder: str | Path, files: dict[str, bytes]) -> None:
    """Writes files into a folder, `config.json` last.

    A new folder appears whole, by one rename. In an existing folder the files are staged first and
    then renamed one by one, so a reader in between sees whole files; `save_id` in weights and config
    tells it when the two belong to different saves. Files of other names are left alone.

    Raises:
        SaveError: Nothing was changed, or the folder still holds the old or the new content.
    """
    folder = Path(folder)
    target = folder.resolve()
    if target.exists() and not target.is_dir():
        raise SaveError(f"Cannot save into {str(folder)!r}: it is a file, not a folder.", path=folder)
    if {"snapshots", "blobs"} & set(target.parts) and any(p.startswith("models--") for p in target.parts):
        raise SaveError(f"Cannot save into {str(folder)!r}: it is part of the Hub's cache.", path=folder)
    size = sum(map(len, files.values()))
    names = sorted(files, key=lambda name: (name == LAST_FILE, not name.endswith(".safetensors"), name))
    with _saving(folder, size):
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(target.parent)
            staging = target.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{uuid.uuid4().hex[:8]}"
            try:
                staging.mkdir()
                for name in names:
                    staged = _stage(staging, files[name])
                    _rename(staged, staging / name)
                _sync_folder(staging)
                _rename(staging, target)
            except BaseException:
                shutil.rmtree(staging, ignore_errors=True)
                raise
            _sync_folder(target.parent)
            return
        _remove_stale(target)
        staged_files: list[tuple[Path, Path]] = []
        try:
            for name in names:
                staged_files.append((_stage(target, files[name]), target / name))
            for staged, final in staged_files:
                _give_mode(staged, final)
                _rename(staged, final)
        finally:
            for staged, _ in staged_files:
                staged.unlink(missing_ok=True)
        _sync_folder(target)


def _writable_target(path: Path) -> Path:
    """Follows a link, so that saving replaces what it points to and not the link."""
    return path.resolve() if path.is_symlink() else path


@contextmanager
def _saving(path: Path, size: int) -> Iterator[None]:
    """Turns what the operating system says into one line."""
    try:
        yield
    except OSError as error:
        if isinstance(error, SaveError):
            raise
        reasons = {
            errno.ENOSPC: f"the disk is full: {size:,} bytes are needed, {_free_bytes(path):,} are free",
            errno.EDQUOT: "the disk quota is used up",
            errno.EFBIG: f"{size:,} bytes are above the allowed file size",
            errno.EACCES: "permission denied",
            errno.EPERM: "permission denied",
            errno.EROFS: "the file system is read-only",
            errno.ENAMETOOLONG: "the name is too long",
            errno.ENOENT: "the folder above it does not exist",
            errno.ENOTDIR: "a part of the path is a file",
            errno.EISDIR: "it is a folder",
        }
        reason = reasons.get(error.errno or 0, error.strerror or type(error).__name__)
        raise SaveError(f"Cannot save {str(path)!r}: {reason}. What was there before is kept.", path=path) from error
    except ValueError as error:  # a NUL byte in the name
        raise SaveError(f"Cannot save {str(path)!r}: {error}.", path=path) from error


def _free_bytes(path: Path) -> int:
    for folder in (path, *path.absolute().parents):
        if folder.is_dir():
            return shutil.disk_usage(folder).free
    return 0


def _stage(folder: Path, content: bytes) -> Path:
    """Writes content under a hidden name beside its target and waits until it is on the disk."""
    temporary = folder / f"{TEMPORARY_PREFIX}{os.getpid()}-{uuid.uuid4().hex[:8]}"
    # Opened with 0666, so that the process's umask decides, as for any other file.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _give_mode(temporary: Path, target: Path) -> None:
    """A file that replaces another keeps its permissions."""
    with suppress(FileNotFoundError):
        os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))


def _rename(temporary: Path, target: Path) -> None:
    try:
        os.replace(temporary, target)
    except BaseException:
        if not temporary.is_dir():
            temporary.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # not every file system can; the rename itself has happened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_stale(folder: Path) -> None:
    """Removes what a killed save left here more than an hour ago."""
    for leftover in folder.glob(f"{TEMPORARY_PREFIX}*"):
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime > STALE_SECONDS:
                if leftover.is_dir():
                    shutil.rmtree(leftover, ignore_errors=True)
                else:
                    leftover.unlink()
