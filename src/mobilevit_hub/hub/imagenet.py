"""The classes of ImageNet-1k: names, WordNet ids, and the parts that other benchmarks use."""

from __future__ import annotations

import csv
import functools
from pathlib import Path

FILE = Path(__file__).parents[1] / "assets" / "imagenet-1k.csv"


@functools.cache
def _imagenet_classes() -> tuple[dict[str, str], ...]:
    with FILE.open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


def imagenet_labels() -> list[str]:
    """Returns the 1000 names of ImageNet-1k in the order of the logits; no name stands there twice."""
    return [row["name"] for row in _imagenet_classes()]


def imagenet_wnids() -> list[str]:
    """Returns the 1000 WordNet ids of ImageNet-1k, such as `"n01440764"`, in the order of the logits."""
    return [row["wnid"] for row in _imagenet_classes()]


def imagenet_subset(name: str) -> list[int]:
    """Returns the indices among the 1000 of the 200 classes of `"imagenet_a"` or `"imagenet_r"`, ascending."""
    return [i for i, row in enumerate(_imagenet_classes()) if row[name]]
