"""Sizes of images: what is too large, and Apple's resize before the evaluation crop."""

from __future__ import annotations

from ..errors import ImageError

MAX_IMAGE_PIXELS = 50_000_000


def check_resize(width: int, height: int, shortest_edge: int) -> tuple[int, int]:
    """Returns the width and height after resizing the short side, unless that would be huge.

    The long side is `int(shortest_edge * long / short)`, as in Apple's code and in transformers.

    Raises:
        ImageError: The picture is so elongated that resizing it would need over 50 million pixels.
    """
    short, long = sorted((width, height))
    resized = int(shortest_edge * long / short)
    if shortest_edge * resized > MAX_IMAGE_PIXELS:
        raise ImageError(
            f"A {width} × {height} image is too elongated: resizing its short side to {shortest_edge} would need "
            f"{shortest_edge * resized / 1e6:,.0f} million pixels (limit {MAX_IMAGE_PIXELS // 10**6} million); "
            "crop it first."
        )
    return (shortest_edge, resized) if width <= height else (resized, shortest_edge)


def evaluation_resize(size: int) -> int:
    """Apple's short side in pixels before the evaluation crop of `size`: 256 → 288, but 384 → 384."""
    return size if size == 384 else round(size * 1.125)
