"""The benchmarks of the papers: data sets by name, how their classes are read, and what others measured on them.

    >>> BENCHMARKS["imagenet-a"].restricted
    True

All are about the 1000 classes of ImageNet-1k. None of the photos is part of this package: they come from the Hub, some
after their terms were accepted there, or from a copy on this machine, `imagenet-1k:path/to/it`.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..data.label_maps import has_imagenet_labels, label_indices
from ..errors import ConfigError, InputError, NotFoundError
from ..hub.imagenet import imagenet_labels, imagenet_subset, imagenet_wnids
from ..hub.presets import find_preset

TIMM = "timm, results/results-{}.csv"


@dataclass(frozen=True, kw_only=True)
class BenchmarkSet:
    """One benchmark."""

    name: str
    title: str
    count: int
    """Photos of the whole set; of ReaL, those that have a label."""
    hub_id: str | None
    """Repository on the Hub that `datasets` opens; None: a local copy is needed."""
    split: str = "validation"
    """Split of the Hub repository."""
    label_column: str | None = None
    """Column of the Hub repository that holds WordNet ids as text; None: its class label column."""
    subset: str | None = None
    """`"imagenet_a"` or `"imagenet_r"`: the 200 classes that the photos are of."""
    real: bool = False
    """Whether several labels of a photo are right, which the published real.json lists."""
    source: str
    """Where the photos are published."""
    timm_top1: dict[str, float] = field(default_factory=dict, hash=False)
    """Top-1 in percent that timm measured, by the name of the preset."""
    timm_source: str = ""

    @property
    def restricted(self) -> bool:
        """Whether the scores of the other 800 classes are left out before the best is taken, as timm does."""
        return self.subset is not None

    @property
    def classes(self) -> list[int]:
        """The indices among the 1000 of the classes that the photos are of."""
        return imagenet_subset(self.subset) if self.subset else list(range(1000))


def _timm(name: str, *scores: float) -> dict[str, Any]:
    models = ("mobilevit-xxs", "mobilevit-xs", "mobilevit-s", "mobilevitv2-0.5", "mobilevitv2-1.0", "mobilevitv2-2.0")
    return {"timm_top1": dict(zip(models, scores, strict=True)), "timm_source": TIMM.format(name)}


# Hub ids as public code uses them. Sketch is there as a script, V2 as an archive; `datasets` opens neither.
_ROWS = (
    BenchmarkSet(
        name="imagenet-1k",
        title="ImageNet-1k validation",
        count=50_000,
        hub_id="ILSVRC/imagenet-1k",
        source="https://image-net.org",
    ),
    BenchmarkSet(
        name="imagenet-real",
        title="ImageNet ReaL",
        count=46_837,
        hub_id="ILSVRC/imagenet-1k",
        real=True,
        source="https://github.com/google-research/reassessed-imagenet",
        **_timm("imagenet-real", 76.604, 81.542, 84.265, 78.128, 84.931, 86.459),
    ),
    BenchmarkSet(
        name="imagenet-v2",
        title="ImageNet-V2 matched frequency",
        count=10_000,
        hub_id=None,
        source="https://huggingface.co/datasets/vaishaal/ImageNetV2, imagenetv2-matched-frequency.tar.gz",
        **_timm("imagenetv2-matched-frequency", 57.250, 62.850, 66.790, 57.690, 66.290, 69.700),
    ),
    BenchmarkSet(
        name="imagenet-a",
        title="ImageNet-A",
        count=7_500,
        hub_id="barkermrl/imagenet-a",
        split="train",
        subset="imagenet_a",
        source="https://github.com/hendrycks/natural-adv-examples",
        **_timm("imagenet-a", 3.800, 7.693, 13.013, 3.933, 11.040, 18.613),
    ),
    BenchmarkSet(
        name="imagenet-r",
        title="ImageNet-R",
        count=30_000,
        hub_id="axiong/imagenet-r",
        split="test",
        label_column="wnid",
        subset="imagenet_r",
        source="https://github.com/hendrycks/imagenet-r",
        **_timm("imagenet-r", 26.403, 29.693, 33.790, 28.630, 36.443, 40.137),
    ),
    BenchmarkSet(
        name="imagenet-sketch",
        title="ImageNet-Sketch",
        count=50_889,
        hub_id=None,
        source="https://huggingface.co/datasets/songweig/imagenet_sketch, data/ImageNet-Sketch.zip",
        **_timm("sketch", 14.565, 18.340, 22.606, 17.346, 24.561, 27.723),
    ),
)
BENCHMARKS = {row.name: row for row in _ROWS}


def find_benchmark(data: str) -> tuple[BenchmarkSet | None, str | None]:
    """Splits `"imagenet-1k:path"` into a benchmark and the path of a local copy.

    Returns:
        The benchmark, or None where `data` names none, and the path, or None where it has none.
    """
    name, colon, path = data.partition(":")
    if name not in BENCHMARKS or (colon and not path):
        return None, None
    return BENCHMARKS[name], path or None


def other_scores(benchmark: BenchmarkSet, model: str) -> list[dict[str, Any]]:
    """What others report of a published checkpoint on a benchmark.

    Args:
        benchmark: The data set.
        model: Name of the checkpoint; only an alias or Hub id of `presets` is known.

    Returns:
        `{"by", "top1", "top5"}` each, as fractions; `top5` is None where it is not reported. Nobody else's for other
        models.
    """
    preset = find_preset(model)
    if preset is None or preset.dataset != "imagenet-1k" or preset.metric != "top1":
        return []
    if benchmark.name == "imagenet-1k":
        timm = preset.timm_scores or (None, None)
        found = [(preset.score_source, preset.score, None), (TIMM.format("imagenet"), *timm)]
    else:
        found = [(benchmark.timm_source, benchmark.timm_top1.get(preset.name), None)]
    return [
        {"by": by, "top1": round(top1 / 100, 6), "top5": None if top5 is None else round(top5 / 100, 6)}
        for by, top1, top5 in found
        if top1 is not None
    ]


def label_map(benchmark: BenchmarkSet, classes: list[str], labels: list[str], name: str) -> np.ndarray:
    """The label of a model for each class of a copy of a benchmark, which may hold a part of the classes.

    Args:
        benchmark: The benchmark.
        classes: Names of the copy's classes.
        labels: Names of the model's 1000 labels.
        name: What the copy is called in an error.

    Raises:
        InputError: A class is none of the benchmark's.
    """
    # labels without names are taken for ImageNet's, see `check_imagenet_labels`
    indices = label_indices(classes, labels if has_imagenet_labels(labels) else imagenet_labels(), name)
    if strange := set(indices.tolist()) - set(benchmark.classes):
        raise InputError(
            f"{name}: has the class {imagenet_wnids()[min(strange)]!r}, which is none of the "
            f"{len(benchmark.classes)} of {benchmark.title}.",
            field="data",
        )
    return indices


# ReaL.
_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})")


def read_real_labels(file: str | os.PathLike | None) -> list[list[int]]:
    """Reads the published real.json: for each of the 50,000 validation photos a list of labels, some empty.

    Raises:
        InputError: No file is given.
        NotFoundError, ConfigError: The file is not there, or is something else.
    """
    if file is None:
        raise InputError(
            "imagenet-real needs the labels that are published as real.json in google-research/reassessed-imagenet; "
            "pass the file as --real-labels real.json (real_labels=).",
            field="real_labels",
        )
    path = Path(file).expanduser()
    if not path.is_file():
        raise NotFoundError(f"--real-labels {str(file)!r}: there is no such file.", path=path, field="real_labels")
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        data = None
    fits = isinstance(data, list) and all(
        isinstance(entry, list) and all(type(i) is int and 0 <= i < 1000 for i in entry) for entry in data
    )
    if not fits or len(data) != 50_000:
        raise ConfigError(
            f"{path}: is not the published real.json: expected a list of 50,000 lists of class numbers from 0 to 999.",
            path=path,
            field="real_labels",
        )
    return data


def real_labels_of(file_name: str | None, labels: list[list[int]]) -> list[int]:
    """The labels of a photo, found by the number in its file name, such as `ILSVRC2012_val_00000001.JPEG`.

    Raises:
        InputError: Its name has no such number.
    """
    found = _NUMBER.search(file_name or "")
    if not found or not 1 <= int(found[1]) <= len(labels):
        raise InputError(
            f"The photo {file_name!r} has no number as in ILSVRC2012_val_00000001.JPEG, by which its ReaL labels are "
            "found.",
            path=file_name,
            field="data",
        )
    return labels[int(found[1]) - 1]
