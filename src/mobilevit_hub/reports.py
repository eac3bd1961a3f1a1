"""Pictures for people: the learning curve of a training run, predictions, what exported files cost; and its log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .errors import require
from .files import json_bytes, write_file

BLUE, ORANGE, GREEN, GREY = "#2563eb", "#ea580c", "#15803d", "#6b7280"


def write_json(path: str | Path, data: Any) -> None:
    """Writes JSON with sorted keys, atomically."""
    write_file(path, json_bytes(data))


def new_figure(width: float, height: float) -> Any:
    """A figure that draws to a file: no window system, no global state."""
    require("matplotlib", "train", "Drawing")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png_of(figure: Any) -> bytes:
    """The figure as a PNG file."""
    import io

    buffer = io.BytesIO()
    # No date in the file, so that equal data gives equal bytes.
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()


def draw_learning_curve(history: list[dict[str, Any]], path: str | Path) -> None:
    """Draws training loss, and validation top-1 and top-5, over epochs.

    Args:
        history: Log records with `epoch` and `loss`, or `epoch`, `eval_top1` and `eval_top5`.
        path: PNG file to write.
    """
    figure = new_figure(8, 4)
    axes = figure.add_subplot()
    losses = [(r["epoch"], r["loss"]) for r in history if "loss" in r]
    scores = [(r["epoch"], 100 * r["eval_top1"], 100 * r["eval_top5"]) for r in history if "eval_top1" in r]
    if losses:
        axes.plot(*zip(*losses, strict=True), color=GREY, linewidth=1, label="training loss")
    axes.set_xlabel("epoch")
    axes.set_ylabel("training loss", color=GREY)
    axes.grid(alpha=0.25)
    axes.xaxis.get_major_locator().set_params(integer=True)
    right = axes.twinx()
    if scores:
        epochs, top1, top5 = zip(*scores, strict=True)
        right.plot(epochs, top1, "o-", color=BLUE, label="validation top-1")
        right.plot(epochs, top5, "o-", color=ORANGE, label="validation top-5")
        right.annotate(f"{top1[-1]:.1f} %", (epochs[-1], top1[-1]), xytext=(-8, 8), textcoords="offset points",
                       color=BLUE, ha="right")  # fmt: skip
    right.set_ylim(0, 100)
    right.set_ylabel("validation accuracy (%)")
    handles = [*axes.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    write_file(path, png_of(figure))


def draw_predictions(photos: list[Any], results: list[dict[str, Any]], path: str | Path) -> None:
    """Draws photos, each above the bars of its best labels.

    Args:
        photos: PIL images, one per result.
        results: Entries of `mobilevit_hub.predict`.
        path: PNG file to write.
    """
    figure = new_figure(3.2 * len(photos), 5.2)
    grid = figure.subplots(2, len(photos), squeeze=False, height_ratios=(2, 1))
    for column, (photo, result) in enumerate(zip(photos, results, strict=True)):
        grid[0][column].imshow(np.asarray(photo))
        # Without parse_math, a name with two dollar signs would be read as a formula.
        grid[0][column].set_title(Path(result["path"]).name, fontsize=10, parse_math=False)
        grid[0][column].axis("off")
        best = result["predictions"][::-1]
        axes = grid[1][column]
        axes.barh(range(len(best)), [100 * p["score"] for p in best], color=BLUE)
        for row, prediction in enumerate(best):
            label = prediction["label"].split(",")[0]
            axes.text(2, row, f"{label}  {100 * prediction['score']:.0f} %", va="center", fontsize=10, parse_math=False,
                      bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.5})  # fmt: skip
        axes.set_xlim(0, 100)
        axes.set_yticks([])
        axes.set_xlabel(f"probability (%)   ·   {result['ms']:.0f} ms", fontsize=9)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
    write_file(path, png_of(figure))


def trade_off_plot(points: list[dict[str, Any]], title: str) -> bytes:
    """Draws latency against accuracy of several files; the area of a point is the file's size.

    Args:
        points: For each file its `label`, `megabytes`, `milliseconds`, and `top1` with its `interval`, or, where these
            are None, `agreement` with the source; shares are fractions.
        title: What the files are made from.

    Returns:
        A PNG.
    """
    figure = new_figure(7, 4.2)
    axes = figure.add_subplot()
    measured = all(point["top1"] is not None for point in points)
    # fp32 and fp16 lie in one place where a processor computes both alike, so the texts part.
    styles = ((GREY, 8), (BLUE, -26), (GREEN, 8), (ORANGE, 8))
    for point, (color, offset) in zip(points, styles, strict=False):
        share = 100 * (point["top1"] if measured else point["agreement"])
        if measured:
            low, high = (100 * bound for bound in point["interval"])
            axes.errorbar(point["milliseconds"], share, yerr=[[share - low], [high - share]], color=color, capsize=3)
        axes.scatter(point["milliseconds"], share, s=90 * point["megabytes"], color=color, alpha=0.75, linewidths=0)
        axes.annotate(
            f"{point['label']}\n{point['megabytes']:.1f} MB",
            (point["milliseconds"], share),
            xytext=(10, offset),
            textcoords="offset points",
            color=color,
            fontsize=9,
        )
    axes.set_title(title, fontsize=11, parse_math=False)
    axes.set_xlabel("milliseconds an image, 1 thread")
    axes.set_ylabel("top-1 (%), 95 % interval" if measured else "same class on 32 built-in photos (%)")
    if measured:
        axes.margins(y=0.3)
    else:
        axes.set_ylim(0, 115)
    axes.set_xlim(0, 1.25 * max(point["milliseconds"] for point in points))
    axes.grid(alpha=0.25)
    return png_of(figure)
