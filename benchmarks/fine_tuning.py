"""Fine-tunes and trains from scratch in both frameworks, with several seeds, and writes the table of accuracies."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from processes import FOLDER, table_head, table_row, write_results

MAX_DIFFERENCE, MIN_GAIN = 2.0, 10.0  # points
# Row -> options of `mobilevit-hub train`.
RUNS = {
    "PyTorch, fine-tuned": ["--framework", "pt"],
    "Keras, fine-tuned": ["--framework", "tf"],
    "Keras, from scratch": ["--framework", "tf", "--from-scratch"],
}


def train(data: str, model: str, seed: int, options: list[str], recipe: list[str]) -> tuple[float, int, int]:
    """Runs the command in a process of its own; top-1, seconds, and the number of photos it was measured on."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "mobilevit_hub.cli", "train", data, "--output", folder, "--model", model),
            *("--seed", str(seed), "--json", *options, *recipe),
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    log = json.loads(done.stdout)
    return log["top1"], log["seconds"], log["count"]


def main() -> int:
    """Runs the comparison; 1 when a target is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Options that are not listed go to `mobilevit-hub train`, "
        "e.g. --epochs 30; without: --epochs 20 --batch-size 32 --image-size 96.",
    )
    parser.add_argument("data", help="folder with train/ and validation/, each with one sub-folder per class")
    parser.add_argument("--model", default="mobilevit-xxs-tiny-imagenet", help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=FOLDER / "results" / "fine_tuning.md")
    arguments, recipe = parser.parse_known_args()
    recipe = ["--epochs", "20", "--batch-size", "32", "--image-size", "96", *recipe]  # of two the last one counts
    scores: dict[str, list[float]] = {}
    seconds: dict[str, list[int]] = {}
    for seed in range(arguments.seeds):
        for name, options in RUNS.items():
            top1, took, count = train(arguments.data, arguments.model, seed, options, recipe)
            scores.setdefault(name, []).append(100 * top1)
            seconds.setdefault(name, []).append(took)
            print(f"{name}, seed {seed}: {100 * top1:.1f} % ({took} s)", flush=True)
    record = {"data": Path(arguments.data).resolve().name, "model": arguments.model, "recipe": recipe, "count": count,
              "scores": scores, "seconds": seconds}  # fmt: skip
    return write_results(arguments.output, *report(record))


def report(record: dict[str, Any]) -> tuple[list[str], dict[str, Any], list[str]]:
    """The lines of the Markdown page, the record, and the targets that were missed."""
    scores = record["scores"]
    pytorch, keras, scratch = (float(np.mean(scores[name])) for name in RUNS)
    command = f"mobilevit-hub train {record['data']} --model {record['model']} {' '.join(record['recipe'])}"
    lines = [
        f"# Fine-tuning {record['model']} on {record['data']}",
        "",
        f"Top-1 in % on {record['count']} validation photos, {len(scores['Keras, fine-tuned'])} seeds; `{command}`. "
        "Written by `python benchmarks/fine_tuning.py`.",
        "",
        *table_head("run", "mean", "each seed", "seconds"),
    ]
    for name in RUNS:
        each = ", ".join(f"{score:.1f}" for score in scores[name])
        seconds = np.mean(record["seconds"][name])
        lines.append(table_row(name, f"{np.mean(scores[name]):.1f}", each, f"{seconds:.0f}"))
    missed = []
    if abs(keras - pytorch) > MAX_DIFFERENCE:
        missed.append(f"Keras − PyTorch {keras - pytorch:+.1f} (within {MAX_DIFFERENCE})")
    if keras - scratch < MIN_GAIN:
        missed.append(f"Keras − from scratch {keras - scratch:+.1f} (≥ {MIN_GAIN})")
    return lines, record, missed


if __name__ == "__main__":
    sys.exit(main())
