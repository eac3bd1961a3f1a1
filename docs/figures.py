"""Draws the figures of the architecture page into docs/images/; every number in them comes from a config.

python docs/figures.py
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from tables import config_of, costs, sides_of

from mobilevit_hub.hub.presets import get_preset
from mobilevit_hub.network.architecture import STAGE_NAMES

FOLDER = Path(__file__).with_name("images")
# Paper and ink of their own, so that a figure reads the same on a light and on a dark page.
PAPER, INK, GREY = "#ffffff", "#1f2933", "#6b7785"
CONVOLUTION, ATTENTION, TOKENS, SHAPE = "#cfe3f7", "#fbd9b5", "#fdf0dd", "#e6eaee"
PLACES = ("#4c9be8", "#f2a65a", "#7bc47f", "#c287d9")
"""Colours of the four places in a patch of 2 × 2."""
VERSION_1, VERSION_2 = "mobilevit-s", "mobilevitv2-1.0"


@contextmanager
def figure(name: str, width: float, height: float, folder: Path) -> Iterator[Any]:
    """Axes of `width` × `height` units without frame; written as `name`.svg at the end."""
    settings = {"svg.hashsalt": name, "font.family": "DejaVu Sans", "font.size": 9, "text.color": INK}
    with mpl.rc_context(settings):
        drawing = plt.figure(figsize=(width, height), facecolor=PAPER)
        axes = drawing.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, width)
        axes.set_ylim(0, height)
        axes.axis("off")
        yield axes
        drawing.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": "docs/figures.py"})
        plt.close(drawing)


def box(axes: Any, x: float, y: float, width: float, height: float, text: str, colour: str) -> None:
    """A rounded box around the centre `(x, y)`."""
    corner = (x - width / 2, y - height / 2)
    style = "round,pad=0,rounding_size=0.08"
    axes.add_patch(FancyBboxPatch(corner, width, height, boxstyle=style, facecolor=colour, edgecolor=INK, linewidth=1))
    axes.text(x, y, text, ha="center", va="center", linespacing=1.35)


def arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], bend: float = 0) -> None:
    """An arrow; `bend` curves it."""
    style = f"arc3,rad={bend}"
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=INK, linewidth=1, connectionstyle=style)
    )


def note(axes: Any, x: float, y: float, text: str, **options: Any) -> None:
    """A remark in grey."""
    axes.text(x, y, text, **{"ha": "center", "va": "center", "color": GREY, "fontsize": 8, **options})


def title(axes: Any, x: float, y: float, text: str) -> None:
    """A heading, from `x` to the right."""
    axes.text(x, y, text, ha="left", va="center", fontsize=11, fontweight="bold")


def draw_network(folder: Path) -> None:
    """What each stage gives and costs, in both versions."""
    with figure("network", 9, 4.7, folder) as axes:
        for name, top in ((VERSION_1, 4.4), (VERSION_2, 2.05)):
            config = config_of(get_preset(name))
            title(axes, 0.3, top, f"{name}, {config.image_size} × {config.image_size} pixels")
            found = costs(config)
            params, macs = (sum(column) for column in zip(*found, strict=True))
            shapes = [f"{side}×{side}×{c}" for side, c in zip(sides_of(config), config.stage_channels, strict=True)]
            places = zip([*STAGE_NAMES, "head"], [*shapes, f"{config.num_labels}"], found, strict=True)
            for i, (place, shape, (own_params, own_macs)) in enumerate(places):
                x = 1.55 + 1.12 * i
                box(axes, x, top - 0.5, 0.98, 0.52, f"{place}\n{shape}", ATTENTION if 3 <= i <= 5 else CONVOLUTION)
                if i:
                    arrow(axes, (x - 0.63, top - 0.5), (x - 0.48, top - 0.5))
                shares = ((own_params / params, PLACES[0]), (own_macs / macs, PLACES[1]))
                for row, (share, colour) in enumerate(shares):
                    low = top - 1.22 - 0.55 * row
                    axes.add_patch(Rectangle((x - 0.45, low), 0.9 * share / 0.5, 0.2, facecolor=colour))
                    note(axes, x - 0.45, low + 0.32, f"{100 * share:.0f} %", ha="left")
            note(axes, 0.15, top - 1.12, f"parameters\n{params / 1e6:.1f} M", ha="left")
            note(axes, 0.15, top - 1.67, f"multiply-adds\n{macs / 1e9:.2f} G", ha="left")


def draw_block(folder: Path) -> None:
    """The MobileViT block of stage 4 of `mobilevit-s`, step by step."""
    config = config_of(get_preset(VERSION_1))
    side, channels, width = sides_of(config)[4], config.stage_channels[4], config.hidden_sizes[1]
    layers, patch, kernel = config.n_attn_blocks[1], config.patch_sizes[1], config.conv_kernel_size
    places, patches = patch**2, (side // patch) ** 2
    with figure("block", 9, 4.3, folder) as axes:
        title(axes, 0.3, 4.0, f"MobileViT block: stage 4 of {VERSION_1}")
        for left, right, text in ((1.2, 3.6, "local representation"), (3.72, 6.2, "global representation")):
            axes.add_patch(Rectangle((left, 1.62), right - left, 1.72, facecolor="#f5f7f9", edgecolor="none"))
            note(axes, (left + right) / 2, 3.2, text)
        y = 2.3
        box(axes, 0.62, y, 0.9, 0.62, f"{side}×{side}\n×{channels}", SHAPE)
        box(axes, 1.8, y, 1.0, 0.8, f"{kernel}×{kernel}\nconvolution", CONVOLUTION)
        box(axes, 3.0, y, 1.0, 0.8, f"1×1\nto {width}", CONVOLUTION)
        box(axes, 4.1, y, 0.62, 0.8, "unfold", TOKENS)
        box(axes, 4.96, y, 0.78, 0.8, f"{layers} trans-\nformer\nlayers", ATTENTION)
        box(axes, 5.82, y, 0.62, 0.8, "fold", TOKENS)
        box(axes, 6.72, y, 0.8, 0.8, f"1×1\nto {channels}", CONVOLUTION)
        box(axes, 7.5, y, 0.5, 0.8, "join", SHAPE)
        box(axes, 8.35, y, 0.92, 0.8, f"{kernel}×{kernel}\n{2 * channels}\nto {channels}", CONVOLUTION)
        for start, end in (
            *((1.07, 1.3), (2.3, 2.5), (3.5, 3.79), (4.41, 4.57), (5.35, 5.51), (6.13, 6.32), (7.12, 7.25)),
            (7.75, 7.89),
        ):
            arrow(axes, (start, y), (end, y))
        arrow(axes, (0.62, 1.99), (7.5, 1.9), bend=0.16)
        note(axes, 4.06, 1.12, "the block's input skips everything and is joined again along the channels (fusion)")
        note(axes, 4.96, 1.76, f"{places} places × {patches} patches × {width}")
        note(
            axes,
            4.5,
            0.55,
            "Every convolution has a BatchNorm and SiLU behind it, but the first 1×1, which is bare.\n"
            f"Here {patch} × {patch} pixels are a patch, so a map of {side} × {side} has {patches} of them.",
        )


def draw_patches(folder: Path) -> None:
    """Which pixels of a map attend to each other."""
    config = config_of(get_preset(VERSION_1))
    side, patch = sides_of(config)[5], config.patch_sizes[2]
    places, patches = patch**2, (side // patch) ** 2
    with figure("patches", 9, 3.7, folder) as axes:
        title(axes, 0.3, 3.4, "Unfolding: pixels of the same colour are one sequence")
        size, x0, y0 = 0.3, 0.5, 0.45
        for row in range(side):
            for column in range(side):
                colour = PLACES[patch * (row % patch) + column % patch]
                low = y0 + size * (side - 1 - row)
                square = Rectangle((x0 + size * column, low), size, size, facecolor=colour, edgecolor=PAPER)
                axes.add_patch(square)
        for line in range(side // patch + 1):
            step = size * patch * line
            axes.plot([x0, x0 + size * side], [y0 + step] * 2, color=INK, linewidth=1)
            axes.plot([x0 + step] * 2, [y0, y0 + size * side], color=INK, linewidth=1)
        note(
            axes, x0 + size * side / 2, 0.22, f"stage 5: {side} × {side} pixels, {patches} patches of {patch} × {patch}"
        )
        for place in range(places):
            y = 2.6 - 0.62 * place
            for column in range(patches):
                square = Rectangle((4.2 + 0.27 * column, y), 0.27, 0.27, facecolor=PLACES[place], edgecolor=PAPER)
                axes.add_patch(square)
        arrow(axes, (3.2, 1.7), (3.95, 1.7))
        note(axes, 3.55, 1.95, "unfold")
        note(axes, 6.36, 0.42, f"{places} sequences of {patches} tokens, {config.hidden_sizes[2]} channels each")
        note(axes, 6.36, 3.05, "a token attends to all of its row, and to nothing else")


def draw_attention(folder: Path) -> None:
    """Self-attention of version 1 beside separable self-attention of version 2."""
    first, second = config_of(get_preset(VERSION_1)), config_of(get_preset(VERSION_2))
    side, patch = sides_of(first)[3], first.patch_sizes[0]
    n, width_1, width_2 = (side // patch) ** 2, first.hidden_sizes[0], second.hidden_sizes[0]
    products_1, products_2 = 2 * n * n * width_1, 2 * n * width_2
    with figure("attention", 9, 4.6, folder) as axes:
        title(axes, 0.3, 4.3, "Version 1: self-attention")
        title(axes, 4.8, 4.3, "Version 2: separable self-attention")
        axes.plot([4.5, 4.5], [0.2, 4.45], color=SHAPE)
        note(axes, 2.3, 3.95, f"{n} tokens of {width_1} channels (stage 3 of {VERSION_1})")
        for x, name in ((0.9, "query"), (2.2, "key"), (3.5, "value")):
            box(axes, x, 3.4, 1.0, 0.42, f"{name}\n{n}×{width_1}", TOKENS)
        box(axes, 1.55, 2.3, 1.5, 0.7, f"scores\n{n}×{n}", ATTENTION)
        arrow(axes, (0.9, 3.19), (1.35, 2.65))
        arrow(axes, (2.2, 3.19), (1.75, 2.65))
        box(axes, 2.5, 1.2, 1.5, 0.6, f"weighed values\n{n}×{width_1}", TOKENS)
        arrow(axes, (1.55, 1.95), (2.2, 1.5))
        arrow(axes, (3.5, 3.19), (2.85, 1.5))
        note(
            axes,
            2.3,
            0.5,
            f"{n}·{n}·{width_1}·2 = {products_1 / 1e6:.1f} M products\ngrows with the square of the tokens",
        )
        note(axes, 6.75, 3.95, f"{n} tokens of {width_2} channels (stage 3 of {VERSION_2})")
        for x, text in ((5.4, f"query\n{n}×1"), (6.7, f"key\n{n}×{width_2}"), (8.0, f"value\n{n}×{width_2}")):
            box(axes, x, 3.4, 1.0, 0.42, text, TOKENS)
        box(axes, 5.4, 2.45, 1.1, 0.5, f"scores\n{n}×1", ATTENTION)
        box(axes, 6.5, 1.75, 1.3, 0.5, f"context\n1×{width_2}", ATTENTION)
        box(axes, 7.4, 1.0, 1.5, 0.5, f"gated values\n{n}×{width_2}", TOKENS)
        arrow(axes, (5.4, 3.19), (5.4, 2.7))
        note(axes, 5.86, 2.95, "softmax")
        arrow(axes, (5.5, 2.2), (6.1, 2.0))
        arrow(axes, (6.7, 3.19), (6.55, 2.0))
        arrow(axes, (6.7, 1.5), (7.1, 1.25))
        arrow(axes, (8.0, 3.19), (7.6, 1.25))
        note(axes, 8.25, 2.2, "ReLU")
        note(axes, 6.75, 0.5, f"{n}·{width_2}·2 = {products_2 / 1e6:.2f} M products\ngrows with the tokens")


def main() -> int:
    """Draws all figures; returns 0."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    mpl.use("svg")
    for draw in (draw_network, draw_block, draw_patches, draw_attention):
        draw(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
