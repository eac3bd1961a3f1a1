"""What an evaluation leaves for people: a page, a table of classes, plots, and scores in the model card."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoints.saving import CARD_FILE
from ..errors import InputError
from ..figures import BLUE, GREY, ORANGE, new_figure, png_of
from ..files import write_file
from ..metrics import Reliability, most_confused
from ..publishing.cards import check_card, markdown_table, markdown_text, score_entry

NAMED_CLASSES = 30
"""Most classes whose names a confusion plot still shows."""


def percent(value: float | None, digits: int = 2) -> str:
    """A fraction for people; a dash for None."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def with_interval(result: dict[str, Any], metric: str) -> str:
    """A score with its 95 % interval: `"41.64 % (40.68 to 42.61)"`."""
    low, high = result["intervals"][metric]
    return f"{percent(result['metrics'][metric])} ({100 * low:.2f} to {100 * high:.2f})"


def write_report(
    folder: Path, results: list[dict[str, Any]], details: list[dict[str, Any]], comparisons: list[dict[str, Any]]
) -> None:
    """Writes `results.md`, and for each model its table of classes and its plots.

    Args:
        folder: Where; with several models the files of each begin with its number and name.
        results: The result of each model.
        details: For each model `reliability`, and `per_class`, `confusion` and `confusion_labels` where a photo belongs
            to one class.
        comparisons: How each pair of models differs.
    """
    page = ["# Evaluation on " + markdown_text(results[0]["dataset"]), "", _table_of_results(results)]
    if comparisons:
        page += ["", "## Comparison", "", _table_of_comparisons(comparisons)]
    for number, (result, detail) in enumerate(zip(results, details, strict=True), 1):
        title = f"{result['model']} ({result['runtime']})"
        prefix = "" if len(results) == 1 else f"{number}-{re.sub(r'[^A-Za-z0-9.]+', '-', title).strip('-')}-"
        page += ["", "## " + markdown_text(title)]
        files = {"confidence.png": confidence_plot(detail["reliability"], title)}
        if "per_class" in detail:
            files["per_class.csv"] = class_table(detail["per_class"])
            files["confusion.png"] = confusion_plot(detail["confusion"], detail["confusion_labels"], title)
            page += _page_of_classes(detail)
        for name, content in files.items():
            write_file(folder / (prefix + name), content)
        plots = [name for name in files if name.endswith(".png")]
        page += ["", *(f"![{name.partition('.')[0]}]({prefix}{name})" for name in plots)]
    write_file(folder / "results.md", ("\n".join(page) + "\n").encode())


def _table_of_results(results: list[dict[str, Any]]) -> str:
    rows = []
    for result in results:
        metrics, speed = result["metrics"], result["images_per_second"]
        rows.append(
            [
                result["model"],
                result["runtime"],
                with_interval(result, "top1"),
                with_interval(result, "top5"),
                percent(metrics.get("mean_per_class")),
                percent(metrics["calibration_error"]),
                f"{result['count']:,}",
                result["unreadable"],
                "–" if speed is None else f"{speed:.1f}",
            ]
        )
        for other in result["others"]:
            part = "" if result["whole"] else ", on all photos"
            rows.append(
                [f"the same by {other['by']}{part}", "", percent(other["top1"]), percent(other["top5"])] + [""] * 5
            )
    head = ("model", "runtime", "top-1 (95 % interval)", "top-5 (95 % interval)", "mean per class",
            "calibration error", "photos", "unreadable", "photos a second")  # fmt: skip
    return markdown_table(head, rows)


def _table_of_comparisons(comparisons: list[dict[str, Any]]) -> str:
    rows = [
        [c["first"], c["second"], percent(c["agreement"]), c["lost"], c["gained"], f"{c['p_value']:.3g}"]
        for c in comparisons
    ]
    return markdown_table(
        ("first", "second", "agreement", "only the first right", "only the second right", "p (McNemar)"), rows
    )


def _page_of_classes(detail: dict[str, Any]) -> list[str]:
    hardest = sorted(detail["per_class"], key=lambda row: (row["top1"], row["label"]))[:10]
    rows = [[row["label"], f"{row['count']:,}", percent(row["top1"], 1), percent(row["top5"], 1)] for row in hardest]
    page = ["", "The hardest classes:", "", markdown_table(("class", "photos", "top-1", "top-5"), rows)]
    names = detail["confusion_labels"]
    if mistakes := most_confused(detail["confusion"]):
        rows = [[names[i], names[j], count] for i, j, count in mistakes]
        page += ["", "The most frequent mistakes:", "", markdown_table(("class", "taken for", "photos"), rows)]
    return page


