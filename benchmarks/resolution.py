"""How time and memory grow with the image: MobileViT's attention against MobileViTv2's separable one.

    python benchmarks/resolution.py                            # S and v2-1.0, 192 to 1024 px, 2 threads

One image of each size in stock transformers and in the PyTorch twin's inference form without a compiler, and one
attention layer of each version alone, both of the same width, on the tokens of that size. Writes `resolution.md`,
`.json` and `.png` into `benchmarks/results/`. Takes about 6 minutes, on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from inference_contestants import ATTENTION_WIDTH
from model_files import write_files
from processes import FOLDER, contest, differences, machine, table_head, table_row, take_turns, write_results

NETWORKS = ["mobilevit-s", "mobilevitv2-1.0"]
SIZES = [192, 256, 320, 384, 512, 640, 768, 1024]
LABELS = {"transformers": "transformers", "pt_plain": "this package", "attention": "one attention layer"}

Result = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="multiples of 64: no map is resized")
    parser.add_argument("--contestants", nargs="+", choices=list(LABELS), default=list(LABELS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=FOLDER / "results" / "resolution.md")
    options = parser.parse_args(arguments)

    record: Result = {"machine": machine(options.threads, 0), "networks": {}}
    for network in options.networks:
        record["networks"][network] = {}
        with tempfile.TemporaryDirectory() as folder:
            files = write_files(network, Path(folder), options.contestants)
            for size in options.sizes:
                print(f"{network}: {size} px …", file=sys.stderr, flush=True)
                with contest(
                    options.contestants, network, files, size=size, threads=options.threads, pythons={}
                ) as contestants:
                    differences([c for c in contestants if c.name != "attention"], "call", 1, 1e-4)
                    for contestant in contestants:
                        contestant.ask("forget")
                    times = take_turns([(c, "call") for c in contestants], 1, options.rounds, 2, warm_up=0)
                    memory = {c.name: c.ask("memory")["own"] for c in contestants}
                record["networks"][network][str(size)] = {
                    "tokens": (size // 8) ** 2,
                    "memory": memory,
                    "ms": {c.name: [round(v, 3) for v in taken] for c, taken in zip(contestants, times, strict=True)},
                }
    status = write_results(options.output, *report(record))
    plot(record, options.output.with_suffix(".png"))
    return status


def medians(results: Result, name: str) -> list[float]:
    """Milliseconds at each size."""
    return [statistics.median(result["ms"][name]) for result in results.values()]


def growth(tokens: list[int], values: list[float]) -> float:
    """The power of the number of tokens with which a value grows over the last three sizes."""
    first, last = max(len(tokens) - 3, 0), -1
    return math.log(values[last] / values[first]) / math.log(tokens[last] / tokens[first])


def report(record: Result) -> tuple[list[str], Result, list[str]]:
    """The lines of the Markdown page, the record, and no missed target: none is set."""
    about = record["machine"]
    lines = [
        "# Growth with the image",
        "",
        f"{about['processor']}, {about['cores']} cores, {about['threads']} threads, one image, float32, random "
        "weights. Written by `python benchmarks/resolution.py`.",
        "",
        "![Time and memory against the number of tokens](resolution.png)",
        "",
        "- tokens: places of the first block's map, a sixty-fourth of the pixels.",
        "- MB: the most memory during a call, without what the process has after its imports.",
        f"- One attention layer: alone, eager, {ATTENTION_WIDTH} channels in both versions.",
        "- The last line is the power of the number of tokens with which a column grows over the last three sizes: 1 "
        "is linear, 2 quadratic.",
    ]
    for network, results in record["networks"].items():
        names = [name for name in LABELS if name in next(iter(results.values()))["ms"]]
        columns = [f"{LABELS[name]}, {unit}" for unit in ("ms", "MB") for name in names]
        lines += ["", f"## {network}", "", *table_head("pixels", "tokens", *columns)]
        tokens = [result["tokens"] for result in results.values()]
        values = [medians(results, name) for name in names]
        values += [[result["memory"][name] for result in results.values()] for name in names]
        for i, size in enumerate(results):
            cells = [f"{column[i]:.1f}" if column[i] < 100 else f"{column[i]:.0f}" for column in values]
            lines.append(table_row(size, tokens[i], *cells))
        if len(tokens) > 1:
            lines.append(table_row("growth", 1, *(f"{growth(tokens, column):.2f}" for column in values)))
    return lines, record, []


def plot(record: Result, path: Path) -> None:
    """Time and memory against the number of tokens: the networks, and one attention layer of each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(12, 4), layout="constrained")
    for network, results in record["networks"].items():
        tokens = [result["tokens"] for result in results.values()]
        colour = "#2ca02c" if "v2" in network else "#d62728"
        for name, style in (("transformers", "--"), ("pt_plain", "-")):
            if name in next(iter(results.values()))["ms"]:
                line = {"color": colour, "linestyle": style, "marker": "o", "markersize": 4}
                label = f"{network}, {'transformers' if name == 'transformers' else 'ours'}"
                axes[0].plot(tokens, medians(results, name), label=label, **line)
                axes[1].plot(tokens, [result["memory"][name] for result in results.values()], label=label, **line)
        if "attention" in next(iter(results.values()))["ms"]:
            label = "separable attention (v2)" if "v2" in network else "self-attention (v1)"
            axes[2].plot(tokens, medians(results, "attention"), color=colour, marker="s", markersize=4, label=label)
    titles = ("Time of one image, ms", "Memory of one image, MB", "Time of one attention layer, ms")
    for panel, title in zip(axes, titles, strict=True):
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xlabel("tokens")
        panel.set_title(title, fontsize=11)
        panel.grid(alpha=0.25)
        panel.legend(fontsize=8)
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:g}"))
            axis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
