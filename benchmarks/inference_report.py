"""The page and the plot of `inference.py`, and its targets."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from contestants import PRODUCT

from mobilevit_hub.presets import get_preset

LABELS = {
    "transformers": "transformers, eager",
    "transformers_channels_last": "transformers, eager, channels_last",
    "timm": "timm, eager, channels_last",
    "timm_compiled": "timm, channels_last, `torch.compile`",
    "timm_frozen": "timm, channels_last, `torch.compile`, freezing",
    "kecam": "keras-cv-attention-models, `tf.function`",
    "onnxruntime": "ONNX Runtime, this package's folded network",
    "openvino": "OpenVINO, this package's folded network",
    "pt": "**this package, PyTorch**",
    "pt_plain": "**this package, PyTorch, no compiler**",
    "pt_bf16": "**this package, PyTorch, bfloat16**",
    "tf": "**this package, Keras**",
    "tf_trainable": "this package, Keras, trainable model",
    "tflite": "**this package, TFLite**",
    "tflite_int8": "**this package, TFLite, int8**",
}
BASE = "transformers"
THREADS = "2"
"""Those of the targets."""
XXS, S, V2 = "mobilevit-xxs", "mobilevit-s", "mobilevitv2-1.0"
OURS_AT_BATCH_1 = ("pt", "tf", "tflite")

# (ours, others, batch) → how many times as fast as the best of them ours has to be, for XXS, S and v2-1.0.
RATIOS = {
    ("pt", ("transformers",), 1): (3.2, 1.9, 2.3),
    ("pt", ("transformers",), 32): (6.5, 4.0, 4.0),
    ("pt", ("timm",), 1): (1.8, 1.8, 1.8),
    ("pt", ("timm",), 32): (1.8, 1.8, 1.8),
    ("pt", ("timm_compiled",), 1): (1.15, 1.15, 1.15),
    ("pt", ("timm_compiled",), 32): (1.15, 1.15, 1.15),
    ("pt_bf16", ("pt",), 1): (1.4, 1.4, 1.4),
    ("pt_bf16", ("pt",), 32): (1.4, 1.4, 1.4),
    ("pt_plain", ("transformers",), 1): (1.8, 1.25, 1.8),
    ("pt_plain", ("transformers",), 32): (4.0, 2.2, 2.6),
    (OURS_AT_BATCH_1, ("transformers",), 1): (7.0, 3.6, 4.0),
    (OURS_AT_BATCH_1, ("onnxruntime", "openvino"), 1): (0.9, 0.9, 0.9),
    ("tf", ("kecam",), 1): (1.3, 1.1, 1.1),
    ("tf", ("kecam",), 32): (1.1, 1.1, 1.1),
    ("tf.predict", ("tf",), 1): (0.77, 0.77, 0.77),
}
SHARES = (0.50, 0.65, 0.65)
MEMORY_OF = ("transformers", "timm")

Result = dict[str, Any]


def rate(result: Result, number: str = "float32") -> float:
    """Operations a second of the fastest matrix product among the rounds."""
    name = "peak" if number == "float32" else f"peak.{number}"
    return 2 * PRODUCT**3 / (min(min(batch["ms"][name]) for batch in result.values()) / 1000)


def share(network: str, name: str, batch: str, result: Result) -> float:
    """The least time that a network's arithmetic takes at the peak rate, in parts of the time that was taken."""
    operations = 2 * (get_preset(network).macs or 0) * int(batch)
    number = "bfloat16" if name == "pt_bf16" else "float32"
    return operations / rate(result, number) / (statistics.median(result[batch]["ms"][name]) / 1000)


# --- targets ---------------------------------------------------------------------------------------------------------


