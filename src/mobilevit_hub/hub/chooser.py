"""Which published checkpoints fit a limit of time or size: reads the table of what they were measured to cost.

Examples:
    >>> fitting(["5MB"], runtime="tflite-int8", threads=1)[0][1].runtime
    'tflite-int8'
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..choices import check_choice
from ..errors import InputError
from .presets import Preset, list_presets

TABLE = Path(__file__).parents[1] / "assets" / "measured.csv"
COMMAND = "python benchmarks/measured.py"
"""What writes the table, in a clone of the repository."""
MEASURED_RUNTIMES = ("pt", "tf", "tflite", "tflite-int8")
"""The inference forms in PyTorch and in Keras, and `.tflite` files in float32 and int8."""
_UNITS = {
    "ms": ("milliseconds", 1.0),
    "s": ("milliseconds", 1000.0),
    "kb": ("megabytes", 0.001),
    "mb": ("megabytes", 1.0),
}


@dataclass(frozen=True)
class Measurement:
    """What a checkpoint costs in a runtime."""

    name: str
    runtime: str
    """One of `MEASURED_RUNTIMES`."""
    threads: int
    milliseconds: float
    """Of one image of the checkpoint's own resolution, median."""
    megabytes: float
    """Of the file with the weights, 10⁶ bytes each."""
    processor: str


def measurements() -> list[Measurement]:
    """Reads the table."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        numbers = {"threads": int, "milliseconds": float, "megabytes": float}
        return [
            Measurement(**{name: numbers.get(name, str)(text) for name, text in row.items()})
            for row in csv.DictReader(file)
        ]


def limit_of(text: str) -> tuple[str, float]:
    """The field of `Measurement` that a limit such as `"10ms"`, `"0.1s"` or `"5MB"` is about, and its value.

    Raises:
        InputError: It is something else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s?(ms|s|kb|mb)", text.strip().lower(), re.ASCII)
    if match is None:
        raise InputError(
            f"--fits is {text!r}; expected a time or a size of the file, such as 10ms or 5MB.", field="fits", found=text
        )
    field, scale = _UNITS[match[2]]
    return field, float(match[1]) * scale


def fitting(
    limits: Iterable[str] = (), *, runtime: str | None = None, threads: int = 1, task: str | None = None
) -> list[tuple[Preset, Measurement]]:
    """The published checkpoints that fit, best published score first, each in the fastest runtime in which it fits.

    Args:
        limits: What they may take at most, see `limit_of`; all have to be met.
        runtime: One of `MEASURED_RUNTIMES`; default: any.
        threads: One of the numbers that were measured.
        task: Only checkpoints of this task.

    Raises:
        InputError: An argument is wrong, or nothing was measured with so many threads.
    """
    if runtime is not None:
        check_choice("runtime", runtime, MEASURED_RUNTIMES)
    bounds = [limit_of(text) for text in limits]
    rows = measurements()
    counts = sorted({row.threads for row in rows})
    if threads not in counts:
        raise InputError(
            f"threads is {threads!r}; measured were {' and '.join(map(str, counts))}.", field="threads", found=threads
        )
    best: dict[str, Measurement] = {}
    for row in sorted(rows, key=lambda row: row.milliseconds, reverse=True):
        fits = all(getattr(row, field) <= bound for field, bound in bounds)
        if fits and row.threads == threads and runtime in (None, row.runtime):
            best[row.name] = row  # the fastest comes last
    found = [(preset, best[preset.name]) for preset in list_presets(task) if preset.name in best]
    return sorted(found, key=lambda pair: (-(pair[0].score or 0), pair[1].milliseconds))


def notes(found: list[Measurement], threads: int) -> list[str]:
    """What a reader of the table has to know: where its numbers come from, and what its scores are not."""
    processors = " and ".join(sorted({row.processor for row in found or measurements()}))
    lines = [
        f"Measured on {processors} with {threads} thread{'s' * (threads != 1)}, one image at a time. To measure your "
        f"own machine: {COMMAND} in a clone of the repository."
    ]
    if not found:
        lines.insert(0, "Nothing fits.")
    if any(row.runtime == "tflite-int8" for row in found):
        lines.append(
            "Scores are those of the float weights; `mobilevit-hub export --compare` measures what int8 loses."
        )
    return lines
