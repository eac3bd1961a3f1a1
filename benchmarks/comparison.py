"""MobileViT beside the networks that its papers compare it with: published accuracy, measured time and size.

    python benchmarks/comparison.py                            # 1 and 2 threads

All networks take turns in one run, each with random weights at its own image size: in PyTorch, this package's
inference form against timm in channels_last with `torch.compile`, and as `.tflite` files in float32, from this
package, from `keras.applications` and from keras-cv-attention-models. Writes `comparison.md`, `.json` and
`.png` into `benchmarks/results/`. Takes about 10 minutes, on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from model_files import write_files
from processes import (
    FOLDER,
    Contestant,
    contest,
    differences,
    environment,
    machine,
    table_head,
    table_row,
    take_turns,
    write_results,
)
from torchvision_stand_in import import_without_torchvision

from mobilevit_hub.hub.presets import get_preset


class Published(NamedTuple):
    """What the papers say of a network."""

    label: str
    top1: float
    source: str
    size: int
    """Side of the images in pixels."""
    iphone: float | None = None
    """Milliseconds of one image on an iPhone 12 in Core ML."""
    iphone_source: str = ""


MOBILEVIT, MOBILEVITV2 = "MobileViT paper", "MobileViTv2 paper"
PEERS = {
    "mobilenetv2_100": Published("MobileNetV2 1.0", 72.0, "its paper", 224, 0.92, f"{MOBILEVIT}, of one with 73.3 %"),
    "mobilenetv3_large_100": Published("MobileNetV3-Large 1.0", 75.2, "its paper", 224),
    "deit_tiny_patch16_224": Published("DeiT-Ti", 72.2, "its paper", 224, 10.99, MOBILEVIT),
    "deit_small_patch16_224": Published("DeiT-S", 79.8, "its paper", 224),
}
OURS = {
    name: Published(
        f"MobileViTv2-{name[12:]}" if "v2" in name else f"MobileViT-{name[10:].upper()}",
        get_preset(name).score or 0,
        get_preset(name).score_source,
        get_preset(name).resolution,
        *iphone,
    )
    for name, iphone in {
        "mobilevit-xxs": (4.8, MOBILEVITV2),
        "mobilevit-xs": (7.28, MOBILEVIT),
        "mobilevit-s": (9.9, MOBILEVITV2),
        "mobilevitv2-0.5": (1.6, MOBILEVITV2),
        "mobilevitv2-1.0": (3.4, MOBILEVITV2),
        "mobilevitv2-2.0": (7.5, MOBILEVITV2),
    }.items()
}
PUBLISHED = PEERS | OURS
TOOLS = {"mobilenet": "keras_applications", "deit": "kecam_vit"}
"""Functions of `tflite_peers.py` by the beginning of a network's name."""
COLUMNS = {"torch": "PyTorch", "tflite": "TFLite"}

Result = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(PUBLISHED), default=list(PUBLISHED))
    parser.add_argument("--threads", nargs="+", type=int, default=[2, 1])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--environments", type=Path, default=FOLDER / ".venv")
    parser.add_argument("--output", type=Path, default=FOLDER / "results" / "comparison.md")
    options = parser.parse_args(arguments)
    # Before timm's stand-in for torchvision is there, whose version transformers would ask for.
    import mobilevit_hub.images.processor  # noqa: F401  # noqa: F401

    kecam = environment("kecam", options.environments)
    record: Result = {"machine": machine(max(options.threads), 0), "networks": {}, "ms": {}}
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for network in options.networks:
            print(f"{network}: making files …", file=sys.stderr, flush=True)
            files[network] = network_files(network, Path(folder, network), kecam)
            size = files[network]["tflite"].stat().st_size
            record["networks"][network] = {"params": parameters(network), "bytes": size}
        for threads in options.threads:
            print(f"{threads} threads …", file=sys.stderr, flush=True)
            record["ms"][str(threads)] = time_networks(files, threads, options.rounds)
    status = write_results(options.output, *report(record))
    plot(record, options.output.with_suffix(".png"))
    return status


def network_files(network: str, folder: Path, kecam: str) -> dict[str, Path]:
    """What the contestants of a network open."""
    folder.mkdir()
    if network in OURS:
        return write_files(network, folder, ["pt", "tflite"])
    out, tool = folder / "fp32.tflite", next(tool for start, tool in TOOLS.items() if network.startswith(start))
    python = kecam if tool.startswith("kecam") else sys.executable
    command = [python, str(FOLDER / "tflite_peers.py"), tool, network, "-", str(PUBLISHED[network].size), str(out)]
    subprocess.run(command, check=True, capture_output=True)
    return {"tflite": out}


