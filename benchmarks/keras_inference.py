"""Inference of the Keras twin on the CPU against other libraries: same weights, same images, one run.

    python benchmarks/keras_inference.py                       # XXS, S and v2-1.0; batch 1 and 16; 2 threads
    python benchmarks/keras_inference.py --networks mobilevit-s --threads 1

Every contestant runs in a process of its own, and they take turns: in each round each is timed once for
each batch, in an order that changes. Before any timing the logits of all of them have to agree. Writes
`keras_inference.md` and `.json` into `benchmarks/results/`, and returns 1 when a target is missed.

The first run makes the environments of keras-cv-attention-models and timm (minutes, about 3 GB) under
`benchmarks/.venv/`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import numpy as np
from foreign_weights import kecam_weights, timm_weights

FOLDER = Path(__file__).parent
NETWORKS = ["mobilevit-xxs", "mobilevit-s", "mobilevitv2-1.0"]
SIZE = 256
# What pip installs, a command each. torch goes first: its CPU build must not be replaced by a later command.
ENVIRONMENTS = {
    "kecam": [["tensorflow", "tf-keras==2.21.0", "keras-cv-attention-models==1.4.3"]],
    "timm": [["torch"], ["--no-deps", "timm==1.0.31"], ["safetensors", "huggingface-hub", "pyyaml", "numpy", "pillow"]],
}
LABELS = {
    "fused": "this package, `fuse(model)`",
    "plain": "this package, trainable model in `tf.function`",
    "kecam": "keras-cv-attention-models in `tf.function`",
    "transformers": "transformers, channels_last",
    "timm": "timm, channels_last",
    "predict": "this package, `fuse(model).predict`",
}
# (network, contestant, batch) -> how many times the time of the fused form it has to take; others have no target.
TARGETS = {
    **{(network, "kecam", 1): 1.1 for network in NETWORKS},
    **{(network, "kecam", 16): 1.1 for network in NETWORKS},
    **{(network, "transformers", batch): 1.0 for network in NETWORKS for batch in (1, 16)},
    ("mobilevit-xxs", "kecam", 1): 1.3,
}
MAX_PREDICT = 1.3


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--contestants", nargs="+", default=["fused", "plain", "kecam", "transformers", "timm"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--rounds", type=int, default=40, help="rounds at batch 1; larger batches take a quarter")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--environments", type=Path, default=FOLDER / ".venv")
    parser.add_argument("--output", type=Path, default=FOLDER / "results" / "keras_inference.md")
    options = parser.parse_args(arguments)

    pythons = {name: environment(name, options.environments) for name in ENVIRONMENTS if name in options.contestants}
    record: dict[str, Any] = {"machine": machine(options.threads), "networks": {}}
    for network in options.networks:
        record["networks"][network] = measure(network, pythons, options)
    text, missed = report(record)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text, encoding="utf-8")
    options.output.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(text)
    return 1 if missed else 0


def environment(name: str, folder: Path) -> str:
    """The Python of a library's own environment, made when it is not there."""
    home, stamp = folder / name, folder / name / "installed"
    python = str(home / "bin" / "python")
    if not stamp.exists():
        print(f"installing {name} into {home} …", file=sys.stderr, flush=True)
        venv.create(home, with_pip=True, clear=True)
        for what in ENVIRONMENTS[name]:
            constraints = str(FOLDER.parent / "constraints.txt")
            subprocess.run([python, "-m", "pip", "install", "--quiet", "-c", constraints, *what], check=True)
        stamp.touch()
    return python


def machine(threads: int) -> dict[str, Any]:
    """What the times depend on."""
    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {"processor": names[0] if names else "unknown", "cores": os.cpu_count(), "threads": threads, "image": SIZE}


# --- weights ---------------------------------------------------------------------------------------------------------


def write_weights(network: str, folder: Path) -> dict[str, Path]:
    """Random weights, every tensor of which matters, in the form that each contestant opens."""
    from mobilevit_hub import tf as twin

    v2 = "v2" in network
    cls = twin.TFMobileViTV2ForImageClassification if v2 else twin.TFMobileViTForImageClassification
    model = cls(cls.config_class.from_preset(network))
    rng = np.random.default_rng(0)
    for name, weight in model.named_weights().items():
        shape = tuple(weight.variable.shape)
        if name.endswith("num_batches_tracked"):
            continue
        if weight.kind == "plain":
            positive = name.endswith(("running_var", "weight"))
            weight.variable.assign(rng.random(shape) - 0.5 + positive)
        else:
            inputs = np.prod(shape[:2] if weight.kind == "depthwise" else shape[:-1])
            weight.variable.assign(rng.normal(0, 1.4 / np.sqrt(inputs), shape))
    model.save_pretrained(folder)

    from safetensors.numpy import load_file

    tensors = load_file(folder / "model.safetensors")
    np.savez(folder / "timm.npz", **timm_weights(tensors))
    np.savez(folder / "kecam.npz", **kecam_weights(tensors))
    return {"timm": folder / "timm.npz", "kecam": folder / "kecam.npz"}


