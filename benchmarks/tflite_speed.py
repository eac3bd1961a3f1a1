"""The `.tflite` files of this package against those of other tools: same networks, same weights, one run.

    python benchmarks/tflite_speed.py                          # XXS, S and v2-1.0 at 256 px; 1 and 2 threads
    python benchmarks/tflite_speed.py --networks mobilevit-s --rounds 3 --files made

All files are made first. Then one process opens them with LiteRT's Interpreter, and they take turns. Before
that the float32 files have to give the same logits for one picture. Writes `tflite_speed.md` and `.json`
into `benchmarks/results/`, and returns 1 when a target is missed. Takes minutes, on a machine that does
nothing else.

The first run makes the environments of keras-cv-attention-models and litert-torch (minutes, about 4 GB)
under `benchmarks/.venv/`. The files of the other tools take about 20 minutes; with `--files` they are kept.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from model_files import PICTURES, SIZE, picture, write_pictures, write_weights
from processes import FOLDER, environment, machine, table_head, table_row, write_results

NETWORKS = ["mobilevit-xxs", "mobilevit-s", "mobilevitv2-1.0"]
OURS = {precision: f"this package, {precision}" for precision in ("fp32", "fp16", "int8-dynamic", "int8")}
PEERS = {
    "kecam": "keras-cv-attention-models, batch fixed to 1",
    "kecam_own": "keras-cv-attention-models, `from_keras_model`",
    "litert_torch": "litert-torch from transformers",
    "tensorflow_dynamic": "TensorFlow, dynamic range",
    "tensorflow_int8": "TensorFlow, integers throughout",
}
ENVIRONMENT_OF = {"kecam": "kecam", "kecam_own": "kecam", "litert_torch": "litert-torch"}
KECAM = ["kecam", "kecam_own"]
FLOAT_PEERS = [*KECAM, "litert_torch"]

# Multiply-adds a second of one thread, the best that XNNPACK reaches in float32 on single operations of these
# networks' sizes: 2 cores of an AMD EPYC with AVX-512 at its usual clock. Another processor has others.
MATRIX_RATE, DEPTHWISE_RATE = 50e9, 15e9
TOLERANCE = 1e-4  # of the largest logit
NOISE = 1.02

SHARE_OF_FLOOR = {"mobilevit-xxs": 0.70, "mobilevit-s": 0.90, "mobilevitv2-1.0": 0.90}
OF_FP32 = {
    "int8-dynamic": {"mobilevit-xxs": 0.95, "mobilevit-s": 0.62, "mobilevitv2-1.0": 0.52},
    "int8": {"mobilevit-xxs": 0.70, "mobilevit-s": 0.52, "mobilevitv2-1.0": 0.42},
}
SIZE_OF_INT8 = 0.32
FASTER_THAN_KECAM = {"mobilevit-xxs": 1.04, "mobilevitv2-1.0": 1.04}

Result = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument(
        "--files", type=Path, help="where the other tools' files are kept; delete them when weights change"
    )
    parser.add_argument("--environments", type=Path, default=FOLDER / ".venv")
    parser.add_argument("--output", type=Path, default=FOLDER / "results" / "tflite_speed.md")
    options = parser.parse_args(arguments)

    needed = dict.fromkeys(ENVIRONMENT_OF[peer] for peer in options.peers if peer in ENVIRONMENT_OF)
    pythons = {name: environment(name, options.environments) for name in needed}
    record: Result = {"machine": machine(max(options.threads), SIZE), "networks": {}}
    with tempfile.TemporaryDirectory() as temporary:
        pictures = write_pictures(Path(temporary, "pictures"))
        for network in options.networks:
            weights = Path(temporary, network)
            order = write_network(network, weights)
            kept = (options.files or Path(temporary, "files")) / network
            ours = own_files(network, weights, pictures)
            files = ours | peer_files(network, weights, options.peers, pythons, kept)
            record["networks"][network] = measure(network, files, order, options.threads, options.rounds)
    return write_results(options.output, *report(record))


# --- the files -------------------------------------------------------------------------------------------------------


def write_network(network: str, folder: Path) -> str:
    """Writes random weights with the preprocessing of the published ones; returns the order of its channels."""
    from mobilevit_hub.hub.presets import get_preset
    from mobilevit_hub.images.processor import processor_for

    write_weights(network, folder)
    preset = get_preset(network)
    processor_for(preset.resize, preset.crop, preset.interpolation, preset.channel_order).save_pretrained(folder)
    return preset.channel_order


def own_files(network: str, folder: Path, pictures: Path) -> dict[str, bytes]:
    """Content of each file that this package makes."""
    from mobilevit_hub.conversion import export_tflite

    files = {}
    for precision in OURS:
        print(f"{network}: making {precision} …", file=sys.stderr, flush=True)
        out = folder / f"{precision}.tflite"
        calibration = pictures if precision == "int8" else None
        export_tflite(folder, out, precision=precision, resolution=SIZE, output_type="logits", calibration=calibration)
        files[precision] = out.read_bytes()
    return files


def peer_files(
    network: str, folder: Path, peers: list[str], pythons: dict[str, str], kept: Path
) -> dict[str, bytes | str]:
    """Content of each file of the other tools, or why there is none.

    Args:
        network: An alias of a preset.
        folder: Its weights.
        peers: Functions of `tflite_peers.py`.
        pythons: The interpreter of each environment.
        kept: Folder of the files; those that are there, and the errors that are there, are not made again.
    """
    kept.mkdir(parents=True, exist_ok=True)
    files: dict[str, bytes | str] = {}
    for peer in peers:
        out, error = kept / f"{peer}.tflite", kept / f"{peer}.error"
        if not out.exists() and not error.exists():
            print(f"{network}: making {peer} …", file=sys.stderr, flush=True)
            python = pythons.get(ENVIRONMENT_OF.get(peer, ""), sys.executable)
            command = [python, str(FOLDER / "tflite_peers.py"), peer, network, str(folder), str(SIZE), str(out)]
            settings = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
            done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
            if done.returncode:
                error.write_text(done.stderr, encoding="utf-8")
        files[peer] = out.read_bytes() if out.exists() else f"conversion fails: {reason(error.read_text('utf-8'))}"
    return files


def reason(text: str) -> str:
    """The last line of an error, short and without the folders of this machine."""
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"\w*(Error|Exception)\b", line)]
    return re.sub(r"(?<!\S)/\S*/", "", (errors or lines or ["no message"])[-1])[:200]


# --- times -----------------------------------------------------------------------------------------------------------


def measure(network: str, files: dict[str, bytes | str], order: str, threads: list[int], rounds: int) -> Result:
    """What each file is, and its times.

    Raises:
        RuntimeError: The float32 files compute different things.
    """
    from mobilevit_hub.conversion.tflite.inspection import inspect

    print(f"{network}: timing …", file=sys.stderr, flush=True)
    result: Result = {"files": {}, "ms": {}}
    orders = {name: order if name in PEERS else "rgb" for name in files}
    contents: dict[str, bytes] = {}
    logits: dict[str, np.ndarray] = {}
    for name, content in files.items():
        if isinstance(content, str):
            result["files"][name] = {"error": content}
            continue
        try:
            found, interpreter = inspect(content), opened(content, 1)
            logits[name] = run(interpreter, given(interpreter, orders[name]))
        except (RuntimeError, ValueError) as error:
            result["files"][name] = {"error": f"does not run: {reason(str(error))}"}
            continue
        contents[name] = content
        difference = np.abs(logits[name] - logits["fp32"]).max() / np.abs(logits["fp32"]).max()
        if name in FLOAT_PEERS and not difference < TOLERANCE:
            raise RuntimeError(f"{network}: the logits of {name} are others: {difference:.1g} of the largest.")
        result["files"][name] = {
            "bytes": len(content),
            "operations": found.count,
            "partitions": found.partitions,
            "left": sum(found.not_delegated.values()),
            "rank": found.rank,
            "difference": float(difference),
        }

    result["floor"] = floor(contents["fp32"])
    for count in threads:
        result["ms"][str(count)] = take_turns(contents, orders, count, rounds)
    return result


def opened(content: bytes, threads: int) -> Any:
    """An interpreter that is ready to run."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=threads)
    interpreter.allocate_tensors()
    return interpreter


