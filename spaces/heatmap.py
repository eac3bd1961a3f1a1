"""What the network looks at: Grad-CAM of a stage, drawn over the part of the photo that it saw."""

from __future__ import annotations

import numpy as np
from PIL import Image

from mobilevit_hub.errors import InputError

from .models import OpenedModel

STAGES = (1, 2, 3, 4, 5)
SIDE = 448
"""Of the picture that is drawn, in pixels."""
DIMMED = 0.22
"""Brightness of what the network does not look at."""


def heatmap(photo: Image.Image, model: OpenedModel, stage: int) -> tuple[np.ndarray, str]:
    """Where the features of a stage speak for the first label: Grad-CAM (Selvaraju and others, 2017).

    Each channel of the stage's output is weighted by the mean gradient of the label's logit; their sum, cut at zero,
    is scaled to [0, 1].

    Args:
        photo: Upright RGB.
        model: The opened checkpoint.
        stage: 1 to 5; a later one has fewer and larger places.

    Returns:
        `(H, W)` in [0, 1], all zero where nothing speaks for the label; and the label.

    Raises:
        InputError: There is no such stage.
    """
    if stage not in STAGES:
        raise InputError(f"The stage is {stage!r}; choose one of {', '.join(map(str, STAGES))}.", field="stage")
    import torch

    pixels = torch.from_numpy(model.classifiers["pt"].prepare(photo))
    with torch.enable_grad():  # of the features alone: the weights stay as they are
        outputs = model.network(pixels, output_hidden_states=True)
        features = outputs.hidden_states[stage - 1]
        best = int(outputs.logits[0].argmax())
        (gradient,) = torch.autograd.grad(outputs.logits[0, best], features)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    values = (weights * features.detach()).sum(dim=1)[0].clamp(min=0)
    peak = float(values.max())
    return (values / peak if peak > 0 else values).numpy(), model.network.config.id2label[best]


def seen_part(photo: Image.Image, model: OpenedModel) -> Image.Image:
    """The part of a photo that the network gets, at the size of the photo: the crop without the resize."""
    settings = model.classifiers["pt"].preprocessing
    size, crop = settings.size, settings.crop_size
    if not settings.do_center_crop:
        return photo
    if not settings.do_resize:
        across = down = 1.0
    elif "shortest_edge" in size:
        across = down = min(photo.size) / size["shortest_edge"]
    else:
        across, down = photo.width / size["width"], photo.height / size["height"]
    width, height = crop["width"] * across, crop["height"] * down
    left, top = (photo.width - width) / 2, (photo.height - height) / 2
    return photo.crop(tuple(round(edge) for edge in (left, top, left + width, top + height)))


def draw(photo: Image.Image, values: np.ndarray) -> Image.Image:
    """The photo, dark and grey where `values` `(H, W)` are 0, as it is where they are 1."""
    scale = SIDE / max(photo.size)
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    colours = np.asarray(photo.resize(size, Image.Resampling.BILINEAR), np.float32)
    mask = Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    light = np.clip(np.asarray(mask), 0, 1)[..., None]
    grey = colours.mean(axis=2, keepdims=True)
    return Image.fromarray((light * colours + (1 - light) * DIMMED * grey).round().astype(np.uint8))
