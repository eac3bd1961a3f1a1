"""The web demo in a process of its own on loopback, and what a program says to it."""

import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest

for _module in ("gradio", "torch", "tensorflow", "ai_edge_litert"):
    if find_spec(_module) is None:  # what imports this is skipped as a whole
        pytest.skip(f"the tests of the demo need {_module}", allow_module_level=True)
import httpx  # noqa: E402 - Gradio brings it

EMBEDDED = "mobilevit-xxs-tiny-imagenet"
MARKUP = "<img src=x onerror=alert(1)>"
HUB_MODEL = "mobilevit-s"


@dataclass
class Server:
    """A running demo."""

    url: str
    process: subprocess.Popen
    lines: list[str] = field(default_factory=list)
    """What it wrote to stderr."""
    second: Path | None = None
    """A model of the user that it offers."""

    def upload(self, content, name="photo.jpg"):
        """Status, and the path on the server or the message, of an upload."""
        answer = httpx.post(f"{self.url}/gradio_api/upload", files={"files": (name, content)}, timeout=600)
        return answer.status_code, answer.json()[0] if answer.status_code == 200 else answer.text

    def call(self, file, model=EMBEDDED, runtimes=("pt",)):
        """Status, and the result or the message, of a call with `{"path": …}` or `{"url": …}`."""
        data = [{**file, "meta": {"_type": "gradio.FileData"}}, model, list(runtimes)]
        joined = httpx.post(f"{self.url}/gradio_api/call/classify", json={"data": data}, timeout=600)
        if joined.status_code != 200:
            return joined.status_code, joined.text
        with httpx.stream("GET", f"{self.url}/gradio_api/call/classify/{joined.json()['event_id']}", timeout=600) as s:
            lines = [line for line in s.iter_lines() if line]
        event, data = lines[-2].removeprefix("event: "), json.loads(lines[-1].removeprefix("data: "))
        return event, data[0] if event == "complete" else data

    def classify(self, content, name="photo.jpg", **options):
        """As `call`, of a file that is uploaded first."""
        status, path = self.upload(content, name)
        return self.call({"path": path}, **options) if status == 200 else (status, path)


def start(*arguments, cache, temporary=None):
    """Starts `mobilevit-hub demo`; a Hub that does not answer stands for no network."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "XDG_CACHE_HOME": str(cache),
        "HF_ENDPOINT": "http://127.0.0.1:9",
    }
    cache.mkdir(parents=True, exist_ok=True)
    environment["TMPDIR"] = str(temporary or cache)
    return subprocess.Popen(
        [sys.executable, "-m", "mobilevit_hub.cli", "demo", *map(str, arguments)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


@contextmanager
def running(*arguments, cache, temporary=None):
    """The demo, once it answers; `temporary` is its folder for temporary files."""
    process = start(*arguments, "--port", 0, cache=cache, temporary=temporary)
    lines = []
    for line in process.stderr:
        lines.append(line.rstrip())
        if "the demo is at " in line:
            break
    else:
        raise AssertionError("\n".join(lines))
    server = Server(line.split("the demo is at ")[1].split(";")[0], process, lines)
    reader = threading.Thread(target=lambda: lines.extend(line.rstrip() for line in process.stderr), daemon=True)
    reader.start()
    try:
        yield server
    finally:
        process.terminate()
        process.wait(600)
        reader.join(600)
        process.stderr.close()


def cache_of(tmp_path_factory):
    """A cache that all processes of a test run share, so that files are exported once."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "demo-cache"


def save_second_model(folder):
    """A tiny network with untrained weights, whose labels would be markup on a page that forgets to escape."""
    from networks import MODELS, awake, tiny_config

    from mobilevit_hub.images.processor import processor_of_config

    config = tiny_config(2, image_size=64, id2label={i: f"{MARKUP} {i}" for i in range(7)})
    awake(MODELS[config.model_type](config)).save_pretrained(folder)
    processor_of_config(config).save_pretrained(folder)
    return folder


@contextmanager
def running_with_second(tmp_path_factory):
    """The demo with a second model, a folder of the user's."""
    folder = save_second_model(tmp_path_factory.mktemp("models") / "second")
    with running(EMBEDDED, folder, cache=cache_of(tmp_path_factory)) as server:
        server.second = folder
        yield server
