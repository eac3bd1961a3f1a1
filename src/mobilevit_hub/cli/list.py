"""The verb `list`: its arguments, and how checkpoints are printed."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from ..hub.chooser import MEASURED_RUNTIMES, fitting, notes
from ..hub.presets import list_presets
from .output import add_verb, preset_record, print_table

EXAMPLES = """mobilevit-hub list --task image-classification
  mobilevit-hub list --fits 10ms --runtime tflite   # what was measured to be fast enough, best score first"""


def add_to(verbs: Any) -> None:
    """Adds the verb to the command."""
    verb = add_verb(verbs, "list", list_command, EXAMPLES)
    verb.add_argument("--task", help="only checkpoints of this task")
    verb.add_argument(
        "--fits", nargs="+", metavar="LIMIT", help="only what was measured to take at most this: 10ms, 5MB, or both"
    )
    verb.add_argument("--runtime", choices=MEASURED_RUNTIMES, help="as measured in this (default: in any)")
    verb.add_argument("--threads", type=int, metavar="N", help="as measured with so many threads (default: 1)")


def list_command(arguments: argparse.Namespace) -> int:
    """List the published checkpoints, or those that are fast and small enough."""
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
