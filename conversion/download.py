"""Fetching one weights file from an https address that the user gave."""

from __future__ import annotations

import http.client
import re
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import HTTPSHandler, OpenerDirector, ProxyHandler, Request

from mobilevit_hub.errors import (
    AccessError,
    InputError,
    IntegrityError,
    MobileViTHubError,
    NotFoundError,
    OfflineError,
    SaveError,
    SourceError,
)
from mobilevit_hub.files import TEMPORARY_PREFIX
from mobilevit_hub.version import __version__

MAX_REDIRECTS = 3
MAX_BYTES = 1024**3
CHUNK_BYTES = 256 * 1024
CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
MAX_NAME_LENGTH = 100
_REDIRECTS = (301, 302, 303, 307, 308)


def download(url: str, folder: str | Path, *, progress: bool = False) -> Path:
    """Fetches one file into a folder, where it appears whole or not at all.

    The address is opened wherever it leads, also within the local network. That is right for a command whose
    user typed it; a service must not pass on addresses from its clients. The environment's `HTTPS_PROXY` and
    `SSL_CERT_FILE` are obeyed.

    Args:
        url: An https address without credentials, at most 1 GiB behind it. At most 3 redirects are followed,
            each to https again.
        folder: An existing folder. The file keeps its name in the address, with other characters than letters,
            digits, `.`, `_` and `-` replaced; a file of that name is replaced.
        progress: Whether a bar is shown on stderr.

    Returns:
        The path of the file.

    Raises:
        InputError: The address cannot be used.
        AccessError: The server refused access.
        NotFoundError: The server has no such file.
        OfflineError: The server cannot be reached.
        IntegrityError: Fewer bytes came than stated.
        SourceError: Any other failure of the server or the connection, an untrusted certificate, a file above
            the limit.
        SaveError: The file could not be written.
    """
    if problem := _problem(url) if isinstance(url, str) else f"expected text, found {type(url).__name__}":
        raise InputError(f"The address cannot be used: {problem}; give https://HOST/PATH/FILE.", field="url")
    name = _file_name(url)
    target = Path(folder) / name
    try:
        with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=folder) as staging:
            staged = Path(staging) / name
            with open(staged, "wb") as file:
                for chunk in _chunks(url, name, progress):
                    file.write(chunk)
            staged.replace(target)
    except MobileViTHubError:
        raise
    except OSError as error:
        raise SaveError(f"Cannot save {str(target)!r}: {error.strerror or error}.", path=target) from error
    return target


def _problem(url: str) -> str:
    """What is wrong with an address; empty where nothing is."""
    if not re.fullmatch("[!-~]+", url):
        return "it holds spaces or other characters that stand percent-encoded in an address"
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return "its host or port is malformed"
    # Not shown: what stands before the @ may be a password.
    if "@" in parts.netloc:
        return "it has a user name or password in it, which is not accepted"
    if parts.scheme != "https":
        return f"{without_query(url)!r} begins with {parts.scheme!r}, and only https is accepted"
    if not parts.hostname:
        return f"{without_query(url)!r} names no host"
    return ""


def without_query(url: str) -> str:
    """An address without its query, which may hold a token."""
    return urlsplit(url)._replace(query="", fragment="").geturl()


def _file_name(url: str) -> str:
    """The file's name in an address, safe on every system; its ending is kept, as it tells the kind of file."""
    last = re.split(r"[/\\]", unquote(urlsplit(url).path))[-1]
    name = re.sub("[^A-Za-z0-9._-]", "_", last)[-MAX_NAME_LENGTH:].lstrip(".")
    if not Path(name).suffix:
        raise InputError(
            f"The address {without_query(url)!r} names no file with an ending, which tells the kind of weights; "
            "expected one such as .pt, .bin, .safetensors, .h5 or .keras.",
            field="url",
            found=without_query(url),
        )
    return name


class _Connection(http.client.HTTPSConnection):
    def connect(self) -> None:
        super().connect()  # within the time-out for connecting, which the constructor was given
        self.sock.settimeout(READ_SECONDS)


class _Handler(HTTPSHandler):
    def https_open(self, request: Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, request, context=ssl.create_default_context())


