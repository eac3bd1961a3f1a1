"""Preparing photos ahead of the network that takes them.

Pillow and NumPy let other threads run while they decode, resize and copy, so a few threads prepare the next photos
while the network computes.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from ..errors import ImageError, InputError, MissingDependencyError

UNREADABLE = (ImageError, InputError, MissingDependencyError)
"""What a photo that cannot be used raises; the last one is HEIC without its plug-in."""
MOST_WORKERS, MAX_WORKERS = 8, 256
"""How many are taken by default, and how many may be asked for."""

T = TypeVar("T")


def default_workers() -> int:
    """Threads that prepare photos unless the user says how many: the processors but one, for the network."""
    return max(1, min(MOST_WORKERS, _processors() - 1))


def _processors() -> int:
    """Processors for this process; the processes of one run share those of a machine."""
    text = os.environ.get("LOCAL_WORLD_SIZE", "1")
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, allowed // max(1, int(text) if text.isdigit() else 1))


_lock = threading.Lock()
_before: list[int] = []
"""PyTorch's threads before each `room_for` that is not left yet; the first number is what the last one restores."""


@contextmanager
def room_for(workers: int) -> Iterator[None]:
    """Takes the processors of the threads that prepare photos from PyTorch, where it is loaded.

    Its threads wait for each other by spinning: with one more thread than processors they are several times slower.
    """
    torch = sys.modules.get("torch")
    if torch is None or not workers:
        yield
        return
    with _lock:
        _before.append(torch.get_num_threads())  # type: ignore[attr-defined]
        torch.set_num_threads(max(1, min(_before[0], _processors() - workers)))  # type: ignore[attr-defined]
    try:
        yield
    finally:
        with _lock:
            first = _before[0]
            _before.pop()
            if not _before:
                torch.set_num_threads(first)  # type: ignore[attr-defined]


def check_workers(workers: int | None) -> None:
    """Raises `InputError` unless `workers` is None or a number of threads from 0."""
    if workers is not None and (type(workers) is not int or not 0 <= workers <= MAX_WORKERS):
        raise InputError(
            f"workers is {workers!r}; expected a whole number from 0 to {MAX_WORKERS}.", field="workers", found=workers
        )


def prepare_ahead(
    sources: Iterable[T], prepare: Callable[[T], Any], *, workers: int, ahead: int
) -> Iterator[tuple[T, Any]]:
    """Prepares photos in threads and yields them in their order.

    Args:
        sources: What is prepared; read by the calling thread, `ahead` sources before they are yielded.
        prepare: Maps a source to what is yielded; called in several threads at the same time.
        workers: Threads; 0 prepares in the calling thread, with nothing read ahead.
        ahead: Photos in preparation or waiting at any time.

    Yields:
        `(source, result)`, where the result of a photo that cannot be used is the `UNREADABLE` error. Any other error
        is raised when its turn comes.
    """

    def attempt(source: T) -> Any:
        try:
            return prepare(source)
        except UNREADABLE as error:
            return error

    if not workers:
        yield from ((source, attempt(source)) for source in sources)
        return
    waiting: deque[tuple[T, Future[Any]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="photos") as pool:
        try:
            for source in sources:
                waiting.append((source, pool.submit(attempt, source)))
                if len(waiting) > ahead:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:  # the reader stopped early, or a source failed: nothing more is begun
            for _, future in waiting:
                future.cancel()
