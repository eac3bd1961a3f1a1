"""From a checkpoint to a `.tflite` file that a phone app can use as it is, with a report of what it costs."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mobilevit_hub.choices import PRECISIONS, TFLITE_INPUTS, TFLITE_OUTPUTS, check_choice
from mobilevit_hub.data.label_maps import label_indices
from mobilevit_hub.data.opening import open_images, public_name
from mobilevit_hub.errors import ExportError, ImageError, InputError, MobileViTHubWarning, require
from mobilevit_hub.files import json_bytes, sha256_of, temporary_folder, write_file, write_folder
from mobilevit_hub.hub.find import Checkpoint
from mobilevit_hub.tflite.model import Model
from mobilevit_hub.version import __version__

from .inputs import ExportSource, calibration_photos, open_for_export, open_unlabelled
from .inspection import check_form, inspect
from .measurement import check_photos, compare, difference, latency
from .progress import bar, step
from .quantization import activation_ranges, quantize
from .record import Export
from .report import comparison_page, comparison_plot
from .rewriting import without_adjoints

LIMITS = {"fp32": ("largest", 1e-4), "fp16": ("error", 1e-2), "int8-dynamic": ("error", 0.15), "int8": ("error", 0.25)}
"""What a file may differ from its source on the built-in photos: a field of `Difference`, and how much.

