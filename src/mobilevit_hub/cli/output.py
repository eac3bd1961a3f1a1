"""What the verbs share: options of the Hub, and how results and progress are printed."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from typing import Any


def add_verb(verbs: Any, name: str, run: Any, examples: str) -> argparse.ArgumentParser:
    """Adds a verb, with the options that all have.

    Args:
        verbs: What `add_subparsers` returned.
        name: The verb.
        run: Function of the arguments that returns the exit code; its docstring is the help.
        examples: Commands, the first without indentation.
    """
    verb = verbs.add_parser(
        name,
        help=run.__doc__,
        description=run.__doc__,
        epilog=f"examples:\n  {examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_argument("--json", action="store_true", help="print the result as JSON")
    verb.add_argument("--quiet", action="store_true", help="no progress bars")
    verb.add_argument("--debug", action="store_true", help="show tracebacks and all warnings")
    verb.set_defaults(run=run)
    return verb


def add_workers(verb: argparse.ArgumentParser) -> None:
    """Adds `--workers`."""
    text = "threads that prepare photos while the network computes; 0: none (default: the processors but one)"
    verb.add_argument("--workers", type=int, metavar="N", help=text)


def add_hub_options(verb: argparse.ArgumentParser) -> None:
    """Adds the options that say where a checkpoint is looked for."""
    verb.add_argument("--revision", help="branch, tag or commit on the Hub")
    verb.add_argument("--cache-dir", help="folder of the Hub's cache")
    verb.add_argument("--local-files-only", action="store_true", help="never use the network")


def plain_text(text: str) -> str:
    """Text without control characters, so that no file name can steer the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def options_of(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options of these names as keyword arguments of the function that does the work."""
    return {name: getattr(arguments, name) for name in names}


def hub_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Where a checkpoint is looked for, as far as the user says."""
    options = options_of(arguments, "revision", "cache_dir", "local_files_only")
    return {name: value for name, value in options.items() if value not in (None, False)}


def print_table(rows: list[list[str]]) -> None:
    """Prints rows in aligned columns, without control characters."""
    rows = [list(map(plain_text, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def shows_progress(arguments: argparse.Namespace) -> bool:
    """Whether a progress bar would be seen, and is wanted."""
    return not arguments.quiet and sys.stderr.isatty()


def preset_record(preset: Any) -> dict[str, Any]:
    """All that is known of a published checkpoint, as JSON can hold it."""
    names = [f.name for f in fields(preset)] + ["resolution", "hub_id", "hub_format", "unavailable"]
    return {name: getattr(preset, name) for name in names}
