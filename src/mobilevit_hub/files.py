"""Writing files and folders so that a reader finds the old content or the new, never half of either."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import SaveError, SourceError

TEMPORARY_PREFIX = ".tmp-mvh-"
STALE_SECONDS = 3600
# Written last, because a folder is only opened through it.
LAST_FILE = "config.json"


def sha256_of(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """Where this package keeps what it can make again: compiled kernels, files that the web demo exported.

    Raises:
        RuntimeError: The user has no home.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mobilevit_hub"


def json_bytes(data: Any) -> bytes:
    """JSON with sorted keys and a final newline: equal data gives equal bytes."""
    return (json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


@contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Turns what the operating system says about reading a file into one line."""
    try:
        yield
    except OSError as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{path}: cannot be read: {error.strerror or type(error).__name__}.", path=path) from error


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for files that are gone when the block ends.

    Raises:
        SaveError: The system has no place for it; `TMPDIR` names one.
    """
    try:
        folder = tempfile.TemporaryDirectory()
    except OSError as error:
        raise SaveError(f"No temporary folder can be made: {error.strerror or error}; set TMPDIR.") from error
    with folder as name:
        yield Path(name)


def write_file(path: str | Path, content: bytes) -> None:
    """Writes one file atomically, with ordinary permissions; through a link, to what it points to.

    Raises:
        SaveError: It could not be written; what was there before is unchanged.
    """
    path = Path(path)
    with _saving(path, len(content)):
        target = path.resolve()
        _refuse_hub_cache(target)
        temporary = _stage(target.parent, content)
        try:
            _give_mode(temporary, target)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(target.parent)


def write_folder(folder: str | os.PathLike, files: dict[str, bytes]) -> None:
    """Writes files into a folder, `config.json` last.

    A new folder appears whole, by one rename. In an existing folder the files are staged first and
    then renamed one by one, so a reader in between sees whole files; `save_id` in weights and config
    tells it when the two belong to different saves. Files of other names are left alone, and so is
    what a link inside the folder points to.

    Raises:
        SaveError: It could not be written; the folder is as it was before.
    """
    folder = Path(folder)
    names = sorted(files, key=lambda name: (name == LAST_FILE, not name.endswith(".safetensors"), name))
    with _saving(folder, sum(map(len, files.values()))):
        target = folder.resolve()
        _refuse_hub_cache(target)
        if target.exists() and not target.is_dir():
            raise SaveError(f"Cannot save into {str(folder)!r}: it is a file, not a folder.", path=folder)
        contents = {name: files[name] for name in names}
        if target.exists() or not _write_new_folder(target, contents):
            _replace_files(target, contents)


def _write_new_folder(target: Path, contents: dict[str, bytes]) -> bool:
    """Builds the folder beside its place and renames it; false when another process was faster."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(target.parent)
    staging = target.parent / _temporary_name()
    try:
        staging.mkdir()
        for name, content in contents.items():
            os.replace(_stage(staging, content), staging / name)
        _sync_folder(staging)
        os.replace(staging, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    _sync_folder(target.parent)
    return True


def _replace_files(target: Path, contents: dict[str, bytes]) -> None:
    _remove_stale(target)
    staged: dict[Path, Path] = {}
    kept: dict[Path, Path | None] = {}
    try:
        for name, content in contents.items():
            staged[target / name] = _stage(target, content)
        with _locked(target):
            try:
                for final, temporary in staged.items():
                    _give_mode(temporary, final)
                    kept[final] = _second_name(final)
                    os.replace(temporary, final)
            except BaseException:
                for final, old in kept.items():
                    if old is not None:
                        os.replace(old, final)
                    elif not staged[final].exists():
                        final.unlink(missing_ok=True)
                raise
    finally:
        for leftover in (*staged.values(), *kept.values()):
            if leftover is not None:
                leftover.unlink(missing_ok=True)
    _sync_folder(target)


def _second_name(path: Path) -> Path | None:
    """Keeps a file under a second, hidden name, so that it can be put back; None if there is none."""
    if not os.path.lexists(path):
        return None
    kept = path.parent / _temporary_name()
    try:
        os.link(path, kept, follow_symlinks=False)
    except (OSError, NotImplementedError):  # not every file system can
        shutil.copy2(path, kept, follow_symlinks=False)
    return kept


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps two savers from renaming at the same time, where the system has such locks."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _refuse_hub_cache(path: Path) -> None:
    """Its files are shared by name of their hash, so nobody may change them."""
    if {"snapshots", "blobs"} & set(path.parts) and any(part.startswith("models--") for part in path.parts):
        raise SaveError(f"Cannot save into {str(path)!r}: it is part of the Hub's cache.", path=path)


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
            errno.EEXIST: "a part of the path is a file",
            errno.EISDIR: "it is a folder",
        }
        reason = reasons.get(error.errno or 0, error.strerror or type(error).__name__)
        raise SaveError(f"Cannot save {str(path)!r}: {reason}. What was there before is kept.", path=path) from error
    except (ValueError, RuntimeError) as error:  # a NUL byte in the name, a loop of links
        raise SaveError(f"Cannot save {str(path)!r}: {error}.", path=path) from error


def _free_bytes(path: Path) -> int:
    # `os.path.isdir` says no where `Path.is_dir` raises, as for names that are too long.
    return next((shutil.disk_usage(f).free for f in (path, *path.absolute().parents) if os.path.isdir(f)), 0)


def _temporary_name() -> str:
    return f"{TEMPORARY_PREFIX}{os.getpid()}-{uuid.uuid4().hex[:8]}"


def _stage(folder: Path, content: bytes) -> Path:
    """Writes content under a hidden name beside its target and waits until it is on the disk."""
    temporary = folder / _temporary_name()
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
            # Not the time of the content: a second name of an old file is as old as that.
            if time.time() - leftover.lstat().st_ctime > STALE_SECONDS:
                if leftover.is_dir():
                    shutil.rmtree(leftover, ignore_errors=True)
                else:
                    leftover.unlink()


def write_json(path: str | Path, data: Any) -> None:
    """Writes JSON with sorted keys, atomically."""
    write_file(path, json_bytes(data))
