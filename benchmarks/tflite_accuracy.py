"""What each precision of a `.tflite` file loses against the checkpoint that it was made from, on labelled photos.

    python benchmarks/tflite_accuracy.py mobilevit-xxs-tiny-imagenet=tiny-imagenet/ my-model=photos/

Each argument is a checkpoint and its data set, whose training photos calibrate and whose validation photos count.
Writes `tflite_accuracy.md` and `.json` into `benchmarks/results/`, and returns 1 when a target is missed. Times are
not taken here; see `tflite_speed.py`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from processes import FOLDER, table_head, table_row, write_results

from mobilevit_hub.conversion import Export, export_all_precisions

POINTS = {"fp16": 0.1, "int8-dynamic": 0.5, "int8": 1.0}
"""Percentage points of top-1 that a precision may lose."""
LARGEST_INT8 = 0.32
"""Share of the float32 file that an 8-bit one may have."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", metavar="CHECKPOINT=DATA")
    parser.add_argument("--output", type=Path, default=FOLDER / "results" / "tflite_accuracy.md")
    options = parser.parse_args(arguments)
    lines = ["# Accuracy of exported files", ""]
    lines += [
        "Top-1 with its 95 % interval; change in percentage points; agreement with the source on the same photos;"
    ]
    lines += ["McNemar's exact test; relative difference of the logits on the built-in photos.", ""]
    record: dict[str, Any] = {}
    missed: list[str] = []
    for source in options.sources:
        name, _, data = source.rpartition("=")
        with tempfile.TemporaryDirectory() as folder:
            exports = export_all_precisions(
                name, Path(folder, "model.tflite"), calibration=data, compare=data, progress=sys.stderr.isatty()
            )
        title = f"{exports[0].record['name']} on {Path(data).name}"
        lines += table(title, exports)
        record[title] = [export.to_dict() for export in exports]
        missed += [f"{title}, {text}" for export in exports for text in misses(export)]
    for entry in (entry for entries in record.values() for entry in entries):
        del entry["path"], entry["report"]["latency"]
        entry["report"]["comparison"]["dataset"] = Path(entry["report"]["comparison"]["dataset"]).name
    return write_results(options.output, lines, record, missed)


def table(title: str, exports: list[Export]) -> list[str]:
    """A heading and a row for each file."""
    first = exports[0].comparison
    assert first is not None  # noqa: S101 - it was asked for
    height, width = exports[0].record["input"]["shape"][1:3]
    lines = [f"## {title}", ""]
    lines += [f"{height}×{width} pixels; the source has {first.source_top1:.2%} top-1 on {first.count:,} photos.", ""]
    head = ["precision", "size", "top-1", "95 % interval", "change", "agreement", "lost, gained", "McNemar p", "logits"]
    lines += table_head(*head)
    for export in exports:
        found = export.comparison
        assert found is not None  # noqa: S101 - it was asked for
        low, high = found.interval
        size = export.inspection.size
        cells = [
            export.precision,
            f"{size / 1e6:.2f} MB ({export.share_of_fp32:.1%})",
            f"{found.top1:.2%}",
            f"{low:.2%} to {high:.2%}",
            f"{100 * (found.top1 - found.source_top1):+.2f}",
            f"{found.agreement:.2%}",
            f"{found.lost}, {found.gained}",
            f"{found.p_value:.2g}",
            f"{export.difference.error:.1e}",
        ]
        lines.append(table_row(*cells))
    return [*lines, ""]


def misses(export: Export) -> list[str]:
    """Targets that a file misses."""
    found = export.comparison
    assert found is not None  # noqa: S101 - it was asked for
    texts = []
    if (lost := 100 * (found.source_top1 - found.top1)) > POINTS.get(export.precision, 0.0):
        texts.append(f"{export.precision} loses {lost:.2f} points")
    share = export.share_of_fp32
    if export.precision.startswith("int8") and share > LARGEST_INT8:
        texts.append(f"{export.precision} has {share:.1%} of the size of fp32")
    return texts


if __name__ == "__main__":
    sys.exit(main())
