"""Inference of the Keras twin on the CPU against other libraries: same weights, same images, one run.

    python benchmarks/keras_inference.py                       # XXS, S and v2-1.0; batch 1 and 16; 2 threads
    python benchmarks/keras_inference.py --networks mobilevit-s --threads 1

Every contestant runs in a process of its own, and they take turns. Before any timing the logits of all of
them have to agree. Writes `keras_inference.md` and `.json` into `benchmarks/results/`, and returns 1 when a
target is missed. Takes minutes, on a machine that does nothing else.

The first run makes the environments of keras-cv-attention-models and timm (minutes, about 3 GB) under
`benchmarks/.venv/`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from processes import ENVIRONMENTS, FOLDER, contest, differences, environment, machine, row, take_turns, write_results

NETWORKS = ["mobilevit-xxs", "mobilevit-s", "mobilevitv2-1.0"]
SIZE = 256
LABELS = {
    "fused": "this package, `fuse(model)`",
    "predict": "this package, `fuse(model).predict`",
    "plain": "this package, trainable model in `tf.function`",
    "kecam": "keras-cv-attention-models in `tf.function`",
    "transformers": "transformers, channels_last",
    "timm": "timm, channels_last",
}


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--contestants", nargs="+", default=[name for name in LABELS if name != "predict"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--rounds", type=int, default=40, help="at batch 1; larger batches take a third (default 40)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--environments", type=Path, default=FOLDER / ".venv")
    parser.add_argument("--output", type=Path, default=FOLDER / "results" / "keras_inference.md")
    options = parser.parse_args(arguments)

    pythons = {name: environment(name, options.environments) for name in ENVIRONMENTS if name in options.contestants}
    record: dict[str, Any] = {"machine": machine(options.threads, SIZE), "networks": {}}
    for network in options.networks:
        with contest(options.contestants, network, size=SIZE, threads=options.threads, pythons=pythons) as contestants:
            found = differences(contestants, "call", 2, 1e-4)
            times = {}
            for batch in options.batches:
                turns = [(contestant, "call") for contestant in contestants]
                if batch == 1:
                    turns += [(contestant, "predict") for contestant in contestants if contestant.name == "fused"]
                rounds = (options.rounds, 4) if batch == 1 else (max(options.rounds // 3, 2), 1)
                names = [contestant.name if what == "call" else what for contestant, what in turns]
                times[str(batch)] = dict(zip(names, take_turns(turns, batch, *rounds), strict=True))
        record["networks"][network] = {"differences": found, "ms": times}
    return write_results(options.output, *report(record))


def goal_of(network: str, name: str, batch: int) -> tuple[str, float]:
    """The target of a ratio: `"≥"` or `"≤"`, and the number; nothing is asked where it is `"≥"` 0."""
    if name == "predict":
        return "≤", 1.3
    if name == "kecam":
        return "≥", 1.3 if network == "mobilevit-xxs" and batch == 1 else 1.1
    return "≥", 1.0 if name == "transformers" else 0.0


def report(record: dict[str, Any]) -> tuple[list[str], dict[str, Any], list[str]]:
    """The lines of the Markdown page, the record, and the targets that were missed."""
    about, missed = record["machine"], []
    lines = [
        "# Inference of the Keras twin on a CPU",
        "",
        f"{about['processor']}, {about['cores']} cores, {about['threads']} threads, {about['image']}×{about['image']} "
        "pixels, float32. Milliseconds a call: median over the rounds, and quartiles; then how many times as long as "
        "the inference form it takes. Written by `python benchmarks/keras_inference.py`.",
    ]
    for network, result in record["networks"].items():
        for batch, times in result["ms"].items():
            base = times.get("fused") or next(iter(times.values()))
            lines += ["", f"## {network}, batch {batch}, {len(base)} rounds", ""]
            lines += ["| | ms | ratio | target | logits differ by |", "|---|---|---|---|---|"]
            for name in (name for name in LABELS if name in times):
                sign, target = goal_of(network, name, int(batch))
                ratio = statistics.median(times[name]) / statistics.median(base)
                if ratio < target if sign == "≥" else ratio > target:
                    missed.append(f"{network}, batch {batch}, {name} {ratio:.2f} ({sign} {target})")
                difference = result["differences"].get(name)
                more = (f"{sign} {target}" if target else "", "" if difference is None else f"{difference:.0e}")
                lines.append(row(LABELS[name], times[name], base, *more))
    return lines, record, missed


if __name__ == "__main__":
    sys.exit(main())
