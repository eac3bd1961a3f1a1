"""What every test starts from: fixed seeds, an empty Hugging Face cache, no network, markers that skip themselves."""

from __future__ import annotations

import atexit
import ipaddress
import os
import random
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import hiding  # noqa: F401 - first, since MOBILEVIT_HUB_HIDE names modules that nothing may have imported yet
import numpy as np
import pytest

# Read by the libraries when they are first imported, so set before any test module is.
_HOME = tempfile.mkdtemp(prefix="mobilevit-hub-tests-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
for _name in list(os.environ):
    if _name.startswith(("HF_", "HUGGING_FACE_", "HUGGINGFACE_", "TRANSFORMERS_")):
        del os.environ[_name]
os.environ.update(
    HF_HOME=_HOME,
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    MPLBACKEND="Agg",
    MPLCONFIGDIR=os.path.join(_HOME, "matplotlib"),  # noqa: PTH118
    XDG_CACHE_HOME=os.path.join(_HOME, "cache"),  # noqa: PTH118 - the compiled kernels
)


@pytest.fixture
def seed() -> int:
    """The one seed of the tests; override with `@pytest.mark.parametrize("seed", …)`."""
    return 0


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    """A NumPy generator that starts the same in every test."""
    return np.random.default_rng(seed)


@pytest.fixture(autouse=True)
def _seeded(seed: int) -> None:
    """Seeds the global generators, so that a test does not depend on the ones before it."""
    random.seed(seed)
    np.random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


@pytest.fixture
def eagerly() -> Iterator[None]:
    """TensorFlow runs its functions op by op: a few steps of a training so take less than tracing its graph."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def _is_local(host: Any) -> bool:
    """Whether `host`, a name or address as sockets take it, is this machine."""
    if isinstance(host, bytes):
        host = host.decode()
    if host in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True)
def _no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails a test that reaches beyond loopback, also where the code under test swallows the error.

    Covers this process; a test that starts another one gives it a loopback `HF_ENDPOINT`.
    """
    if request.node.get_closest_marker("hub"):
        yield
        return

    attempts: list[str] = []

    def guarded(call: Any, host_of: Callable[..., Any], error: Callable[[], OSError]) -> Callable[..., Any]:
        def guard(*args: Any, **kwargs: Any) -> Any:
            host = host_of(*args, **kwargs)
            if _is_local(host):
                return call(*args, **kwargs)
            attempts.append(str(host))
            raise error()

        return guard

    def peer(sock: socket.socket, *args: Any) -> Any:
        """The host of `connect(address)` or `sendto(data, [flags,] address)`; Unix sockets have none."""
        return args[-1][0] if sock.family in (socket.AF_INET, socket.AF_INET6) else None

    def unreachable() -> OSError:
        return OSError("the tests have no network")

    def unknown() -> OSError:
        return socket.gaierror(socket.EAI_NONAME, "the tests have no network")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, guarded(getattr(socket.socket, name), peer, unreachable))
    monkeypatch.setattr(socket, "getaddrinfo", guarded(socket.getaddrinfo, lambda host, *_, **__: host, unknown))

    yield
    assert not attempts, f"the test tried to reach {attempts}; serve what it needs on loopback"


def _missing(*modules: str) -> str | None:
    """The first of `modules` that is not installed."""
    return next((module for module in modules if find_spec(module) is None), None)


def _lacks_gpu() -> str | None:
    """Says so where PyTorch sees no CUDA device."""
    if _missing("torch"):
        return "torch"
    import torch

    return None if torch.cuda.is_available() else "a CUDA device"


NEEDS: dict[str, Callable[[], str | None]] = {
    "torch": lambda: _missing("torch"),
    "tf": lambda: _missing("tensorflow", "keras"),
    "parity": lambda: _missing("torch", "tensorflow", "keras"),
    "export": lambda: _missing("tensorflow", "ai_edge_litert"),
    "gpu": _lacks_gpu,
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test whose marker asks for something that is not there."""
    for marker, missing in NEEDS.items():
        if item.get_closest_marker(marker) and (what := missing()):
            pytest.skip(f"needs {what}")
