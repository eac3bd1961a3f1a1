"""A data set that a network learns in seconds: coloured shapes on noise, made by code."""

import numpy as np
from pictures import encode

CLASSES = ("circle", "square", "stripes")
COLOURS = {"circle": (230, 40, 40), "square": (40, 200, 60), "stripes": (50, 70, 230)}
TRAIN_COUNT, VALIDATION_COUNT = 48, 12


def shape(name, seed, size=40):
    """A `(size, size, 3)` picture of one class."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 100, (size, size, 3))
    y, x = np.mgrid[0:size, 0:size] - rng.integers(size // 3, 2 * size // 3, 2)[:, None, None]
    radius = rng.integers(size // 4, size // 3)
    inside = {
        "circle": x**2 + y**2 < radius**2,
        "square": np.maximum(abs(x), abs(y)) < radius,
        "stripes": (x // 4) % 2 == 0,
    }[name]
    picture[inside] = COLOURS[name]
    return picture.astype(np.uint8)


def save_shapes(folder):
    """Writes `train/` and `validation/`, each with a folder per class."""
    for split, count, start in (("train", TRAIN_COUNT, 0), ("validation", VALIDATION_COUNT, 1000)):
        for i in range(count):
            name = CLASSES[i % len(CLASSES)]
            file = folder / split / name / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode(shape(name, start + i), "PNG"))
    return folder