def given(interpreter: Any, order: str) -> np.ndarray:
    """The picture as a file takes it: its channels in this order, as bytes or from 0 to 1."""
    image = np.ascontiguousarray(np.asarray(picture(PICTURES))[None, ..., :: -1 if order == "bgr" else 1])
    is_bytes = interpreter.get_input_details()[0]["dtype"] is np.uint8
    return image if is_bytes else image.astype(np.float32) / 255


def run(interpreter: Any, image: np.ndarray) -> np.ndarray:
    """What a file returns."""
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def take_turns(contents: dict[str, bytes], orders: dict[str, str], threads: int, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each file, one number a round; the order is reversed in every other round.

    On one thread it is the time of the processor, which other processes do not lengthen; on several the time
    of the clock. Each turn is two calls, the second of which counts: the first brings the weights back into
    the caches. The first round warms up.
    """
    clock = time.process_time if threads == 1 else time.perf_counter
    interpreters = {name: opened(content, threads) for name, content in contents.items()}
    images = {name: given(interpreter, orders[name]) for name, interpreter in interpreters.items()}
    times: dict[str, list[float]] = {name: [] for name in contents}
    for i in range(rounds + 1):
        for name in list(contents)[:: 1 if i % 2 else -1]:
            run(interpreters[name], images[name])
            started = clock()
            interpreters[name].invoke()
            taken = clock() - started
            if i > 0:
                times[name].append(1000 * taken)
    return times


def floor(content: bytes) -> Result:
    """Multiply-adds of a file, from the shapes of its tensors, and the least milliseconds that they take."""
    interpreter = opened(content, 1)
    shapes = {tensor["index"]: tensor["shape"] for tensor in interpreter.get_tensor_details()}
    matrix = depthwise = 0
    for op in interpreter._get_ops_details():
        if op["op_name"] not in ("CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL", "DEPTHWISE_CONV_2D"):
            continue
        first, second = (shapes[i] for i in op["inputs"][:2])
        results = int(np.prod(shapes[op["outputs"][0]]))
        if op["op_name"] == "DEPTHWISE_CONV_2D":  # kernel (1, height, width, channels)
            depthwise += results * int(np.prod(second[1:3]))
        elif op["op_name"] == "BATCH_MATMUL":
            matrix += results * int(first[-1])
        else:  # kernel (outputs, …, inputs)
            matrix += results * int(np.prod(second[1:]))
    milliseconds = 1000 * (matrix / MATRIX_RATE + depthwise / DEPTHWISE_RATE)
    return {"matrix": matrix, "depthwise": depthwise, "ms": milliseconds}


# --- the report ------------------------------------------------------------------------------------------------------


def targets(network: str, result: Result) -> list[tuple[str, float, str, float]]:
    """What is asked of a network that was measured: a name, the value, `"≥"` or `"≤"`, and the limit."""
    found, medians = result["files"], {}
    for threads, times in result["ms"].items():
        medians[threads] = {name: statistics.median(values) for name, values in times.items()}
    asked = []
    if "1" in medians:
        one = medians["1"]
        if network in SHARE_OF_FLOOR:
            share = result["floor"]["ms"] / one["fp32"]
            asked.append(("fp32, share of the floor, 1 thread", share, "≥", SHARE_OF_FLOOR[network]))
        for precision, limits in OF_FP32.items():
            if network in limits:
                ratio = one[precision] / one["fp32"]
                asked.append((f"{precision} / fp32, 1 thread", ratio, "≤", limits[network]))
    asked.append(("int8 / fp32, bytes", found["int8"]["bytes"] / found["fp32"]["bytes"], "≤", SIZE_OF_INT8))
    for count, times in medians.items():
        threads = "1 thread" if count == "1" else f"{count} threads"
        if peers := [times[name] for name in FLOAT_PEERS if name in times]:
            asked.append((f"fp32 / best other float32 file, {threads}", times["fp32"] / min(peers), "≤", NOISE))
        kecam = [times[name] for name in KECAM if name in times]
        if kecam and network in FASTER_THAN_KECAM:
            ratio, limit = min(kecam) / times["fp32"], FASTER_THAN_KECAM[network]
            asked.append((f"best of keras-cv-attention-models / fp32, {threads}", ratio, "≥", limit))
    return asked


def report(record: Result) -> tuple[list[str], Result, list[str]]:
    """The lines of the Markdown page, the record, and the targets that were missed."""
    about, missed = record["machine"], []
    lines = [
        "# Speed of `.tflite` files on a CPU",
        "",
        f"{about['processor']}, {about['cores']} cores, {about['image']}×{about['image']} pixels, batch 1, random "
        "weights, LiteRT's Interpreter with XNNPACK. Written by `python benchmarks/tflite_speed.py`.",
        "",
        "- ms: milliseconds a call, median over the rounds, and quartiles; of the processor on 1 thread, of the clock "
        "on more. Then the ratio to fp32 of this package.",
        "- pieces, left: how many pieces XNNPACK takes, and how many operations it leaves.",
        "- logits: largest difference from fp32, in parts of the largest logit. With random weights it says little of "
        "quantised files.",
        f"- floor: multiply-adds of the file at {MATRIX_RATE / 1e9:.0f} (matrix products, convolutions) and "
        f"{DEPTHWISE_RATE / 1e9:.0f} (depthwise) thousand million a second, the best of this processor's single "
        "operations.",
    ]
    for network, result in record["networks"].items():
        floor, threads = result["floor"], list(result["ms"])
        rounds = len(result["ms"][threads[0]]["fp32"])
        lines += ["", f"## {network}, {rounds} rounds", ""]
        columns = [cell for t in threads for cell in (f"ms, {t} thread{'s' * (t != '1')}", "ratio")]
        lines += table_head("", "MB", "operations", "pieces, left", *columns, "logits differ by")
        lines += [line(name, result) for name in result["files"]]
        errors = {name: found["error"] for name, found in result["files"].items() if "error" in found}
        lines += ["", *(f"- {(OURS | PEERS)[name]}: {error}" for name, error in errors.items())] if errors else []
        lines += ["", f"Floor: {floor['matrix'] / 1e6:.0f} + {floor['depthwise'] / 1e6:.0f} million multiply-adds, "]
        lines[-1] += f"{floor['ms']:.1f} ms on 1 thread."
        lines += ["", *table_head("", "value", "target")]
        for name, value, sign, limit in targets(network, result):
            lines.append(table_row(name, f"{value:.3f}", f"{sign} {limit}"))
            if value < limit if sign == "≥" else value > limit:
                missed.append(f"{network}, {name} {value:.3f} ({sign} {limit})")
    return lines, record, missed


def line(name: str, result: Result) -> str:
    """A file's line of the table."""
    found, label = result["files"][name], (OURS | PEERS)[name]
    if "error" in found:
        return table_row(label, *["–"] * (2 * len(result["ms"]) + 4))
    cells = [label, f"{found['bytes'] / 1e6:.2f}", str(found["operations"])]
    cells.append(f"{found['partitions']}, {found['left']}")
    for times in result["ms"].values():
        low, middle, high = statistics.quantiles(times[name], n=4)
        cells.append(f"{middle:.1f} ({low:.1f}–{high:.1f})")
        cells.append(f"{middle / statistics.median(times['fp32']):.2f}")
    cells.append("" if name == "fp32" else f"{found['difference']:.0e}")
    return table_row(*cells)


if __name__ == "__main__":
    sys.exit(main())
