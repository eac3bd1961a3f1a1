"""Writes the tables of the README and of the pages: everything between two comments.

    <!-- table: models -->
    <!-- end of table -->

The numbers come from the presets, from what was measured (`assets/measured.csv`) and from the network's own layers.

    python docs/tables.py                       # all files that have tables
    python docs/tables.py README.md             # one of them
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mobilevit_hub import MobileViTConfig, MobileViTV2Config
from mobilevit_hub.cli.main import build_parser
from mobilevit_hub.hub.chooser import measurements
from mobilevit_hub.hub.presets import Preset, get_preset, list_presets
from mobilevit_hub.network.architecture import STAGE_NAMES
from mobilevit_hub.network.structure import Part, parts

ROOT = Path(__file__).parents[1]
MARKED = re.compile(r"(?P<start><!-- table: (?P<name>[\w.-]+) -->\n).*?(?P<end><!-- end of table -->)", re.DOTALL)
TITLES = {"pt": "PyTorch", "tf": "Keras", "tflite": "TFLite", "tflite-int8": "TFLite, int8"}
NONE = "–"


def config_of(preset: Preset) -> Any:
    """The config of a published checkpoint."""
    return {"mobilevit": MobileViTConfig, "mobilevitv2": MobileViTV2Config}[preset.model_type].from_preset(preset.name)


def place_of(part: Part) -> int:
    """Where a layer stands: 0 the stem, 1 to 5 the stages, 6 what follows them."""
    return part.at["stage"] + 1 if "stage" in part.at else 0 if part.name == "conv_stem" else 6


def sides_of(config: Any) -> list[int]:
    """Side of the map that the stem and stages 1 to 5 give, in pixels."""
    return [config.image_size // stride for stride in config.stage_strides]


def weights_of(part: Part) -> int:
    """Trainable values of a layer: weight, bias, scale and shift of its norm."""
    norm = {"conv_norm": 2, "conv": int(part.bias), "layer": int(part.bias)}[part.kind] * part.shape[0]
    return len(part.split) * (math.prod(part.shape) + norm)


def costs(config: Any) -> list[tuple[int, int]]:
    """Parameters and multiply-accumulates of the stem, of stages 1 to 5, and of what follows them.

    Counted are convolutions, linear layers and the products of attention, as in the presets.
    """
    sides = sides_of(config)
    found = [[0, 0] for _ in range(7)]
    for part in parts(config):
        place = place_of(part)
        found[place][0] += weights_of(part)
        if len(part.shape) == 1:  # a norm
            continue
        side = 1 if part.name == "classifier" else sides[min(place, 5)]
        if ".transformer." in part.name:
            side = token_side(config, place)
        elif "expand_1x1" in part.name and (place == 2 or "downsampling" in part.name) and not part.at.get("block"):
            side = sides[place - 1]  # before the stride
        found[place][1] += len(part.split) * math.prod(part.shape) * side**2
    for stage, layers in zip((3, 4, 5), config.n_attn_blocks, strict=True):
        found[stage][1] += layers * attention_products(config, stage)
    return [(params, macs) for params, macs in found]


def token_side(config: Any, stage: int) -> int:
    """Side of the map whose pixels are the tokens of stage 3, 4 or 5: a multiple of the patch."""
    patch = config.patch_sizes[stage - 3]
    return math.ceil(sides_of(config)[stage] / patch) * patch


def attention_products(config: Any, stage: int) -> int:
    """Multiply-accumulates of one layer's products of matrices that are no weights, in stage 3, 4 or 5."""
    if config.model_type == "mobilevitv2":
        return 0  # sums and products of single values only
    tokens = token_side(config, stage) ** 2
    patches = tokens // config.patch_sizes[stage - 3] ** 2
    return 2 * tokens * patches * config.hidden_sizes[stage - 3]  # scores, and what they weigh