# --- contestants -----------------------------------------------------------------------------------------------------


class Contestant:
    """A process that answers questions; see `contestants.py`."""

    def __init__(self, name: str, python: str, network: str, weights: Path, threads: int, log: Any) -> None:
        command = [python, str(FOLDER / "contestants.py"), name, network, str(weights), str(SIZE), str(threads)]
        settings = {"OMP_NUM_THREADS": str(threads), "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
        self.name, self.log = name, log
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=os.environ | settings, text=True
        )

    def answer(self) -> Any:
        """Its next line."""
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            self.log.seek(0)
            raise RuntimeError(f"{self.name} stopped:\n{self.log.read()[-3000:]}")
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


def measure(network: str, pythons: dict[str, str], options: argparse.Namespace) -> dict[str, Any]:
    """All times of one network in milliseconds: `{"differences": …, "ms": {batch: {contestant: [...]}}}`."""
    contestants: list[Contestant] = []
    with tempfile.TemporaryDirectory() as folder:
        print(f"{network}: starting {', '.join(options.contestants)} …", file=sys.stderr, flush=True)
        files = write_weights(network, Path(folder))
        try:
            for name in options.contestants:
                log = Path(folder, f"{name}.log").open("w+")
                python, weights = pythons.get(name, sys.executable), files.get(name, Path(folder))
                contestants.append(Contestant(name, python, network, weights, options.threads, log))
            for contestant in contestants:
                contestant.answer()
            differences = compare(network, contestants)
            print(f"{network}: {options.rounds} rounds …", file=sys.stderr, flush=True)
            times = {str(batch): rounds(contestants, batch, options.rounds) for batch in options.batches}
        finally:
            for contestant in contestants:
                contestant.stop()
                contestant.log.close()
    return {"differences": differences, "ms": times}


def compare(network: str, contestants: list[Contestant]) -> dict[str, float]:
    """How far the logits are from the first contestant's, in parts of their largest; above 1e-4 is an error."""
    logits = {contestant.name: np.array(contestant.ask("logits", 2)) for contestant in contestants}
    expected = next(iter(logits.values()))
    differences = {name: float(np.abs(v - expected).max() / np.abs(expected).max()) for name, v in logits.items()}
    different = {name: value for name, value in differences.items() if not value < 1e-4}
    if different:
        raise RuntimeError(f"{network}: the logits differ, so the times cannot be compared: {different}")
    return differences


def rounds(contestants: list[Contestant], batch: int, count: int) -> dict[str, list[float]]:
    """Times of each contestant, one entry a round: the median of its calls in that round."""
    turns = [(contestant, "call") for contestant in contestants]
    if batch == 1:
        turns += [(contestant, "predict") for contestant in contestants if contestant.name == "fused"]
    calls = 4 if batch == 1 else 2
    times: dict[str, list[float]] = {}
    for i in range(-1, count if batch == 1 else max(count // 4, 2)):
        for contestant, what in turns if i % 2 else turns[::-1]:
            # the first call brings its data back into the caches
            taken = contestant.ask("time", what, batch, calls)[1:]
            if i >= 0:  # the first round warms up
                times.setdefault(contestant.name if what == "call" else what, []).append(statistics.median(taken))
    return times


# --- report ----------------------------------------------------------------------------------------------------------


def report(record: dict[str, Any]) -> tuple[str, list[str]]:
    """The tables as Markdown, and the targets that were missed."""
    m, missed = record["machine"], []
    lines = [
        "# Inference of the Keras twin on a CPU",
        "",
        f"{m['processor']}, {m['cores']} cores, {m['threads']} threads, {m['image']}×{m['image']} float32. Milliseconds per "
        "call: median over the rounds (quartiles); then how many times the time of the fused form. Written by "
        "`python benchmarks/keras_inference.py`.",
    ]
    for network, result in record["networks"].items():
        for batch, times in result["ms"].items():
            fused = statistics.median(times.get("fused", next(iter(times.values()))))
            head = f"## {network}, batch {batch}, {len(next(iter(times.values())))} rounds"
            lines += ["", head, "", "| | ms | ratio | target | logits differ by |", "|---|---|---|---|---|"]
            for name, values in times.items():
                low, middle, high = statistics.quantiles(values, n=4)
                ratio, target = middle / fused, TARGETS.get((network, name, int(batch)))
                goal = f"≥ {target}" if target else ""
                if name == "predict":
                    goal, failed = f"≤ {MAX_PREDICT}", ratio > MAX_PREDICT
                else:
                    failed = target is not None and ratio < target
                if failed:
                    missed.append(f"{network}, batch {batch}, {name}: {ratio:.2f}, target {goal}")
                difference = f"{result['differences'][name]:.1e}" if name in result["differences"] else ""
                cells = (LABELS[name], f"{middle:.1f} ({low:.1f}–{high:.1f})", f"{ratio:.2f}", goal, difference)
                lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"Targets missed: {'; '.join(missed) or 'none'}.", ""]
    return "\n".join(lines), missed


if __name__ == "__main__":
    sys.exit(main())
