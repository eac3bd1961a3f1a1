"""The page and the plot of `inference.py`, and its targets."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any, NamedTuple

from measuring import PRODUCT
from processes import table_head, table_row

from mobilevit_hub.hub.presets import get_preset

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
JUDGED = ("mobilevit-xxs", "mobilevit-s", "mobilevitv2-1.0")
"""The networks of the targets."""

# (what is asked, ours, others, batch) → how many times as fast as the best of them ours has to be, network by network.
RATIOS = {
    ("PyTorch / transformers", ("pt",), ("transformers",), 1): (3.2, 1.9, 2.3),
    ("PyTorch / transformers", ("pt",), ("transformers",), 32): (6.5, 4.0, 4.0),
    ("PyTorch / timm", ("pt",), ("timm",), 1): (1.8, 1.8, 1.8),
    ("PyTorch / timm", ("pt",), ("timm",), 32): (1.8, 1.8, 1.8),
    ("PyTorch / timm, `torch.compile`", ("pt",), ("timm_compiled",), 1): (1.15, 1.15, 1.15),
    ("PyTorch / timm, `torch.compile`", ("pt",), ("timm_compiled",), 32): (1.15, 1.15, 1.15),
    ("PyTorch, no compiler / transformers", ("pt_plain",), ("transformers",), 1): (1.8, 1.25, 1.8),
    ("PyTorch, no compiler / transformers", ("pt_plain",), ("transformers",), 32): (4.0, 2.2, 2.6),
    ("PyTorch, bfloat16 / float32", ("pt_bf16",), ("pt",), 1): (1.4, 1.4, 1.4),
    ("PyTorch, bfloat16 / float32", ("pt_bf16",), ("pt",), 32): (1.4, 1.4, 1.4),
    ("fastest of ours / transformers", ("pt", "tf", "tflite"), ("transformers",), 1): (7.0, 3.6, 4.0),
    ("fastest of ours / ONNX Runtime, OpenVINO", ("pt", "tf", "tflite"), ("onnxruntime", "openvino"), 1): (0.9,) * 3,
    ("Keras / keras-cv-attention-models", ("tf",), ("kecam",), 1): (1.3, 1.1, 1.1),
    ("Keras / keras-cv-attention-models", ("tf",), ("kecam",), 32): (1.1, 1.1, 1.1),
    ("Keras / transformers, channels_last", ("tf",), ("transformers_channels_last",), 1): (1.0, 1.0, 1.0),
    ("Keras / transformers, channels_last", ("tf",), ("transformers_channels_last",), 32): (1.0, 1.0, 1.0),
    ("Keras, `predict` / a call", ("tf.predict",), ("tf",), 1): (0.77, 0.77, 0.77),
}
SHARES = (0.50, 0.65, 0.65)

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


class Verdict(NamedTuple):
    """What was asked of a network, and what was measured."""

    what: str
    network: str
    value: float
    sign: str
    """`"≥"` or `"≤"`."""
    limit: float

    @property
    def met(self) -> bool:
        """Whether the target is reached."""
        return self.value >= self.limit if self.sign == "≥" else self.value <= self.limit


def verdicts(record: Result) -> list[Verdict]:
    """The targets of all that was measured."""
    found = []
    for i, network in enumerate(JUDGED):
        result = record["networks"].get(network, {}).get(THREADS, {})
        for (what, ours, others, batch), limits in RATIOS.items():
            ms = {name: statistics.median(times) for name, times in result.get(str(batch), {}).get("ms", {}).items()}
            mine, theirs = ([ms[name] for name in names if name in ms] for names in (ours, others))
            if mine and theirs:
                found.append(
                    Verdict(f"{what}, batch {batch}: times as fast", network, min(theirs) / min(mine), "≥", limits[i])
                )
        for batch, measured in result.items():
            if "pt" not in measured["ms"]:
                continue
            reached = share(network, "pt", batch, result)
            found.append(Verdict(f"PyTorch, batch {batch}: share of the peak rate", network, reached, "≥", SHARES[i]))
            used = {name: memory["own"] for name, memory in measured["memory"].items()}
            if theirs := [used[name] for name in ("transformers", "timm") if name in used]:
                what = f"PyTorch / transformers, timm, batch {batch}: memory"
                found.append(Verdict(what, network, used["pt"] / min(theirs), "≤", 1.0))
    return found


def verdict_table(found: list[Verdict]) -> list[str]:
    """A line for each target, a column for each network."""
    networks = list(dict.fromkeys(verdict.network for verdict in found))
    lines = ["", f"## Targets, {THREADS} threads", "", *table_head("", *networks)]
    for what in dict.fromkeys(verdict.what for verdict in found):
        cells = []
        for network in networks:
            one = next((v for v in found if (v.what, v.network) == (what, network)), None)
            text = f"{one.value:.2f} ({one.sign} {one.limit:g})" if one else "–"
            cells.append(text if one is None or one.met else f"**missed: {text}**")
        lines.append(table_row(what, *cells))
    return lines


# --- the page --------------------------------------------------------------------------------------------------------


def report(record: Result) -> tuple[list[str], Result, list[str]]:
    """The lines of the Markdown page, the record, and the targets that were missed."""
    about = record["machine"]
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
    found = verdicts(record)
    missed = [f"{v.network}, {v.what} {v.value:.2f} ({v.sign} {v.limit:g})" for v in found if not v.met]
    lines += verdict_table(found) if found else []
    for network, results in record["networks"].items():
        for threads, result in results.items():
            lines += table(network, threads, result)
    for network, starts in record["starts"].items():
        lines += ["", f"## Start, {network}, {about['threads']} threads", ""]
        lines += ["From nothing to the first logits: seconds the first time, when nothing was compiled yet, and again;"]
        lines += ["the most memory by then.", "", *table_head("", "s", "s again", "MB")]
        for name in (name for name in LABELS if name in starts):
            found = starts[name]
            cells = (LABELS[name], f"{found['first']:.1f}", f"{found['again']:.1f}", f"{found['megabytes']:.0f}")
            lines.append(table_row(*cells))
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
    lines += table_head("", *columns, "logits")
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
        whole = name == "tflite_int8"  # there is no rate for integers to compare with
        cells += ["–" if whole else f"{100 * share(network, name, batch, result):.0f} %" for batch in result]
        memory = [found["memory"][name] for found in result.values()]
        cells += [f"{used['own']:.0f} ({used['total']:.0f})" for used in memory]
        cells.append(f"{max(found['differences'][name] for found in result.values()):.0e}")
        lines.append(table_row(LABELS[name], *cells))
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
    "tflite_int8": ("ours, TFLite int8 (at float accuracy)", "#0b5d1e", "P"),
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
                network.removeprefix(version).upper(), (slowest, get_preset(network).score or 0),
                textcoords="offset points", xytext=(8, -3), fontsize=9,
            )  # fmt: skip
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:g}"))
        panel.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        panel.set_xticks([2, 5, 10, 20, 50, 100, 200])
        panel.margins(x=0.1)
        panel.set_xlabel(f"milliseconds of one image, {THREADS} threads")
        panel.set_title("MobileViT" if version == "mobilevit-" else "MobileViTv2", fontsize=11)
        panel.grid(alpha=0.25)
    axes[0].set_ylabel("top-1 on ImageNet-1k, published, %")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=9, frameon=False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
