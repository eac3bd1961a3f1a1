"""Starts the demo and keeps it within its limits: bytes, pixels, waiting visitors, headers, a clean end."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import webbrowser
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

# Read by Gradio when it is imported.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr
import gradio.queueing
import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse, PlainTextResponse, Response
from starlette.requests import ClientDisconnect

from mobilevit_hub.errors import InputError, SourceError
from mobilevit_hub.files import temporary_folder

from . import panels
from .models import PRECISIONS, Models, export_folder
from .page import EXAMPLES, STYLES, build_page, theme

MAX_FILE_BYTES = 10_000_000
MAX_BODY_BYTES = 12_000_000
"""Of a whole request: Gradio's limit is per file, of which a request can have many."""
BODY_SECONDS = 30
"""Until the next piece of a request's body has come; who is slower is sent away."""
MAX_THREADS = 8
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
        places: Options of `checkpoints.find_checkpoint`.

    Raises:
        SourceError: The address cannot be used.
        MobileViTHubError: As `models.open_model`, of the first model.
    """
    _log_to_stderr()
    listener = _bind(host, port)
    with listener, temporary_folder() as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
        models = Models(names, folder=export_folder() or folder / "exports", report=log.info, **places)
        models.open(models.names[0]).result()
        address = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{listener.getsockname()[1]}"  # noqa: S104
        config = uvicorn.Config(
            build_app(models, embed=embed),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
            server_header=False,
        )
        listener.listen(128)
        log.info("the demo is at %s; Ctrl-C ends it", address)
        if open_browser:
            webbrowser.open(address)
        uvicorn.Server(config).run(sockets=[listener])


def build_app(models: Models, *, embed: bool = False) -> FastAPI:
    """The page, `/health`, and the exported files, behind the limits.

    Args:
        models: What visitors can choose.
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
        runtime = next((name for name, value in PRECISIONS.items() if value == precision), "")
        model = models.opened(number)
        if model is None or not runtime:
            raise HTTPException(404, "There is no such file, or its model is not open; choose the model on the page.")
        path = model.files[runtime]
        return FileResponse(path, media_type="application/octet-stream", filename=path.name)

    page = build_page(models)
    page.max_threads = MAX_THREADS
    page._queue.max_thread_count = MAX_THREADS
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
    app.add_middleware(Limits, embed=embed)
    return app


class Limits:
    """Refuses bodies that are too large or too slow, and sends security headers with every answer (ASGI).

    Args:
        app: What is behind it.
        embed: Whether other sites may show the page in a frame.
    """

    def __init__(self, app: Any, *, embed: bool = False) -> None:
        self._app = app
        self._headers = [
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"same-origin"),
            (b"permissions-policy", b"camera=(self), microphone=(), geolocation=()"),
            *([] if embed else [(b"x-frame-options", b"SAMEORIGIN")]),
        ]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = refused = False
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        size, complete = 0, scope["method"] in ("GET", "HEAD")

        async def send_with_headers(message: Any) -> None:
            nonlocal started
            if refused:  # what the app says of the error that stopped it
                return
            started = started or message["type"] == "http.response.start"
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *self._headers]
            await send(message)

        async def refuse(status: int, text: str) -> None:
            nonlocal refused
            if not started:
                answer = PlainTextResponse(text, status, headers={"connection": "close"})
                await answer(scope, receive, send_with_headers)
            refused = True

        async def receive_limited() -> Any:
            nonlocal size, complete
            if complete:  # what follows is the end of the connection, however late
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), BODY_SECONDS)
            except TimeoutError:
                await refuse(408, f"The upload stood still for {BODY_SECONDS} seconds; try again.")
                raise
            size += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if size > MAX_BODY_BYTES:
                await refuse(413, _TOO_LARGE)
                raise ValueError(_TOO_LARGE)
            return message

        if announced.isdigit() and int(announced) > MAX_BODY_BYTES:
            await refuse(413, _TOO_LARGE)
            return
        try:
            await self._app(scope, receive_limited, send_with_headers)
        except ClientDisconnect:  # the visitor left, which is nobody's fault
            return
        except Exception:
            if not refused:
                raise


_TOO_LARGE = f"The photo is too large: at most {MAX_FILE_BYTES // 10**6} MB are taken. Save it smaller."


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
        raise SourceError(
            f"Port {port} of {host} cannot be used: {error.strerror or error}. Choose another with --port, or 0 for "
            "any that is free."
        ) from error
    return listener


def _log_refusal() -> None:
    """Logs the kind of error that Gradio caught."""
    log.warning("Gradio refused a request: %s", getattr(sys.exc_info()[0], "__name__", "unknown"))


def _log_to_stderr() -> None:
    """A line for what happens; none of them has anything of a request but sizes, times and outcomes."""
    # Gradio would print a traceback, with what the visitor sent, such as a path of the server that it refused.
    gradio.queueing.traceback = SimpleNamespace(print_exc=_log_refusal)  # type: ignore[assignment]
    if not log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
