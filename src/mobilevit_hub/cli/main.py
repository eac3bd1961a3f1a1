"""The command `mobilevit-hub`: how it starts and how it ends; each verb has a module of its own."""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from ..errors import InputError, MobileViTHubError, MobileViTHubWarning
from ..version import __version__
from . import convert, evaluate, export, info, list, predict, publish, train
from .output import plain_text
from .quiet import quiet_libraries

VERBS = (list, info, predict, evaluate, train, convert, export, publish)
"""The modules of the verbs, in the order of the help."""


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
                quiet_libraries()
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
        print(f"mobilevit-hub: error: {plain_text(message)}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1


def _terminate(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


def _show_warning(message: Any, category: type, *_: Any, **__: Any) -> None:
    kind = "note" if category is MobileViTHubWarning else "warning"
    print(f"mobilevit-hub: {kind}: {plain_text(str(message))}", file=sys.stderr)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs; imports no framework."""
    parser = argparse.ArgumentParser(
        prog="mobilevit-hub",
        description="MobileViT and MobileViTv2 by name: classify, inspect, train, measure, convert, export, publish.",
        epilog='Try "mobilevit-hub predict photo.jpg", or "mobilevit-hub VERB --help" for examples of a verb.',
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    for module in VERBS:
        module.add_to(verbs)
    return parser
