"""What an evaluation has found so far, in files that a kill at any moment leaves usable.

Each process appends to a file of its own, one record for each batch: its number, its rows, and a checksum. A reader
takes the records up to the first that is cut short or damaged, so that at most the batch being written is lost. A file
begins with the hash of the settings that its rows belong to; a reader that has others ignores it.
"""

from __future__ import annotations

import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, SourceError

MAGIC = b"MVHROWS1"
_HEAD = struct.Struct("<III")  # batch, bytes, checksum
END = 0xFFFFFFFF
"""In place of a batch: the number of photos, which for a stream is known at its end only."""
LOCK_SECONDS = 5.0
DEAD_SECONDS = 60.0
"""So long nothing comes from a process whose file nobody holds open, before it is taken for dead."""
SILENT_SECONDS = 1800.0
"""So long nothing comes from a process at all."""


class Records:
    """The rows of all photos, by batch.

    Args:
        folder: Where the files are; None keeps the rows in memory.
        digest: 32 bytes, the hash of the settings.
        dtype: Type of a row; the rows of a batch are an array `(photos, models)` of it.
        models: Number of models.
        rank: Number of this process.
        keep: Whether to go on with the records in the file of this process.

    Raises:
        InputError: Another process writes this file.
    """

    def __init__(
        self, folder: Path | None, digest: bytes, dtype: np.dtype, models: int, rank: int = 0, keep: bool = False
    ) -> None:
        self.folder, self.digest, self.dtype, self.models = folder, digest, dtype, models
        self.batches: dict[int, np.ndarray] = {}
        self.total: int | None = None
        """Number of photos, once a process has seen the end of a stream."""
        self._file: Any = None
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = path_of(folder, rank)
        self._file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115 - closed by close()
        if not _lock(self._file):
            self._file.close()
            raise InputError(f"{path}: another process writes this file; wait for it, or end it.", path=path)
        length = self._read(path) if keep else 0
        self._file.truncate(length)
        self._file.seek(length)
        if not length:
            self._file.write(MAGIC + digest)
            self._file.flush()

    def read_all(self) -> None:
        """Takes in what all processes have written so far."""
        if self.folder is not None:
            for path in files_in(self.folder):
                self._read(path)

    def _read(self, path: Path) -> int:
        """Takes in the records of one file; returns the length of its good part, 0 where it is not of this run."""
        content = path.read_bytes()
        start = len(MAGIC) + len(self.digest)
        if content[:start] != MAGIC + self.digest:
            return 0
        while start + _HEAD.size <= len(content):
            batch, size, checksum = _HEAD.unpack_from(content, start)
            payload = content[start + _HEAD.size : start + _HEAD.size + size]
            if len(payload) < size or _checksum(batch, payload) != checksum:
                break
            if batch == END:
                self.total = int.from_bytes(payload, "little")
            else:
                self.batches[batch] = np.frombuffer(payload, self.dtype).reshape(-1, self.models)
            start += _HEAD.size + size
        return start

    def add(self, batch: int, rows: np.ndarray) -> None:
        """Keeps the rows of a batch, `(photos, models)`."""
        self.batches[batch] = rows
        self._append(batch, rows.tobytes())

    def end(self, total: int) -> None:
        """Notes the number of photos."""
        self.total = total
        self._append(END, total.to_bytes(8, "little"))

    def _append(self, batch: int, payload: bytes) -> None:
        if self._file is None:
            return
        try:
            self._file.write(_HEAD.pack(batch, len(payload), _checksum(batch, payload)) + payload)
            self._file.flush()
        except OSError as error:
            raise SourceError(
                f"{self._file.name}: cannot be written: {error.strerror}. Continue later with --resume.",
                path=self._file.name,
            ) from error

    def missing(self, batch_size: int) -> list[int]:
        """Numbers of the batches that nobody has written; the total must be known."""
        return [b for b in range(-(-(self.total or 0) // batch_size)) if b not in self.batches]

    def wait(self, batch_size: int, processes: int) -> None:
        """Waits until all batches are there.

        Raises:
            SourceError: Another process has died, or is silent.
        """
        seen, since = -1, time.monotonic()
        while True:
            self.read_all()
            if self.total is not None and not self.missing(batch_size):
                return
            if len(self.batches) > seen:
                seen, since = len(self.batches), time.monotonic()
            silent = time.monotonic() - since
            folder = self.folder or Path()
            dead = [rank for rank in range(1, processes) if not is_open(path_of(folder, rank))]
            if silent > SILENT_SECONDS or (dead and silent > DEAD_SECONDS):
                who = f"process {dead[0]} of {processes} has ended" if dead else "the other processes are silent"
                raise SourceError(
                    f"{folder}: batches are missing and {who}; see its messages, then run the same command with "
                    "--resume.",
                    path=folder,
                )
            time.sleep(0.2)

    def rows(self, batch_size: int) -> np.ndarray:
        """The rows of all photos in their order, `(n, models)`."""
        batches = [self.batches[b] for b in range(-(-(self.total or 0) // batch_size))]
        return np.concatenate([np.empty((0, self.models), self.dtype), *batches])

    def close(self) -> None:
        """Closes the file of this process, by which others see that it has ended."""
        if self._file is not None:
            self._file.close()


def path_of(folder: Path, rank: int) -> Path:
    """The file of a process."""
    return folder / f"rows-{rank}.bin"


def files_in(folder: Path) -> list[Path]:
    """The files of all processes of a run."""
    return sorted(folder.glob("rows-*.bin"))


def _checksum(batch: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(batch.to_bytes(4, "little")))


def _lock(file: Any) -> bool:
    """Keeps a second process off a file, where the system has such locks."""
    try:
        import fcntl
    except ImportError:
        return True
    started = time.monotonic()
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() - started > LOCK_SECONDS:
                return False
            time.sleep(0.1)  # the main process may just be looking whether we live
        except OSError:  # not every file system can
            return True
        else:
            return True


def is_open(path: Path) -> bool:
    """Whether a process holds a file of rows open; true where the system cannot tell."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        file = path.open("rb")
    except OSError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:  # held, or not every file system can
            return True
    return False
