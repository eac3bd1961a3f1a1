"""What a training run leaves for people: its learning curve and its model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..figures import BLUE, GREY, ORANGE, new_figure, png_of
from ..files import write_file
from ..metrics.comparison import wilson_interval
from ..publishing.cards import front_matter, markdown_table, markdown_text, score_entry
from ..recipes.recipe import parse_size_schedule


def _epochs(log: dict[str, Any]) -> str:
    """Passes over the photos, with those of the checkpoint that a run went on from, where they are known."""
    recipe = log["recipe"]
    schedule = recipe["size_schedule"]
    own, earlier = len(parse_size_schedule(schedule)) if schedule else recipe["epochs"], log.get("earlier_epochs", 0)
    return f"{earlier + own}: {earlier} of the checkpoint it started from and {own} more" if earlier else str(own)


def training_card(log: dict[str, Any], config: Any) -> str:
    """The model card of a trained checkpoint: data, recipe, command, time, machine, scores.

    Args:
        log: Content of `training_log.json`, and `earlier_epochs`, those of the checkpoint it started from.
        config: The network's config.
    """
    low, high = wilson_interval(round(log["top1"] * log["count"]), log["count"])
    scores = [score_entry(metric, log[metric], log["data"]) for metric in ("top1", "top5")]
    shown = ", ".join(label.split(",")[0] for label in list(config.id2label.values())[:8])
    facts = [
        ("top-1", f"{100 * log['top1']:.2f} % (95 % interval {100 * low:.2f} to {100 * high:.2f})"),
        ("top-5", f"{100 * log['top5']:.2f} %"),
        ("measured on", f"{log['count']:,} validation photos"),
        ("classes", f"{config.num_labels}: {shown}" + " …" * (config.num_labels > 8)),
        ("trained on", f"{log['train_count']:,} photos of {log['data']}, {log['steps']:,} steps"),
        ("epochs", _epochs(log)),
        ("started from", "random weights" if log["from_scratch"] else f"the checkpoint {log['model']}"),
        ("time and machine", f"{log['seconds'] / 60:.0f} minutes on {log['machine']}"),
        ("changed config fields", ", ".join(f"{k}={v}" for k, v in log["config"].items()) or "none"),
    ]
    command = f"Command:\n\n```\n{log['command'].replace('`', '')}\n```\n\n" if log["command"] else ""
    recipe = [(name, value) for name, value in log["recipe"].items() if value != ""]
    return f"""{front_matter(config, name=f"{log['model']} on {log['data']}", scores=scores)}
# {markdown_text(log["model"])} trained on {markdown_text(log["data"])}

{markdown_table(("measure", "value"), facts)}

{command}Preprocessing stands in `preprocessor_config.json`; pixels go in scaled to [0, 1], without mean and
standard deviation.

## Recipe

{markdown_table(("setting", "value"), recipe)}

![learning curve](learning_curve.png)
"""


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
