"""What each verb of `mobilevit-hub` does: it calls a public function and prints the result."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from .errors import ConfigError, ExportError, InputError, require
from .list_command import preset_record


def plain_text(text: str) -> str:
    """Text without control characters, so that no file name can steer the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def hub_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Where a checkpoint is looked for."""
    return {name: getattr(arguments, name) for name in ("revision", "cache_dir", "local_files_only")}


def print_table(rows: list[list[str]]) -> None:
    """Prints rows in aligned columns; the first row is the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


# --------------------------------------------------------------------------------------------------
# Verbs
# --------------------------------------------------------------------------------------------------


def info_command(arguments: argparse.Namespace) -> int:
    """Prints the record of a checkpoint and what its files say, as far as they are here or asked for."""
    from .presets import find_preset, get_preset

    name = arguments.name
    preset = find_preset(name)
    is_folder = preset is None and Path(name).expanduser().is_dir()
    if preset is None and not is_folder and "/" not in name:
        get_preset(name)  # raises, with the nearest names
    record: dict[str, Any] = {"name": name} if preset is None else preset_record(preset)
    if preset is not None and "/" in name:
        own = "config.json" if name.lower().startswith("timm/") else "preprocessor_config.json"
        record["note"] = (
            f"loading {name!r} prepares images as the repository's own {own} says; loading {preset.name!r}, as this "
            "record says"
        )
    if arguments.download or is_folder or preset is None or preset.folder:
        from .checkpoints import find_checkpoint, load_config
        from .files import sha256_of
        from .runtimes import processor_of

        checkpoint = find_checkpoint(name, **hub_options(arguments))
        config, processor = load_config(checkpoint), processor_of(checkpoint)
        record["files"] = {
            "labels": config.num_labels,
            **{name: _setting(processor, name) for name in ("size", "crop_size", "interpolation", "channel_order")},
        }
        if arguments.download or is_folder or preset is not None:  # else the weights would have to be fetched
            weights = checkpoint.weights_file
            record["files"] = {"weights": str(weights), "sha256": sha256_of(weights), **record["files"]}
        record["differences"] = [] if preset is None else _differences(preset, checkpoint, processor)
    if arguments.framework:
        from .runtimes import from_pretrained, parameter_count

        network = from_pretrained(name, framework=arguments.framework, **hub_options(arguments))
        record["model"] = {"class": type(network).__name__, "params": parameter_count(network)}
    if arguments.json:
        print(json.dumps(record, indent=2))
        return 0
    rows = []
    for key, value in record.items():
        if isinstance(value, dict):
            rows += [[f"{key}.{k}", str(v)] for k, v in value.items()]
        elif value not in (None, []):
            rows.append([key, "; ".join(value) if isinstance(value, list) else str(value)])
    width = max(len(key) for key, _ in rows)
    for key, value in rows:
        print(f"{key.ljust(width)}  {plain_text(value)}")
    return 0


def _differences(preset: Any, checkpoint: Any, used: Any) -> list[str]:
    """Where a checkpoint's own preprocessing file contradicts our record of it, and which of the two is used."""
    from .image_processing import processor_for, processor_from_dict

    if checkpoint.processor_data is None:
        return []
    own = processor_from_dict(checkpoint.processor_data, "preprocessor_config.json")
    record = processor_for(
        preset.resize, preset.crop, preset.interpolation, preset.channel_order, keep_aspect=preset.keep_aspect
    )
    names = ("size", "crop_size", "interpolation", "channel_order")
    values = [(name, *(_setting(processor, name) for processor in (own, record, used))) for name in names]
    return [
        f"{name}: the file says {of_file}, our record {of_record}; {of_used} is used"
        for name, of_file, of_record, of_used in values
        if of_file != of_record
    ]


def _setting(processor: Any, name: str) -> Any:
    """One value of a processor as JSON can hold it; sizes without their empty fields."""
    value = getattr(processor, name)
    return value if isinstance(value, str) else {k: v for k, v in dict(value).items() if v is not None}


