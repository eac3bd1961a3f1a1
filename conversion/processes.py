"""Runs libraries in processes of their own, one framework after the other.

Memory is that of the larger framework and not the sum, what a library prints does not reach the terminal, and one
that crashes takes nothing with it. Such a process runs this file as well; so nothing is imported here, before
`_main` has chosen, that loads a framework.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import numpy as np

from mobilevit_hub.checkpoints.tensors import read_tensors, to_safetensors
from mobilevit_hub.errors import ExportError, MissingDependencyError
from mobilevit_hub.files import temporary_folder
from mobilevit_hub.hub.download import WEIGHT_FILES

GROUPS = (("PyTorch", "transformers", "timm"), ("Keras",))
"""Libraries that share a process."""
_SOURCE_FILE = "source.safetensors"


def run_in_processes(
    libraries: list[str], folder: Path, source_tensors: dict[str, np.ndarray] | None, progress: bool
) -> dict[str, dict[str, np.ndarray] | Exception]:
    """What `libraries.run_library`, whose arguments these are, returns for each library, or why it does not."""
    from tqdm import tqdm

    endings: dict[str, str] = {}
    with temporary_folder() as workplace:
        if source_tensors is not None and "timm" in libraries:
            (workplace / _SOURCE_FILE).write_bytes(to_safetensors(source_tensors, {}))
        groups = [[library for library in group if library in libraries] for group in GROUPS]
        for group in tqdm(list(filter(None, groups)), desc="verifying", disable=not progress, leave=False):
            endings |= dict.fromkeys(group, _run_process(group, folder, workplace))
        return {library: _result(workplace, library, endings[library]) for library in libraries}


def _run_process(libraries: list[str], folder: Path, workplace: Path) -> str:
    """Runs libraries in a process, which writes into `workplace`; returns how it ended."""
    log = workplace / "log"
    # By its file: by its name the package around it would be imported first. -P: nothing beside the file is found.
    command = [sys.executable, "-P", __file__, str(folder), str(workplace), *libraries]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "MALLOC_MMAP_THRESHOLD_": "131072",  # glibc would else keep most of what was freed
        "CUDA_VISIBLE_DEVICES": "-1",  # where float32 products are rounded more than the tolerances allow
    }
    with (
        open(log, "wb") as output,
        subprocess.Popen(  # noqa: S603 - this interpreter and this module
            command, env=environment, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            status = process.wait()
        finally:  # which only matters when the wait was interrupted
            process.kill()
            process.wait()
    last = (log.read_text("utf-8", "replace").strip().splitlines() or ["it printed nothing"])[-1]
    if status < 0:
        return f"its process was ended by {signal.Signals(-status).name}: {last}"
    return f"its process ended with status {status}: {last}"


def _result(workplace: Path, library: str, ending: str) -> dict[str, np.ndarray] | Exception:
    """What a process has written for one of its libraries."""
    maps, failure = workplace / f"{library}.safetensors", workplace / f"{library}.txt"
    if maps.is_file():
        return read_tensors(maps)[0]
    kind, _, text = failure.read_text("utf-8").partition(": ") if failure.is_file() else ("", "", ending)
    return MissingDependencyError(text) if kind == MissingDependencyError.__name__ else ExportError(text)


class _WithoutTorch(PathFinder):
    """Finds every module but PyTorch."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> Any:
        return None if name.partition(".")[0] == "torch" else super().find_spec(name, path, target)


def _hide_torch(folder: Path) -> None:
    """Spares the Keras process PyTorch, which transformers would load for nothing: 300 MB and seconds."""
    import keras

    pickled = not (folder / WEIGHT_FILES[0]).is_file()  # which PyTorch reads
    if keras.backend.backend() == "tensorflow" and "torch" not in sys.modules and not pickled:
        sys.meta_path[:] = [_WithoutTorch if finder is PathFinder else finder for finder in sys.meta_path]


def _end_with_parent() -> None:
    os.read(0, 1)  # returns when the parent, which never writes, has ended in whatever way
    os._exit(1)


def _main(folder: Path, workplace: Path, libraries: list[str]) -> None:
    """Runs libraries and writes for each its maps, or a text with the error."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    source = workplace / _SOURCE_FILE
    for library in libraries:
        try:
            if library == "Keras":
                _hide_torch(folder)
            from mobilevit_hub.conversion.libraries import run_library  # absolute: this file is the program

            source_tensors = read_tensors(source)[0] if library == "timm" and source.is_file() else None
            maps = run_library(library, folder, source_tensors)
            (workplace / f"{library}.safetensors").write_bytes(to_safetensors(maps, {}))
        except Exception as error:  # whatever a foreign library raises on a file that it cannot use
            (workplace / f"{library}.txt").write_text(f"{type(error).__name__}: {error}", "utf-8")


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
