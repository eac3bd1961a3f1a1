"""What the benchmarks share: environments of other libraries, contestants that take turns, and results."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent
# What pip installs, a command each. timm is not here: `make bench` and the tests share its installation in .venv.
ENVIRONMENTS = {
    "kecam": [["tensorflow", "tf-keras==2.21.0", "keras-cv-attention-models==1.4.3"]],
    "openvino": [["openvino==2026.4.1", "numpy"]],
    "mediapipe": [["mediapipe==1.2.2"]],
    "litert-torch": [["torch==2.13.0", "litert-torch==0.10.0", "transformers==5.23.0", "pillow"]],
}

UNCONSTRAINED = ("litert-torch",)  # whose compiler wants older versions than constraints.txt has


def environment(name: str, folder: Path) -> str:
    """The Python of a library's own environment, made when it is not there."""
    home, stamp = folder / name, folder / name / "installed"
    python = str(home / "bin" / "python")
    if not stamp.exists():
        print(f"installing {name} into {home} …", file=sys.stderr, flush=True)
        venv.create(home, with_pip=True, clear=True)
        for what in ENVIRONMENTS[name]:
            constraints = [] if name in UNCONSTRAINED else ["-c", str(FOLDER.parent / "constraints.txt")]
            subprocess.run([python, "-m", "pip", "install", "--quiet", *constraints, *what], check=True)
        stamp.touch()
    return python


def machine(threads: int, size: int) -> dict[str, Any]:
    """What the times depend on."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text("utf-8").splitlines() if information.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {"processor": names[0] if names else "unknown", "cores": os.cpu_count(), "threads": threads, "image": size}


def has_bfloat16() -> bool:
    """Whether the processor multiplies in bfloat16."""
    information = Path("/proc/cpuinfo")
    return information.exists() and "bf16" in information.read_text("utf-8")


# --- contestants -----------------------------------------------------------------------------------------------------


class Contestant:
    """A process that answers questions; see `contestants.py`."""

    def __init__(self, name: str, command: list[str], threads: int, log: Path, cache: Path) -> None:
        settings = {
            "OMP_NUM_THREADS": str(threads),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "CUDA_VISIBLE_DEVICES": "-1",
            # What was compiled in another run, perhaps by another version, is not used.
            "TORCHINDUCTOR_CACHE_DIR": str(cache),
            "XDG_CACHE_HOME": str(cache),
        }
        self.name, self.log = name, log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | settings,
                text=True,
            )

    def answer(self) -> Any:
        """Its next line."""
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise RuntimeError(f"{self.name} stopped:\n{self.log.read_text('utf-8')[-3000:]}")
        return json.loads(line)

    def ask(self, *question: Any) -> Any:
        """Its answer to a question."""
        self.process.stdin.write(json.dumps(question) + "\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]
        return self.answer()

    def stop(self) -> None:
        """Ends the process."""
        self.process.stdin.close()  # type: ignore[union-attr]
        self.process.wait()


@contextmanager
def contest(
    names: list[str],
    network: str,
    files: dict[str, Path],
    *,
    size: int,
    threads: int,
    pythons: dict[str, str],
    cache: Path | None = None,
) -> Iterator[list[Contestant]]:
    """Contestants that are ready to answer.

    Args:
        names: Functions of `inference_contestants.py` or `training_contestants.py`.
        network: An alias of a preset, or a name of timm's.
        files: What each of them opens; see `model_files`.
        size: Side of the images in pixels.
        threads: Of each of them.
        pythons: The interpreter of those that need an environment of their own.
        cache: Folder in which compilers keep their results; default: one that is empty at first.

    Raises:
        RuntimeError: One of them failed.
    """
    contestants: list[Contestant] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name in names:
                command = [pythons.get(name, sys.executable), str(FOLDER / "contestants.py"), name, network]
                command += [str(files.get(name, "-")), str(size), str(threads)]
                log = Path(folder, f"{name}.log")
                contestants.append(Contestant(name, command, threads, log, cache or Path(folder, "cache")))
            for contestant in contestants:
                contestant.answer()
            yield contestants
        finally:
            for contestant in contestants:
                contestant.stop()


def differences(
    contestants: list[Contestant], what: str, count: int, tolerance: float, inexact: Collection[str] = ()
) -> dict[str, float]:
    """How far their results are from the first one's, in parts of its largest number; too far is an error.

    Args:
        contestants: Whom to compare.
        what: Their function.
        count: Images a call.
        tolerance: What is too far.
        inexact: Those that compute in fewer bits, for whom nothing is.
    """
    results = {contestant.name: np.array(contestant.ask("result", what, count)) for contestant in contestants}
    expected = next(iter(results.values()))
    found = {name: float(np.abs(v - expected).max() / np.abs(expected).max()) for name, v in results.items()}
    if not all(value < tolerance for name, value in found.items() if name not in inexact):
        raise RuntimeError(f"The contestants compute different things, so their times mean nothing: {what} {found}.")
    return found


def take_turns(
    turns: list[tuple[Contestant, str]],
    count: int,
    rounds: int,
    calls: int,
    *,
    warm_up: int = 1,
    seconds: float = float("inf"),
) -> list[list[float]]:
    """Milliseconds of each turn, one number a round: the median of its calls.

    Args:
        turns: Who does what; the order is reversed in every other round.
        count: Images a call.
        rounds: How often each has its turn.
        calls: Calls a turn. Of several the first is left out: it brings data back into the caches.
        warm_up: Rounds before those, which do not count.
        seconds: When they are up there are no more rounds; but there are two.
    """
    times: list[list[float]] = [[] for _ in turns]
    started = time.monotonic()
    for i in range(warm_up + rounds):
        if i >= warm_up + 2 and time.monotonic() - started > seconds:
            break
        for (contestant, what), taken in list(zip(turns, times, strict=True))[:: 1 if i % 2 else -1]:
            values = contestant.ask("time", what, count, calls)
            if i >= warm_up:
                taken.append(statistics.median(values[1:] or values))
    return times


# --- results ---------------------------------------------------------------------------------------------------------


def table_head(*columns: Any) -> list[str]:
    """The first two lines of a Markdown table."""
    return [table_row(*columns), "|---" * len(columns) + "|"]


def table_row(*cells: Any) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |".replace("|  |", "| |")


def row(label: str, values: list[float], base: list[float], *more: str) -> str:
    """A line of a table: label, median and quartiles in milliseconds, ratio of the medians, and what else is given."""
    low, middle, high = statistics.quantiles(values, n=4)
    return table_row(label, f"{middle:.1f} ({low:.1f}–{high:.1f})", f"{middle / statistics.median(base):.2f}", *more)


def write_results(output: Path, lines: list[str], record: dict[str, Any], missed: list[str]) -> int:
    """Writes and prints a report; returns 1 when a target was missed."""
    text = "\n".join([*lines, "", f"Targets missed: {'; '.join(missed) or 'none'}.", ""])
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    output.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(text)
    return 1 if missed else 0
