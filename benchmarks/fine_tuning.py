"""Fine-tunes and trains from scratch in both frameworks, with several seeds, and writes the table of accuracies."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results"
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
        epilog="Options that are not listed go to `mobilevit-hub train`, e.g. --epochs 20 --batch-size 32.",
    )
    parser.add_argument("data", help="folder with train/ and validation/, each with one sub-folder per class")
    parser.add_argument("--model", default="mobilevit-xxs-tiny-imagenet", help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind (default: %(default)s)")
    arguments, recipe = parser.parse_known_args()
    recipe = recipe or ["--epochs", "20", "--batch-size", "32", "--image-size", "96"]
    scores: dict[str, list[float]] = {}
    seconds: dict[str, list[int]] = {}
    for seed in range(arguments.seeds):  # in turn, so that an interruption leaves whole rounds
        for name, options in RUNS.items():
            top1, took, count = train(arguments.data, arguments.model, seed, options, recipe)
            scores.setdefault(name, []).append(100 * top1)
            seconds.setdefault(name, []).append(took)
            print(f"{name}, seed {seed}: {100 * top1:.1f} % ({took} s)", flush=True)
    means = {name: float(np.mean(values)) for name, values in scores.items()}
    pytorch, keras, scratch = (means[name] for name in RUNS)
    targets = {"Keras within 2 points of PyTorch": abs(keras - pytorch) <= 2,
               "fine-tuned 10 points above scratch": keras - scratch >= 10}  # fmt: skip
    rows = [
        f"| {name} | {means[name]:.1f} | {', '.join(f'{v:.1f}' for v in scores[name])} | {np.mean(seconds[name]):.0f} |"
        for name in RUNS
    ]
    data = Path(arguments.data).resolve().name
    text = "\n".join(
        [
            f"# Fine-tuning `{arguments.model}` on {data}",
            "",
            f"Top-1 in % on {count} validation photos, {arguments.seeds} seeds each; `mobilevit-hub train {data} "
            f"{' '.join(recipe)}`.",
            "",
            "| run | mean | by seed | seconds |",
            "|---|---|---|---|",
            *rows,
            "",
            *(f"- {name}: {'yes' if met else 'NO'}" for name, met in targets.items()),
            "",
        ]
    )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "fine_tuning.md").write_text(text, "utf-8")
    (RESULTS / "fine_tuning.json").write_text(json.dumps({"scores": scores, "seconds": seconds}, indent=2), "utf-8")
    print(text)
    return 0 if all(targets.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