def parameters(network: str) -> int:
    """Trainable parameters."""
    if network in OURS:
        return get_preset(network).params
    model = import_without_torchvision("timm").create_model(network)
    return sum(parameter.numel() for parameter in model.parameters())


def time_networks(files: dict[str, dict[str, Path]], threads: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of one image, network by network, in each runtime; one number a round."""
    turns: dict[tuple[str, str], Contestant] = {}
    with ExitStack() as stack:
        for network, opened in files.items():
            names = ["timm_compiled" if network in PEERS else "pt", "tflite"]
            contestants = stack.enter_context(
                contest(names, network, opened, size=PUBLISHED[network].size, threads=threads, pythons={})
            )
            if network in OURS:
                differences(contestants, "call", 1, 1e-4)
            turns |= {(network, runtime): one for runtime, one in zip(COLUMNS, contestants, strict=True)}
        times = take_turns([(contestant, "call") for contestant in turns.values()], 1, rounds, 4)
    found: dict[str, dict[str, list[float]]] = {network: {} for network in files}
    for (network, runtime), taken in zip(turns, times, strict=True):
        found[network][runtime] = [round(value, 3) for value in taken]
    return found


def report(record: Result) -> tuple[list[str], Result, list[str]]:
    """The lines of the Markdown page, the record, and no missed target: none is set."""
    about = record["machine"]
    lines = [
        "# MobileViT beside the networks of its papers",
        "",
        f"{about['processor']}, {about['cores']} cores, batch 1, float32, random weights, all in one run. Milliseconds "
        "are medians over the rounds, with quartiles; MB is the `.tflite` file. PyTorch is this package's inference "
        "form, and for the other networks timm in channels_last with `torch.compile`. Written by `python "
        "benchmarks/comparison.py`.",
        "",
        "![Milliseconds against published accuracy](comparison.png)",
        "",
    ]
    columns = [f"{label}, {t} thread{'s' * (t != '1')}" for t in record["ms"] for label in COLUMNS.values()]
    lines += table_head("", "top-1, %", "source", "pixels", "params", "MB", *columns, "iPhone 12, published")
    for network, facts in record["networks"].items():
        known = PUBLISHED[network]
        cells = [known.label, f"{known.top1:.1f}", known.source, str(known.size), f"{facts['params'] / 1e6:.1f} M"]
        cells.append(f"{facts['bytes'] / 1e6:.1f}")
        for times in record["ms"].values():
            for runtime in COLUMNS:
                low, middle, high = statistics.quantiles(times[network][runtime], n=4, method="inclusive")
                cells.append(f"{middle:.1f} ({low:.1f}–{high:.1f})")
        cells.append(f"{known.iphone} ms ({known.iphone_source})" if known.iphone else "–")
        lines.append(table_row(*cells))
    return lines, record, []


def plot(record: Result, path: Path) -> None:
    """Milliseconds against published accuracy, a panel for each runtime."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    threads, times = next(iter(record["ms"].items()))
    figure, axes = pyplot.subplots(1, len(COLUMNS), figsize=(10, 4.2), sharey=True, layout="constrained")
    families = {
        "mobilevit-": ("MobileViT", "#d62728", "o"),
        "mobilevitv2-": ("MobileViTv2", "#2ca02c", "s"),
        "mobilenet": ("MobileNet V2, V3-Large", "#888888", "D"),
        "deit": ("DeiT-Ti, DeiT-S", "#6a9fd4", "^"),
    }
    for panel, (runtime, title) in zip(axes, COLUMNS.items(), strict=True):
        for start, (label, colour, marker) in families.items():
            networks = [network for network in times if network.startswith(start)]
            milliseconds = [statistics.median(times[network][runtime]) for network in networks]
            panel.plot(
                milliseconds, [PUBLISHED[network].top1 for network in networks],
                color=colour, marker=marker, label=label, linewidth=1.5,
            )  # fmt: skip
            for network, x in zip(networks, milliseconds, strict=True):
                name = PUBLISHED[network].label.split("-", 1)[-1] if "vit" in start else PUBLISHED[network].label
                panel.annotate(
                    name, (x, PUBLISHED[network].top1), textcoords="offset points", xytext=(6, -10), fontsize=8
                )
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:g}"))
        panel.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        panel.set_xticks([2, 5, 10, 20, 50, 100])
        panel.margins(x=0.12)
        panel.set_xlabel(f"milliseconds of one image, {threads} threads")
        panel.set_title(title, fontsize=11)
        panel.grid(alpha=0.25)
    axes[0].set_ylabel("top-1 on ImageNet-1k, published, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
