"""A Hub in miniature on loopback: what huggingface_hub needs to find, download, cache and upload files, and its faults.

    with HubServer() as hub:
        hub.add("owner/name", {"config.json": b"{}", "model.safetensors": weights})
        hub.faults["model.safetensors"] = "short"
        hub.add("datasets/owner/name", {"data/validation-0.parquet": rows})

Weights are stored by hash behind a redirect, as on the real Hub; other files are served directly. A token in
`hub.tokens` uploads: what it commits to `main` is served from then on.
"""

import base64
import hashlib
import json
import re
import threading
import time
import types
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import yaml
from huggingface_hub import constants

STORED_BY_HASH = (".safetensors", ".bin")
WRITER, READER = "hf_writer", "hf_reader"


def use_endpoint(monkeypatch, url):
    """What HF_ENDPOINT does when huggingface_hub is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@contextmanager
def serving(monkeypatch, cache):
    """A running server, the cache in a folder, uploads by Git LFS, and no waiting between tries."""
    from huggingface_hub import file_download
    from huggingface_hub.utils import _http

    waits = []
    impatient = types.SimpleNamespace(**{**vars(time), "sleep": waits.append})
    monkeypatch.setattr(_http, "time", impatient)
    monkeypatch.setattr(file_download, "time", impatient)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    # said by the network layer of huggingface_hub 2.4 for its own upload by Git LFS
    warnings.filterwarnings("ignore", "Use 'content=", DeprecationWarning)
    with HubServer() as server:
        use_endpoint(monkeypatch, server.url)
        server.waits = waits
        yield server


@dataclass
class Repository:
    files: dict[str, bytes]
    token: str | None = None
    revisions: dict[str, str] = field(default_factory=dict)
    private: bool = False
    history: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Files of the commits before the last."""

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
    to itself); `"no commit"` (a server that is no Hub). The steps of an upload (`"create"`, `"validate-yaml"`,
    `"preupload"`, `"batch"`, `"upload"`, `"commit"`) fail by a status code, `"web page"` or `"hang up"`.
    `then` maps a file name to what is called once after it was sent. `requests` lists `(method, path, headers)`; `commits` lists the commits that were taken.
    """

    def __init__(self):
        self.repositories = {}
        self.faults = {}
        self.then = {}
        self.requests = []
        self.tokens = {WRITER: "write", READER: "read"}
        self.commits = []
        self.uploaded = {}
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

    def push(self, repo_id, files):
        """Replaces the files of `main` by a further commit; the one before can still be asked for."""
        repository = self.repositories[repo_id]
        before = repository.commit
        repository.history[before], repository.files = repository.files, dict(files)
        repository.revisions |= {"main": repository.commit, repository.commit: repository.commit}

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

    def do_POST(self):
        self.receive()

    def do_PUT(self):
        self.receive()

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
        about = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/.+)?", self.path)
        if about:
            return self.send_info(about[1])
        about = re.fullmatch(r"/api/(datasets/[^/]+/[^/]+)(/revision/[^/]+)?", self.path)
        if about:
            return self.send_info(about[1])
        listed = re.fullmatch(r"/api/(datasets/[^/]+/[^/]+)/tree/[^/?]+/?([^?]*)(\?.*)?", self.path)
        if listed:
            return self.send_tree(listed[1], listed[2], "recursive=True" in (listed[3] or ""))
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
        files = repository.history.get(commit, repository.files)
        if name not in files:
            self.send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return None
        content = files[name]
        about = {} if fault == "no commit" else {"X-Repo-Commit": commit}
        if not name.endswith(STORED_BY_HASH):
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
            return self.send_content(name, content, body, about | {"ETag": f'"{blob}"'})
        digest = hashlib.sha256(content).hexdigest()
        about |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content)), "ETag": '"link"'}
        # Another name of this machine, so that the client sees another host, as the Hub's storage is.
        storage = self.hub.url.replace("127.0.0.1", "localhost")
        return self.send(302, about | {"Location": f"{storage}/stored/{digest}/{name}"})

    def send_tree(self, repo_id, folder, recursive):
        """Files and folders below a folder of a data set."""
        repository = self.hub.repositories.get(repo_id)
        if not repository:
            return self.fail(404, "RepoNotFound", "Repository not found")
        prefix = f"{folder}/" if folder else ""
        inside = [name for name in repository.files if name.startswith(prefix)]
        if folder and not inside:
            return self.fail(404, "EntryNotFound")
        names = {n if recursive else prefix + n[len(prefix) :].split("/")[0] for n in inside}
        return self.send_json(200, [self.entry(repository, name) for name in sorted(names)])

    @staticmethod
    def entry(repository, name):
        """What the Hub says about a file or a folder of a data set."""
        content = repository.files.get(name)
        oid = hashlib.sha1((content or b"") + name.encode(), usedforsecurity=False).hexdigest()
        size = {"type": "directory", "size": 0} if content is None else {"type": "file", "size": len(content)}
        return {**size, "oid": oid, "path": name}

    def send_paths(self, body, repo_id):
        """What the Hub says about the named files and folders of a data set, as far as they exist."""
        repository = self.hub.repositories[repo_id]
        paths = json.loads(body)["paths"] if body[:1] == b"{" else parse_qs(body.decode())["paths"]
        known = [p for p in paths if p in repository.files or any(f.startswith(f"{p}/") for f in repository.files)]
        return self.send_json(200, [self.entry(repository, path) for path in known])

    def content_of(self, digest):
        kept = [f for r in self.hub.repositories.values() for f in (r.files, *r.history.values())]
        every = (content for files in kept for content in files.values())
        return next(c for c in every if hashlib.sha256(c).hexdigest() == digest)

    def send_content(self, name, content, body, headers=None):
        fault = self.hub.faults.get(name)
        headers = {"Content-Length": str(len(content)), **(headers or {})}
        if fault == "wrong":
            content = content[:-1] + bytes([content[-1] ^ 1])
        if fault == "short":
            content = content[: len(content) // 2]
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if part and body:  # as a streamed data set is read
            last = min(int(part[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {part[1]}-{last}/{len(content)}"
            content = content[int(part[1]) : last + 1]
            return self.send(206, {**headers, "Content-Length": str(len(content))}, content)
        self.send(200, headers, content, body)
        if body and name in self.hub.then:
            self.hub.then.pop(name)()
        return None

    # What follows takes uploads --------------------------------------------------------------------

    def send_json(self, status, answer):
        self.send(status, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    def send_info(self, repo_id):
        repository = self.hub.repositories.get(repo_id)
        if not repository:
            return self.fail(404, "RepoNotFound", "Repository not found")
        siblings = [{"rfilename": name} for name in repository.files]
        about = {"id": repo_id, "sha": repository.commit, "private": repository.private, "siblings": siblings}
        return self.send_json(200, about)

    def receive(self):
        """One step of an upload; files are read to the end first, or the client would not see the answer."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append((self.command, self.path, dict(self.headers)))
        path, _, query = self.path.partition("?")
        if asked := re.fullmatch(r"/api/(datasets/[^/]+/[^/]+)/paths-info/.+", path):
            return self.send_paths(body, asked[1])
        steps = {
            "create": r"/api/repos/(create)", "validate-yaml": r"/api/(validate-yaml)",
            "preupload": r"/api/models/(.+?)/preupload/(.+)", "batch": r"/(.+?)\.git/info/lfs/objects/batch",
            "upload": r"/upload/(\w+)", "commit": r"/api/models/(.+?)/commit/(.+)",
        }  # fmt: skip
        step, match = next((step, found) for step, form in steps.items() if (found := re.fullmatch(form, path)))
        fault = self.hub.faults.get(step)
        if fault == "hang up":
            return None
        if fault == "web page":
            return self.send(200, {"Content-Type": "text/html"}, b"<!DOCTYPE html><title>Log in</title>")
        if fault is not None:
            return self.send_json(fault, {"error": "as the test\nwants it"})
        rights = self.hub.tokens.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))
        if step not in ("validate-yaml", "upload") and rights != "write":  # the storage is asked with a signed address
            status = 401 if rights is None else 403
            return self.send_json(status, {"error": "Invalid username or password." if status == 401 else "Forbidden"})
        if step in ("preupload", "batch", "commit"):
            repository = self.hub.repositories.get(match[1])
            if not repository:
                return self.fail(404, "RepoNotFound", "Repository not found")
            if step != "batch" and match[2] not in repository.revisions:
                return self.fail(404, "RevisionNotFound", "Invalid rev id")
        return getattr(self, "take_" + step.replace("-", "_"))(body, match, query)

    def take_create(self, body, *_):
        asked = json.loads(body)
        repo_id = f"{asked.get('organization') or 'me'}/{asked['name']}"
        known = repo_id in self.hub.repositories
        if not known:
            self.hub.add(repo_id, {}).private = asked.get("visibility") == "private"
        self.send_json(409 if known else 200, {"url": f"{self.hub.url}/{repo_id}", "name": repo_id})

    def take_validate_yaml(self, body, *_):
        """The rules of the real Hub that are tested: licences are identifiers, other ones have a name."""
        front = re.match(r"---\n(.*?)\n---\n", json.loads(body)["content"], flags=re.DOTALL)
        data = yaml.safe_load(front[1]) if front else {}
        wrong = [key for key in ("license", "license_name") if not re.fullmatch(r"[a-z0-9.-]*", data.get(key) or "")]
        errors = [{"message": f'"{key}" must be an identifier'} for key in wrong]
        self.send_json(400 if errors else 200, {"errors": errors, "warnings": []})

    def take_preupload(self, body, *_):
        modes = [
            (f["path"], "lfs" if f["path"].endswith(STORED_BY_HASH) else "regular") for f in json.loads(body)["files"]
        ]
        self.send_json(200, {"files": [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes]})

    def take_batch(self, body, *_):
        storage = self.hub.url.replace("127.0.0.1", "localhost")
        objects = [
            {**o, "actions": {"upload": {"href": f"{storage}/upload/{o['oid']}"}}} for o in json.loads(body)["objects"]
        ]
        self.send_json(200, {"transfer": "basic", "objects": objects})

    def take_upload(self, body, match, _):
        if hashlib.sha256(body).hexdigest() != match[1]:
            return self.send_json(400, {"error": "other bytes than announced"})
        self.hub.uploaded[match[1]] = body
        return self.send_json(200, {})

    def take_commit(self, body, match, query):
        lines = [json.loads(line) for line in body.splitlines()]
        files = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploaded[value["oid"]]
        proposed = "create_pr=1" in query
        header = next(line["value"] for line in lines if line["key"] == "header")
        self.hub.commits.append(
            {"repo_id": match[1], "revision": match[2], "files": files, "proposed": proposed, **header}
        )
        repository = self.hub.repositories[match[1]]
        if match[2] == "main" and not proposed:
            repository.files |= files
            repository.revisions["main"] = repository.commit
            repository.revisions[repository.commit] = repository.commit
        address = f"{self.hub.url}/{match[1]}"
        self.send_json(
            200,
            {
                "success": True, "commitUrl": f"{address}/commit/{repository.commit}", "commitOid": repository.commit,
                "pullRequestUrl": f"{address}/discussions/1",
            },
        )  # fmt: skip
