"""From a checkpoint to a `.tflite` file that a phone app can use as it is, with a report of what it costs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mobilevit_hub import __version__
from mobilevit_hub.architecture import PRECISIONS
from mobilevit_hub.errors import ExportError, InputError, require
from mobilevit_hub.files import json_bytes, sha256_of, temporary_folder, write_file, write_folder
from mobilevit_hub.tflite import Model

from .inputs import Source, calibration_photos, labelled_photos, open_source, public_name
from .inspection import Inspection, check_form, inspect
from .measurement import Comparison, Difference, Latency, check_photos, compare, difference, latency, processor_name
from .progress import bar, step
from .quantization import activation_ranges, quantize

LIMITS = {"fp32": ("largest", 1e-4), "fp16": ("error", 1e-2), "int8-dynamic": ("error", 0.25), "int8": ("error", 0.5)}
"""What a file may differ from its source on the built-in photos: a field of `Difference`, and how much."""


@dataclass
class Export:
    """A file that was written, and what is known about it."""

    path: str
    record: dict[str, Any]
    """What the file says about itself: input, output, preprocessing, source, calibration."""
    inspection: Inspection
    difference: Difference
    """From the source, on the built-in photos."""
    float_size: int
    """Bytes of the float32 file."""
    latencies: list[Latency] = field(default_factory=list)
    comparison: Comparison | None = None
    processor: str = ""
    """What the latencies were measured on."""

    @property
    def precision(self) -> str:
        """One of `PRECISIONS`."""
        return str(self.record["precision"])

    def report(self) -> dict[str, Any]:
        """What the sidecar holds under this name."""
        return {
            **self.inspection.to_dict(),
            "size_of_fp32": round(self.inspection.size / self.float_size, 4),
            "difference": self.difference.to_dict(),
            "latency": {"processor": self.processor, "milliseconds": [entry.to_dict() for entry in self.latencies]},
            "comparison": None if self.comparison is None else self.comparison.to_dict(),
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON can hold it."""
        return {"path": self.path, **self.record, "report": self.report()}


# --------------------------------------------------------------------------------------------------
# Public functions
# --------------------------------------------------------------------------------------------------


def export_tflite(
    name: str | Path, output: str | Path, *, precision: str = "fp32", overwrite: bool = False, **options: Any
) -> Export:
    """Exports a classifier; `OUTPUT.tflite` is written with its sidecar `OUTPUT.json`.

    The file takes a photo that was resized and cropped, as bytes in RGB; everything after that is in the graph. It
    has a fixed size and batch 1, built-in operations only, and the metadata that MediaPipe reads. Before it gets its
    name it is opened again from the disk, run on real photos and compared with its source.

    Args:
        name: An alias, a folder, or a Hub id.
        output: The file to write; its name ends in `.tflite`.
        precision: `"fp32"`; `"fp16"`, half the size and as exact; `"int8-dynamic"`, a third of the size and faster;
            `"int8"`, the fastest, calibrated on photos.
        overwrite: Whether to replace a file that is there.
        options: As for `export_all_precisions`.

    Returns:
        What was written and measured.

    Raises:
        ExportError: The file differs from its source or would not run well; nothing was written.
        InputError: An argument is wrong, such as a calibration set of fewer than 100 photos.
        SourceError, ConfigError, CheckpointError: The checkpoint cannot be opened.
        SaveError: It could not be written; what was there before is kept.
    """
    path = _checked_output(output, [""], overwrite)[0]
    return _export(name, {_checked_precision(precision): path}, **options)[0]


def export_all_precisions(
    name: str | Path,
    output: str | Path,
    *,
    resolution: int | None = None,
    input_type: str = "uint8",
    output_type: str = "probabilities",
    calibration: str | Path | None = None,
    compare: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
    **places: Any,
) -> list[Export]:
    """Exports a classifier in every precision, and writes one table (`OUTPUT.md`) and plot (`OUTPUT.png`) of all.

    Args:
        name: An alias, a folder, or a Hub id.
        output: `OUTPUT.tflite`; the files are `OUTPUT-fp32.tflite` and so on.
        resolution: Side of the image in pixels, from 32; default: that of the checkpoint.
        input_type: `"uint8"`, 0 to 255, or `"float32"`, 0 to 1.
        output_type: `"probabilities"` or `"logits"`.
        calibration: Photos for the precision int8: a folder, parquet files, or a data set on the Hub; without
            labels as well. At most 200 are used, chosen by a fixed seed.
        compare: Labelled photos on which to compare top-1 of source and file.
        overwrite: Whether to replace files that are there.
        progress: Show progress bars.
        places: Options of `checkpoints.find_checkpoint`.
    """
    paths = _checked_output(output, [f"-{precision}" for precision in PRECISIONS], overwrite, (".md", ".png"))
    exports = _export(
        name,
        dict(zip(PRECISIONS, paths, strict=True)),
        resolution=resolution,
        input_type=input_type,
        output_type=output_type,
        calibration=calibration,
        compare=compare,
        progress=progress,
        **places,
    )
    from .report import write_comparison

    write_comparison(exports, Path(output).expanduser())
    return exports


