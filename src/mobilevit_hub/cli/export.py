"""The verb `export`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..choices import PRECISIONS, TFLITE_INPUTS, TFLITE_OUTPUTS
from ..hub.presets import check_name
from .output import add_hub_options, add_verb, hub_options, options_of, plain_text, print_table, shows_progress

OPTIONS = ("resolution", "input_type", "output_type", "calibration", "compare", "overwrite")


def add_to(verbs: Any) -> None:
    """Adds the verb to the command."""
    verb = add_verb(
        verbs,
        "export",
        export_command,
        "mobilevit-hub export mobilevit-s s.tflite --precision fp16\n"
        "  mobilevit-hub export my-model m.tflite --precision int8 --calibration photos/ --compare labelled-photos/\n"
        "  mobilevit-hub export my-model m.tflite --all-precisions --calibration photos/ # m-fp32.tflite … m.md, m.png",
    )
    verb.add_argument("name", help="alias, folder or Hub id")
    verb.add_argument("output", metavar="OUT.tflite", help="file to write; OUT.json beside it says all about it")
    group = verb.add_mutually_exclusive_group()
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="fp16 for GPUs, int8-dynamic or int8 for CPUs; int8 needs --calibration (default: %(default)s)",
    )
    group.add_argument(
        "--all-precisions",
        action="store_true",
        help="write all four, OUT-fp32.tflite and so on, with a table OUT.md and a plot OUT.png",
    )
    verb.add_argument(
        "--resolution", type=int, metavar="N", help="side of the image, 32 to 1024 (default: as the checkpoint)"
    )
    verb.add_argument(
        "--calibration",
        metavar="DATA",
        help="for int8: 100 or more photos like those of the app; folder, parquet files, or Hub id",
    )
    verb.add_argument(
        "--compare",
        metavar="DATA",
        help="measure what the file loses on labelled photos, such as a folder of folders named like the labels",
    )
    verb.add_argument("--input-type", choices=TFLITE_INPUTS, default="uint8", help="default: %(default)s, 0 to 255")
    verb.add_argument("--output-type", choices=TFLITE_OUTPUTS, default="probabilities", help="default: %(default)s")
    verb.add_argument("--overwrite", action="store_true", help="replace what is there")
    add_hub_options(verb)


def export_command(arguments: argparse.Namespace) -> int:
    """Export a classifier as a .tflite file for phones, checked and measured."""
    check_name(arguments.name)
    from mobilevit_hub.conversion import export_all_precisions, export_tflite

    options = {"progress": shows_progress(arguments), **options_of(arguments, *OPTIONS), **hub_options(arguments)}
    if arguments.all_precisions:
        exports = export_all_precisions(arguments.name, arguments.output, **options)
    else:
        exports = [export_tflite(arguments.name, arguments.output, precision=arguments.precision, **options)]
    if arguments.json:
        records = [export.to_dict() for export in exports]
        print(json.dumps(records if arguments.all_precisions else records[0], indent=2))
        return 0
    from mobilevit_hub.conversion.tflite.report import comparison_table, report_lines

    if arguments.all_precisions:
        print_table(comparison_table(exports))
        names = [Path(arguments.output).with_suffix(ending) for ending in (".md", ".png")]
    else:
        print("\n".join(map(plain_text, report_lines(exports[0]))))
        names = []
    written = [path for export in exports for path in (Path(export.path), Path(export.path).with_suffix(".json"))]
    print(plain_text(f"wrote {', '.join(map(str, [*written, *names]))}"))
    return 0
