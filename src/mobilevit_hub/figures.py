"""Pictures for people: the learning curve of a training run, predictions, what exported files cost; and its log."""

from __future__ import annotations

from typing import Any

from .errors import require

BLUE, ORANGE, GREEN, GREY = "#2563eb", "#ea580c", "#15803d", "#6b7280"


def new_figure(width: float, height: float) -> Any:
    """A figure that draws to a file: no window system, no global state."""
    require("matplotlib", "train", "Drawing")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png_of(figure: Any) -> bytes:
    """The figure as a PNG file."""
    import io

    buffer = io.BytesIO()
    # No date in the file, so that equal data gives equal bytes.
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()