def rows_of(head: Iterable[str], rows: Iterable[Iterable[str]], *, numbers_from: int = 1) -> str:
    """A Markdown table; columns from `numbers_from` on are aligned to the right."""
    head = list(head)
    rule = ["---"] * numbers_from + ["---:"] * (len(head) - numbers_from)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rule, *rows))


def millions(count: int) -> str:
    """`1_272_024` → `1.3 M`."""
    return f"{count / 1e6:.1f} M"


def billions(count: int | None) -> str:
    """`407_364_096` → `0.41 G`."""
    return NONE if count is None else f"{count / 1e9:.2f} G"


def models_table() -> str:
    """The classifiers that load by name at their smallest resolution, and what they cost."""
    measured = {(row.name, row.runtime, row.threads): row for row in measurements()}
    shown = [
        preset
        for preset in list_presets("image-classification")
        if preset.loadable and preset.resolution <= 256 and "in22k" not in preset.name
    ]
    rows, processors = [], set()
    for preset in shown:
        found = {runtime: measured.get((preset.name, runtime, 1)) for runtime in TITLES}
        processors |= {row.processor for row in found.values() if row}
        rows.append(
            [
                f"`{preset.name}`",
                millions(preset.params),
                billions(preset.macs),
                f"{preset.score:.1f}" + " ¹" * (preset.dataset != "imagenet-1k"),
                str(preset.resolution),
                *(f"{row.megabytes:.1f}" if (row := found[name]) else NONE for name in ("tflite", "tflite-int8")),
                *(f"{row.milliseconds:.1f}" if row else NONE for row in found.values()),
            ]
        )
    head = ["checkpoint", "params", "MACs", "top-1, %", "pixels", "fp32, MB", "int8, MB"]
    table = rows_of([*head, *(f"{title}, ms" for title in TITLES.values())], rows)
    return (
        f"{table}\nTop-1 on ImageNet-1k as published; MB are those of the `.tflite` file. Milliseconds of one image on "
        f"one thread of {' and '.join(sorted(processors))}, written by\n`python benchmarks/measured.py`. "
        "¹ On Tiny ImageNet, 200 classes; this one is in the package.\n"
    )


def checkpoints_table(task: str) -> str:
    """All published checkpoints of a task, and how their images are prepared."""
    head = ["checkpoint", "loads from", "params", "MACs", "score, %", "timm measured, %", "pixels", "photo, pixels"]
    rows = []
    for preset in list_presets(task):
        resize = f"{preset.resize}" if preset.keep_aspect else f"{preset.resize} × {preset.resize}"
        crop = f" → {preset.crop}" if preset.crop else ""
        timm = NONE if preset.timm_scores is None else f"{preset.timm_scores[0]:.2f}"
        place = "the package" if preset.folder else f"`{preset.hub_id}`" if preset.loadable else NONE
        rows.append(
            [
                f"`{preset.name}`",
                place,
                millions(preset.params),
                billions(preset.macs),
                NONE if preset.score is None else f"{preset.score:.2f}",
                timm,
                str(preset.resolution),
                f"{resize}{crop}, {preset.interpolation}, {preset.channel_order.upper()}",
            ]
        )
    if task != "image-classification":  # neither loads nor was measured elsewhere
        head, rows = head[:1] + head[2:5] + head[6:], [row[:1] + row[2:5] + row[6:] for row in rows]
    return rows_of(head, rows, numbers_from=2 if task == "image-classification" else 1)