Of trained checkpoints the fields were 1e-5, 7e-4, 0.014 and 0.05; of random weights up to 2e-5, 5e-3, 0.12 and 0.24.
"""
REASONS = {
    "fp32": "This is a fault of the export; please report it.",
    "fp16": "Weights or activations may be beyond 65,504, the largest number of float16; use fp32.",
    "int8-dynamic": "Untrained weights do this; use fp16.",
    "int8": "Untrained weights, or calibration photos unlike those of the app, do this; try int8-dynamic.",
}


def export_tflite(
    name: str | Path | Checkpoint,
    output: str | Path,
    *,
    precision: str = "fp32",
    resolution: int | None = None,
    input_type: str = "uint8",
    output_type: str = "probabilities",
    calibration: str | Path | None = None,
    compare: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
    **places: Any,
) -> Export:
    """Exports a classifier; `OUTPUT.tflite` is written with its sidecar `OUTPUT.json`.

    The file takes a photo that was resized and cropped, as bytes in RGB; everything after that is in the graph. It
    has a fixed size and batch 1, built-in operations only, and the metadata that MediaPipe reads. Before it gets its
    name it is opened again from the disk, run on real photos and compared with its source.

    Args:
        name: An alias, a folder, a Hub id, or what `hub.find.find_checkpoint` found.
        output: The file to write; its name ends in `.tflite`.
        precision: `"fp32"`; `"fp16"`, half the size and as accurate; `"int8-dynamic"`, a third of the size and
            faster; `"int8"`, the fastest, calibrated on photos.
        resolution: Side of the image in pixels, 32 to 1024; default: that of the checkpoint.
        input_type: `"uint8"`, 0 to 255, or `"float32"`, 0 to 1.
        output_type: `"probabilities"` or `"logits"`.
        calibration: 100 photos or more for the precision int8: a folder, parquet files, or a data set on the Hub;
            without labels as well. At most 200 are used, chosen by a fixed seed.
        compare: Labelled photos on which to compare top-1 of source and file.
        overwrite: Whether to replace files that are there.
        progress: Show progress bars.
        places: Options of `hub.find.find_checkpoint`: `revision`, `token`, `cache_dir`, `local_files_only`.

    Returns:
        What was written and measured.

    Raises:
        ExportError: The file differs from its source or would not run well; nothing was written.
        InputError: An argument is wrong, such as a calibration set of fewer than 100 photos.
        SourceError, ConfigError, CheckpointError: The checkpoint cannot be opened.
        SaveError: It could not be written; what was there before is kept.
        MissingDependencyError: A library of the extra `export` is not installed.
    """
    check_choice("precision", precision, PRECISIONS)
    path = _checked_output(output)
    exports, files = _make(
        name,
        {precision: path},
        resolution=resolution,
        input_type=input_type,
        output_type=output_type,
        calibration=calibration,
        compare=compare,
        overwrite=overwrite,
        progress=progress,
        **places,
    )
    _write(files, overwrite)
    return exports[0]


def export_all_precisions(
    name: str | Path | Checkpoint, output: str | Path, *, overwrite: bool = False, **options: Any
) -> list[Export]:
    """Exports a classifier in every precision, with one table (`OUTPUT.md`) and plot (`OUTPUT.png`) of all.

    The files are `OUTPUT-fp32.tflite` and so on. Arguments, but for `precision`, and errors are those of
    `export_tflite`.
    """
    path = _checked_output(output)
    require("matplotlib", "export", "The plot of all precisions")
    table, plot = path.with_suffix(".md"), path.with_suffix(".png")
    if not overwrite:
        _refuse_existing([table, plot])
    paths = {precision: path.with_name(f"{path.stem}-{precision}.tflite") for precision in PRECISIONS}
    exports, files = _make(name, paths, overwrite=overwrite, **options)
    files |= {table: comparison_page(exports), plot: comparison_plot(exports)}
    _write(files, overwrite)
    return exports


def _make(
    name: str | Path | Checkpoint,
    paths: dict[str, Path],
    *,
    resolution: int | None = None,
    input_type: str = "uint8",
    output_type: str = "probabilities",
    calibration: str | Path | None = None,
    compare: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
    **places: Any,
) -> tuple[list[Export], dict[Path, bytes]]:
    """Makes, checks and measures a file for each precision; returns what is known and what is to be written."""
    check_choice("input_type", input_type, TFLITE_INPUTS)
    check_choice("output_type", output_type, TFLITE_OUTPUTS)
    if "int8" in paths and calibration is None:
        raise InputError(
            "The precision int8 needs photos to calibrate on: pass calibration (--calibration FOLDER), 100 or more "
            "like those of the app; int8-dynamic needs none.",
            field="calibration",
        )
    if "int8" not in paths and calibration is not None:
        raise InputError(
            f"calibration is {str(calibration)!r}, but only the precision int8 is calibrated.", field="calibration"
        )
    if not overwrite:
        _refuse_existing([file for path in paths.values() for file in (path, path.with_suffix(".json"))])
    quantizer = ["ai_edge_quantizer"] if set(paths) != {"fp32"} else []
    for module in ("tensorflow", "keras", "ai_edge_litert", *quantizer, *(["datasets"] if compare else [])):
        require(module, "export", "Making a .tflite file")

    # All that can be wrong with the data, before the long work.
    unlabelled = None if calibration is None else open_unlabelled(str(calibration))
    labelled = None if compare is None else open_images(compare, "validation")
    source = open_for_export(name, resolution, places)
    if len(source.labels) == 1 and output_type == "probabilities":
        raise InputError(
            "The checkpoint has one label, whose probability is always 1; export it with output_type='logits' "
            "(--output-type logits).",
            field="output_type",
        )
    if labelled is not None:
        classes = label_indices(labelled.label_names, source.labels, str(compare), field="compare")
        labelled.labels = classes[labelled.labels]
    photos: list[np.ndarray] = []
    calibrated = None
    if unlabelled is not None:
        photos, calibrated = calibration_photos(unlabelled, str(calibration), source, input_type, progress)

    # Not at the top: they need what `require` asks for, and importing the package must not.
    from mobilevit_hub.tf.inference.phone import convert_network

    from .metadata import finish

    with step("converting", progress):
        model = without_adjoints(
            convert_network(
                source.model.folded(),
                source.image_size,
                input_type=input_type,
                output=output_type,
                channel_order=source.channel_order,
            )
        )
    ranges = activation_ranges(model, bar(photos, "calibrating", progress)) if photos else None
    exports, files = [], {}
    with temporary_folder() as workplace:
        for precision, path in paths.items():
            with step(f"making {precision}", progress):
                content = model if precision == "fp32" else quantize(model, precision, ranges)
                record = _record(source, precision, input_type, output_type, calibrated)
                files[path] = finish(content, record, source.labels, **_description(source, precision))
            with step(f"checking {precision}", progress):
                exports.append(_check(source, files[path], record, workplace / path.name, path, len(model)))
        trials = [workplace / path.name for path in paths.values()]
        with step("timing", progress):
            for threads in (1, 2):
                for export, taken in zip(exports, latency(trials, threads), strict=True):
                    export.latencies.append(taken)
        if labelled is not None:
            _compare(exports, trials, source, labelled, public_name(str(compare)), progress)
    for export, path in zip(exports, paths.values(), strict=True):
        files[path.with_suffix(".json")] = _sidecar(export, files[path])
    return exports, files


def _write(files: dict[Path, bytes], overwrite: bool) -> None:
    """Writes files of one folder, all or none."""
    if not overwrite:  # again: the work took minutes
        _refuse_existing(list(files))
    folder = next(iter(files)).parent
    write_folder(folder, {path.name: content for path, content in files.items()})


def _checked_output(output: str | Path) -> Path:
    path = Path(output).expanduser()
    if path.suffix != ".tflite":
        raise InputError(f"The output is {str(output)!r}; expected a name that ends in .tflite.", field="output")
    if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises for too long a name
        raise InputError(f"The output {str(output)!r} is a folder; expected the name of a file.", field="output")
    if path.is_symlink():
        raise InputError(f"The output {str(output)!r} is a link; name the file that it points to.", field="output")
    return path


def _refuse_existing(paths: list[Path]) -> None:
    if there := [path for path in paths if os.path.lexists(path)]:
        raise InputError(
            f"{there[0]} is there already; pass overwrite=True (--overwrite) to replace it.", path=there[0]
        )


def _record(
    source: ExportSource, precision: str, input_type: str, output_type: str, calibration: dict[str, Any] | None
) -> dict[str, Any]:
    from .metadata import labels_file

    height, width = source.image_size
    weights = source.checkpoint.weights_file
    preset = source.checkpoint.preset
    return {
        "format": 1,
        "package": f"mobilevit_hub {__version__}",
        "name": preset.name if preset is not None else public_name(source.checkpoint.name),
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
        "calibration": calibration if precision == "int8" else None,
    }


def _description(source: ExportSource, precision: str) -> dict[str, str]:
    preset = source.checkpoint.preset
    author = "unknown" if preset is None else "Apple" if preset.apple_file else "the mobilevit_hub authors"
    return {
        "description": f"Image classifier {source.model.config.model_type} in {precision}, made by mobilevit_hub. "
        "Takes a photo in RGB that was resized and cropped.",
        "author": author,
        "license": preset.license if preset is not None else "as of the checkpoint that it was made from",
    }


def _check(
    source: ExportSource, content: bytes, record: dict[str, Any], trial: Path, path: Path, float_size: int
) -> Export:
    """Writes a file for trial, opens it as a user does, and compares it with its source."""
    write_file(trial, content)
    inspection = inspect(content)
    check_form(inspection)
    if record["precision"].startswith("int8") and not inspection.int8_weights:
        raise ExportError("The quantiser has left every weight in float.")
    write_file(trial.with_suffix(".json"), json_bytes({**record, "sha256": hashlib.sha256(content).hexdigest()}))
    model = Model(trial)
    photos = check_photos()
    pixels = np.concatenate([model.prepare(photo) for photo in photos])
    if not np.array_equal(pixels[:1], source.prepare(photos[0], model.dtype)):
        raise ExportError("The file's record prepares photos in another way than the checkpoint; please report this.")
    probabilities = record["output"]["name"] == "probabilities"
    found = difference(model.run(pixels), source.logits(pixels), probabilities=probabilities)
    measure, limit = LIMITS[record["precision"]]
    if not getattr(found, measure) <= limit:
        raise ExportError(
            f"The {record['precision']} file differs from its source by {getattr(found, measure):.2g} of the scale "
            f"({measure}) on {found.images} photos; allowed is {limit:g}. Nothing was written. "
            f"{REASONS[record['precision']]}",
            found=getattr(found, measure),
            expected=limit,
        )
    return Export(str(path), record, inspection, found, float_size)


def _compare(
    exports: list[Export], trials: list[Path], source: ExportSource, images: Any, dataset: str, progress: bool
) -> None:
    fused, models = source.model.fuse(), [Model(trial) for trial in trials]
    photos = _readable(models[0], images, progress)
    found = compare(models, lambda p: fused.predict(source.pixel_values(p))[0], photos, images.labels, dataset)
    if unreadable := len(images) - found[0].count:
        warnings.warn(
            f"{dataset}: {unreadable} photos cannot be read and were left out.", MobileViTHubWarning, stacklevel=2
        )
    for export, comparison in zip(exports, found, strict=True):
        export.comparison = comparison


def _readable(model: Model, images: Any, progress: bool) -> Iterator[np.ndarray | None]:
    """Each photo, prepared; None for one that cannot be read."""
    for i in bar(range(len(images)), "comparing", progress):
        try:
            yield model.prepare(images[i])
        except ImageError:
            yield None


def _sidecar(export: Export, content: bytes) -> bytes:
    """Without the folder, which is nobody's business."""
    facts = {"file": Path(export.path).name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return json_bytes({**export.record, **facts, "report": export.report()})
