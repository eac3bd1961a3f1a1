"""The verb `predict`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..choices import RUNTIMES
from ..errors import InputError
from ..hub.presets import check_name
from .output import add_hub_options, add_verb, add_workers, hub_options, plain_text, shows_progress

DEFAULT_MODEL = "mobilevit-xxs-tiny-imagenet"


def add_to(verbs: Any) -> None:
    """Adds the verb to the command."""
    verb = add_verb(
        verbs,
        "predict",
        predict_command,
        "mobilevit-hub predict cat.jpg holidays/ --model mobilevit-s --top 3\n"
        "  mobilevit-hub predict cat.jpg --model mobilevit-s.tflite # what export wrote\n"
        "  mobilevit-hub predict - --json < cat.jpg",
    )
    verb.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders (searched), or - for standard input")
    verb.add_argument(
        "--model", default=DEFAULT_MODEL, help="alias, folder, Hub id or .tflite file (default: %(default)s)"
    )
    verb.add_argument(
        *("--runtime", "--framework"),
        choices=RUNTIMES,
        help="PyTorch, Keras or LiteRT (default: tflite for a .tflite file, else pt)",
    )
    verb.add_argument("--top", type=int, default=5, metavar="K", help="labels per image (default: %(default)s)")
    verb.add_argument("--strict", action="store_true", help="stop at the first image that cannot be read")
    add_workers(verb)
    add_hub_options(verb)


def predict_command(arguments: argparse.Namespace) -> int:
    """Classify images."""
    if not arguments.model.lower().endswith(".tflite"):
        check_name(arguments.model)
    from ..images.loading import count_frames
    from ..prediction import open_classifier
    from ..tasks.classification import predict_each

    sources = list(_image_sources(arguments.images))
    classifier = open_classifier(arguments.model, runtime=arguments.runtime, **hub_options(arguments))
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
    from ..images.loading import image_files

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