def _export(
    name: str | Path,
    paths: dict[str, Path],
    *,
    resolution: int | None = None,
    input_type: str = "uint8",
    output_type: str = "probabilities",
    calibration: str | Path | None = None,
    compare: str | Path | None = None,
    progress: bool = False,
    **places: Any,
) -> list[Export]:
    """Makes, checks, measures and only then writes the files of some precisions."""
    for field_name, value, accepted in (
        ("input_type", input_type, ("uint8", "float32")),
        ("output_type", output_type, ("probabilities", "logits")),
    ):
        if value not in accepted:
            raise InputError(f"{field_name} is {value!r}; expected one of {', '.join(accepted)}.", field=field_name)
    if "int8" in paths and calibration is None:
        raise InputError(
            "The precision int8 needs photos to calibrate on: pass calibration (--calibration FOLDER), 100 or more "
            "like those of the app; int8-dynamic needs none.",
            field="calibration",
        )
    for module, purpose in (("tensorflow", "Making"), ("ai_edge_litert", "Checking")):
        require(module, "export", f"{purpose} a .tflite file")
    source = open_source(name, resolution, places)
    ranges_photos, calibration_record = None, None
    if "int8" in paths:
        ranges_photos, calibration_record = calibration_photos(str(calibration), source, input_type, progress)
    labelled = None if compare is None else labelled_photos(compare, source)

    # Not at the top: they need what `require` asks for, and importing the package must not.
    from mobilevit_hub.tf.phone import convert_network

    from .metadata import finish

    with step("converting", progress):
        model = convert_network(
            source.model,
            source.image_size,
            input_type=input_type,
            output=output_type,
            channel_order=source.channel_order,
        )
    exports, contents, ranges = [], {}, None
    with temporary_folder() as workplace:
        for precision, path in paths.items():
            content = model
            if precision == "int8" and ranges_photos is not None:
                ranges = activation_ranges(model, bar(ranges_photos, "calibrating", progress))
            if precision != "fp32":
                with step(f"quantizing ({precision})", progress):
                    content = quantize(model, precision, ranges if precision == "int8" else None)
            calibrated = calibration_record if precision == "int8" else None
            record = _record(source, precision, input_type, output_type, calibrated)
            contents[precision] = finish(content, record, source.labels, **_description(source, precision))
            with step(f"checking ({precision})", progress):
                exports.append(_check(source, contents[precision], record, workplace / path.name, path, len(model)))
        trials = [Path(workplace / path.name) for path in paths.values()]
        with step("timing", progress):
            _measure(exports, trials)
        if labelled is not None:
            _compare(exports, trials, source, labelled, public_name(str(compare)), progress)
    files: dict[str, bytes] = {}
    for export, path in zip(exports, paths.values(), strict=True):
        content = contents[export.precision]
        files |= {path.name: content, path.with_suffix(".json").name: _sidecar(export, content)}
    write_folder(path.parent, files)  # all lie in one
    return exports


# --------------------------------------------------------------------------------------------------
# Arguments
# --------------------------------------------------------------------------------------------------


def _checked_precision(precision: str) -> str:
    if precision not in PRECISIONS:
        raise InputError(
            f"precision is {precision!r}; expected one of {', '.join(PRECISIONS)}.", field="precision", found=precision
        )
    return precision


