"""The verb `list`: its arguments, and how checkpoints are printed."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, fields
from typing import Any

from .chooser import MEASURED_RUNTIMES, fitting, notes
from .presets import list_presets

EXAMPLES = """mobilevit-hub list --task image-classification
  mobilevit-hub list --fits 10ms --runtime tflite   # what was measured to be fast enough, best score first"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """Adds the arguments of the verb to its parser."""
    verb.add_argument("--task", help="only checkpoints of this task")
    verb.add_argument(
        "--fits", nargs="+", metavar="LIMIT", help="only what was measured to take at most this: 10ms, 5MB, or both"
    )
    verb.add_argument("--runtime", choices=MEASURED_RUNTIMES, help="as measured in this (default: in any)")
    verb.add_argument("--threads", type=int, metavar="N", help="as measured with so many threads (default: 1)")


def list_command(arguments: argparse.Namespace) -> int:
    """Prints the presets table, or what of it fits a limit."""
    from .commands import print_table

    if any(value is not None for value in (arguments.fits, arguments.runtime, arguments.threads)):
        return _list_fitting(arguments)
    presets = list_presets(arguments.task)
    if arguments.json:
        print(json.dumps([preset_record(p) for p in presets], indent=2))
        return 0
    head = ["name", "task", "data", "params", "MACs", "score", "pixels", "loads"]
    rows = []
    for preset in presets:
        name, data, params, *others = _preset_cells(preset)
        macs = f"{preset.macs / 1e9:.2f} G" if preset.macs else "–"
        rows.append([name, preset.task, data, params, macs, *others])
    print_table([head, *rows])
    return 0


def _preset_cells(preset: Any) -> list[str]:
    """What every table says of a checkpoint: name, data, parameters, score, pixels, whether it loads."""
    return [
        preset.name,
        preset.dataset,
        f"{preset.params / 1e6:.2f} M",
        f"{preset.score:.1f} {preset.metric}" if preset.score is not None else "–",
        str(preset.resolution),
        "yes" if preset.loadable else "no file" if preset.task == "image-classification" else "not yet",
    ]


def _list_fitting(arguments: argparse.Namespace) -> int:
    """Prints the checkpoints that were measured to fit, best score first."""
    from .commands import print_table

    threads = 1 if arguments.threads is None else arguments.threads
    found = fitting(arguments.fits or (), runtime=arguments.runtime, threads=threads, task=arguments.task)
    if arguments.json:
        print(json.dumps([preset_record(p) | {"measured": asdict(m)} for p, m in found], indent=2))
        return 0
    head = ["name", "data", "params", "score", "pixels", "loads", "runtime", "ms", "MB"]
    print_table(
        [head] + [[*_preset_cells(p), m.runtime, f"{m.milliseconds:.1f}", f"{m.megabytes:.1f}"] for p, m in found]
    )
    print("", *notes([m for _, m in found], threads), sep="\n")
    return 0


def preset_record(preset: Any) -> dict[str, Any]:
    """All that is known of a published checkpoint, as JSON can hold it."""
    names = [f.name for f in fields(preset)] + ["resolution", "hub_id", "hub_format", "unavailable"]
    return {name: getattr(preset, name) for name in names}
