"""Weights from an https address: a server on loopback, and each way in which it goes wrong."""

import http.client
import os
import re
import socket
import ssl
import struct
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mobilevit_hub.conversion.download import download
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

module = sys.modules[download.__module__]

# Signed by itself for localhost and 127.0.0.1, valid from 2020 to 2119; nothing but this file trusts it.
KEY = """-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgDnQT6y6HF0gI4Zpk
wIScxL40TRhF80cLXd5eGYj8atWhRANCAATBjAQUei91h+yhaF0FNjdm5JmWBixu
gRO9SE8xOFNkkPcNAJloFr4UJNzy62vOH3C72qEVbKAlZsNt3TMOdwwi
-----END PRIVATE KEY-----
"""
CERTIFICATE = """-----BEGIN CERTIFICATE-----
MIIBqjCCAVCgAwIBAgIUC5rL+Hr44OLr2+AnY0tgHUZz2tIwCgYIKoZIzj0EAwIw
JDEiMCAGA1UEAwwZbW9iaWxldml0X2h1YiB0ZXN0IHNlcnZlcjAgFw0yMDAxMDEw
MDAwMDBaGA8yMTIwMDEwMTAwMDAwMFowJDEiMCAGA1UEAwwZbW9iaWxldml0X2h1
YiB0ZXN0IHNlcnZlcjBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABMGMBBR6L3WH
7KFoXQU2N2bkmZYGLG6BE71ITzE4U2SQ9w0AmWgWvhQk3PLra84fcLvaoRVsoCVm
w23dMw53DCKjXjBcMA8GA1UdEwEB/wQFMAMBAf8wDgYDVR0PAQH/BAQDAgKEMB0G
A1UdDgQWBBS52sFFosaXGQl5VPScBbaxiTiJ1DAaBgNVHREEEzARgglsb2NhbGhv
c3SHBH8AAAEwCgYIKoZIzj0EAwIDSAAwRQIgerUjl5eUJ0F8HDQ4wXF4pkC+aZLi
T1uRx3nGWT2chYICIQCNDxRRy4i6GCF0BC3zhYD4li93mYjLJCCNzHccMK+yZA==
-----END CERTIFICATE-----
"""
CONTENT = bytes(range(256)) * 400
SIZE = f"{len(CONTENT):,}"
SECRET = "s3cret"  # noqa: S105 - what must not be shown


class _Handler(BaseHTTPRequestHandler):
    """Answers by the first part of the path."""

    def log_message(self, *_):
        pass

    def headed(self, status=200, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def do_GET(self):
        self.server.requests.append((self.path, self.headers))
        kind, _, rest = self.path.strip("/").partition("/")
        if kind.isdigit():
            return self.headed(int(kind), Content_Length="0")
        return getattr(self, kind)(rest)

    def file(self, _):
        self.headed(Content_Length=str(len(CONTENT)))
        self.wfile.write(CONTENT)

    def unstated(self, _):
        self.headed()
        self.wfile.write(CONTENT)

    def to(self, rest):
        """`to/307/ADDRESS`."""
        status, _, address = rest.partition("/")
        self.headed(
            int(status), Location=address if re.match("[a-z]+://", address) else f"/{address}", Content_Length="0"
        )

    def huge(self, _):
        self.headed(Content_Length=str(2**30 + 1))

    def short(self, _):
        self.headed(Content_Length=str(len(CONTENT)))
        self.wfile.write(CONTENT[:1000])

    def chunked(self, rest):
        """`chunked/N/…`: the first N parts of 1,000 bytes each, and the end only where N is 3."""
        parts = int(rest.partition("/")[0])
        self.protocol_version = "HTTP/1.1"
        self.headed(Transfer_Encoding="chunked")
        for _ in range(parts):
            self.wfile.write(b"3e8\r\n" + bytes(1000) + b"\r\n")
        self.wfile.write(b"0\r\n\r\n" if parts == 3 else b"3e8\r\n" + bytes(10))

    def reset(self, rest):
        self.short(rest)
        self.server.go_on.wait(600)  # until the client has read that; a reset also takes back what is on the way
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())

    def stall(self, rest):
        self.short(rest)
        self.server.go_on.wait(600)

    def silent(self, _):
        self.server.go_on.wait(600)

    def nonsense(self, _):
        self.wfile.write(b"220 mail.example ready\r\n")


@contextmanager
def serving(handler, context=None):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.requests, server.go_on = [], threading.Event()
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.url = f"https://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        server.go_on.set()
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    path = tmp_path_factory.mktemp("certificate") / "server.pem"
    path.write_text(KEY + CERTIFICATE)
    return path


