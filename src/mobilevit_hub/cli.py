"""The command `mobilevit-hub`: its arguments, and how it ends; `commands` has the verbs."""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from . import __version__, commands, evaluation_command, list_command
from .architecture import FRAMEWORKS, PRECISIONS, RUNTIMES, TFLITE_INPUTS, TFLITE_OUTPUTS
from .errors import InputError, MobileViTHubError, MobileViTHubWarning

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
    for name in ("SIGTERM", "SIGHUP"):  # so that temporary folders go; not every system has the second
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _terminate)
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
            if getattr(error, "report", None) is not None:
                details["report"] = error.report.to_dict()  # type: ignore[attr-defined]
            print(json.dumps({"error": details}))
        print(f"mobilevit-hub: error: {commands.plain_text(message)}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1


def _terminate(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


def _show_warning(message: Any, category: type, *_: Any, **__: Any) -> None:
    kind = "note" if category is MobileViTHubWarning else "warning"
    print(f"mobilevit-hub: {kind}: {commands.plain_text(str(message))}", file=sys.stderr)


def _quiet_libraries() -> None:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("HF_HUB_VERBOSITY", "critical")  # which sets the level below when it is imported
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    # Its line per retry says nothing that our one message does not say.
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)


# --------------------------------------------------------------------------------------------------
# Arguments
# --------------------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs; imports no framework."""
    parser = argparse.ArgumentParser(
        prog="mobilevit-hub",
        description="MobileViT and MobileViTv2 by name: classify, inspect, train, measure, convert, export, publish.",
        epilog='Try "mobilevit-hub predict photo.jpg", or "mobilevit-hub VERB --help" for examples of a verb.',
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")

    verb = _verb(
        verbs,
        "list",
        list_command.list_command,
        "List the published checkpoints, or those that are fast and small enough.",
        list_command.EXAMPLES,
    )
    list_command.add_arguments(verb)

    verb = _verb(
        verbs,
        "info",
        commands.info_command,
        "Say everything about one checkpoint.",
        "mobilevit-hub info mobilevitv2-1.0",
    )
    verb.add_argument("name", help="alias, folder or Hub id")
    verb.add_argument("--download", action="store_true", help="fetch all its files and show what they say")
    verb.add_argument("--framework", choices=FRAMEWORKS, help="also open it in PyTorch or Keras, and say as what")
    _add_hub_options(verb)

    verb = _verb(
        verbs,
        "predict",
        commands.predict_command,
        "Classify images.",
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
    _add_workers(verb)
    _add_hub_options(verb)

    verb = _verb(
        verbs,
        "evaluate",
        evaluation_command.evaluate_command,
        "Measure one or several models on labelled photos.",
        evaluation_command.EXAMPLES,
    )
    evaluation_command.add_arguments(verb)
    _add_workers(verb)
    _add_hub_options(verb)

    verb = _verb(
        verbs,
        "convert",
        commands.convert_command,
        "Convert weights of Apple, timm, transformers or Keras, and check the result.",
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
    _add_hub_options(verb)

    verb = _verb(
        verbs,
        "export",
        commands.export_command,
        "Export a classifier as a .tflite file for phones, checked and measured.",
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
    _add_hub_options(verb)

    verb = _verb(
        verbs,
        "verify",
        commands.verify_command,
        "Hash a checkpoint again, and compare what it computes in every library.",
        "mobilevit-hub verify mobilevit-xxs-tiny-imagenet\n  mobilevit-hub verify my-model --json",
    )
    verb.add_argument("name", help="alias, folder or Hub id")
    verb.add_argument("--sha256", metavar="HEX", help="what the weights must hash to")
    _add_hub_options(verb)

    verb = _verb(
        verbs,
        "push",
        commands.push_command,
        "Publish a folder on the Hub, with its model card.",
        "mobilevit-hub push my-model me/my-model --private",
    )
    verb.add_argument("folder", help="what convert, train or save_pretrained wrote")
    verb.add_argument("repository", help="OWNER/NAME; made when it does not exist")
    verb.add_argument("--private", action="store_true", help="make a new repository private")
    verb.add_argument("--revision", help="branch to commit to (default: main)")
    verb.add_argument("--message", help="first line of the commit")
    verb.add_argument("--create-pr", action="store_true", help="open a pull request in place of a commit")

    verb = _verb(
        verbs,
        "demo",
        commands.demo_command,
        "Show models in a web page: a photo in PyTorch, Keras and TFLite side by side.",
        "mobilevit-hub demo                  # then open http://127.0.0.1:7860\n"
        "  mobilevit-hub demo my-model --open  # what train or convert wrote\n"
        "  mobilevit-hub demo --host 0.0.0.0   # for others in the network",
    )
    verb.add_argument("names", nargs="*", metavar="NAME", help="models to offer first: aliases, folders or Hub ids")
    verb.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    verb.add_argument("--port", type=int, default=7860, help="0: any that is free (default: %(default)s)")
    verb.add_argument("--open", action="store_true", help="open the page in the browser")
    verb.add_argument("--embed", action="store_true", help="let other sites show the page in a frame")
    _add_hub_options(verb)

    from .recipes import RECIPES, Recipe

    verb = _verb(
        verbs,
        "train",
        commands.train_command,
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


def _add_workers(verb: argparse.ArgumentParser) -> None:
    text = "threads that prepare photos while the network computes; 0: none (default: the processors but one)"
    verb.add_argument("--workers", type=int, metavar="N", help=text)


def _add_hub_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--revision", help="branch, tag or commit on the Hub")
    verb.add_argument("--cache-dir", help="folder of the Hub's cache")
    verb.add_argument("--local-files-only", action="store_true", help="never use the network")


if __name__ == "__main__":
    sys.exit(main())