def _chunks(url: str, name: str, progress: bool) -> Iterator[bytes]:
    """The content behind an address, checked against the limit and against what the server states."""
    from tqdm import tqdm

    shown, received = without_query(url), 0
    with _open(url) as response:
        stated = response.length
        if stated is not None and stated > MAX_BYTES:
            raise _too_large(shown, f"{stated:,}")
        of = "" if stated is None else f" of {stated:,}"
        with tqdm(total=stated, desc=name, unit="B", unit_scale=True, disable=not progress) as bar:
            while True:
                try:
                    chunk = response.read1(CHUNK_BYTES)
                except http.client.IncompleteRead as error:
                    raise _short(shown, f"{received:,}{of}") from error
                except (OSError, http.client.HTTPException) as error:
                    raise SourceError(
                        f"{shown}: the connection broke after {received:,}{of} bytes ({_reason(error)}); download it "
                        "again.",
                        path=shown,
                    ) from error
                if not chunk:
                    break
                received += len(chunk)
                if received > MAX_BYTES:
                    raise _too_large(shown, f"more than {MAX_BYTES:,}")
                bar.update(len(chunk))
                yield chunk
    if stated is not None and received < stated:
        raise _short(shown, f"{received:,}{of}")


def _open(url: str) -> http.client.HTTPResponse:
    """The successful answer of a server, after redirects."""
    # Only https, through a proxy where the environment names one. Answers of any status come back as they are.
    opener = OpenerDirector()
    for handler in (ProxyHandler(), _Handler()):
        opener.add_handler(handler)
    shown = without_query(url)
    for _ in range(MAX_REDIRECTS + 1):
        response = _ask(opener, url)
        if response.status not in _REDIRECTS:
            break
        response.close()
        url = urljoin(url, response.headers.get("Location", ""))
        if problem := _problem(url):
            raise SourceError(f"{shown} redirects to an address that cannot be used: {problem}.", path=shown)
    else:
        raise SourceError(f"{shown} redirects more than {MAX_REDIRECTS} times.", path=shown)
    if response.status == 200:
        return response
    response.close()
    raise _bad_status(shown, response.status)


def _ask(opener: OpenerDirector, url: str) -> http.client.HTTPResponse:
    """One request, with every failure explained."""
    host, shown = urlsplit(url).hostname, without_query(url)
    request = Request(url, headers={"User-Agent": f"mobilevit_hub/{__version__}"})  # noqa: S310 - checked to be https
    try:
        return opener.open(request, timeout=CONNECT_SECONDS)  # type: ignore[return-value]
    except (OSError, http.client.HTTPException, ValueError) as error:
        # What fails before the request is sent comes wrapped.
        before, cause = isinstance(error, URLError), error.reason if isinstance(error, URLError) else error
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise SourceError(
                f"The certificate of {host!r} is not trusted ({cause.verify_message}); where your network has its own "
                "certificates, name their file in SSL_CERT_FILE.",
                path=shown,
            ) from error
        if before and not isinstance(cause, ssl.SSLError):
            raise OfflineError(
                f"{host!r} cannot be reached ({_reason(cause)}); check the address and the network.", path=shown
            ) from error
        raise SourceError(f"{shown} does not answer as an https server does ({_reason(cause)}).", path=shown) from error


def _bad_status(shown: str, status: int) -> SourceError:
    if status in (401, 403):
        return AccessError(f"{shown}: the server refused access (status {status}).", path=shown, found=status)
    if status == 404:
        return NotFoundError(f"{shown}: the server has no such file (status 404).", path=shown, found=status)
    return SourceError(f"{shown}: the server answered with status {status}, expected 200.", path=shown, found=status)


def _too_large(shown: str, size: str) -> SourceError:
    return SourceError(f"{shown} holds {size} bytes; the limit is {MAX_BYTES:,}.", path=shown)


def _short(shown: str, sizes: str) -> IntegrityError:
    return IntegrityError(f"{shown}: the connection ended after {sizes} bytes; download it again.", path=shown)


def _reason(error: Any) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return text.splitlines()[0] if text else type(error).__name__