def class_table(rows: list[dict[str, Any]]) -> bytes:
    """A table of classes as CSV: index and name of the label, photos, top-1 with interval, top-5, as fractions."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["index", "label", "count", "top1", "low", "high", "top5"])
    for row in rows:
        shares = (row["top1"], *row["interval"], row["top5"])
        writer.writerow([row["index"], row["label"], row["count"], *(f"{share:.6f}" for share in shares)])
    return text.getvalue().encode()


# --------------------------------------------------------------------------------------------------
# Plots
# --------------------------------------------------------------------------------------------------


def confusion_plot(matrix: np.ndarray, labels: list[str], title: str) -> bytes:
    """Draws a confusion matrix: each row is one class, its colours are shares of that class's photos.

    Args:
        matrix: Counts, `(classes, classes)`; rows are classes, columns what they are taken for.
        labels: Their names, shown up to 30 classes.
        title: What was measured.

    Returns:
        A PNG.
    """
    count = len(matrix)
    shares = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    named = count <= NAMED_CLASSES
    figure = new_figure(4 + 0.35 * count, 3 + 0.35 * count) if named else new_figure(9, 8)
    axes = figure.add_subplot()
    # the square root, so that mistakes of one in a hundred are seen beside the diagonal
    image = axes.imshow(np.sqrt(shares / 100), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    if named:
        short = [label.split(",")[0] for label in labels]
        axes.set_xticks(range(count), short, rotation=60, ha="right", rotation_mode="anchor", parse_math=False)
        axes.set_yticks(range(count), short, parse_math=False)
        for i, j in zip(*np.nonzero(matrix), strict=True):
            color = "white" if shares[i, j] > 40 else "black"
            axes.text(j, i, f"{shares[i, j]:.0f}", ha="center", va="center", color=color, fontsize=8)
    axes.set_xlabel("taken for" if named else "taken for (classes in the order of the labels)")
    axes.set_ylabel("class")
    axes.set_title(title, fontsize=11, parse_math=False)
    bar = figure.colorbar(image, ax=axes, shrink=0.7)
    ticks = (0, 1, 5, 10, 25, 50, 75, 100)
    bar.set_ticks([np.sqrt(t / 100) for t in ticks], labels=[str(t) for t in ticks])
    bar.set_label("share of the class's photos (%)")
    return png_of(figure)


def confidence_plot(bins: Reliability, title: str) -> bytes:
    """Draws how often the model is right against how sure it is, above how many photos that are.

    Args:
        bins: Photos by confidence.
        title: What was measured.

    Returns:
        A PNG.
    """
    figure = new_figure(5.5, 6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    width = 100 / len(bins.count)
    left, filled = np.arange(len(bins.count)) * width, bins.count > 0
    upper.plot((0, 100), (0, 100), color=GREY, linewidth=1, linestyle="--", label="as sure as right")
    upper.bar(left[filled], 100 * bins.accuracy[filled], width, align="edge", color=BLUE, edgecolor="white",
              label="right")  # fmt: skip
    upper.plot(100 * bins.confidence[filled], 100 * bins.accuracy[filled], "o", color=ORANGE, markersize=4,
               label="at their mean probability")  # fmt: skip
    upper.set_ylim(0, 100)
    upper.set_xlim(0, 100)
    upper.set_ylabel("right (%)")
    upper.set_title(title, fontsize=11, parse_math=False)
    upper.legend(loc="upper left", frameon=False, fontsize=9)
    upper.grid(alpha=0.25)
    lower.bar(left, 100 * bins.count / max(1, bins.count.sum()), width, align="edge", color=GREY, edgecolor="white")
    lower.set_ylabel("photos (%)")
    lower.set_xlabel("probability of the best label (%)")
    lower.grid(alpha=0.25)
    return png_of(figure)


# --------------------------------------------------------------------------------------------------
# Model card
# --------------------------------------------------------------------------------------------------


def check_card_folder(model: str) -> Path:
    """The model card of a checkpoint that is a folder here.

    Raises:
        InputError: The model is no folder, or has no card.
        ConfigError: The metadata of the card cannot be read.
    """
    folder = Path(model).expanduser()
    card = folder / CARD_FILE
    if not folder.is_dir() or not card.is_file():
        raise InputError(
            f"--model-index writes into the {CARD_FILE} of a folder, but {model!r} is none that has one; save the "
            "checkpoint first, for example by: mobilevit-hub convert.",
            path=model,
            field="model_index",
        )
    check_card(card.read_text("utf-8"), card)
    return card


def write_model_index(model: str, result: dict[str, Any]) -> None:
    """Writes scores into the metadata of a model card; those of the same data set and metric are replaced.

    Args:
        model: Folder of the checkpoint.
        result: Its result.

    Raises:
        InputError, ConfigError: As `check_card_folder`.
    """
    from huggingface_hub import ModelCard

    path = check_card_folder(model)
    card = ModelCard(path.read_text("utf-8"), ignore_metadata_errors=False)
    data: Any = card.data
    added = [score_entry(metric, result["metrics"][metric], result["dataset"]) for metric in ("top1", "top5")]
    replaced = {(entry.dataset_type, entry.metric_type, entry.metric_name) for entry in added}
    kept = [
        entry
        for entry in data.eval_results or []
        if (entry.dataset_type, entry.metric_type, entry.metric_name) not in replaced
    ]
    data.model_name = data.model_name or path.parent.resolve().name
    data.eval_results = kept + added
    write_file(path, str(card).encode())