@pytest.fixture
def server(certificate, monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with serving(_Handler, context) as server:
        yield server


def refused(kind, url, folder, *words, **options):
    """The message of a failure, which left nothing behind."""
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(MobileViTHubError) as caught:
        download(url, folder, **options)
    message = str(caught.value)
    assert type(caught.value) is kind, repr(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    return message


# --------------------------------------------------------------------------------------------------
# What arrives
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "unstated"])
def test_a_file_arrives_whole(server, tmp_path, kind):
    path = download(f"{server.url}/{kind}/mobilevit_xxs.pt?download=true#there", tmp_path)
    assert path == tmp_path / "mobilevit_xxs.pt" and path.read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [path]
    (tmp_path / "ordinary").touch()
    assert path.stat().st_mode == (tmp_path / "ordinary").stat().st_mode
    (asked, headers), *more = server.requests
    assert asked == f"/{kind}/mobilevit_xxs.pt?download=true" and not more
    assert headers["User-Agent"].startswith("mobilevit_hub/")


def test_content_in_parts_arrives_whole(server, tmp_path):
    assert download(f"{server.url}/chunked/3/x.pt", tmp_path).read_bytes() == bytes(3000)


def test_a_file_of_that_name_is_replaced_only_by_a_whole_one(server, tmp_path):
    (tmp_path / "x.pt").write_bytes(b"old")
    refused(IntegrityError, f"{server.url}/short/x.pt", tmp_path)
    assert (tmp_path / "x.pt").read_bytes() == b"old"
    assert download(f"{server.url}/file/x.pt", tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(("last", "name"), [
    ("model.weights.h5", "model.weights.h5"),
    ("my%20weights%20(1).pt", "my_weights__1_.pt"),
    ("..%2F..%2Fetc%2Fx.pt", "x.pt"),
    ("..%5Cx.pt", "x.pt"),
    (".hidden.pt", "hidden.pt"),
    ("%00%0A%C3%A9.pt", "___.pt"),
    ("a" * 300 + ".safetensors", "a" * 88 + ".safetensors"),
])  # fmt: skip
def test_the_name_in_the_address_becomes_a_safe_one_with_its_ending(server, tmp_path, last, name):
    assert download(f"{server.url}/file/{last}", tmp_path) == tmp_path / name


def test_a_bar_is_shown_on_stderr_when_asked_for(server, tmp_path, capsys):
    download(f"{server.url}/file/x.pt", tmp_path)
    assert capsys.readouterr() == ("", "")
    download(f"{server.url}/file/x.pt", tmp_path, progress=True)
    out, err = capsys.readouterr()
    assert not out and "x.pt: 100%" in err and "102k/102k" in err


# --------------------------------------------------------------------------------------------------
# What is refused before anything is asked for
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("url", "words"), [
    ("http://127.0.0.1/x.pt", ["'http'", "only https"]),
    ("ftp://127.0.0.1/x.pt", ["'ftp'", "only https"]),
    ("file:///etc/x.pt", ["'file'", "only https"]),
    ("x.pt", ["only https"]),
    ("https:///x.pt", ["names no host"]),
    ("https://:443/x.pt", ["names no host"]),
    ("https://127.0.0.1:99999/x.pt", ["malformed"]),
    ("https://[::1/x.pt", ["malformed"]),
    ("https://127.0.0.1/my weights.pt", ["percent-encoded"]),
    ("https://127.0.0.1/x.pt\r\nHost: other", ["percent-encoded"]),
    ("https://127.0.0.1/é.pt", ["percent-encoded"]),
    ("", ["percent-encoded"]),
    ("https://127.0.0.1", ["no file with an ending"]),
    ("https://127.0.0.1/weights/", ["no file with an ending"]),
    ("https://127.0.0.1/weights", ["no file with an ending", ".safetensors"]),
    ("https://127.0.0.1/.pt", ["no file with an ending"]),
    (None, ["found NoneType"]),
    (b"https://127.0.0.1/x.pt", ["found bytes"]),
])  # fmt: skip
def test_an_address_that_cannot_be_used(tmp_path, monkeypatch, url, words):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("opened a connection"))
    refused(InputError, url, tmp_path, *words)


@pytest.mark.parametrize("url", [f"https://me:{SECRET}@127.0.0.1/x.pt", f"https://{SECRET}@127.0.0.1/x.pt"])
def test_credentials_are_refused_and_not_shown(tmp_path, url):
    assert SECRET not in refused(InputError, url, tmp_path, "user name or password")


# --------------------------------------------------------------------------------------------------
# Redirects and refusals
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_three_redirects_are_followed_and_no_fourth(server, tmp_path, status):
    once = f"/to/{status}"
    # Also to another name of the server; the file keeps the name in the address that was given.
    address = server.url.replace("127.0.0.1", "localhost")
    path = download(f"{server.url}{once}{once}{once}/{address}/file/x.pt", tmp_path)
    assert path.name == "x.pt" and path.read_bytes() == CONTENT
    server.requests.clear()
    refused(SourceError, f"{server.url}{once * 4}/file/y.pt", tmp_path, "redirects more than 3 times")
    assert len(server.requests) == 4


@pytest.mark.parametrize(("address", "words"), [
    ("http://127.0.0.1/x.pt", ["'http'", "only https"]),
    ("file:///etc/x.pt", ["'file'", "only https"]),
    (f"https://me:{SECRET}@127.0.0.1/x.pt", ["user name or password"]),
])  # fmt: skip
def test_redirects_to_other_addresses_are_refused(server, tmp_path, address, words):
    message = refused(SourceError, f"{server.url}/to/302/{address}", tmp_path, "redirects to an address", *words)
    assert len(server.requests) == 1
    assert message.count(SECRET) == address.count(SECRET)  # only in the address that was given


