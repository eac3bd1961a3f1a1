"""What every published classifier costs on this machine, for `mobilevit-hub list --fits`.

    python benchmarks/measured.py                              # all of them, 1 and 2 threads
    python benchmarks/measured.py --resume                     # what an interrupted run has not measured yet

One image of the checkpoint's own resolution, in the PyTorch and the Keras twin's inference form and as a
`.tflite` file in float32 and int8, which take turns. Weights are random: their values change no time, and the
published ones need not be fetched. Checkpoints that differ in their weights alone are measured once. Writes
`src/mobilevit_hub/assets/measured.csv`, a network at a time.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import tempfile
from dataclasses import asdict, fields
from io import StringIO
from pathlib import Path

from model_files import write_files
from processes import contest, differences, machine, take_turns

from mobilevit_hub.files import write_file
from mobilevit_hub.hub.chooser import TABLE, Measurement, measurements
from mobilevit_hub.hub.presets import Preset, list_presets

CONTESTANTS = {"pt": "pt", "tf": "tf", "tflite": "tflite", "tflite_int8": "tflite-int8"}
"""Functions of `inference_contestants.py`, and how the table calls them."""
PRESETS = list_presets("image-classification")


def main(arguments: list[str] | None = None) -> int:
    """Measures, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", metavar="NAME", default=[preset.name for preset in PRESETS])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--resume", action="store_true", help="keep what was measured on this processor before")
    options = parser.parse_args(arguments)

    processor = machine(1, 0)["processor"]
    rows = [row for row in measurements() if row.processor == processor] if options.resume else []
    for same in networks(options.networks):
        known = {row.threads for row in rows if row.name == same[0].name}
        if missing := [threads for threads in options.threads if threads not in known]:
            rows += measure(same, missing, options.rounds, processor)
            write_table(rows)
    return 0


def networks(names: list[str]) -> list[list[Preset]]:
    """The checkpoints of these names, those together whose networks are the same."""
    groups: dict[str, list[Preset]] = {}
    for preset in PRESETS:
        if preset.name in names:
            groups.setdefault(f"{preset.config} {preset.num_labels}", []).append(preset)
    return list(groups.values())


def measure(same: list[Preset], threads: list[int], rounds: int, processor: str) -> list[Measurement]:
    """The rows of checkpoints whose networks are the same."""
    preset, rows = same[0], []
    with tempfile.TemporaryDirectory() as folder:
        labels = {"num_labels": preset.num_labels}
        files = write_files(preset.name, Path(folder), CONTESTANTS, preset.resolution, **labels)
        sizes = {name: path if path.is_file() else path / "model.safetensors" for name, path in files.items()}
        for count in threads:
            print(f"{preset.name}: {count} threads …", file=sys.stderr, flush=True)
            names = list(CONTESTANTS)
            with contest(names, preset.name, files, size=preset.resolution, threads=count, pythons={}) as contestants:
                differences(contestants, "call", 1, 1e-4, ["tflite_int8"])
                times = take_turns([(contestant, "call") for contestant in contestants], 1, rounds, 4)
            rows += [
                Measurement(
                    name=one.name,
                    runtime=CONTESTANTS[name],
                    threads=count,
                    milliseconds=round(statistics.median(taken), 2),
                    megabytes=round(sizes[name].stat().st_size / 1e6, 2),
                    processor=processor,
                )
                for one in same
                for name, taken in zip(names, times, strict=True)
            ]
    return rows


def write_table(rows: list[Measurement]) -> None:
    """Writes the table, complete or not at all."""
    text = StringIO(newline="")
    writer = csv.DictWriter(text, [field.name for field in fields(Measurement)], lineterminator="\n")
    writer.writeheader()
    order = {preset.name: i for i, preset in enumerate(PRESETS)}
    writer.writerows(asdict(row) for row in sorted(rows, key=lambda row: (order[row.name], row.threads)))
    write_file(TABLE, text.getvalue().encode())


if __name__ == "__main__":
    sys.exit(main())
