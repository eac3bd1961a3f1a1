"""The table of the published checkpoints: the short name of `mobilevit_hub.hub.presets`."""

from .hub.imagenet import imagenet_labels, imagenet_subset, imagenet_wnids
from .hub.presets import Preset, check_name, find_preset, get_preset, list_presets

__all__ = [
    "Preset",
    "check_name",
    "find_preset",
    "get_preset",
    "imagenet_labels",
    "imagenet_subset",
    "imagenet_wnids",
    "list_presets",
]
