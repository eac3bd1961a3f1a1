"""The check that is built into conversion: one checkpoint in every library that can run it, stage by stage."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mobilevit_hub.checkpoints.loading import open_checkpoint
from mobilevit_hub.errors import MissingDependencyError
from mobilevit_hub.network.architecture import STAGE_NAMES

from .libraries import (
    LIBRARIES,
    LOGITS,
    SIZES,
    Maps,
    differs_by_design,
    inexpressible,
    not_installed,
    run_library,
    size_name,
)
from .processes import run_in_processes

TOLERANCES = {**dict.fromkeys(STAGE_NAMES, 2e-4), LOGITS: 1e-4}
"""Largest difference allowed at each place; float32 rounding alone makes up to 4e-5."""


@dataclass(frozen=True)
class Row:
    """One library against the reference at one place."""

    size: str
    """Height and width of the images, such as `"104×136"`; empty where the library could not run."""
    place: str
    """`stem`, `stage1` … `stage5`, `logits`; `opening` where the library could not run."""
    library: str
    difference: float
    """max |it − reference| / mean |reference|; infinite where they cannot be compared."""
    tolerance: float
    error: str = ""
    """Why they cannot be compared, in one line."""

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.difference <= self.tolerance

    def __str__(self) -> str:
        where = ", ".join(filter(None, [self.place, self.library, self.size]))
        if self.error:
            return f"{self.error} ({where})"
        return f"{self.difference:.1e} ({where}), allowed {self.tolerance:.0e}"


@dataclass
class ParityReport:
    """How far the libraries are apart."""

    reference: str | None = None
    """The library that the others are compared with; None where none could run."""
    rows: list[Row] = field(default_factory=list)
    """In the order of the sizes and, within a size, of the network."""
    not_checked: list[str] = field(default_factory=list)
    """What was not compared and why, a line each."""
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether something was compared and all of it is within the tolerances."""
        return bool(self.rows) and all(row.passed for row in self.rows)

    @property
    def worst(self) -> Row | None:
        """The row that is largest for its tolerance; of a failed comparison the first that fails.

        What follows a wrong stage is wrong as well, so the first one names the place.
        """
        failed = (row for row in self.rows if not row.passed)
        return next(failed, None) or max(self.rows, key=lambda row: row.difference / row.tolerance, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON can hold it; differences that are not finite are None."""
        return {
            "passed": self.passed,
            "reference": self.reference,
            "seconds": round(self.seconds, 1),
            "worst": None if self.worst is None else _record(self.worst),
            "rows": [_record(row) for row in self.rows],
            "not_checked": self.not_checked,
        }

    def lines(self) -> list[str]:
        """A table with a line per size and place and a column per library, what was not checked, and the result."""
        compared = [row for row in self.rows if row.size]
        libraries = [name for name in LIBRARIES if any(row.library == name for row in compared)]
        table = [["size", "place", *libraries]] if compared else []
        for size, place in dict.fromkeys((row.size, row.place) for row in compared):
            cells = {row.library: row for row in compared if (row.size, row.place) == (size, place)}
            table.append([size, place, *(_cell(cells.get(name)) for name in libraries)])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
        lines += [f"not checked: {what}" for what in self.not_checked]
        if compared:
            lines.append(f"compared with {self.reference} in {self.seconds:.0f} s")
        return [*lines, self._result()]

    def _result(self) -> str:
        if self.worst is None:
            return f"FAIL: nothing was compared; {self.reference or 'no library'} alone can run the checkpoint here"
        if self.passed:
            return f"pass: largest difference {self.worst}"
        return f"FAIL: {self.worst}" if self.worst.error else f"FAIL: difference {self.worst}"


def _cell(row: Row | None) -> str:
    return "–" if row is None else f"{row.difference:.1e}" + " FAIL" * (not row.passed)


def _record(row: Row) -> dict[str, Any]:
    finite = row.difference if math.isfinite(row.difference) else None
    return {**asdict(row), "difference": finite, "passed": row.passed}


def compare(
    folder: str | Path,
    *,
    source_tensors: dict[str, np.ndarray] | None = None,
    own_processes: bool = True,
    progress: bool = False,
) -> ParityReport:
    """Runs a checkpoint in each library that is installed and can express it, and compares every stage.

    Args:
        folder: A checkpoint by any name that `hub.find.find_checkpoint` takes.
        source_tensors: Tensors of the file that it was made from, under timm's names; timm then runs these, so that
            the result is compared with its source. Default: the checkpoint's own, renamed.
        own_processes: Run each framework in a process of its own. False is faster and takes more memory; what the
            libraries print then reaches the terminal.
        progress: Show a progress bar.

    Returns:
        The report. A library that cannot open the checkpoint is a failed row of it.

    Raises:
        SourceError, ConfigError, CheckpointError: See `checkpoints.loading.open_checkpoint`.
    """
    started = time.perf_counter()
    checkpoint, config, tensors = open_checkpoint(folder)
    folder = checkpoint.weights_file.parent.absolute()  # a relative one could be taken for an alias
    report = ParityReport()
    has_classifier = "classifier.weight" in tensors
    del tensors  # before the processes that need memory start
    if not has_classifier:
        report.not_checked.append("all that follows stage5: the checkpoint has no classifier")
    reasons = {name: not_installed(name) or inexpressible(name, config, has_classifier) for name in LIBRARIES}
    report.not_checked += [f"{name}: {reason}" for name, reason in reasons.items() if reason]
    libraries = [name for name, reason in reasons.items() if not reason]
    run = run_in_processes if own_processes else _run_here
    _judge(report, config, run(libraries, folder, source_tensors, progress))
    report.seconds = time.perf_counter() - started
    return report


def _run_here(
    libraries: list[str], folder: Path, source_tensors: dict[str, np.ndarray] | None, progress: bool
) -> dict[str, Maps | Exception]:
    """As `run_in_processes`, without them."""
    from tqdm import tqdm

    outputs: dict[str, Maps | Exception] = {}
    for library in tqdm(libraries, desc="verifying", disable=not progress, leave=False):
        try:
            outputs[library] = run_library(library, folder, source_tensors)
        except Exception as error:  # whatever a foreign library raises on a file that it cannot use
            outputs[library] = error
    return outputs


def _judge(report: ParityReport, config: Any, outputs: dict[str, Maps | Exception]) -> None:
    """Fills a report with what the libraries computed, or why they did not."""
    maps: dict[str, Maps] = {}
    for library, output in outputs.items():
        if isinstance(output, MissingDependencyError):
            report.not_checked.append(f"{library}: {output}")
        elif isinstance(output, Exception):
            report.rows.append(Row("", "opening", library, math.inf, 0.0, _one_line(output)))
        else:
            maps[library] = output
    report.reference = next((twin for twin in ("PyTorch", "Keras") if twin in maps), None)
    if report.reference is None:
        return
    reference = maps.pop(report.reference)
    for size in SIZES:
        compared = []
        for library in maps:
            if reason := differs_by_design(library, config, size):
                report.not_checked.append(f"{library} at {size_name(size)}: {reason}")
            else:
                compared.append(library)
        for place, tolerance in TOLERANCES.items():
            key = f"{size_name(size)} {place}"
            for library in compared if key in reference else []:
                difference, error = _difference(maps[library].get(key), reference[key])
                report.rows.append(Row(size_name(size), place, library, difference, tolerance, error))


def _difference(got: np.ndarray | None, reference: np.ndarray) -> tuple[float, str]:
    """max |got − reference| / mean |reference|, and why it is infinite."""
    if got is None:
        return math.inf, "no output"
    if got.shape != reference.shape:
        return math.inf, f"shape {list(got.shape)}, expected {list(reference.shape)}"
    if not (np.isfinite(got).all() and np.isfinite(reference).all()):
        return math.inf, "values that are not finite"
    largest, scale = float(np.abs(got - reference).max()), float(np.abs(reference).mean(dtype=np.float64))
    if scale == 0:
        return (0.0, "") if largest == 0 else (math.inf, "the reference is zero everywhere")
    return largest / scale, ""


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else f"{text[:400]}…"
