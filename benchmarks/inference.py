"""Inference on the CPU against other libraries and runtimes: same weights, same images, one run.

    python benchmarks/inference.py                             # six networks, batch 1 and 32, 1 and 2 threads
    python benchmarks/inference.py --networks mobilevit-s --threads 2
    python benchmarks/inference.py --resume                    # what an interrupted run has not measured yet
    python benchmarks/inference.py --report                    # the page and the plot of what was measured

Every contestant runs in a process of its own, and they take turns. Before any timing the logits of all of
them have to agree, but for those that compute in fewer bits. Writes `inference.md`, `.json` and `.png` into
`benchmarks/results/`, and returns 1 when a target is missed. The JSON is written after each network and
number of threads.

The first run makes the environments of keras-cv-attention-models and OpenVINO (minutes, about 2 GB) under
`benchmarks/.venv/`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from inference_report import LABELS, plot, report
from model_files import SIZE, write_files
from processes import (
    ENVIRONMENTS,
    FOLDER,
    contest,
    differences,
    environment,
    has_bfloat16,
    machine,
    take_turns,
    write_results,
)

NETWORKS = ["mobilevit-xxs", "mobilevit-xs", "mobilevit-s", "mobilevitv2-0.5", "mobilevitv2-1.0", "mobilevitv2-2.0"]
INEXACT = ["pt_bf16", "tflite_int8"]
TOLERANCE = 1e-4
STARTED = ["mobilevit-s"]
"""Networks whose start is timed: one, as it depends on the library more than on the network."""
VARIANTS = ["transformers_channels_last", "timm_frozen", "tf_trainable"]
"""Contestants that are measured with the largest number of threads only, for time."""

Result = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--contestants", nargs="+", choices=list(LABELS), default=list(LABELS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--threads", nargs="+", type=int, default=[2, 1])
    parser.add_argument("--rounds", type=int, default=16, help="at batch 1; larger batches take a quarter (default 16)")
    parser.add_argument("--seconds", type=float, default=25, help="of a batch size's rounds, but two (default 25)")
    parser.add_argument("--starts", nargs="*", metavar="NETWORK", default=STARTED, help="whose start is timed")
    parser.add_argument("--resume", action="store_true", help="keep what the JSON beside --output has")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    parser.add_argument("--environments", type=Path, default=FOLDER / ".venv")
    parser.add_argument("--output", type=Path, default=FOLDER / "results" / "inference.md")
    options = parser.parse_args(arguments)
    if not has_bfloat16():
        options.contestants = [name for name in options.contestants if name != "pt_bf16"]

    saved = options.output.with_suffix(".json")
    record: Result = {"machine": machine(max(options.threads), SIZE), "networks": {}, "starts": {}}
    if (options.resume or options.report) and saved.exists():
        record = json.loads(saved.read_text("utf-8"))
    if not options.report:
        pythons = {
            name: environment(name, options.environments) for name in ENVIRONMENTS if name in options.contestants
        }
        for network in dict.fromkeys([*options.networks, *options.starts]):
            measure(network, record, saved, options, pythons)
    status = write_results(options.output, *report(record))
    plot(record, options.output.with_suffix(".png"))
    return status


def measure(network: str, record: Result, saved: Path, options: argparse.Namespace, pythons: dict[str, str]) -> None:
    """Adds to the record what it does not have of a network yet, and saves it."""
    results = record["networks"].setdefault(network, {})
    threads = [count for count in options.threads if network in options.networks and str(count) not in results]
    times_start = network in options.starts and network not in record["starts"]
    if not threads and not times_start:
        return
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(network, Path(folder), options.contestants)
        for count in threads:
            print(f"{network}: {count} threads …", file=sys.stderr, flush=True)
            most = count == max(options.threads)
            names = [name for name in options.contestants if most or name not in VARIANTS] + ["peak"]
            with contest(names, network, files, size=SIZE, threads=count, pythons=pythons) as contestants:
                results[str(count)] = {
                    str(batch): time_batch(contestants, batch, options.rounds, options.seconds)
                    for batch in options.batches
                }
            save(saved, record)
        if times_start:
            print(f"{network}: starts …", file=sys.stderr, flush=True)
            record["starts"][network] = {
                name: start(name, network, files, max(options.threads), pythons) for name in options.contestants
            }
            save(saved, record)


def save(path: Path, record: Result) -> None:
    """Writes the record as far as it goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def time_batch(everyone: list[Any], batch: int, rounds: int, seconds: float) -> Result:
    """Differences of the logits, memory, and milliseconds a call of each round; the last of all is `peak`."""
    *contestants, peak = everyone
    found = differences(contestants, "call", batch, TOLERANCE, INEXACT)
    for contestant in contestants:
        contestant.ask("forget")
    turns = {contestant.name: (contestant, "call") for contestant in contestants}
    if batch == 1 and "tf" in turns:
        turns["tf.predict"] = (turns["tf"][0], "predict")
    turns |= {"peak": (peak, "float32"), "peak.bfloat16": (peak, "bfloat16")}
    if batch == 1:
        times = take_turns(list(turns.values()), batch, rounds, 4, seconds=seconds)
    else:
        times = take_turns(list(turns.values()), batch, max(rounds // 4, 2), 1, warm_up=0, seconds=seconds)
    used = {contestant.name: contestant.ask("memory") for contestant in contestants}
    rounded = [[round(value, 3) for value in taken] for taken in times]
    return {"differences": found, "memory": used, "ms": dict(zip(turns, rounded, strict=True))}


def start(name: str, network: str, files: dict[str, Path], threads: int, pythons: dict[str, str]) -> Result:
    """Seconds from nothing to the first logits, with nothing compiled before and again; megabytes at most by then."""
    seconds = []
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(2):
            started = time.perf_counter()
            with contest(
                [name], network, files, size=SIZE, threads=threads, pythons=pythons, cache=Path(cache)
            ) as contestants:
                contestants[0].ask("result", "call", 1)
                seconds.append(time.perf_counter() - started)
                megabytes = contestants[0].ask("highest")
    return {"first": seconds[0], "again": seconds[1], "megabytes": megabytes}


if __name__ == "__main__":
    sys.exit(main())
