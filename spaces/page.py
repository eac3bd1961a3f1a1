"""What a visitor sees: one tab for each task, and one about the model."""

from __future__ import annotations

import asyncio
import io
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from mobilevit_hub.errors import ImageError, MobileViTHubError
from mobilevit_hub.images.loading import load_image

from . import panels
from .about import about
from .classification import classify
from .heatmap import STAGES, draw, heatmap, seen_part
from .models import TITLES, Models, OpenedModel

MAX_PHOTO_PIXELS = 25_000_000
"""A photo of a 24-megapixel camera; decoding it takes a second and 200 MB."""
EXAMPLES = sorted((Path(__file__).parent / "examples").glob("*.jpg"))
STYLES = [Path(__file__).with_name(name) for name in ("common.css", "style.css")]

log = logging.getLogger("mobilevit_hub.demo")


def build_page(models: Models) -> gr.Blocks:
    """The page as a Gradio app; to be mounted or launched with `theme()` and the style sheets `STYLES`.

    Args:
        models: What visitors can choose; the first should be open.
    """
    with gr.Blocks(title="MobileViT: PyTorch, Keras, TFLite", analytics_enabled=False) as page:
        gr.HTML(panels.HEADER)
        model = gr.Dropdown(
            models.names,
            value=models.names[0],
            label="Model",
            info="The first is part of the package; the others are downloaded once and take a minute to open.",
            elem_id="model",
        )
        with gr.Tabs():
            for title, tab in TABS.items():
                with gr.Tab(title, id=title.lower()):
                    tab(models, model)
    page.queue(max_size=32, default_concurrency_limit=1)
    return page


