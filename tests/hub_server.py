"""A Hub in miniature on loopback: what huggingface_hub needs to find, download and cache files, and ways to go wrong.

    with HubServer() as hub:
        hub.add("owner/name", {"config.json": b"{}", "model.safetensors": weights})
        hub.faults["model.safetensors"] = "short"

Weights are stored by hash behind a redirect, as on the real Hub; other files are served directly.
"""

import hashlib
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

STORED_BY_HASH = (".safetensors", ".bin")


@dataclass
class Repository:
    files: dict[str, bytes]
    token: str | None = None
    revisions: dict[str, str] = field(default_factory=dict)

    @property
    def commit(self):
        digest = hashlib.sha1(usedforsecurity=False)
        for name in sorted(self.files):
            digest.update(name.encode() + self.files[name])
        return digest.hexdigest()


class HubServer:
    """Serves repositories until `stop`.

    `faults` maps a file name to what happens to it: a status code; `"gated"`; `"short"` (the connection
    ends half way); `"wrong"` (other bytes of the same length under the same hash); `"loop"` (redirects
    to itself); `"no commit"` (a server that is no Hub). `requests` lists `(method, path, headers)`.
    """

    def __init__(self):
        self.repositories = {}
        self.faults = {}
        self.requests = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        self._server.shutdown()
        self._server.server_close()

    def add(self, repo_id, files, token=None, branches=()):
        """Puts up a repository with a `main` branch and others that hold the same files."""
        repository = Repository(dict(files), token)
        repository.revisions = dict.fromkeys(("main", repository.commit, *branches), repository.commit)
        self.repositories[repo_id] = repository
        return repository

    def asked_for(self):
        """Names of the files that were requested."""
        return {path.rsplit("/", 1)[-1] for _, path, _ in self.requests if "/resolve/" in path}


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.0"  # one connection a request, so that a stopped server is gone at once

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def log_message(self, *_):
        pass

    def send(self, status, headers, content=b"", body=True):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def fail(self, status, code, text=""):
        self.send(status, {"X-Error-Code": code, "X-Error-Message": text or code})

    def answer(self, body):
        self.hub.requests.append((self.command, self.path, dict(self.headers)))
        stored = re.fullmatch(r"/stored/(\w+)/(.+)", self.path)
        if stored:
            return self.send_content(stored[2], self.content_of(stored[1]), body)
        match = re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", self.path)
        repository = match and self.hub.repositories.get(match[1])
        if not repository:
            return self.fail(404, "RepoNotFound", "Repository not found")
        if repository.token and self.headers.get("Authorization") != f"Bearer {repository.token}":
            return self.fail(401, "RepoNotFound", "Repository not found")
        commit, name = repository.revisions.get(match[2]), match[3]
        if commit is None:
            return self.fail(404, "RevisionNotFound", "Invalid rev id")
        fault = self.hub.faults.get(name)
        if fault == "gated":
            return self.fail(403, "GatedRepo", "Access to model is restricted")
        if isinstance(fault, int):
            return self.fail(fault, "")
        if fault == "loop":
            return self.send(302, {"Location": self.path, "X-Repo-Commit": commit, "ETag": '"x"'})
        if name not in repository.files:
            self.send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return None
        content = repository.files[name]
        about = {} if fault == "no commit" else {"X-Repo-Commit": commit}
        if not name.endswith(STORED_BY_HASH):
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
            return self.send_content(name, content, body, about | {"ETag": f'"{blob}"'})
        digest = hashlib.sha256(content).hexdigest()
        about |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content)), "ETag": '"link"'}
        # Another name of this machine, so that the client sees another host, as the Hub's storage is.
        storage = self.hub.url.replace("127.0.0.1", "localhost")
        return self.send(302, about | {"Location": f"{storage}/stored/{digest}/{name}"})

    def content_of(self, digest):
        every = (c for r in self.hub.repositories.values() for c in r.files.values())
        return next(c for c in every if hashlib.sha256(c).hexdigest() == digest)

    def send_content(self, name, content, body, headers=None):
        fault = self.hub.faults.get(name)
        headers = {"Content-Length": str(len(content)), **(headers or {})}
        if fault == "wrong":
            content = content[:-1] + bytes([content[-1] ^ 1])
        if fault == "short":
            content = content[: len(content) // 2]
        self.send(200, headers, content, body)
