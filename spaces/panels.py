"""Results as HTML. All that comes from a model, a file or a visitor is escaped here."""

from __future__ import annotations

import base64
import io
import math
from html import escape
from typing import Any

from PIL import Image

from .models import EXPORTED, TITLES

PATCHES = (
    '<rect width="9" height="9" rx="2"/><rect class="accent" x="11" width="9" height="9" rx="2"/>'
    '<rect y="11" width="9" height="9" rx="2"/><rect x="11" y="11" width="9" height="9" rx="2"/>'
)
"""The logo: four patches, one of them looked at."""

LOGO = f'<svg class="logo" viewBox="0 0 20 20" aria-hidden="true">{PATCHES}</svg>'
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="-2 -2 24 24">'
    f"<style>rect{{fill:#9aa59f}}.accent{{fill:#0f766e}}</style>{PATCHES}</svg>"
)

HEADER = f"""<header class="top">{LOGO}<div><h1>MobileViT, everywhere the same</h1>
<p>One small vision transformer in PyTorch, in Keras and as the <code>.tflite</code> file of a phone app:
the same photo, the same answer.</p></div></header>"""

EMPTY = """<div class="panel empty" role="status"><h2>Choose a photo</h2>
<p>Drop one, paste one, take one, or start with an example. You will see the five best labels of each runtime, how long
it took, and what the network looked at.</p></div>"""


def problem(message: str) -> str:
    """What went wrong, read out by screen readers."""
    return f'<div class="panel problem" role="alert"><h2>That did not work</h2><p>{escape(message)}</p></div>'


def waiting(message: str) -> str:
    """What is being done, while there is nothing to show."""
    return f'<div class="panel waiting" role="status"><h2>One moment</h2><p>{escape(message)}</p></div>'


def results(result: dict[str, Any]) -> str:
    """What `classification.classify` returned: a sentence, and a card for each runtime."""
    cards = "".join(_card(entry, first=entry is result["results"][0]) for entry in result["results"])
    verdict = f'<p class="verdict" role="status">{_verdict(result)}</p>'
    return f'<div class="results">{verdict}<div class="cards">{cards}</div></div>'


def _verdict(result: dict[str, Any]) -> str:
    entries = result["results"]
    label = _short(entries[0]["predictions"][0]["label"])
    if len(entries) == 1:
        return f"<strong>{label}</strong>"
    if not result["agree"]:
        return "<strong>The runtimes disagree</strong> on the best label; the photo may be on the edge between two."
    furthest = max(entries, key=lambda entry: entry["difference"])
    fastest = min(entries, key=lambda entry: entry["ms"])
    return (
        f"<strong>{label}</strong>, say all {_number(len(entries))}. No probability differs by more than "
        f"{_difference(furthest['difference'])} ({TITLES[furthest['runtime']]}). "
        f"The fastest is {TITLES[fastest['runtime']]}."
    )


def _number(count: int) -> str:
    return ("no", "one", "two", "three", "four")[count]


def _difference(value: float) -> str:
    """A difference of probabilities in percentage points."""
    points = 100 * value
    if not points:
        return "nothing"
    decimals = max(1, -math.floor(math.log10(points)))  # one digit that is not 0
    return f"{points:.{decimals}f} points"


def _card(entry: dict[str, Any], *, first: bool) -> str:
    runtime = entry["runtime"]
    bars = "".join(_bar(prediction) for prediction in entry["predictions"])
    compared = "the others are compared with this" if first else f"differs by {_difference(entry['difference'])}"
    return (
        f'<section class="panel card" data-runtime="{runtime}" data-difference="{entry["difference"]:.3g}">'
        f"<header><h2>{TITLES[runtime]}</h2>"
        f'<p><b data-ms="{entry["ms"]}">{entry["ms"]:.1f} ms</b> · {entry["bytes"] / 1e6:.1f} MB</p></header>'
        f'<ol class="bars">{bars}</ol><footer>{compared}</footer></section>'
    )


def _short(label: str) -> str:
    """The first of the names that ImageNet joins with commas."""
    return escape(label.split(", ")[0])


def _bar(prediction: dict[str, Any]) -> str:
    label, percent = escape(prediction["label"], quote=True), 100 * prediction["score"]
    return (
        f'<li data-label="{label}" data-score="{prediction["score"]:.6f}">'
        f'<span class="label" title="{label}">{_short(prediction["label"])}</span>'
        f'<span class="score">{percent:.1f} %</span>'
        f'<span class="bar" aria-hidden="true"><i style="width:{percent:.1f}%"></i></span></li>'
    )


def look(picture: Image.Image, label: str, stage: int, places: tuple[int, int]) -> str:
    """The picture of what the network looks at."""
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=88)
    data = base64.b64encode(content.getvalue()).decode()
    text = f"What speaks for “{label.split(', ')[0]}” after stage {stage}, on a grid of {places[1]} × {places[0]}."
    return (
        f'<figure class="panel look"><img src="data:image/jpeg;base64,{data}" width="{picture.width}" '
        f'height="{picture.height}" alt="The photo; bright where it speaks for {escape(label, quote=True)}">'
        f"<figcaption>{escape(text)} The rest is dimmed.</figcaption></figure>"
    )


def downloads(number: int, files: dict[str, Any]) -> str:
    """Links to the exported files of a model, by its place in the list of models."""
    links = "".join(
        f'<a class="download" href="files/{number}/{precision}.tflite" download="{escape(files[runtime].name)}">'
        f"{precision}.tflite <span>{files[runtime].stat().st_size / 1e6:.1f} MB</span></a>"
        for runtime, precision in EXPORTED.items()
    )
    return f'<nav class="downloads" aria-label="Files for the phone"><h2>For the phone</h2>{links}</nav>'