def _checked_output(
    output: str | Path, endings: list[str], overwrite: bool, others: tuple[str, ...] = ()
) -> list[Path]:
    path = Path(output).expanduser()
    if path.suffix != ".tflite":
        raise InputError(f"The output is {str(output)!r}; expected a name that ends in .tflite.", field="output")
    if path.is_dir():
        raise InputError(f"The output {str(output)!r} is a folder; expected the name of a file.", field="output")
    paths = [path.with_name(f"{path.stem}{ending}.tflite") for ending in endings]
    files = [file for tflite in paths for file in (tflite, tflite.with_suffix(".json"))]
    there = [file for file in (*files, *map(path.with_suffix, others)) if file.exists()]
    if there and not overwrite:
        raise InputError(
            f"{there[0]} is there already; pass overwrite=True (--overwrite) to replace it.", path=there[0]
        )
    return paths


# --------------------------------------------------------------------------------------------------
# A file
# --------------------------------------------------------------------------------------------------


def _record(
    source: Source, precision: str, input_type: str, output_type: str, calibration: dict[str, Any] | None
) -> dict[str, Any]:
    from .metadata import labels_file

    height, width = source.image_size
    weights = source.checkpoint.weights_file
    preset = source.checkpoint.preset
    return {
        "format": 1,
        "package": f"mobilevit_hub {__version__}",
        "name": preset.name if preset is not None else Path(source.checkpoint.name).name,
        "model_type": source.model.config.model_type,
        "precision": precision,
        "input": {
            "name": "image",
            "shape": [1, height, width, 3],
            "dtype": input_type,
            "range": [0, 255] if input_type == "uint8" else [0, 1],
            "channels": "rgb",
        },
        "output": {"name": output_type, "shape": [1, len(source.labels)], "dtype": "float32"},
        "preprocessing": source.preprocessing,
        "labels": {"count": len(source.labels), "sha256": hashlib.sha256(labels_file(source.labels)).hexdigest()},
        "source": {"file": weights.name, "sha256": sha256_of(weights), "channel_order": source.channel_order},
        "calibration": calibration,
    }


def _description(source: Source, precision: str) -> dict[str, str]:
    preset = source.checkpoint.preset
    author = "unknown" if preset is None else "Apple" if preset.apple_file else "the mobilevit_hub authors"
    return {
        "description": f"Image classifier {source.model.config.model_type} in {precision}, made by mobilevit_hub. "
        "Takes a photo in RGB that was resized and cropped.",
        "author": author,
        "license": preset.license if preset is not None else "as of the checkpoint that it was made from",
    }


def _check(source: Source, content: bytes, record: dict[str, Any], trial: Path, path: Path, float_size: int) -> Export:
    """Writes a file for trial, opens it as a user does, and compares it with its source."""
    write_file(trial, content)
    inspection = inspect(content)
    check_form(inspection)
    if record["precision"].startswith("int8") and not inspection.int8_weights:
        raise ExportError("The quantiser has left every weight in float.")
    write_file(trial.with_suffix(".json"), json_bytes({**record, "sha256": hashlib.sha256(content).hexdigest()}))
    model = Model(trial)
    pixels = np.concatenate([model.prepare(photo) for photo in check_photos()])
    probabilities = record["output"]["name"] == "probabilities"
    found = difference(model.run(pixels), source.logits(pixels), probabilities=probabilities)
    measure, limit = LIMITS[record["precision"]]
    if not getattr(found, measure) <= limit:
        raise ExportError(
            f"The {record['precision']} file differs from its source by {getattr(found, measure):.2g} of the scale "
            f"({measure}) on {found.images} photos; allowed is {limit:g}. Nothing was written. Untrained weights and "
            "unlike calibration photos do this.",
            found=getattr(found, measure),
            expected=limit,
        )
    return Export(str(path), record, inspection, found, float_size)


def _measure(exports: list[Export], trials: list[Path]) -> None:
    for threads in (1, 2):
        for export, taken in zip(exports, latency(trials, threads), strict=True):
            export.latencies.append(taken)
            export.processor = processor_name()


def _compare(
    exports: list[Export], trials: list[Path], source: Source, images: Any, dataset: str, progress: bool
) -> None:
    fused, models = source.model.fuse(), [Model(trial) for trial in trials]
    photos = (models[0].prepare(images[i]) for i in bar(range(len(images)), "comparing", progress))
    found = compare(models, lambda p: fused.predict(source.pixel_values(p))[0], photos, images.labels, dataset)
    for export, comparison in zip(exports, found, strict=True):
        export.comparison = comparison


def _sidecar(export: Export, content: bytes) -> bytes:
    """Without the folder, which is nobody's business."""
    facts = {"file": Path(export.path).name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return json_bytes({**export.record, **facts, "report": export.report()})
