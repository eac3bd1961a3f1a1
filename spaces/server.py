"""Starts the demo, behind its limits, and ends it cleanly."""

from __future__ import annotations

import logging
import math
import os
import socket
import sys
import threading
import traceback
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Read by Gradio when it is imported.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr
import gradio.processing_utils
import gradio.queueing
import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse, Response

from mobilevit_hub.errors import InputError, SourceError
from mobilevit_hub.files import temporary_folder

from . import panels
from .limits import FULL, MAX_FILE_BYTES, MAX_UPLOADS_BYTES, NO_ROOM, Limits, delete_old, files_below
from .models import EXPORTED, Models, export_folder
from .page import EXAMPLES, STYLES, build_page, theme

MAX_THREADS = 8
MAX_SESSIONS = 100
"""Of which Gradio keeps a copy of the page, 40 kB each; one that is forgotten gets a new one."""
GRACE_SECONDS = 10
"""For answers that are on their way when the server is told to stop."""

log = logging.getLogger("mobilevit_hub.demo")


def serve(
    names: Sequence[str] = (),
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    embed: bool = False,
    open_browser: bool = False,
    **places: Any,
) -> None:
    """Runs the demo until it is told to stop.

    Args:
        names: Models to offer before the published ones: aliases, folders, or Hub ids. The first is opened before the
            port is.
        host: Address to listen on; `"0.0.0.0"` is every one of this machine, for others in the network.
        port: 0 takes any that is free.
        embed: Whether other sites may show the page in a frame, as the Hub does with a Space.
        open_browser: Whether to open the page in the user's browser.
        places: Options of `hub.find.find_checkpoint`.

    Raises:
        SourceError: The address cannot be used.
        MobileViTHubError: As `models.open_model`, of the first model.
    """
    _log_to_stderr()
    listener = _bind(host, port)
    with listener, temporary_folder() as folder:
        uploads = folder / "uploads"
        os.environ["GRADIO_TEMP_DIR"] = str(uploads)
        models = Models(names, folder=export_folder() or folder / "exports", report=log.info, **places)
        models.open(models.names[0]).result()
        shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
        address = f"http://{shown}:{listener.getsockname()[1]}"
        app = build_app(models, uploads, embed=embed)
        threading.Thread(target=delete_old, args=(uploads,), daemon=True).start()
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
            server_header=False,
        )
        try:
            listener.listen(128)
        except OSError as error:  # another program took it while the model was being opened
            raise _cannot_be_used(host, port, error) from error
        log.info("the demo is at %s; Ctrl-C ends it", address)
        if open_browser:
            webbrowser.open(address)
        uvicorn.Server(config).run(sockets=[listener])


def build_app(models: Models, uploads: Path, *, embed: bool = False) -> FastAPI:
    """The page, `/health`, and the exported files, behind the limits.

    Args:
        models: What visitors can choose.
        uploads: Where Gradio keeps photos.
        embed: As for `serve`.
    """
    app = FastAPI(title="mobilevit_hub demo", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/favicon.ico")
    async def icon() -> Response:
        return Response(panels.ICON, media_type="image/svg+xml")

    @app.get("/files/{number}/{precision}.tflite")
    async def file(number: int, precision: str) -> FileResponse:
        runtime = next((name for name, value in EXPORTED.items() if value == precision), "")
        model = models.opened(number)
        if model is None or not runtime:
            raise HTTPException(404, "There is no such file, or its model is not open; choose the model on the page.")
        path = model.files[runtime]
        return FileResponse(path, media_type="application/octet-stream", filename=path.name)

    _change_gradio()
    page = build_page(models)
    page.max_threads = MAX_THREADS
    page._queue.max_thread_count = MAX_THREADS
    page.state_session_capacity = MAX_SESSIONS
    app = gr.mount_gradio_app(
        app,
        page,
        path="/",
        theme=theme(),
        css_paths=STYLES,
        max_file_size=MAX_FILE_BYTES,
        show_error=True,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        allowed_paths=[str(EXAMPLES[0].parent)],
    )
    page.has_launched = True  # only then does Gradio refuse paths that nobody uploaded, and mounting does not say so

    def refusal() -> str:
        if len(page._queue) >= (page._queue.max_size or math.inf):
            return FULL
        return NO_ROOM if sum(size for _, _, size in files_below(uploads)) > MAX_UPLOADS_BYTES else ""

    app.add_middleware(Limits, refusal=refusal, embed=embed)
    return app


def _bind(host: str, port: int) -> socket.socket:
    """Takes the address, without answering on it yet."""
    if type(port) is not int or not 0 <= port <= 65535:
        raise InputError(f"The port is {port!r}; expected a whole number from 0 to 65535.", field="port", found=port)
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise SourceError(f"The host {host!r} is no address of this machine: {error.strerror or error}.") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise _cannot_be_used(host, port, error) from error
    return listener


def _cannot_be_used(host: str, port: int, error: OSError) -> SourceError:
    return SourceError(
        f"Port {port} of {host} cannot be used: {error.strerror or error}. Choose another with --port, or 0 for any "
        "that is free."
    )


def _log_refusal() -> None:
    """Logs the kind of error that Gradio caught, and where it was raised."""
    kind, _, trace = sys.exc_info()
    places = traceback.extract_tb(trace)
    place = f"{Path(places[-1].filename).name}:{places[-1].lineno}" if places else "nowhere"
    log.warning("Gradio refused a request: %s at %s", getattr(kind, "__name__", "unknown"), place)


async def _fetch_nothing(address: str, cache_dir: str) -> str:
    raise gr.Error("Photos are uploaded; addresses are not fetched.", print_exception=False)


def _change_gradio() -> None:
    """Changes what no setting of Gradio can."""
    # It would print a traceback, with what the visitor sent, such as a path of the server that it refused.
    gradio.queueing.traceback = SimpleNamespace(print_exc=_log_refusal)  # type: ignore[assignment]
    # It would download what a visitor names instead of uploading it: whole, and whatever its size.
    gradio.processing_utils.async_ssrf_protected_download = _fetch_nothing  # type: ignore[assignment]


def _log_to_stderr() -> None:
    """A line for what happens; none of them has anything of a request but sizes, times and outcomes."""
    if not log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
