"""From the classes of a data set to the labels of a model: by name, by WordNet id, or by number."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from ..errors import InputError, MobileViTHubWarning
from ..hub.imagenet import imagenet_labels, imagenet_wnids

SAME_NAMES = 0.9
"""Share of the 1000 names by which labels are recognised as those of ImageNet-1k; spellings differ."""


def label_indices(classes: Sequence[str], labels: Sequence[str], name: str, field: str = "data") -> np.ndarray:
    """Finds the label of a model for each class of a data set.

    Tried in this order: the same lists; all classes are labels by name; all are WordNet ids such as `n01440764`, or
    the 1000 names of ImageNet-1k in another spelling, and the model has the labels of ImageNet-1k; all are numbers,
    as in ImageNet-V2 whose folders are called 0 to 999, and mean the label of that number.

    Args:
        classes: Names of the data set's classes, in its own order.
        labels: Names of the model's labels.
        name: What the data set is called in an error.
        field: What the user called the argument, for the error.

    Returns:
        `(len(classes),)` indices of labels.

    Raises:
        InputError: A class has no label, or one of several that share its name.
    """
    if list(classes) == list(labels):
        return np.arange(len(labels))
    known = {label: i for i, label in enumerate(labels)}
    if all(c in known for c in classes):
        if doubtful := [c for c in classes if list(labels).count(c) > 1]:
            raise InputError(
                f"{name}: has the class {doubtful[0]!r}, but several labels of the model have that name.", field=field
            )
        return np.array([known[c] for c in classes])
    if has_imagenet_labels(labels):
        if has_imagenet_labels(classes):
            return np.arange(len(labels))
        by_wnid = {wnid: i for i, wnid in enumerate(imagenet_wnids())}
        if all(c in by_wnid for c in classes):
            return np.array([by_wnid[c] for c in classes])
    if all(c.isascii() and c.isdigit() and int(c) < len(labels) for c in classes):
        return np.array([int(c) for c in classes])
    strange = next(c for c in classes if c not in known)
    raise InputError(
        f"{name}: has the class {strange!r}, which the model does not know; it has {len(labels)} labels such as "
        f"{labels[0]!r}.",
        field=field,
        found=strange,
    )


def has_imagenet_labels(labels: Sequence[str]) -> bool:
    """Whether names are those of the 1000 classes of ImageNet-1k in the order of the logits, in any spelling."""
    if len(labels) != 1000:
        return False
    same = sum(_first_name(ours) in _names(theirs) for ours, theirs in zip(imagenet_labels(), labels, strict=True))
    return same >= SAME_NAMES * 1000


def _first_name(label: str) -> str:
    """`"crane (bird)"` → `"crane"`."""
    return label.split(",")[0].split("(")[0].replace("_", " ").strip().lower()


def _names(label: str) -> list[str]:
    """`"tench, Tinca tinca"` → `["tench", "tinca tinca"]`."""
    return [_first_name(part) for part in label.split(",")]


def check_imagenet_labels(labels: Sequence[str], model: str, benchmark: str) -> None:
    """Raises `InputError` unless a model has the 1000 labels of ImageNet-1k; 1000 without names are taken for them.

    Args:
        labels: Names of the model's labels.
        model: What the model is called in the message.
        benchmark: The data set that needs them.
    """
    if has_imagenet_labels(labels):
        return
    if len(labels) == 1000 and all(str(i) in label for i, label in enumerate(labels)):
        warnings.warn(
            f"{model}: its 1000 labels have no names; they are taken for those of ImageNet-1k in the usual order.",
            MobileViTHubWarning,
            stacklevel=3,
        )
        return
    raise InputError(
        f"{model}: has {len(labels)} labels such as {labels[0]!r}; {benchmark} needs a model with the 1000 of "
        "ImageNet-1k.",
        field="model",
        found=len(labels),
        expected=1000,
    )
