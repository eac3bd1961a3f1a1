"""What the benchmarks share: environments of other libraries, weights for all, and contestants that take turns."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from foreign_weights import kecam_weights, timm_weights

FOLDER = Path(__file__).parent
# What pip installs, a command each. torch goes first: its CPU build must not be replaced by a later command.
ENVIRONMENTS = {
    "kecam": [["tensorflow", "tf-keras==2.21.0", "keras-cv-attention-models==1.4.3"]],
    "timm": [["torch"], ["--no-deps", "timm==1.0.31"], ["safetensors", "huggingface-hub", "pyyaml", "numpy", "pillow"]],
    "mediapipe": [["mediapipe==1.2.2"]],
    "litert-torch": [["torch==2.13.0", "litert-torch==0.10.0", "transformers==5.23.0", "pillow"]],
}

UNCONSTRAINED = ("litert-torch",)  # whose compiler wants older versions than constraints.txt has


def environment(name: str, folder: Path) -> str:
    """The Python of a library's own environment, made when it is not there."""
    home, stamp = folder / name, folder / name / "installed"
    python = str(home / "bin" / "python")
    if not stamp.exists():
        print(f"installing {name} into {home} …", file=sys.stderr, flush=True)
        venv.create(home, with_pip=True, clear=True)
        for what in ENVIRONMENTS[name]:
            constraints = [] if name in UNCONSTRAINED else ["-c", str(FOLDER.parent / "constraints.txt")]
            subprocess.run([python, "-m", "pip", "install", "--quiet", *constraints, *what], check=True)
        stamp.touch()
    return python


def machine(threads: int, size: int) -> dict[str, Any]:
    """What the times depend on."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text("utf-8").splitlines() if information.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {"processor": names[0] if names else "unknown", "cores": os.cpu_count(), "threads": threads, "image": size}


# --- weights ---------------------------------------------------------------------------------------------------------


def write_weights(network: str, folder: Path, **changes: Any) -> dict[str, Path]:
    """Random weights, every tensor of which matters, in the form that each contestant opens.

    Args:
        network: An alias of a preset.
        folder: Where to write them.
        changes: Config fields to change.
    """
    from mobilevit_hub import tf as twin

    cls = twin.TFMobileViTV2ForImageClassification if "v2" in network else twin.TFMobileViTForImageClassification
    model = cls(cls.config_class.from_preset(network, **changes))
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

    def __init__(self, name: str, command: list[str], threads: int, log: Path) -> None:
        settings = {"OMP_NUM_THREADS": str(threads), "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
        self.name, self.log = name, log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | settings,
                text=True,
            )

    def answer(self) -> Any:
        """Its next line."""
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise RuntimeError(f"{self.name} stopped:\n{self.log.read_text('utf-8')[-3000:]}")
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


@contextmanager
def contest(
    names: list[str], network: str, *, size: int, threads: int, pythons: dict[str, str], **changes: Any
) -> Iterator[list[Contestant]]:
    """Contestants with the same network and weights, ready to answer.

    Args:
        names: Functions of `contestants.py`.
        network: An alias of a preset.
        size: Side of the images in pixels.
        threads: Of each of them.
        pythons: The interpreter of those that need an environment of their own.
        changes: Config fields to change.

    Raises:
        RuntimeError: One of them failed, or their logits differ by more than 1e-4 of the largest.
    """
    contestants: list[Contestant] = []
    with tempfile.TemporaryDirectory() as folder:
        print(f"{network}: starting {', '.join(names)} …", file=sys.stderr, flush=True)
        files = write_weights(network, Path(folder), **changes)
        try:
            for name in names:
                script, weights = str(FOLDER / "contestants.py"), str(files.get(name, folder))
                command = [pythons.get(name, sys.executable), script, name, network, weights, str(size), str(threads)]
                contestants.append(Contestant(name, command, threads, Path(folder, f"{name}.log")))
            for contestant in contestants:
                contestant.answer()
            print(f"{network}: timing …", file=sys.stderr, flush=True)
            yield contestants
        finally:
            for contestant in contestants:
                contestant.stop()


def differences(contestants: list[Contestant], what: str, count: int, tolerance: float) -> dict[str, float]:
    """How far their results are from the first one's, in parts of its largest number; too far is an error."""
    results = {contestant.name: np.array(contestant.ask("result", what, count)) for contestant in contestants}
    expected = next(iter(results.values()))
    found = {name: float(np.abs(v - expected).max() / np.abs(expected).max()) for name, v in results.items()}
    if not all(value < tolerance for value in found.values()):
        raise RuntimeError(f"The contestants compute different things, so their times mean nothing: {what} {found}.")
    return found


def take_turns(turns: list[tuple[Contestant, str]], count: int, rounds: int, calls: int) -> list[list[float]]:
    """Milliseconds of each turn, one number a round: the median of its calls.

    Args:
        turns: Who does what; the order is reversed in every other round.
        count: Images a call.
        rounds: How often each has its turn, after one round to warm up.
        calls: Calls a turn. Of several the first is left out: it brings data back into the caches.
    """
    times: list[list[float]] = [[] for _ in turns]
    for i in range(rounds + 1):
        for (contestant, what), taken in list(zip(turns, times, strict=True))[:: 1 if i % 2 else -1]:
            values = contestant.ask("time", what, count, calls)
            if i > 0:
                taken.append(statistics.median(values[1:] or values))
    return times


# --- results ---------------------------------------------------------------------------------------------------------


def row(label: str, values: list[float], base: list[float], *more: str) -> str:
    """A line of a table: label, median and quartiles in milliseconds, ratio of the medians, and what else is given."""
    low, middle, high = statistics.quantiles(values, n=4)
    cells = (label, f"{middle:.1f} ({low:.1f}–{high:.1f})", f"{middle / statistics.median(base):.2f}", *more)
    return f"| {' | '.join(cells)} |"


def write_results(output: Path, lines: list[str], record: dict[str, Any], missed: list[str]) -> int:
    """Writes and prints a report; returns 1 when a target was missed."""
    text = "\n".join([*lines, "", f"Targets missed: {'; '.join(missed) or 'none'}.", ""])
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    output.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(text)
    return 1 if missed else 0
