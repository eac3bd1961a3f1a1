"""What libraries would print while the command runs is kept back; its own lines say what matters."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from typing import Any


def quiet_libraries() -> None:
    """Makes libraries that are imported later say nothing but errors, unless the environment asks for more."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("HF_HUB_VERBOSITY", "critical")  # which sets the level below when it is imported
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    # Its line per retry says nothing that our one message does not say.
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    if os.environ["TF_CPP_MIN_LOG_LEVEL"] == "3" and _QUIET not in sys.meta_path:
        sys.meta_path.insert(0, _QUIET)


class _QuietTensorFlow(MetaPathFinder):
    """TensorFlow 2.21 prints some lines while it is imported, even to those who asked it not to."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "tensorflow":
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        spec = next((found for finder in others if (found := finder.find_spec(name, path, target))), None)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def quietly(module: Any) -> None:
                with _silent_stderr():
                    run(module)

            spec.loader.exec_module = quietly  # type: ignore[method-assign]
        return spec


_QUIET = _QuietTensorFlow()
"""One for the whole process: two would look for TensorFlow in each other without end."""


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Keeps back what native code writes to stderr, and shows it only where something fails."""
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            kept.seek(0)
            os.write(stderr, kept.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