def test_a_redirect_to_nowhere_ends(server, tmp_path):
    refused(SourceError, f"{server.url}/302/x.pt", tmp_path, "redirects more than 3 times")


@pytest.mark.parametrize(("status", "kind", "words"), [
    (401, AccessError, ["refused access", "401"]),
    (403, AccessError, ["refused access", "403"]),
    (404, NotFoundError, ["no such file", "404"]),
    (206, SourceError, ["status 206", "expected 200"]),
    (204, SourceError, ["status 204"]),
    (429, SourceError, ["status 429"]),
    (500, SourceError, ["status 500"]),
    (503, SourceError, ["status 503"]),
])  # fmt: skip
def test_a_refusing_server_is_explained_without_the_query(server, tmp_path, status, kind, words):
    message = refused(kind, f"{server.url}/{status}/x.pt?token={SECRET}", tmp_path, "/x.pt", *words)
    assert SECRET not in message


# --------------------------------------------------------------------------------------------------
# Sizes
# --------------------------------------------------------------------------------------------------


def test_a_file_above_the_limit(server, tmp_path, monkeypatch):
    refused(SourceError, f"{server.url}/huge/x.pt", tmp_path, "holds 1,073,741,825 bytes", "limit is 1,073,741,824")
    monkeypatch.setattr(module, "MAX_BYTES", len(CONTENT) - 1)
    refused(SourceError, f"{server.url}/unstated/x.pt", tmp_path, "more than 102,399 bytes", "limit is 102,399")
    monkeypatch.setattr(module, "MAX_BYTES", len(CONTENT))
    assert download(f"{server.url}/unstated/x.pt", tmp_path).read_bytes() == CONTENT


def test_a_body_that_ends_early(server, tmp_path):
    refused(IntegrityError, f"{server.url}/short/x.pt", tmp_path, f"ended after 1,000 of {SIZE} bytes")
    refused(IntegrityError, f"{server.url}/chunked/1/x.pt", tmp_path, "ended after 1,010 bytes")


def test_a_connection_that_is_reset(server, tmp_path, monkeypatch):
    read1 = http.client.HTTPResponse.read1

    def read_and_tell(response, size):
        chunk = read1(response, size)
        server.go_on.set()
        return chunk

    monkeypatch.setattr(http.client.HTTPResponse, "read1", read_and_tell)
    # Which of the two it is depends on whether this Python tells a reset from an end.
    with pytest.raises(SourceError, match=rf"(broke|ended) after 1,000 of {SIZE} bytes.*download it again"):
        download(f"{server.url}/reset/x.pt", tmp_path)
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------
# No connection
# --------------------------------------------------------------------------------------------------


def test_a_server_that_stops_in_the_middle(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "READ_SECONDS", 0.2)
    refused(SourceError, f"{server.url}/stall/x.pt", tmp_path, f"broke after 1,000 of {SIZE} bytes", "timed out")
    refused(SourceError, f"{server.url}/silent/x.pt", tmp_path, "/silent/x.pt", "timed out")


def test_nobody_listens(server, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    refused(OfflineError, f"https://127.0.0.1:{port}/x.pt", tmp_path, "'127.0.0.1' cannot be reached", "refused")


def test_a_listener_that_never_answers(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/x.pt"
        refused(OfflineError, url, tmp_path, "'127.0.0.1' cannot be reached", "timed out")


def test_a_certificate_that_nobody_vouches_for(server, tmp_path, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    refused(
        SourceError, f"{server.url}/file/x.pt", tmp_path, "certificate of '127.0.0.1'", "not trusted", "SSL_CERT_FILE"
    )
    assert not server.requests


def test_a_server_without_https(server, tmp_path):
    refused(SourceError, f"{server.url}/nonsense/x.pt", tmp_path, "does not answer as an https server does")
    with serving(_Handler) as plain:
        refused(SourceError, f"{plain.url}/file/x.pt", tmp_path, "does not answer as an https server does")


def test_the_proxy_of_the_environment_is_asked(server, tmp_path, monkeypatch):
    asked = []

    class Proxy(BaseHTTPRequestHandler):
        def do_CONNECT(self):
            asked.append(self.path)
            self.send_error(403)

        def log_message(self, *_):
            pass

    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serving(Proxy) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("https", "http"))
        refused(OfflineError, f"{server.url}/file/x.pt", tmp_path, "cannot be reached", "403")
    assert asked == [server.url.removeprefix("https://")] and not server.requests


# --------------------------------------------------------------------------------------------------
# No place
# --------------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written(server, tmp_path):
    url = f"{server.url}/file/x.pt"
    with pytest.raises(SaveError, match=re.escape(str(tmp_path / "none"))):
        download(url, tmp_path / "none")
    (tmp_path / "x.pt").mkdir()
    with pytest.raises(SaveError, match="x.pt"):
        download(url, tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["x.pt"]
