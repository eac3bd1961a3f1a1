"""Which tensors of a file belong to which weights of a network: each used once, and each filled."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import CheckpointError, listed
from ..network.structure import COUNTER, HEADS


@dataclass
class LoadReport:
    """What became of the tensors of a file; every list is empty after a strict load."""

    missing: list[str] = field(default_factory=list)
    """Weights of the network that the file does not have; they keep their initial values."""
    unexpected: list[str] = field(default_factory=list)
    """Tensors of the file that have no place in the network."""
    mismatched: list[str] = field(default_factory=list)
    """Tensors of another shape than the network's, as text with both shapes."""
    new_head: list[str] = field(default_factory=list)
    """Weights of the classifier that was replaced on purpose."""
    dtype: str = "float32"
    """Number type of the file; bfloat16 is read as float32, which holds the same values."""


def fit_tensors(
    tensors: dict[str, np.ndarray],
    wanted: dict[str, tuple[int, ...]],
    *,
    path: Any,
    model_name: str,
    prefix: str,
    new_head: bool = False,
    strict: bool = True,
) -> tuple[dict[str, np.ndarray], LoadReport]:
    """Pairs the tensors of a file with the weights of a network, each used once and each filled.

    Three things may differ on purpose, and nothing else: a network without a head leaves the file's
    head (and version 1's last convolution) aside; the names may lack or carry the base prefix; a new
    head keeps its initial values when `new_head` says so.

    Args:
        tensors: What the file holds, by our names.
        wanted: Name and shape of every weight of the network.
        path: The file, for messages.
        model_name: Class of the network, for messages.
        prefix: `"mobilevit"` or `"mobilevitv2"`.
        new_head: Whether the head is replaced.
        strict: Raise on any difference; otherwise leave out what does not fit and report it.

    Raises:
        CheckpointError: With the lists of missing, unexpected and mismatched names.
    """
    tensors = _match_prefix(tensors, wanted, prefix)
    wanted_heads = {name for name in wanted if name.startswith(HEADS)}
    if not wanted_heads:
        tensors = {name: t for name, t in tensors.items() if not name.startswith(HEADS)}
    if not any("conv_1x1_exp." in name for name in wanted):
        tensors = {name: t for name, t in tensors.items() if "conv_1x1_exp." not in name}
    types = {str(t.dtype) for t in tensors.values() if t.dtype.kind == "f"}
    report = LoadReport(dtype="/".join(sorted(types)))
    result = {}
    for name, shape in wanted.items():
        if name in wanted_heads and new_head:
            report.new_head.append(name)
            tensors.pop(name, None)
            continue
        if name not in tensors:
            if not name.endswith(COUNTER):
                report.missing.append(name)
            continue
        tensor = tensors.pop(name)
        if name.endswith(COUNTER) and tensor.size == 1:
            tensor = tensor.reshape(shape)
        if tensor.shape != shape:
            report.mismatched.append(f"{name} (found {list(tensor.shape)}, expected {list(shape)})")
            continue
        result[name] = tensor
    report.unexpected = sorted(tensors)
    if strict and (report.missing or report.unexpected or report.mismatched):
        needed = sum(not name.endswith(COUNTER) for name in wanted)
        raise _does_not_fit(report, needed, path, model_name)
    return result, report


def _match_prefix(tensors: dict[str, np.ndarray], wanted: Iterable[str], prefix: str) -> dict[str, np.ndarray]:
    """Adds or removes the base model's prefix where file and network disagree on it."""
    dot, wanted = f"{prefix}.", set(wanted)
    if any(name.startswith(dot) and name.removeprefix(dot) in wanted for name in tensors):
        renamed = {name.removeprefix(dot): tensor for name, tensor in tensors.items()}
        # Fewer where a name stands there with and without the prefix: then one of the two has no place.
        return renamed if len(renamed) == len(tensors) else dict(tensors)
    if any(dot + name in wanted for name in tensors):
        return {name if name.startswith(HEADS) else dot + name: tensor for name, tensor in tensors.items()}
    return dict(tensors)


def _does_not_fit(report: LoadReport, count: int, path: Any, model_name: str) -> CheckpointError:
    lists = {"missing": report.missing, "unexpected": report.unexpected, "wrong shape": report.mismatched}
    summary = ", ".join(f"{len(names)} {what}" for what, names in lists.items() if names)
    details = "; ".join(f"{what}: {listed(names)}" for what, names in lists.items() if names)
    hint = ""
    if any(name.startswith(HEADS) for name in [*report.missing, *report.mismatched]):
        hint = " For a new classifier pass num_labels=."
    if len(report.missing) > 0.9 * count:
        hint = f" Nearly nothing fits: wrong model family?{guess_family(report.unexpected)}"
    elif any(n.startswith("segmentation_head.") for n in report.unexpected):
        hint = " This looks like a segmentation checkpoint."
    return CheckpointError(
        f"{path}: the weights do not fit {model_name}: {summary}. {details}.{hint}",
        path=path,
        missing=report.missing,
        unexpected=report.unexpected,
        mismatched=report.mismatched,
    )


def guess_family(names: list[str]) -> str:
    """What a file seems to be, from its tensor names."""
    signs = {
        "mobilevit.": "MobileViT version 1",
        "mobilevitv2.": "MobileViTv2",
        "stages.": "timm's",
        "layer_1.": "Apple's",
        "encoder.conv_1.": "Apple's (detection or segmentation)",
        "layer1.": "a ResNet's",
        "vit.": "a ViT's",
    }
    for start, family in signs.items():
        if any(name.startswith(start) for name in names):
            return f" The names look like {family}."
    return ""