def theme() -> gr.Theme:
    """Gradio's own parts in the colours of `common.css`, which know of light and dark by themselves."""
    colours = {
        "--page": ["body_background_fill", "background_fill_secondary", "checkbox_label_background_fill"],
        "--surface": ["background_fill_primary", "block_background_fill", "input_background_fill"],
        "--ink": ["body_text_color"],
        "--muted": ["body_text_color_subdued"],
        "--line": ["block_border_color", "border_color_primary"],
        "--accent": [
            *("border_color_accent", "color_accent", "slider_color"),
            *("button_primary_background_fill", "button_primary_background_fill_hover"),
            *("checkbox_background_color_selected", "checkbox_border_color_selected"),
        ],
        "--accent-soft": [
            *("color_accent_soft", "checkbox_label_background_fill_hover", "checkbox_label_background_fill_selected"),
        ],
        "--on-accent": ["button_primary_text_color"],
    }
    settings = {part: f"var({colour})" for colour, parts in colours.items() for part in parts}
    settings |= {f"{part}_dark": value for part, value in settings.items() if part != "color_accent"}
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]  # no font comes from another host
    base = gr.themes.Base(font=fonts, font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"])
    return base.set(**settings, block_radius="10px", block_shadow="none")


def classify_tab(models: Models, model: gr.Dropdown) -> None:
    """A photo; its labels in every runtime; what the network looks at; the files for the phone."""
    with gr.Row(elem_id="work"):
        with gr.Column(scale=5, min_width=300):
            photo = gr.Image(
                type="filepath",
                label="Photo",
                sources=["upload", "clipboard", "webcam"],
                buttons=[],
                height=320,
                elem_id="photo",
                alt_text="The chosen photo",
            )
            photo.preprocess = _uploaded_file  # type: ignore[method-assign] # a subclass makes Gradio write files
            # Not gr.Examples: that makes the photo anew for each visitor, without what was just set.
            examples = gr.Dataset(
                components=[gr.Image(render=False, type="filepath")],
                samples=[[str(path)] for path in EXAMPLES],
                type="index",
                label="Examples",
                elem_id="examples",
            )
            again = gr.Button("Classify", variant="primary", elem_id="classify")
            stage = gr.Radio(
                [(str(stage), stage) for stage in STAGES],
                value=4,
                label="What the network looks at, after stage",
                elem_id="stage",
            )
            look = gr.HTML(elem_id="look")
        with gr.Column(scale=8, min_width=300):
            runtimes = gr.CheckboxGroup(
                [(title, name) for name, title in TITLES.items()],
                value=list(TITLES),
                label="Runtimes",
                elem_id="runtimes",
            )
            answer = gr.HTML(panels.EMPTY, elem_id="answer")
            downloads = gr.HTML(elem_id="downloads")

    def show(path: str | None, name: str, chosen: list[str], of_stage: int) -> tuple[str, str, str]:
        if path is None:
            return panels.EMPTY, "", ""

        def compute() -> tuple[str, str, str]:
            opened = _opened(models, name)
            picture = _load(path)
            result = classify(picture, opened, chosen)
            values, label = heatmap(picture, opened, of_stage)
            drawn = draw(seen_part(picture, opened), values)
            return (
                panels.results(result),
                panels.look(drawn, label, of_stage, (values.shape[0], values.shape[1])),
                panels.downloads(models.names.index(name), opened.files),
            )

        try:
            return _logged(path, compute)
        except _NotReadyError as wait:
            return panels.waiting(str(wait)), "", ""
        except MobileViTHubError as error:
            return panels.problem(str(error)), "", ""

    async def open_first(name: str) -> AsyncIterator[tuple[str, str, str]]:
        """Says that a model is being opened, until it is or cannot be, which the event after this one says."""
        try:
            future = models.open(name)
        except MobileViTHubError:
            return
        if not future.done():
            yield panels.waiting(_OPENING.format(name=name)), "", ""
            opened = asyncio.wrap_future(future)
            await asyncio.wait([opened])
            opened.exception()  # or asyncio would log that nobody looked

    def classify_photo(path: str | None, name: str, chosen: list[str]) -> dict[str, Any]:
        """Classifies an uploaded photo in each of some runtimes."""
        if path is None:
            raise gr.Error("There is no photo; upload one and name it.", print_exception=False)

        def compute() -> dict[str, Any]:
            return classify(_load(path), _opened(models, name), chosen)

        try:
            return _logged(path, compute)
        except (MobileViTHubError, _NotReadyError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    inputs, outputs = [photo, model, runtimes, stage], [answer, look, downloads]
    shared = {"api_visibility": "private", "concurrency_id": "classify", "show_progress": "minimal"}
    examples.click(lambda i: str(EXAMPLES[i]), examples, photo, api_visibility="private", queue=False)
    gr.on([photo.change, runtimes.change, stage.change, again.click], show, inputs, outputs, **shared)
    model.change(
        open_first,
        [model],
        outputs,
        api_visibility="private",
        concurrency_limit=None,  # it only waits, and takes no thread for it
        trigger_mode="multiple",  # who changes their mind need not wait for the first choice
    ).then(show, inputs, outputs, **shared)
    # The same for programs: an event without anything to click, of the same queue.
    gr.Button(visible=False).click(
        classify_photo,
        [photo, model, runtimes],
        gr.JSON(visible=False),
        api_name="classify",
        api_description="Classifies an uploaded photo in each of some runtimes.",
        concurrency_id="classify",
    )


def about_tab(models: Models, model: gr.Dropdown) -> None:
    """What the chosen model is, under which licence, from which papers."""
    text = gr.Markdown(about(models.names[0]), elem_id="about")
    model.change(about, [model], text, api_visibility="private", queue=False)


TABS: dict[str, Callable[[Models, gr.Dropdown], None]] = {"Classify": classify_tab, "About": about_tab}
"""Title and function of each tab. A tab for another task is one more function, with a choice of its models in it."""


# What every tab needs.
_OPENING = (
    "{name} is being opened: its weights are downloaded once, and two .tflite files exported from them. "
    "That takes a minute or two; the answer appears here."
)


class _NotReadyError(Exception):
    """The model is still being opened."""


def _opened(models: Models, name: str) -> OpenedModel:
    future = models.open(name)
    if not future.done():
        raise _NotReadyError(_OPENING.format(name=name))
    return future.result()


def _uploaded_file(payload: Any) -> str | None:
    """The file as it was uploaded: `load_image` decodes it, as everywhere in this package, and not Gradio."""
    return None if payload is None else payload.path


def _load(path: str) -> Image.Image:
    """A photo from its bytes, so that no message names a path of the server."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ImageError("The photo is gone from the server, which keeps it for an hour; choose it again.") from error
    try:
        return load_image(io.BytesIO(content), max_pixels=MAX_PHOTO_PIXELS)
    except MobileViTHubError as error:
        text = str(error).split(": ", 1)[-1]
        raise ImageError(f"The photo cannot be used: {text}") from error


def _logged(path: str, compute: Callable[[], Any]) -> Any:
    """Runs a computation and logs what came of it, but nothing that a visitor wrote or sent.

    What nobody foresaw is named without details; its traceback goes into the log.
    """
    started, outcome = time.perf_counter(), "answered"
    try:
        return compute()
    except (MobileViTHubError, _NotReadyError) as error:
        outcome = type(error).__name__
        raise
    except Exception as error:
        outcome = type(error).__name__
        log.exception("unexpected error")
        raise MobileViTHubError(
            "Something went wrong on the server, and it was written to its log; another photo may work."
        ) from error
    finally:
        size = Path(path).stat().st_size if Path(path).exists() else 0
        milliseconds = 1000 * (time.perf_counter() - started)
        log.info("a photo of %d kB: %s in %.0f ms", size / 1000, outcome, milliseconds)