def targets(record: Result) -> list[tuple[str, str, float, str, float]]:
    """What was asked of what was measured: a network, what, the value, `"≥"` or `"≤"`, and the limit."""
    asked = []
    for i, network in enumerate((XXS, S, V2)):
        result = record["networks"].get(network, {}).get(THREADS, {})
        for (ours, others, batch), limits in RATIOS.items():
            ms = {name: statistics.median(times) for name, times in result.get(str(batch), {}).get("ms", {}).items()}
            mine = [ms[name] for name in ([ours] if isinstance(ours, str) else ours) if name in ms]
            theirs = [ms[name] for name in others if name in ms]
            if mine and theirs:
                label = "fastest of ours" if ours == OURS_AT_BATCH_1 else str(ours)
                what = f"{label} against {' and '.join(others)}, batch {batch}"
                asked.append((network, what, min(theirs) / min(mine), "≥", limits[i]))
        for batch, found in result.items():
            if "pt" not in found["ms"]:
                continue
            asked.append((network, f"pt, share of the peak rate, batch {batch}", share(network, "pt", batch, result)))
            asked[-1] += ("≥", SHARES[i])
            theirs = [found["memory"][name]["own"] for name in MEMORY_OF if name in found["memory"]]
            if theirs:
                ratio = found["memory"]["pt"]["own"] / min(theirs)
                asked.append((network, f"pt, memory in parts of theirs, batch {batch}", ratio, "≤", 1.0))
    return asked


# --- the page --------------------------------------------------------------------------------------------------------


def report(record: Result) -> tuple[list[str], Result, list[str]]:
    """The lines of the Markdown page, the record, and the targets that were missed."""
    about, missed = record["machine"], []
    lines = [
        "# Inference on a CPU",
        "",
        f"{about['processor']}, {about['cores']} cores, {about['image']}×{about['image']} pixels, float32 unless said, "
        "random weights, all in one run. Written by `python benchmarks/inference.py`.",
        "",
        "![Milliseconds of one image against published accuracy](inference.png)",
        "",
        "- ms, images/s: medians over the rounds, with quartiles; ×: how many times as fast as transformers as it is.",
        f"- peak: the least time of the network's multiply-adds, at the rate of a {PRODUCT}³ matrix product that is "
        "measured in the same turns, in parts of the time taken.",
        "- MB: the most memory that the process has during a call, without what it has after its imports; "
        "in brackets with it.",
        "- logits: largest difference from transformers, in parts of the largest logit.",
    ]
    if asked := targets(record):
        lines += ["", f"## Targets, {THREADS} threads", "", "| | | value | target | |", "|---|---|---|---|---|"]
        for network, what, value, sign, limit in asked:
            met = value >= limit if sign == "≥" else value <= limit
            lines.append(f"| {network} | {what} | {value:.2f} | {sign} {limit:g} | {'met' if met else '**missed**'} |")
            if not met:
                missed.append(f"{network}, {what} {value:.2f} ({sign} {limit:g})")
    for network, results in record["networks"].items():
        for threads, result in results.items():
            lines += table(network, threads, result)
    for network, starts in record["starts"].items():
        lines += ["", f"## Start, {network}, {about['threads']} threads", ""]
        lines += ["From nothing to the first logits: seconds the first time, when nothing was compiled yet, and again;"]
        lines += ["the most memory by then.", "", "| | s | s again | MB |", "|---|---|---|---|"]
        for name in (name for name in LABELS if name in starts):
            found = starts[name]
            cells = (LABELS[name], f"{found['first']:.1f}", f"{found['again']:.1f}", f"{found['megabytes']:.0f}")
            lines.append(f"| {' | '.join(cells)} |")
    return lines, record, missed


