"""The folded network by `kernels.cpp`, which is compiled once for this processor.

Needs a C++ compiler (`CXX`, or `c++`, `g++` or `clang++` on the path) at the first use, for some seconds; the library
is kept in the user's cache folder. Computes on CPUs, at every image size, what `plan` can put into steps.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...files import cache_folder
from ...inference.folding import FoldedNetwork, with_arrays
from .plan import Plan, zeros

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = ["-O3", "-march=native", "-std=c++17", "-fno-math-errno", "-fPIC", "-shared", "-pthread"]
MAX_PLANS, MAX_THREADS = 8, 64


def compiler() -> str | None:
    """The C++ compiler of this machine, or None."""
    names = (os.environ.get("CXX", ""), "c++", "g++", "clang++")
    return next((found for name in names if name and (found := shutil.which(name))), None)


@functools.cache
def library(bfloat16: bool = False) -> ctypes.CDLL:
    """`kernels.cpp`, compiled for this processor; from the cache where it was compiled before.

    Args:
        bfloat16: Whether products take both sides in bfloat16.

    Raises:
        OSError: There is no compiler, or it cannot compile the file; the message says which.
    """
    if os.name == "nt":
        raise OSError("the kernels are not for Windows")
    options = [*FLAGS, *(["-DBFLOAT16"] if bfloat16 else [])]
    made_of = [SOURCE.read_text("utf-8"), *options, platform.platform(), *_processor()]
    name = f"kernels-{hashlib.sha256(chr(0).join(made_of).encode()).hexdigest()[:16]}.so"
    with ExitStack() as stack:
        try:
            home = cache_folder()
            if not (home / name).exists():
                home.mkdir(mode=0o700, parents=True, exist_ok=True)
                stack.enter_context(tempfile.TemporaryDirectory(dir=home))  # can it be written?
        except (OSError, RuntimeError):  # no home, a full or a read-only disk: for this process alone
            home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        file = home / name
        if file.exists():
            try:
                return _opened(file)
            except OSError:  # damaged: made again
                file.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as folder:
            made = Path(folder, name)
            _compile(options, made)
            made.replace(file)
        return _opened(file)


def _processor() -> list[str]:
    """What tells the instructions of one processor from those of another."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text("utf-8", "replace").splitlines() if file.exists() else []
    names = ("flags", "Features", "CPU implementer", "CPU part", "isa")
    first = {line.split("\t")[0].strip(): line for line in reversed(lines)}
    return [first[name] for name in names if name in first] or [platform.processor()]


def _compile(options: list[str], output: Path) -> None:
    found = compiler()
    if found is None:
        raise OSError("no C++ compiler: neither CXX nor c++, g++ or clang++ on the path")
    command = [found, *options, str(SOURCE), "-o", str(output)]
    done = subprocess.run(  # noqa: S603 - the user's own compiler on this package's own file
        command, capture_output=True, text=True, errors="replace"
    )
    if done.returncode:
        raise OSError(f"{found} cannot compile {SOURCE.name}: {' '.join(done.stderr.split())[:300]}")


def _opened(file: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(file))
    if not loaded.ready():
        raise OSError("the system does not let this process use the processor's matrix unit")
    loaded.step_fields.restype = loaded.step_kinds.restype = ctypes.c_char_p
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    loaded.run.restype = pointer
    loaded.run.argtypes = [
        pointer, pointer, integer, pointer, pointer, integer, pointer, integer, pointer, integer, integer, integer,
        integer,
    ]  # fmt: skip
    return loaded


def _return_freed_memory() -> None:
    """Gives the system back what the weights took before they were packed, about twice as much; glibc would keep it."""
    with suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


_TURN = threading.Lock()
_crews: dict[tuple[int, int], int] = {}
"""Threads that wait for the next call, by library and number; those of the numbers that were used stay, asleep."""


def _after_fork() -> None:
    """A new process has none of the threads, and nobody else's turn."""
    global _TURN
    _TURN = threading.Lock()
    _crews.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Kernels:
    """A folded network that runs in C++. Calls from several Python threads take turns, of all networks together.

    Args:
        network: The folded network, of which `unsupported` says nothing.
        bfloat16: As for `library`.

    Raises:
        OSError: As `library`.
    """

    def __init__(self, network: FoldedNetwork, bfloat16: bool = False) -> None:
        self._network, self._library = network, library(bfloat16)
        self._plan = functools.lru_cache(MAX_PLANS)(self._make_plan)
        self._weights: np.ndarray | None = None
        self._arenas: dict[tuple[int, int], np.ndarray] = {}

    def _make_plan(self, height: int, width: int) -> Plan:
        """The plan of an image size. The packed weights are the same at every size, and all that is kept of them."""
        fields, kinds = (names().decode().split() for names in (self._library.step_fields, self._library.step_kinds))
        numbers = [int(number()) for number in (self._library.pairs, self._library.chunks)]
        plan = Plan(self._network, height, width, int(self._library.lanes()), fields, kinds, *numbers)
        if self._weights is None:
            self._weights = plan.weights
            # shapes are all that the next plan needs
            self._network = with_arrays(self._network, lambda array: np.broadcast_to(np.float32(0), array.shape))
            _return_freed_memory()
        plan.weights = self._weights
        return plan

    def __call__(self, pixel_values: Tensor) -> Tensor:
        """Maps images `(B, 3, H, W)` to logits `(B, num_labels)`, with as many threads as PyTorch would use."""
        images = pixel_values.contiguous()
        threads = min(torch.get_num_threads(), MAX_THREADS)
        with _TURN:
            plan = self._plan(*images.shape[2:])
            logits = torch.empty((len(images), plan.labels))
            arenas = self._arenas_of(images.shape[2:], plan, threads if len(images) >= threads else 1)
            crew = self._library._handle, threads
            _crews[crew] = self._library.run(
                _crews.get(crew),
                plan.table.ctypes.data,
                len(plan.table),
                plan.weights.ctypes.data,
                arenas.ctypes.data,
                plan.arena,
                images.data_ptr(),
                images[0].numel(),
                logits.data_ptr(),
                plan.labels,
                plan.result,
                len(images),
                threads,
            )
        return logits

    def _arenas_of(self, size: torch.Size, plan: Plan, count: int) -> np.ndarray:
        """Arenas of one image size, kept from call to call: their borders are zero once and stay so."""
        key = (size[0], size[1])
        if key not in self._arenas or len(self._arenas[key]) < count:
            self._arenas = {key: zeros(count * plan.arena).reshape(count, -1)}  # of the latest size only
        return self._arenas[key]