def predict_command(arguments: argparse.Namespace) -> int:
    """Classifies files, folders and standard input."""
    if not arguments.model.lower().endswith(".tflite"):
        from .presets import check_name

        check_name(arguments.model)
    from .images import count_frames
    from .prediction import open_classifier, predict_each

    sources = list(_image_sources(arguments.images))
    options = {name: value for name, value in hub_options(arguments).items() if value not in (None, False)}
    classifier = open_classifier(arguments.model, runtime=arguments.runtime, **options)
    from tqdm import tqdm

    show_bar = len(sources) > 1 and shows_progress(arguments)
    results, failed = [], 0
    bar = tqdm(sources, unit="photo", disable=not show_bar, leave=False)
    predictions = predict_each(classifier, [source for _, source in sources], arguments.top, arguments.workers)
    for (path, source), prediction in zip(bar, predictions, strict=True):
        result = prediction | {"path": path}
        results.append(result)
        if "error" in result:
            failed += 1
            tqdm.write(f"mobilevit-hub: error: {plain_text(' '.join(result['error'].split()))}", file=sys.stderr)
            if arguments.strict:
                break
            continue
        if (frames := count_frames(source)) > 1:
            tqdm.write(f"mobilevit-hub: note: {plain_text(path)}: first of {frames} frames", file=sys.stderr)
        if not arguments.json:
            tqdm.write(_prediction_lines(result), file=sys.stdout)
    if arguments.json:
        print(json.dumps(results, indent=2))
    if failed and len(sources) > 1:
        print(f"mobilevit-hub: {failed} of {len(sources)} images failed", file=sys.stderr)
    return 1 if failed else 0


def _prediction_lines(result: dict[str, Any]) -> str:
    lines = [f"{plain_text(result['path'])}  ({result['ms']:.0f} ms)"]
    lines += [f"  {100 * p['score']:5.1f} %  {plain_text(p['label'])}" for p in result["predictions"]]
    return "\n".join(lines)


def _image_sources(names: list[str]) -> Iterator[tuple[str, Any]]:
    """Pairs of a name and what `load_image` takes; folders are searched for image files."""
    from .images import image_files

    for name in names:
        path = Path(name)
        if name == "-":
            yield "-", sys.stdin.buffer.read()
        elif path.is_dir():
            found = image_files(path)
            if not found:
                raise InputError(f"Folder {name!r} holds no image files.", path=name, field="images")
            yield from ((str(p), p) for p in found)
        else:
            yield name, path


def convert_command(arguments: argparse.Namespace) -> int:
    """Converts weights."""
    from .presets import check_name

    if "://" not in arguments.source and "." not in arguments.source:
        check_name(arguments.source)
    labels = None if arguments.labels is None else _lines_of(arguments.labels)
    from .conversion import convert

    try:
        conversion = convert(
            arguments.source,
            arguments.output,
            to=arguments.to,
            model=arguments.model,
            labels=labels,
            channel_order=arguments.channel_order,
            sha256=arguments.sha256,
            verify=not arguments.no_verify,
            overwrite=arguments.overwrite,
            progress=shows_progress(arguments),
            **hub_options(arguments),
        )
    except ExportError as error:
        if error.report is not None and not arguments.json:
            print("\n".join(map(plain_text, error.report.lines())))
        raise
    if arguments.json:
        print(json.dumps(conversion.to_dict(), indent=2))
        return 0
    rows = [
        ["source", f"{conversion.source} ({conversion.kind}, {conversion.tensors} tensors)"],
        ["sha256", conversion.sha256],
        ["git blob", conversion.git_blob],
        ["network", f"{conversion.network}, {conversion.labels} labels" if conversion.labels else conversion.network],
        *[["note", note] for note in conversion.notes],
    ]
    for key, value in rows:
        print(f"{key:8}  {plain_text(value)}")
    if conversion.parity is None:
        print("not checked: what the result computes (--no-verify); its tensors are those that were read, to the bit")
    else:
        print("\n".join(map(plain_text, conversion.parity.lines())))
    print(f"wrote {plain_text(conversion.output)}")
    if conversion.output.endswith(".keras"):
        print("open it with: import keras, mobilevit_hub.tf; keras.models.load_model(...)")
    return 0


def export_command(arguments: argparse.Namespace) -> int:
    """Exports `.tflite` files."""
    from .presets import check_name

    check_name(arguments.name)
    from .conversion import export_all_precisions, export_tflite

    options = {
        name: getattr(arguments, name)
        for name in ("resolution", "input_type", "output_type", "calibration", "compare", "overwrite")
    }
    options |= {"progress": shows_progress(arguments), **hub_options(arguments)}
    if arguments.all_precisions:
        exports = export_all_precisions(arguments.name, arguments.output, **options)
    else:
        exports = [export_tflite(arguments.name, arguments.output, precision=arguments.precision, **options)]
    if arguments.json:
        records = [export.to_dict() for export in exports]
        print(json.dumps(records if arguments.all_precisions else records[0], indent=2))
        return 0
    from .conversion.tflite.report import comparison_table, report_lines

    if arguments.all_precisions:
        print_table(comparison_table(exports))
        names = [Path(arguments.output).with_suffix(ending) for ending in (".md", ".png")]
    else:
        print("\n".join(map(plain_text, report_lines(exports[0]))))
        names = []
    written = [path for export in exports for path in (Path(export.path), Path(export.path).with_suffix(".json"))]
    print(plain_text(f"wrote {', '.join(map(str, [*written, *names]))}"))
    return 0


