"""MobileViT and MobileViTv2 by name: exact to Apple's weights, for PyTorch, Keras and the phone.

Importing this package loads no framework; each public name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from mobilevit_hub.tf import (
        TFMobileViTBackbone,
        TFMobileViTForImageClassification,
        TFMobileViTModel,
        TFMobileViTV2Backbone,
        TFMobileViTV2ForImageClassification,
        TFMobileViTV2Model,
    )

    from . import conversion, tflite
    from .evaluation.run import evaluate
    from .hub.presets import get_preset, list_presets
    from .images.loading import load_image
    from .images.processor import MobileViTImageProcessor, image_processor
    from .models import from_pretrained
    from .network.configuration import MobileViTConfig, MobileViTV2Config
    from .prediction import predict
    from .pt import (
        MobileViTBackbone,
        MobileViTForImageClassification,
        MobileViTModel,
        MobileViTV2Backbone,
        MobileViTV2ForImageClassification,
        MobileViTV2Model,
    )
    from .training.run import train

# Public name -> module that has it.
_MODULES = {
    "MobileViTConfig": "network.configuration",
    "MobileViTV2Config": "network.configuration",
    "MobileViTImageProcessor": "images.processor",
    "load_image": "images.loading",
    "get_preset": "hub.presets",
    "list_presets": "hub.presets",
    "MobileViTBackbone": "pt",
    "MobileViTForImageClassification": "pt",
    "MobileViTModel": "pt",
    "MobileViTV2Backbone": "pt",
    "MobileViTV2ForImageClassification": "pt",
    "MobileViTV2Model": "pt",
    "TFMobileViTBackbone": "tf",
    "TFMobileViTForImageClassification": "tf",
    "TFMobileViTModel": "tf",
    "TFMobileViTV2Backbone": "tf",
    "TFMobileViTV2ForImageClassification": "tf",
    "TFMobileViTV2Model": "tf",
    "evaluate": "evaluation.run",
    "train": "training.run",
    "from_pretrained": "models",
    "image_processor": "images.processor",
    "predict": "prediction",
}

__all__ = [
    "MobileViTBackbone",
    "MobileViTConfig",
    "MobileViTForImageClassification",
    "MobileViTImageProcessor",
    "MobileViTModel",
    "MobileViTV2Backbone",
    "MobileViTV2Config",
    "MobileViTV2ForImageClassification",
    "MobileViTV2Model",
    "TFMobileViTBackbone",
    "TFMobileViTForImageClassification",
    "TFMobileViTModel",
    "TFMobileViTV2Backbone",
    "TFMobileViTV2ForImageClassification",
    "TFMobileViTV2Model",
    "__version__",
    "conversion",
    "evaluate",
    "from_pretrained",
    "get_preset",
    "image_processor",
    "list_presets",
    "load_image",
    "predict",
    "tflite",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in ("conversion", "tflite"):
        return import_module(f".{name}", __name__)
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _MODULES[name].startswith("pt"):
        from .errors import require

        require("torch", "torch", f"mobilevit_hub.{name}")
    value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
