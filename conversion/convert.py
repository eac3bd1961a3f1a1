"""Converts weights from any published source, checks the result, and writes it whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mobilevit_hub.checkpoints.saving import CARD_FILE, save_checkpoint
from mobilevit_hub.checkpoints.tensors import read_tensors, to_safetensors
from mobilevit_hub.choices import check_choice
from mobilevit_hub.errors import ExportError, InputError, SaveError, listed, require
from mobilevit_hub.files import temporary_folder, write_file, write_folder
from mobilevit_hub.hub.download import CONFIG_FILE, PROCESSOR_FILE, WEIGHT_FILES
from mobilevit_hub.network.names import SCHEMES, Rename, renames, to_theirs
from mobilevit_hub.network.structure import COUNTER
from mobilevit_hub.publishing.cards import checkpoint_card, preset_metadata

from .keras_files import write_keras
from .parity import ParityReport, compare
from .sources import TITLES, Source, open_source

TARGETS = ("folder", "cvnets", "timm", "keras")
# What a file's ending says about the target; a name without one is a folder.
_TARGET_OF_ENDING = {
    ".pt": "cvnets", ".pth": "timm", ".bin": "timm", ".safetensors": "timm", ".keras": "keras", ".h5": "keras",
}  # fmt: skip


@dataclass(frozen=True)
class Conversion:
    """What became of a source."""

    source: str
    """As the user gave it."""
    kind: str
    """Whose names and layout it had."""
    network: str
    """Published checkpoint that it is, or the version."""
    labels: int
    tensors: int
    """Number of tensors in the source."""
    sha256: str
    git_blob: str
    output: str
    target: str
    notes: list[str] = field(default_factory=list)
    """What was decided or left out, one line each."""
    parity: ParityReport | None = None
    """How the result compared; None when it was not verified."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {**vars(self), "parity": self.parity.to_dict() if self.parity else None}


def convert(
    source: str | Path,
    output: str | os.PathLike,
    *,
    to: str | None = None,
    verify: bool = True,
    overwrite: bool = False,
    **options: Any,
) -> Conversion:
    """Converts weights of any published kind and verifies the result before it gets its name.

    Args:
        source: As `name` of `open_source`.
        output: Folder or file to write.
        to: `"folder"` (ours, which opens in both twins and in transformers), `"cvnets"` or `"timm"` (a file
            with their names), or `"keras"` (a `.keras` or `.weights.h5` file). Default: by the ending of `output`:
            `.pt` cvnets; `.safetensors`, `.bin`, `.pth` timm; `.keras`, `.weights.h5` Keras; else a folder.
        verify: Whether to run the result in every library that is installed and compare; see `parity.compare`.
            That the written tensors are those that were read, to the bit and under the source's names as well, is
            always checked.
        overwrite: Whether an earlier output is replaced.
        options: Of `open_source`.

    Raises:
        InputError: An argument is wrong, or the output exists.
        SourceError, CheckpointError: As `open_source`.
        ExportError: The result does not compute what the others compute; nothing was written.
        SaveError: It could not be written; what was there before is kept.
    """
    output = Path(os.path.expanduser(output))  # noqa: PTH111 - which leaves an unknown ~user as it is
    target = _target(output, to)
    _check_place(output, target)
    if not overwrite and os.path.lexists(output) and not (output.is_dir() and not any(output.iterdir())):
        raise InputError(
            f"{str(output)!r} is there already; pass overwrite (--overwrite) to replace it.",
            path=output,
            field="output",
        )
    with open_source(source, **options) as opened, temporary_folder() as temporary:
        folder = temporary / "checkpoint"
        save_checkpoint(folder, opened.tensors, opened.config, processor=opened.processor, card=_card(opened))
        _check_round_trip(opened, folder)
        report = None
        if verify:
            report = compare(
                folder,
                source_tensors=opened.theirs if opened.scheme == "timm" else None,
                progress=options.get("progress", False),
            )
            if not report.passed:
                reason = f"it failed its check: {report.lines()[-1]}"
                if not report.rows:
                    reason = (
                        f"nothing could be compared: only {report.reference or 'no library'} can run it here. Install "
                        "another one or pass verify=False (--no-verify)."
                    )
                message = f"{opened.name}: the result was not written, because {reason}"
                raise ExportError(message, path=opened.name, report=report)
        notes = [*opened.notes, *_left_behind(opened, output, target)]
        if target == "folder":
            write_folder(output, {file.name: file.read_bytes() for file in folder.iterdir()})
        else:
            file = temporary / f"result{'.weights.h5' if output.suffix == '.h5' else output.suffix}"
            _write_as(target, file, opened, folder)
            with open_source(file, model=folder) as again:
                found = again.tensors
            if target == "keras":  # whose float32 holds every float16
                found = {name: tensor.astype(opened.tensors[name].dtype) for name, tensor in found.items()}
            _check_equal(found, opened.tensors, str(output))
            write_file(output, file.read_bytes())
        return Conversion(
            source=opened.name,
            kind=TITLES[opened.scheme],
            network=opened.network,
            labels=opened.config.num_labels if opened.head else 0,
            tensors=len(opened.theirs),
            sha256=opened.sha256,
            git_blob=opened.git_blob,
            output=str(output),
            target=target,
            notes=notes,
            parity=report,
        )


