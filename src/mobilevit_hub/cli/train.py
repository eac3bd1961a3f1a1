"""The verb `train`."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from dataclasses import fields
from typing import Any

from ..choices import FRAMEWORKS
from ..errors import ConfigError, InputError
from ..hub.presets import check_name
from ..recipes.recipe import RECIPES, Recipe, get_recipe
from .output import add_verb, options_of

OPTIONS = ("model", "framework", "from_scratch", "validation", "resume", "workers", "save_steps")


def add_to(verbs: Any) -> None:
    """Adds the verb to the command."""
    verb = add_verb(
        verbs,
        "train",
        train_command,
        "mobilevit-hub train photos/ --output my-model --model mobilevit-s --epochs 20  # photos/cat/1.jpg …\n"
        "  mobilevit-hub train data.parquet --output out --from-scratch --size-schedule 64:8,128:2\n"
        "  mobilevit-hub train photos/ --output my-model --model mobilevit-s --epochs 20 --resume",
    )
    verb.add_argument("data", help="folder of class folders, parquet files, or Hub id")
    verb.add_argument("--output", required=True, metavar="FOLDER", help="folder to write")
    verb.add_argument("--model", default="mobilevit-xxs", help="start from, or build like (default: %(default)s)")
    verb.add_argument("--framework", choices=FRAMEWORKS, default="pt", help="PyTorch or Keras (default: %(default)s)")
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


def _launcher() -> list[str]:
    """How this process was started, for the record."""
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes == "1":
        return ["mobilevit-hub"]
    return ["torchrun", "--nproc_per_node", processes, "-m", "mobilevit_hub.cli"]


def train_command(arguments: argparse.Namespace) -> int:
    """Train or fine-tune a classifier on labelled photos."""
    check_name(arguments.model)
    chosen = options_of(arguments, *(field.name for field in fields(Recipe)))
    changes = {name: value for name, value in chosen.items() if value is not None}
    try:
        recipe = get_recipe(arguments.recipe, **changes)
    except ConfigError as error:  # here the recipe is what was typed
        raise InputError(error.message, field=error.field, found=error.found) from error
    from ..recipes.run import is_main_process
    from ..training.run import train

    config = {"output_stride": arguments.output_stride} if arguments.output_stride else {}
    log = train(
        arguments.data,
        arguments.output,
        recipe=recipe,
        config=config,
        progress=not arguments.quiet,
        command=shlex.join([*_launcher(), *sys.argv[1:]]),
        **options_of(arguments, *OPTIONS),
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
