"""The verbs `push` and `demo`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..errors import require
from .output import add_hub_options, add_verb, hub_options, shows_progress


def add_to(verbs: Any) -> None:
    """Adds the verbs to the command."""
    verb = add_verb(verbs, "push", push_command, "mobilevit-hub push my-model me/my-model --private")
    verb.add_argument("folder", help="what convert, train or save_pretrained wrote")
    verb.add_argument("repository", help="OWNER/NAME; made when it does not exist")
    verb.add_argument("--private", action="store_true", help="make a new repository private")
    verb.add_argument("--revision", help="branch to commit to (default: main)")
    verb.add_argument("--message", help="first line of the commit")
    verb.add_argument("--create-pr", action="store_true", help="open a pull request in place of a commit")

    verb = add_verb(
        verbs,
        "demo",
        demo_command,
        "mobilevit-hub demo                  # then open http://127.0.0.1:7860\n"
        "  mobilevit-hub demo my-model --open  # what train or convert wrote\n"
        "  mobilevit-hub demo --host 0.0.0.0   # for others in the network",
    )
    verb.add_argument("names", nargs="*", metavar="NAME", help="models to offer first: aliases, folders or Hub ids")
    verb.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    verb.add_argument("--port", type=int, default=7860, help="0: any that is free (default: %(default)s)")
    verb.add_argument("--open", action="store_true", help="open the page in the browser")
    verb.add_argument("--embed", action="store_true", help="let other sites show the page in a frame")
    add_hub_options(verb)


def push_command(arguments: argparse.Namespace) -> int:
    """Publish a folder on the Hub, with its model card."""
    from huggingface_hub.utils import disable_progress_bars

    from ..publishing.upload import push

    if not shows_progress(arguments):
        disable_progress_bars()
    message = {} if arguments.message is None else {"message": arguments.message}
    address = push(
        arguments.folder,
        arguments.repository,
        private=arguments.private or None,
        revision=arguments.revision,
        create_pr=arguments.create_pr,
        **message,
    )
    print(json.dumps({"commit": address}) if arguments.json else address)
    return 0


def demo_command(arguments: argparse.Namespace) -> int:
    """Show models in a web page: a photo in PyTorch, Keras and TFLite side by side."""
    for module in ("gradio", "torch", "tensorflow", "ai_edge_litert", "ai_edge_quantizer"):
        require(module, "demo", "The web demo")
    from mobilevit_hub.spaces.server import serve

    serve(
        arguments.names,
        host=arguments.host,
        port=arguments.port,
        embed=arguments.embed,
        open_browser=arguments.open,
        **hub_options(arguments),
    )
    return 0
