"""Progress bars of an export."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any


def bar(items: Iterable[Any], text: str, progress: bool) -> Iterable[Any]:
    """Counts photos."""
    from tqdm import tqdm

    return tqdm(items, desc=text, unit="photo", disable=not progress, leave=False)


@contextlib.contextmanager
def step(text: str, progress: bool) -> Iterator[None]:
    """A line for a step whose length is not known."""
    from tqdm import tqdm

    with tqdm(total=1, desc=text, disable=not progress, leave=False, bar_format="{desc} …"):
        yield
