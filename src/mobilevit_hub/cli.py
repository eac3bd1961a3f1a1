"""The command `mobilevit-hub`: it parses and prints; each verb calls a public function."""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from . import __version__
from .architecture import FRAMEWORKS
from .errors import ConfigError, InputError, MobileViTHubError, MobileViTHubWarning

DEFAULT_MODEL = "mobilevit-xxs-tiny-imagenet"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: Arguments; default: those of the process.

    Returns:
        0 done, 1 an item or the job failed, 2 wrong usage; 130 and 143 after a signal.
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if not hasattr(arguments, "run"):
        parser.print_help()
        return 2
    signal.signal(signal.SIGTERM, _terminate)
    for stream in (sys.stdout, sys.stderr):  # a label that the terminal cannot show must not end the run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            warnings.simplefilter("default" if arguments.debug else "ignore")
            warnings.simplefilter("once", MobileViTHubWarning)
            if not arguments.debug:
                _quiet_libraries()
            status = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader, e.g. `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("mobilevit-hub: interrupted", file=sys.stderr)
        return 130
    except MobileViTHubError as error:
        if arguments.debug:
            raise
        message = " ".join(str(error).split())
        if getattr(arguments, "json", False):
            details = {"type": type(error).__name__, "message": message, "path": error.path, "field": error.field}
            print(json.dumps({"error": details}))
        print(f"mobilevit-hub: error: {_plain(message)}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1


def _terminate(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


def _show_warning(message: Any, category: type, *_: Any, **__: Any) -> None:
    print(
        f"mobilevit-hub: {'note' if category is MobileViTHubWarning else 'warning'}: {_plain(str(message))}",
        file=sys.stderr,
    )


def _quiet_libraries() -> None:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    # Its line per retry says nothing that our one message does not say.
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)


def _plain(text: str) -> str:
    """Text without control characters, so that no file name can steer the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


# --------------------------------------------------------------------------------------------------
# Arguments
# --------------------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs; imports no framework."""
    parser = argparse.ArgumentParser(
        prog="mobilevit-hub",
        description="MobileViT and MobileViTv2 by name: classify, inspect, train.",
        epilog='Try "mobilevit-hub predict photo.jpg", or "mobilevit-hub VERB --help" for examples of a verb.',
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")

    verb = _verb(
        verbs, "list", list_command, "List the published checkpoints.", "mobilevit-hub list --task image-classification"
    )
    verb.add_argument("--task", help="only checkpoints of this task")

    verb = _verb(
        verbs, "info", info_command, "Say everything about one checkpoint.", "mobilevit-hub info mobilevitv2-1.0"
    )
    verb.add_argument("name", help="alias, folder or Hub id")
    verb.add_argument("--download", action="store_true", help="fetch all its files and show what they say")
    verb.add_argument("--framework", choices=FRAMEWORKS, help="also open it in PyTorch or Keras, and say as what")
    _add_hub_options(verb)

    verb = _verb(
        verbs,
        "predict",
        predict_command,
        "Classify images.",
        "mobilevit-hub predict cat.jpg holidays/ --model mobilevit-s --top 3\n"
        "  mobilevit-hub predict - --json < cat.jpg",
    )
    verb.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders (searched), or - for standard input")
    verb.add_argument("--model", default=DEFAULT_MODEL, help="alias, folder or Hub id (default: %(default)s)")
    _add_framework(verb)
    verb.add_argument("--top", type=int, default=5, metavar="K", help="labels per image (default: %(default)s)")
    verb.add_argument("--strict", action="store_true", help="stop at the first image that cannot be read")
    _add_hub_options(verb)

    from .recipes import RECIPES, Recipe

    verb = _verb(
        verbs,
        "train",
        train_command,
        "Train or fine-tune a classifier on labelled photos.",
        "mobilevit-hub train photos/ --output my-model --model mobilevit-s --epochs 20  # photos/cat/1.jpg …\n"
        "  mobilevit-hub train data.parquet --output out --from-scratch --size-schedule 64:8,128:2\n"
        "  mobilevit-hub train photos/ --output my-model --model mobilevit-s --epochs 20 --resume",
    )
    verb.add_argument("data", help="folder of class folders, parquet files, or Hub id")
    verb.add_argument("--output", required=True, metavar="FOLDER", help="folder to write")
    verb.add_argument("--model", default="mobilevit-xxs", help="start from, or build like (default: %(default)s)")
    _add_framework(verb)
    verb.add_argument("--from-scratch", action="store_true", help="start from random weights")
    verb.add_argument("--validation", metavar="DATA", help="validation photos (default: validation split of DATA)")
    verb.add_argument("--recipe", default="finetune", choices=list(RECIPES), help="default: %(default)s")
    verb.add_argument("--output-stride", type=int, choices=(8, 16, 32), help="pixels per pixel of the last map")
    verb.add_argument("--resume", action="store_true", help="continue the last checkpoint in the output folder")
    verb.add_argument(
        "--workers", type=int, default=0, help="processes, in Keras threads, that prepare photos (default: %(default)s)"
    )
    verb.add_argument("--save-steps", type=int, default=500, help="steps between checkpoints (default: %(default)s)")
    for option in fields(Recipe):
        flag = "--" + option.name.replace("_", "-")
        text = f"{option.metadata['help']} (finetune: {option.default})".replace("%", "%%")
        if isinstance(option.default, bool):
            verb.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            verb.add_argument(flag, type=type(option.default), default=None, help=text)
    return parser


def _verb(verbs: Any, name: str, run: Any, purpose: str, examples: str) -> argparse.ArgumentParser:
    verb = verbs.add_parser(
        name,
        help=purpose,
        description=purpose,
        epilog=f"examples:\n  {examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_argument("--json", action="store_true", help="print the result as JSON")
    verb.add_argument("--quiet", action="store_true", help="no progress bars")
    verb.add_argument("--debug", action="store_true", help="show tracebacks and all warnings")
    verb.set_defaults(run=run)
    return verb


def _add_framework(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--framework", choices=FRAMEWORKS, default="pt", help="PyTorch or Keras (default: %(default)s)")


def _add_hub_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--revision", help="branch, tag or commit on the Hub")
    verb.add_argument("--cache-dir", help="folder of the Hub's cache")
    verb.add_argument("--local-files-only", action="store_true", help="never use the network")


def _hub_options(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in ("revision", "cache_dir", "local_files_only")}


def _print_table(rows: list[list[str]]) -> None:
    """Prints rows in aligned columns; the first row is the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


# --------------------------------------------------------------------------------------------------
# Verbs
# --------------------------------------------------------------------------------------------------


def list_command(arguments: argparse.Namespace) -> int:
    """Prints the presets table."""
    from .presets import list_presets

    presets = list_presets(arguments.task)
    if arguments.json:
        print(json.dumps([_preset_record(p) for p in presets], indent=2))
        return 0
    head = ["name", "task", "data", "params", "MACs", "score", "pixels", "loads"]
    rows = [
        [
            p.name,
            p.task,
            p.dataset,
            f"{p.params / 1e6:.2f} M",
            f"{p.macs / 1e9:.2f} G" if p.macs else "–",
            f"{p.score:.1f} {p.metric}" if p.score is not None else "–",
            str(p.resolution),
            "yes" if p.loadable else "no file" if p.task == "image-classification" else "not yet",
        ]
        for p in presets
    ]
    _print_table([head, *rows])
    return 0


def _preset_record(preset: Any) -> dict[str, Any]:
    names = [f.name for f in fields(preset)] + ["resolution", "hub_id", "hub_format", "unavailable"]
    return {name: getattr(preset, name) for name in names}


def info_command(arguments: argparse.Namespace) -> int:
    """Prints the record of a checkpoint and what its files say, as far as they are here or asked for."""
    from .presets import find_preset, get_preset

    name = arguments.name
    preset = find_preset(name)
    is_folder = preset is None and Path(name).expanduser().is_dir()
    if preset is None and not is_folder and "/" not in name:
        get_preset(name)  # raises, with the nearest names
    record: dict[str, Any] = {"name": name} if preset is None else _preset_record(preset)
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

        checkpoint = find_checkpoint(name, **_hub_options(arguments))
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

        network = from_pretrained(name, framework=arguments.framework, **_hub_options(arguments))
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
        print(f"{key.ljust(width)}  {_plain(value)}")
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
    from .presets import check_name

    check_name(arguments.model)
    from .images import count_frames
    from .runtimes import Classifier

    sources = list(_image_sources(arguments.images))
    classifier = Classifier(arguments.model, runtime=arguments.framework, **_hub_options(arguments))
    from tqdm import tqdm

    show_bar = len(sources) > 1 and not arguments.quiet and sys.stderr.isatty()
    results, failed = [], 0
    for path, source in tqdm(sources, unit="photo", disable=not show_bar, leave=False):
        result = next(iter(classifier.predict([source], top_k=arguments.top))) | {"path": path}
        results.append(result)
        if "error" in result:
            failed += 1
            tqdm.write(f"mobilevit-hub: error: {_plain(' '.join(result['error'].split()))}", file=sys.stderr)
            if arguments.strict:
                break
            continue
        if (frames := count_frames(source)) > 1:
            tqdm.write(f"mobilevit-hub: note: {_plain(path)}: first of {frames} frames", file=sys.stderr)
        if not arguments.json:
            tqdm.write(_prediction_lines(result), file=sys.stdout)
    if arguments.json:
        print(json.dumps(results, indent=2))
    if failed and len(sources) > 1:
        print(f"mobilevit-hub: {failed} of {len(sources)} images failed", file=sys.stderr)
    return 1 if failed else 0


def _prediction_lines(result: dict[str, Any]) -> str:
    lines = [f"{_plain(result['path'])}  ({result['ms']:.0f} ms)"]
    lines += [f"  {100 * p['score']:5.1f} %  {_plain(p['label'])}" for p in result["predictions"]]
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


if __name__ == "__main__":
    sys.exit(main())
