"""The folded network by `kernels.cpp`, which is compiled once for this processor.

Needs a C++ compiler (`CXX`, or `c++`, `g++` or `clang++` on the path) at the first use, for some seconds; the library
is kept in the user's cache folder. Computes in float32 on CPUs, at every image size, what `plan` can put into steps.
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
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .folded import FoldedClassifier
from .plan import Plan

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = ["-O3", "-march=native", "-std=c++17", "-fno-math-errno", "-fPIC", "-shared", "-pthread"]
MAX_PLANS, MAX_THREADS = 8, 64


def compiler() -> str | None:
    """The C++ compiler of this machine, or None."""
    names = (os.environ.get("CXX", ""), "c++", "g++", "clang++")
    return next((found for name in names if name and (found := shutil.which(name))), None)


@functools.cache
def library() -> ctypes.CDLL:
    """`kernels.cpp`, compiled for this processor; from the cache where it was compiled before.

    Raises:
        OSError: There is no compiler, or it cannot compile the file; the message says which.
    """
    found = compiler()
    processor = Path("/proc/cpuinfo")
    flags = (
        [line for line in processor.read_text("utf-8").splitlines() if "flags" in line] if processor.exists() else []
    )
    made_of = [SOURCE.read_text("utf-8"), *FLAGS, str(found), platform.platform(), *flags[:1]]
    name = f"kernels-{hashlib.sha256(chr(0).join(made_of).encode()).hexdigest()[:16]}.so"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mobilevit_hub"
    file = home / name
    if not file.exists():
        if found is None:
            raise OSError("no C++ compiler: neither CXX nor c++, g++ or clang++ on the path")
        try:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:  # no home, or a full disk: for this process alone
            home = Path(tempfile.mkdtemp(prefix="mobilevit_hub-"))
        with tempfile.TemporaryDirectory(dir=home) as folder:
            made = Path(folder, name)
            done = subprocess.run(  # noqa: S603 - the user's own compiler on this package's own file
                [found, *FLAGS, str(SOURCE), "-o", str(made)], capture_output=True, text=True
            )
            if done.returncode:
                raise OSError(f"{found} cannot compile {SOURCE.name}: {' '.join(done.stderr.split())[:300]}")
            file = home / name
            made.replace(file)
    loaded = ctypes.CDLL(str(file))
    loaded.step_fields.restype = loaded.step_kinds.restype = ctypes.c_char_p
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    loaded.run.restype = pointer
    loaded.run.argtypes = [
        pointer, pointer, integer, pointer, pointer, integer, pointer, integer, pointer, integer, integer, integer,
        integer,
    ]  # fmt: skip
    return loaded


_TURN = threading.Lock()
_crews: dict[tuple[int, int], int] = {}
"""Threads that wait for the next call, by process, since they do not outlive a fork, and number."""


class Kernels:
    """A folded network that runs in C++. Calls from several Python threads take turns, of all networks together.

    Args:
        network: The folded network, of which `unsupported` says nothing.

    Raises:
        OSError: As `library`.
    """

    def __init__(self, network: FoldedClassifier) -> None:
        self.network, self._library = network, library()
        self._plan = functools.lru_cache(MAX_PLANS)(self._make_plan)
        self._weights: np.ndarray | None = None
        self._arenas: dict[tuple[int, int], np.ndarray] = {}

    def _make_plan(self, height: int, width: int) -> Plan:
        fields, kinds = (names().decode().split() for names in (self._library.step_fields, self._library.step_kinds))
        plan = Plan(self.network, height, width, int(self._library.lanes()), fields, kinds)
        if self._weights is None:
            self._weights = plan.weights
        plan.weights = self._weights  # the same at every size
        return plan

    def __call__(self, pixel_values: Tensor) -> Tensor:
        """Maps images `(B, 3, H, W)` to logits `(B, num_labels)`, with as many threads as PyTorch would use."""
        images = pixel_values.contiguous()
        threads = min(torch.get_num_threads(), MAX_THREADS)
        with _TURN:
            plan = self._plan(*images.shape[2:])
            logits = torch.empty((len(images), plan.labels))
            arenas = self._arenas_of(images.shape[2:], plan, threads if len(images) >= threads else 1)
            crew = os.getpid(), threads
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
            self._arenas = {key: np.zeros((count, plan.arena), np.float32)}  # of the latest size only
        return self._arenas[key]