def stages_table(name: str) -> str:
    """The stages of a network: what they hold, what they give, what they cost."""
    preset = get_preset(name)
    config = config_of(preset)
    version_1 = preset.model_type == "mobilevit"
    block = "MobileViT block" if version_1 else "MobileViTv2 block"
    inverted = 3 if version_1 else 2
    holds = [
        "3×3 convolution, stride 2",
        "1 inverted residual",
        f"{inverted} inverted residuals, the first of stride 2",
    ]
    for layers, width in zip(config.n_attn_blocks, config.hidden_sizes, strict=True):
        holds.append(f"inverted residual of stride 2, {block}: {layers} layers of width {width}")
    holds.append(
        f"1×1 convolution to {config.neck_hidden_sizes[6]}, mean over the map, classifier"
        if version_1
        else "mean over the map, classifier"
    )
    sides, channels = sides_of(config), config.stage_channels
    gives = [f"{side}×{side}×{width}" for side, width in zip(sides, channels, strict=True)] + [str(config.num_labels)]
    found = costs(config)
    rows = [
        [place, what, shape, f"{params:,}", f"{macs / 1e6:,.0f} M"]
        for place, what, shape, (params, macs) in zip([*STAGE_NAMES, "head"], holds, gives, found, strict=True)
    ]
    params, macs = (sum(column) for column in zip(*found, strict=True))
    pixels = f"{config.image_size}×{config.image_size}"
    rows.append(["all", f"`{name}`, {pixels}", "", f"{params:,}", f"{macs / 1e6:,.0f} M"])
    return rows_of(["", "holds", "gives", "params", "MACs"], rows, numbers_from=2)


def widths_table() -> str:
    """Channels of every width of both versions."""
    names = ["mobilevit-xxs", "mobilevit-xs", "mobilevit-s"]
    names += [f"mobilevitv2-{width}" for width in ("0.5", "0.75", "1.0", "1.25", "1.5", "1.75", "2.0")]
    rows = []
    for name in names:
        config = config_of(get_preset(name))
        rows.append([f"`{name}`", *map(str, config.stage_channels), ", ".join(map(str, config.hidden_sizes))])
    return rows_of(["", *STAGE_NAMES, "width of attention in stages 3, 4, 5"], rows)


COMMON = {"help", "json", "quiet", "debug", "revision", "cache_dir", "local_files_only"}
"""Options that the text above the table of verbs explains."""


def command_table() -> str:
    """Every verb of the command: what it does, its arguments, examples."""
    verbs = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return "".join(f"\n## {name}\n\n{_verb(verb)}" for name, verb in verbs.choices.items()) + "\n"


def _verb(parser: argparse.ArgumentParser) -> str:
    rows = []
    for action in parser._actions:
        if action.dest in COMMON or action.help == argparse.SUPPRESS:
            continue
        value = action.metavar or (
            f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.dest.upper()
        )
        name = f"{', '.join(action.option_strings)} {value if action.nargs != 0 else ''}".strip()
        text = (action.help or "") % {**vars(action), "prog": parser.prog}
        rows.append([f"`{name or value}`", text.replace("|", "\\|")])
    examples = (parser.epilog or "").removeprefix("examples:\n")
    examples = "\n".join(line.strip() for line in examples.splitlines())
    table = rows_of(["argument", "meaning"], rows, numbers_from=2)
    return f"{parser.description}\n\n```bash\n{examples}\n```\n\n{table}"


TABLES: dict[str, Callable[[], str]] = {
    "models": models_table,
    "classifiers": lambda: checkpoints_table("image-classification"),
    "segmenters": lambda: checkpoints_table("semantic-segmentation"),
    "detectors": lambda: checkpoints_table("object-detection"),
    "stages-mobilevit-s": lambda: stages_table("mobilevit-s"),
    "stages-mobilevitv2-1.0": lambda: stages_table("mobilevitv2-1.0"),
    "widths": widths_table,
    "command": command_table,
}


def filled(text: str) -> str:
    """A page with its tables made afresh."""
    return MARKED.sub(lambda found: found["start"] + TABLES[found["name"]]() + found["end"], text)


def main() -> int:
    """Rewrites the files; returns 0."""
    files = [Path(name) for name in sys.argv[1:]] or [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for file in files:
        old = file.read_text("utf-8")
        new = filled(old)
        if new != old:
            file.write_text(new, "utf-8")
            sys.stdout.write(f"{file}: tables written\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
