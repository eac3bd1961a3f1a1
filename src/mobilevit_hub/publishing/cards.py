"""Model cards: what the README.md of a checkpoint says, and the metadata that the Hub reads from its top.

The metadata is written by a YAML dumper, and text from outside is escaped, so that no name of a data set, label or
file can change what a card says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..checkpoints.saving import CARD_FILE
from ..errors import ConfigError
from ..hub.presets import Preset

_METRICS = {
    "top1": ("accuracy", "top-1"),
    "top5": ("accuracy", "top-5"),
    "mean_iou": ("mean_iou", "mean IoU"),
    "map": ("map", "mAP"),
}
_HUB_TASKS = {"semantic-segmentation": "image-segmentation"}
# Fields of networks that transformers' own classes cannot build.
_NOT_STOCK = {"mobilevit": ("n_attn_blocks", "attention_head_size", "use_fusion"), "mobilevitv2": ("attn_norm",)}
PLACE = "path/to/this-folder"
"""What the lines of code open until the checkpoint has a place; publishing puts the repository there."""


def markdown_text(text: Any) -> str:
    """Text that cannot break out of a Markdown table or start HTML."""
    cleaned = "".join(c for c in str(text) if c.isprintable())
    for character in "\\|`<>[]*_":
        cleaned = cleaned.replace(character, "\\" + character)
    return cleaned


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """The lines of a Markdown table."""
    first, *lines = ("| " + " | ".join(map(markdown_text, row)) + " |" for row in (head, *rows))
    return "\n".join([first, "|" + "---|" * len(head), *lines])


def check_card(text: str, path: str | Path) -> None:
    """Raises `ConfigError` unless huggingface_hub accepts the metadata of a model card; a card may have none.

    Args:
        text: The card.
        path: Names the card in the error.
    """
    import yaml
    from huggingface_hub import ModelCard

    reason = ""
    if re.match(r"\s*---[ \t]*\n", text) and "\n---" not in text.lstrip()[3:]:
        reason = "the line --- that ends it is missing"
    else:
        try:
            ModelCard(text)
        except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
    if reason:
        raise ConfigError(
            f"{path}: its metadata, the lines between --- and ---, cannot be read: {reason}. Correct or remove it.",
            path=path,
            field=CARD_FILE,
        )


# --------------------------------------------------------------------------------------------------
# Metadata
# --------------------------------------------------------------------------------------------------


def front_matter(config: Any, *, name: str, scores: Sequence[Any] = (), **about: Any) -> str:
    """The metadata of a card, between two lines `---`.

    Args:
        config: Config of the network.
        name: What the scores belong to.
        scores: What `score_entry` made.
        about: What else is known, as fields of `huggingface_hub.ModelCardData`: `license` with `license_name` and
            `license_link`, `datasets`, `base_model`.
    """
    from huggingface_hub import ModelCardData

    task = _task_of(config)
    data = ModelCardData(
        library_name="mobilevit_hub",
        pipeline_tag=task,
        tags=[config.model_type, task, "transformers", "keras"],
        model_name=name if scores else None,
        eval_results=list(scores) or None,
        **about,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def score_entry(metric: str, value: float, dataset: str, task: str = "image-classification", **source: Any) -> Any:
    """A score as the metadata of a card has it, a `huggingface_hub.EvalResult`.

    Args:
        metric: `"top1"`, `"top5"`, `"mean_iou"` or `"map"`.
        value: A fraction.
        dataset: What it was measured on.
        task: As the presets call it.
        source: `source_name` and `source_url`, where somebody else measured it.
    """
    from huggingface_hub import EvalResult

    kind, name = _METRICS[metric]
    return EvalResult(
        task_type=_HUB_TASKS.get(task, task),
        dataset_type=dataset,
        dataset_name=dataset,
        metric_type=kind,
        metric_name=name,
        metric_value=round(value, 6),
        **source,
    )


def preset_metadata(preset: Preset) -> dict[str, Any]:
    """What the record of a published checkpoint says about licence, data, origin and published score.

    Returns:
        Keyword arguments of `checkpoint_card`: `scores`, and fields of `ModelCardData`.
    """
    kind, _, words = preset.license.partition(": ")
    words, _, link = words.partition(", https://")
    scores = []
    if preset.score is not None:
        source = {"source_name": preset.score_source, "source_url": "https://github.com/apple/ml-cvnets"}
        scores = [
            score_entry(
                preset.metric, preset.score / 100, preset.dataset, preset.task, **source if preset.apple_file else {}
            )
        ]
    return {
        "license": kind,
        "license_name": re.sub(r"[^a-z0-9.]+", "-", words.lower()).strip("-"),
        "license_link": f"https://{link}" if link else None,
        "datasets": [preset.dataset, *(["imagenet-22k"] if "in22k" in preset.name else [])],
        "base_model": preset.hub_id,
        "scores": scores,
    }


def _task_of(config: Any) -> str:
    """The task as the Hub calls it."""
    architectures = getattr(config, "architectures", None)
    architecture = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    return "image-feature-extraction" if architecture.endswith(("Model", "Backbone")) else "image-classification"


# --------------------------------------------------------------------------------------------------
# Whole cards
# --------------------------------------------------------------------------------------------------


def checkpoint_card(
    config: Any,
    *,
    name: str,
    facts: Sequence[tuple[str, Any]],
    scores: Sequence[Any] = (),
    processor: Any = None,
    place: str = PLACE,
    **about: Any,
) -> str:
    """The card of a checkpoint that was converted or published.

    Args:
        config: Config of the network.
        name: Title of the card.
        facts: Rows of its table, such as `("sha256 of the source", digest)`.
        scores: As for `front_matter`; they are also rows of the table.
        processor: The image processor, whose steps the card describes.
        place: Folder or Hub id that the lines of code open.
        about: As for `front_matter`.
    """
    rows = list(facts)
    for score in scores:
        value = f"{100 * score.metric_value:.2f} % on {score.dataset_name}"
        rows.append((f"published {score.metric_name}", value + f" ({score.source_name})" * bool(score.source_name)))
    licence = [about[key] for key in ("license", "license_name", "license_link") if about.get(key)]
    if licence:
        rows.append(("licence of the weights", ", ".join(licence)))
    return f"""{front_matter(config, name=name, scores=scores, **about)}
