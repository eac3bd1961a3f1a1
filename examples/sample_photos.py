"""Makes labelled photos to try every command on: crops of the four photos beside this file, one folder per class.

    python examples/sample_photos.py photos

The crops of a class come from one photo, so any network learns them within seconds, and scores on them say
nothing about photos of other things.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SOURCES = {"bus": "school_bus.jpg", "cat": "chelsea_cat.jpg", "espresso": "espresso.jpg", "pizza": "pizza.jpg"}
COUNT, SIZE = 30, 96
"""Photos of a class, and their side in pixels."""


def crop(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A random square of 60 to 100 % of the shorter side, half of the time mirrored."""
    side = round(min(photo.size) * rng.uniform(0.6, 1))
    left, top = (rng.integers(0, edge - side + 1) for edge in photo.size)
    square = photo.resize((SIZE, SIZE), box=(left, top, left + side, top + side))
    return ImageOps.mirror(square) if rng.random() < 0.5 else square


def main() -> int:
    """Writes the folder; returns 2 for wrong usage."""
    if len(sys.argv) != 2:
        print(f"usage: python {sys.argv[0]} FOLDER", file=sys.stderr)
        return 2
    rng = np.random.default_rng(0)
    for name, file in SOURCES.items():
        folder = Path(sys.argv[1]) / name
        folder.mkdir(parents=True, exist_ok=True)
        photo = Image.open(Path(__file__).parent / "photos" / file).convert("RGB")
        for i in range(COUNT):
            crop(photo, rng).save(folder / f"{i:02}.jpg")
    print(f"{sys.argv[1]}: {COUNT} photos of each of {', '.join(SOURCES)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
