"""What a contestant measures of itself: time and memory. Needs only NumPy."""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SEED = 7
PRODUCT = 2048
"""Side of the matrices whose product measures the peak rate of the machine."""
_megabytes_of_imports: list[float] = []


@functools.lru_cache
def images(count: int, size: int) -> np.ndarray:
    """The same noise in every process, `(count, size, size, 3)` in [0, 1]."""
    return np.random.default_rng(SEED).random((count, size, size, 3), np.float32)


def milliseconds(function: Callable[..., Any], batch: Any) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    function(batch)
    return 1000 * (time.perf_counter() - started)


def imported() -> None:
    """Notes how large the process is with nothing but its libraries."""
    _megabytes_of_imports.append(resident("VmRSS"))


def forget_memory() -> None:
    """Sets the highest mark of the process's memory back to what is in use now; only Linux has one."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")


def memory() -> dict[str, float]:
    """The most memory since `forget_memory` in megabytes: `"total"` of the process, and `"own"` without its imports."""
    total = resident("VmHWM")
    return {"total": total, "own": total - _megabytes_of_imports[0]}


def resident(field: str) -> float:
    """What the system says of this process: `"VmRSS"`, the memory in use, or `"VmHWM"`, its highest mark."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))