def _target(output: Path, to: str | None) -> str:
    """The kind of output: as asked for, or as its ending says."""
    by_ending = _TARGET_OF_ENDING.get(output.suffix)
    if to is None and by_ending is None and output.suffix[1:].isalpha():  # not the .0 of mobilevitv2-1.0
        raise InputError(
            f"{output.name!r} ends in {output.suffix}, which is no format of conversion; expected .pt, .safetensors, "
            ".bin, .pth, .keras, .weights.h5 or a folder (--to folder).",
            field="output",
        )
    target = to or by_ending or "folder"
    check_choice("to", target, TARGETS)
    if target != "folder" and (by_ending is None or (target == "keras") != (by_ending == "keras")):
        endings = {"keras": ".keras or .weights.h5"}.get(target, ".safetensors, .pt, .pth or .bin")
        raise InputError(f"{output.name!r} is no name for a {target} file; it ends in {endings}.", field="output")
    if output.suffix == ".h5" and not output.name.endswith(".weights.h5"):
        raise InputError(f"{output.name!r}: Keras names such files NAME.weights.h5.", field="output")
    return target


def _check_place(output: Path, target: str) -> None:
    """Refuses at once what could only fail when everything else is done."""
    # Not Path's own questions, which raise on names that are too long; saving explains those.
    is_file, is_folder, has_parent = os.path.isfile(output), os.path.isdir(output), os.path.isdir(output.parent)  # noqa: PTH112, PTH113
    if target == "folder" and is_file:
        raise SaveError(f"Cannot save into {str(output)!r}: it is a file, not a folder.", path=output)
    if target != "folder" and is_folder:
        raise SaveError(f"Cannot save {str(output)!r}: it is a folder, not a file.", path=output)
    if target != "folder" and not has_parent:
        raise SaveError(f"Cannot save {str(output)!r}: the folder above it does not exist.", path=output)
    if target == "keras":
        require("keras", "tf", f"Writing {output.name}")
    elif target != "folder" and output.suffix != ".safetensors":
        require("torch", "torch", f"Writing {output.name}")


def _card(source: Source) -> str:
    """The model card: where the weights come from, under which licence, and their digests."""
    # Where a file lies on this machine is nobody's business.
    place = os.path.expanduser(source.name)  # noqa: PTH111 - of addresses too, which Path changes
    name = Path(place).absolute().name if os.path.exists(place) else source.name  # noqa: PTH110
    facts = [
        ("source", name),
        ("kind", TITLES[source.scheme]),
        ("sha256 of the source", source.sha256),
        ("git blob id of the source", source.git_blob),
        ("tensors in the source", len(source.theirs)),
        *[("note", note) for note in source.notes],
    ]
    about: dict[str, Any] = {}
    if source.published is not None:
        about = preset_metadata(source.published)
        if not source.is_named:
            del about["scores"]  # of the published file, which this one need not be
    return checkpoint_card(source.config, name=source.network, facts=facts, processor=source.processor, **about)


def _check_round_trip(source: Source, folder: Path) -> None:
    """Raises unless the written weights are those of the source to the bit, under their names as well."""
    written, _ = read_tensors(folder / WEIGHT_FILES[0])
    if source.scheme in SCHEMES:
        written = to_theirs(written, _names(source, source.scheme))
        expected = source.theirs
    else:
        expected = source.tensors
    _check_equal(written, expected, source.name)


def _left_behind(source: Source, output: Path, target: str) -> list[str]:
    """What the output does not hold, or holds beside what is written."""
    if target == "folder":
        written = {CARD_FILE, CONFIG_FILE, PROCESSOR_FILE, WEIGHT_FILES[0]}
        is_folder = os.path.isdir(output)  # noqa: PTH112 - Path's own question raises on names that are too long
        others = sorted(path.name for path in output.iterdir() if path.name not in written) if is_folder else []
        return [f"other files stay in {output.name}: {listed(others)}"] if others else []
    if output.suffix == ".keras" or source.published is not None:
        return []
    return [
        f"{output.name} holds no class names and no preprocessing: to come back pass --model and a folder with both"
    ]


def _names(source: Source, scheme: str) -> Iterator[Rename]:
    """The names of a scheme, with the stem reversed where these weights take another order than the library."""
    return renames(source.config, scheme, source.head, bgr=source.processor.do_flip_channel_order)


def _check_equal(written: dict[str, np.ndarray], expected: dict[str, np.ndarray], name: str) -> None:
    """Raises unless tensors are equal to the bit; batch counters that a source lacked do not count."""
    different = [
        tensor_name
        for tensor_name, tensor in expected.items()
        if tensor_name not in written
        or written[tensor_name].dtype != tensor.dtype
        or (written[tensor_name].shape != tensor.shape and not tensor_name.endswith(COUNTER))
        or written[tensor_name].tobytes() != tensor.tobytes()
    ]
    extra = [n for n in written.keys() - expected.keys() if not n.endswith(COUNTER)]
    wrong = [*different, *extra]
    if wrong:
        raise ExportError(f"{name}: {len(wrong)} tensors do not come back to the bit: {listed(wrong)}.", path=name)


def _write_as(target: str, file: Path, source: Source, folder: Path) -> None:
    """Writes a file of another library."""
    if target == "keras":
        write_keras(file, folder, has_classifier=source.head is not None)
        return
    tensors = to_theirs(source.tensors, _names(source, target))
    if file.suffix == ".safetensors":
        file.write_bytes(to_safetensors(tensors, {"format": "pt"}))
        return
    import torch

    with open(file, "wb") as content:  # not by its name, which the file would hold
        torch.save({name: torch.from_numpy(tensor.copy()) for name, tensor in tensors.items()}, content)