# {markdown_text(name)}

{markdown_table(("measure", "value"), rows)}

## Loading

```python
{_loading_lines(config, place)}
```

## Preprocessing

{_preprocessing_text(processor)}
"""


def _loading_lines(config: Any, place: str) -> str:
    """One line for each library that opens the checkpoint."""
    source = repr(place).replace("`", "")  # which could end the block of code
    classifies = _task_of(config) == "image-classification"
    task = "" if classifies else ', task="features"'
    lines = [
        "import mobilevit_hub as mh, transformers",
        "",
        *([f'print(mh.predict("photo.jpg", {source}))  # labels and probabilities'] if classifies else []),
        f"model = mh.from_pretrained({source}{task})  # PyTorch",
        f'model = mh.from_pretrained({source}{task}, framework="tf")  # Keras',
    ]
    if all(getattr(config, name) == config.defaults[name] for name in _NOT_STOCK[config.model_type]):
        stock = "AutoModelForImageClassification" if classifies else "AutoModel"
        lines.append(f"model = transformers.{stock}.from_pretrained({source})  # stock transformers")
    else:
        lines[0] = "import mobilevit_hub as mh"
    return "\n".join(lines)


def _preprocessing_text(processor: Any) -> str:
    """The steps of an image processor in words."""
    if processor is None:
        return (
            "`mobilevit_hub.image_processor` makes the input; its settings stand in `preprocessor_config.json`. Pixels "
            "go in scaled to [0, 1], without mean and standard deviation."
        )
    steps = []
    if processor.do_resize:
        size = dict(processor.size)
        edges = "{height} × {width}" if "height" in size else "a shorter side of {shortest_edge}"
        steps.append(f"resize to {edges.format(**size)} pixels ({processor.interpolation})")
    if processor.do_center_crop:
        steps.append("crop the centre to {height} × {width}".format(**dict(processor.crop_size)))
    order = {"bgr": "blue, green, red", "rgb": "red, green, blue"}[processor.channel_order]
    steps.append(f"order the channels {order}")
    if processor.do_rescale:
        factor = processor.rescale_factor
        steps.append("divide by 255" if abs(255 * factor - 1) < 1e-6 else f"multiply by {factor:.6g}")
    text = ", ".join(steps)
    return f"{text[0].upper()}{text[1:]}; no mean is subtracted, no standard deviation divides."