def table(network: str, threads: str, result: Result) -> list[str]:
    """The lines of a network and a number of threads."""
    rates = " and ".join(f"{rate(result, number) / 1e9:.0f} in {number}" for number in ("float32", "bfloat16"))
    rounds = ", ".join(f"{len(found['ms']['peak'])} at batch {batch}" for batch, found in result.items())
    lines = ["", f"## {network}, {threads} thread{'s' * (threads != '1')}", ""]
    lines += [f"Peak rate: {rates} thousand million operations a second. Rounds: {rounds}.", ""]
    columns, several = [], [batch for batch in result if batch != "1"]
    columns += [
        cell for batch in result for cell in (f"{'images/s' if batch in several else 'ms'}, batch {batch}", "×")
    ]
    columns += [f"peak, batch {batch}" for batch in result] + [f"MB, batch {batch}" for batch in result]
    lines += [f"| | {' | '.join(columns)} | logits |", "|---" * (len(columns) + 2) + "|"]
    names = [name for name in LABELS if all(name in found["ms"] for found in result.values())]
    for name in names:
        cells = []
        for batch, found in result.items():
            values = found["ms"][name]
            if batch in several:
                values = [1000 * int(batch) / value for value in values]
            low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
            digits = 1 if middle < 1000 else 0
            cells.append(f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})")
            base = found["ms"].get(BASE, found["ms"][names[0]])
            cells.append(f"{statistics.median(base) / statistics.median(found['ms'][name]):.2f}")
        cells += [f"{100 * share(network, name, batch, result):.0f} %" for batch in result]
        memory = [found["memory"][name] for found in result.values()]
        cells += [f"{used['own']:.0f} ({used['total']:.0f})" for used in memory]
        cells.append(f"{max(found['differences'][name] for found in result.values()):.0e}")
        lines.append(f"| {LABELS[name]} | {' | '.join(cells)} |")
    return lines


# --- the plot --------------------------------------------------------------------------------------------------------

DRAWN = {
    "transformers": ("transformers", "#888888", "o"),
    "timm_compiled": ("timm, compiled", "#c49a00", "s"),
    "kecam": ("keras-cv-attention-models", "#b35c9e", "D"),
    "onnxruntime": ("ONNX Runtime", "#6a9fd4", "v"),
    "openvino": ("OpenVINO", "#4f6d8f", "^"),
    "pt": ("ours, PyTorch", "#d62728", "o"),
    "tf": ("ours, Keras", "#ff7f0e", "s"),
    "tflite": ("ours, TFLite", "#2ca02c", "D"),
    "tflite_int8": ("ours, TFLite int8", "#0b5d1e", "P"),
}


def plot(record: Result, path: Path) -> None:
    """Milliseconds of one image against published accuracy, a line for each contestant, a panel for each version."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    measured = {name: results[THREADS]["1"]["ms"] for name, results in record["networks"].items() if THREADS in results}
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.4), sharey=True, layout="constrained")
    for panel, version in zip(axes, ("mobilevit-", "mobilevitv2-"), strict=True):
        networks = [name for name in measured if name.startswith(version)]
        for name, (label, colour, marker) in DRAWN.items():
            there = [network for network in networks if name in measured[network]]
            milliseconds = [statistics.median(measured[network][name]) for network in there]
            scores = [get_preset(network).score or 0 for network in there]
            ours = name.startswith(("pt", "tf"))
            panel.plot(
                milliseconds, scores, color=colour, marker=marker, label=label, markersize=5,
                linewidth=2 if ours else 1, linestyle="-" if ours else "--",
            )  # fmt: skip
        for network in networks:
            slowest = max(statistics.median(times) for name, times in measured[network].items() if name in DRAWN)
            panel.annotate(
                network.removeprefix(version), (slowest, get_preset(network).score or 0),
                textcoords="offset points", xytext=(8, -3), fontsize=9,
            )  # fmt: skip
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:g}"))
        panel.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        panel.set_xticks([2, 5, 10, 20, 50, 100, 200])
        panel.set_xlabel(f"milliseconds of one image, {THREADS} threads")
        panel.set_title("MobileViT" if version == "mobilevit-" else "MobileViTv2", fontsize=11)
        panel.grid(alpha=0.25)
    axes[0].set_ylabel("top-1 on ImageNet-1k, published, %")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=9, frameon=False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
