"""What visitors cannot exceed: bytes and time of a request, bytes and age of their photos; and the headers they get."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastapi.responses import PlainTextResponse
from starlette.requests import ClientDisconnect

MAX_FILE_BYTES = 10_000_000
MAX_BODY_BYTES = 12_000_000
"""Of a whole request: Gradio's limit is per file, of which a request can have many."""
BODY_SECONDS = 30
"""Until the next piece of a request's body has come; who is slower is sent away."""
MAX_UPLOADS_BYTES = 1_000_000_000
UPLOAD_SECONDS = 3600
"""So long photos stay on the disk, also those whose upload was broken off."""
SWEEP_SECONDS = 60
RETRY_SECONDS = 2
"""What visitors who are told to wait are asked for."""

FULL = "Many photos are waiting, and the queue is full; try again in some seconds."
NO_ROOM = "The server has no room for more photos; try again in an hour."
_TOO_LARGE = f"The photo is too large: at most {MAX_FILE_BYTES // 10**6} MB are taken. Save it smaller."


class Limits:
    """Refuses bodies that are too large or too slow, and sends security headers with every answer (ASGI).

    Args:
        app: What is behind it.
        refusal: Says why no photo can be taken now, or nothing. Uploads are refused before they are taken
            apart and stored, which would take time from the answers of others.
        embed: Whether other sites may show the page in a frame.
    """

    def __init__(self, app: Any, *, refusal: Callable[[], str] = str, embed: bool = False) -> None:
        self._app, self._refusal = app, refusal
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
                later = {"retry-after": str(RETRY_SECONDS)} if status == 503 else {}
                answer = PlainTextResponse(text, status, headers={"connection": "close", **later})
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
            if scope["path"].endswith("/upload") and (reason := self._refusal()):
                while not complete:  # thrown away, or the visitor would see a broken connection and no answer
                    await receive_limited()
                await refuse(503, reason)
                return
            await self._app(scope, receive_limited, send_with_headers)
        except ClientDisconnect:  # the visitor left, which is nobody's fault
            return
        except Exception:
            if not refused:
                raise


def files_below(folder: Path) -> Iterator[tuple[Path, float, int]]:
    """Each file below a folder, when it was written, and its bytes."""
    for parent, _, names in os.walk(folder):  # which passes over what is deleted meanwhile
        for name in names:
            path = Path(parent, name)
            with suppress(OSError):
                yield path, path.stat().st_mtime, path.stat().st_size


def delete_old(folder: Path) -> None:
    """Deletes what is old, but not what is there now, as long as the process runs.

    Gradio's own clearing does not see uploads that were broken off.
    """
    kept = {path for path, *_ in files_below(folder)}
    while True:
        for path, written, _ in files_below(folder):
            if path not in kept and time.time() - written > UPLOAD_SECONDS - SWEEP_SECONDS:
                with suppress(OSError):
                    path.unlink()
        time.sleep(SWEEP_SECONDS)
