"""The verbs `convert` and `verify`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..errors import ExportError, InputError
from ..hub.presets import check_name
from .output import add_hub_options, add_verb, hub_options, options_of, plain_text, print_table, shows_progress

OPTIONS = ("to", "model", "channel_order", "sha256", "overwrite")


def add_to(verbs: Any) -> None:
    """Adds the verbs to the command."""
    verb = add_verb(
        verbs,
        "convert",
        convert_command,
        "mobilevit-hub convert mobilevit_s.pt my-s         # Apple's file to a folder for both frameworks\n"
        "  mobilevit-hub convert my-s mobilevit_s.safetensors # timm's names\n"
        "  mobilevit-hub convert https://host/mobilevitv2-1.5.pt out --model mobilevitv2-1.5-384 --sha256 0123…\n"
        "  mobilevit-hub convert my-model my-model.keras     # and back: convert my-model.keras my-model",
    )
    verb.add_argument("source", help="file, folder, alias, Hub id, or https address of a file")
    verb.add_argument("output", help="folder or file to write; .pt, .safetensors, .keras … choose the format")
    verb.add_argument("--to", choices=("folder", "cvnets", "timm", "keras"), help="format (default: by the ending)")
    verb.add_argument("--model", metavar="NAME", help="what the source must be: alias, or folder with a config.json")
    verb.add_argument("--labels", metavar="FILE", help="names of the classes, one a line")
    verb.add_argument("--channel-order", choices=("bgr", "rgb"), help="what the weights take (default: as published)")
    verb.add_argument("--sha256", metavar="HEX", help="refuse the source unless it hashes to this")
    verb.add_argument("--no-verify", action="store_true", help="do not run the result in the installed libraries")
    verb.add_argument("--overwrite", action="store_true", help="replace what is there")
    add_hub_options(verb)

    verb = add_verb(
        verbs,
        "verify",
        verify_command,
        "mobilevit-hub verify mobilevit-xxs-tiny-imagenet\n  mobilevit-hub verify my-model --json",
    )
    verb.add_argument("name", help="alias, folder or Hub id")
    verb.add_argument("--sha256", metavar="HEX", help="what the weights must hash to")
    add_hub_options(verb)


def convert_command(arguments: argparse.Namespace) -> int:
    """Convert weights of Apple, timm, transformers or Keras, and check the result."""
    if "://" not in arguments.source and "." not in arguments.source:
        check_name(arguments.source)
    labels = None if arguments.labels is None else _lines_of(arguments.labels)
    from mobilevit_hub.conversion import convert

    try:
        conversion = convert(
            arguments.source,
            arguments.output,
            labels=labels,
            verify=not arguments.no_verify,
            progress=shows_progress(arguments),
            **options_of(arguments, *OPTIONS),
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
    print_table(rows)
    if conversion.parity is None:
        print("not checked: what the result computes (--no-verify); its tensors are those that were read, to the bit")
    else:
        print("\n".join(map(plain_text, conversion.parity.lines())))
    print(f"wrote {plain_text(conversion.output)}")
    if conversion.output.endswith(".keras"):
        print("open it with: import keras, mobilevit_hub.tf; keras.models.load_model(...)")
    return 0


def _lines_of(path: str) -> list[str]:
    """The lines of a text file, without an empty one at the end."""
    try:
        return Path(path).read_text("utf-8-sig").removesuffix("\n").split("\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is no UTF-8 text"
        raise InputError(f"--labels {path!r}: {reason}.", path=path, field="labels") from error


def verify_command(arguments: argparse.Namespace) -> int:
    """Hash a checkpoint again, and compare what it computes in every library."""
    check_name(arguments.name)
    from mobilevit_hub.conversion import verify

    found = verify(
        arguments.name, sha256=arguments.sha256, progress=shows_progress(arguments), **hub_options(arguments)
    )
    if arguments.json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        rows = [["weights", found.weights], ["sha256", found.sha256], ["git blob", found.git_blob]]
        rows += [["hash", text] for text in found.hashes or ["no other hash of it is known"]]
        print_table(rows)
        print("\n".join(map(plain_text, found.parity.lines())))
    return 0 if found.passed else 1
