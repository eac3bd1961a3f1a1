"""A training step of the Keras twin against the PyTorch twin's: same weights, same batch, one run.

    python benchmarks/training_step.py                         # XXS and v2-0.5, batch 32, 128×128, 2 threads

One step is forward pass, loss, gradients and AdamW, without dropout. Both run in a process of their own
and take turns; before any timing their logits and the losses of two steps have to agree. Writes
`training_step.md` and `.json` into `benchmarks/results/`, and returns 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from model_files import write_files
from processes import FOLDER, contest, differences, machine, row, table_head, take_turns, write_results

NETWORKS = ["mobilevit-xxs", "mobilevitv2-0.5"]
LABELS = {
    "torch_training": "PyTorch twin, eager",
    "torch_training_channels_last": "PyTorch twin, eager, channels_last (as its command trains)",
    "keras_training": "Keras twin, the step of `fit`",
}
MAX_RATIO = 1.5


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=FOLDER / "results" / "training_step.md")
    options = parser.parse_args(arguments)

    about = machine(options.threads, options.size)
    record: dict[str, Any] = {"machine": about, "batch": options.batch, "networks": {}}
    no_dropout = {"hidden_dropout_prob": 0.0, "classifier_dropout_prob": 0.0}
    for network in options.networks:
        print(f"{network} …", file=sys.stderr, flush=True)
        with (
            tempfile.TemporaryDirectory() as folder,
            contest(
                list(LABELS),
                network,
                write_files(network, Path(folder), LABELS, **no_dropout),
                size=options.size,
                threads=options.threads,
                pythons={},
            ) as contestants,
        ):
            differences(contestants, "call", options.batch, 1e-4)
            differences(contestants, "step", options.batch, 1e-3)
            losses = differences(contestants, "step", options.batch, 1e-2)  # after one update
            times = take_turns([(c, "step") for c in contestants], options.batch, options.rounds, 1)
        record["networks"][network] = {"differences": losses, "ms": dict(zip(LABELS, times, strict=True))}
    return write_results(options.output, *report(record))


def report(record: dict[str, Any]) -> tuple[list[str], dict[str, Any], list[str]]:
    """The lines of the Markdown page, the record, and the targets that were missed."""
    about, missed = record["machine"], []
    lines = [
        "# A training step of the Keras twin",
        "",
        f"{about['processor']}, {about['cores']} cores, {about['threads']} threads, batch {record['batch']}, "
        f"{about['image']}×{about['image']} pixels, float32, AdamW, no dropout. Milliseconds a step: median over the "
        "rounds, and quartiles; then how many times as long as the faster PyTorch twin it takes. Written by `python "
        "benchmarks/training_step.py`.",
    ]
    for network, result in record["networks"].items():
        base = min((result["ms"][name] for name in LABELS if name != "keras_training"), key=statistics.median)
        lines += ["", f"## {network}, {len(base)} rounds", "", *table_head("", "ms", "ratio", "target")]
        for name, values in result["ms"].items():
            ratio = statistics.median(values) / statistics.median(base)
            target = f"≤ {MAX_RATIO}" if name == "keras_training" else ""
            if target and ratio > MAX_RATIO:
                missed.append(f"{network} {ratio:.2f} ({target})")
            lines.append(row(LABELS[name], values, base, target))
    return lines, record, missed


if __name__ == "__main__":
    sys.exit(main())