def _lines_of(path: str) -> list[str]:
    """The lines of a text file, without an empty one at the end."""
    try:
        return Path(path).read_text("utf-8-sig").removesuffix("\n").split("\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is no UTF-8 text"
        raise InputError(f"--labels {path!r}: {reason}.", path=path, field="labels") from error


def shows_progress(arguments: argparse.Namespace) -> bool:
    """Whether a progress bar would be seen, and is wanted."""
    return not arguments.quiet and sys.stderr.isatty()


def verify_command(arguments: argparse.Namespace) -> int:
    """Checks a checkpoint again."""
    from .presets import check_name

    check_name(arguments.name)
    from .conversion import verify

    found = verify(
        arguments.name, sha256=arguments.sha256, progress=shows_progress(arguments), **hub_options(arguments)
    )
    if arguments.json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        rows = [["weights", found.weights], ["sha256", found.sha256], ["git blob", found.git_blob]]
        rows += [["hash", text] for text in found.hashes or ["no other hash of it is known"]]
        for key, value in rows:
            print(f"{key:8}  {plain_text(value)}")
        print("\n".join(map(plain_text, found.parity.lines())))
    return 0 if found.passed else 1


def push_command(arguments: argparse.Namespace) -> int:
    """Publishes a folder."""
    from huggingface_hub.utils import disable_progress_bars

    from .publishing import push

    if not shows_progress(arguments):
        disable_progress_bars()
    message = {} if arguments.message is None else {"message": arguments.message}
    address = push(
        arguments.folder,
        arguments.repository,
        private=arguments.private or None,
        revision=arguments.revision,
        create_pr=arguments.create_pr,
        **message,
    )
    print(json.dumps({"commit": address}) if arguments.json else address)
    return 0


def demo_command(arguments: argparse.Namespace) -> int:
    """Runs the web demo until it is told to stop."""
    for module in ("gradio", "torch", "tensorflow", "ai_edge_litert", "ai_edge_quantizer"):
        require(module, "demo", "The web demo")
    from mobilevit_hub.spaces.server import serve

    serve(
        arguments.names,
        host=arguments.host,
        port=arguments.port,
        embed=arguments.embed,
        open_browser=arguments.open,
        **hub_options(arguments),
    )
    return 0


def _launcher() -> list[str]:
    """How this process was started, for the record."""
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes == "1":
        return ["mobilevit-hub"]
    return ["torchrun", "--nproc_per_node", processes, "-m", "mobilevit_hub.cli"]


def train_command(arguments: argparse.Namespace) -> int:
    """Trains a classifier."""
    import shlex

    from .presets import check_name
    from .recipes import Recipe, get_recipe

    check_name(arguments.model)
    changes = {f.name: getattr(arguments, f.name) for f in fields(Recipe) if getattr(arguments, f.name) is not None}
    try:
        recipe = get_recipe(arguments.recipe, **changes)
    except ConfigError as error:  # here the recipe is what was typed
        raise InputError(error.message, field=error.field, found=error.found) from error
    from .training import is_main_process, train  # not before: it imports transformers

    config = {"output_stride": arguments.output_stride} if arguments.output_stride else {}
    log = train(
        arguments.data,
        arguments.output,
        model=arguments.model,
        framework=arguments.framework,
        from_scratch=arguments.from_scratch,
        recipe=recipe,
        validation=arguments.validation,
        config=config,
        resume=arguments.resume,
        workers=arguments.workers,
        save_steps=arguments.save_steps,
        progress=not arguments.quiet,
        command=shlex.join([*_launcher(), *sys.argv[1:]]),
    )
    if not is_main_process(arguments.framework):
        return 0
    if arguments.json:
        print(json.dumps({k: v for k, v in log.items() if k != "history"}, indent=2))
    else:
        print(
            f"{arguments.output}: top-1 {100 * log['top1']:.2f} %, top-5 {100 * log['top5']:.2f} % "
            f"on {log['count']:,} photos, {log['seconds']:,} s"
        )
    return 0
