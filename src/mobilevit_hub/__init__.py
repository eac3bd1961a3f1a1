"""MobileViT and MobileViTv2 by name: exact to Apple's weights, for PyTorch, Keras and the phone.

Importing this package loads no framework; each public name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import conversion, tflite
    from .configuration import MobileViTConfig, MobileViTV2Config
    from .evaluation import evaluate
    from .image_processing import MobileViTImageProcessor
    from .images import load_image
    from .prediction import predict
    from .presets import get_preset, list_presets
    from .pt import (
        MobileViTBackbone,
        MobileViTForImageClassification,
        MobileViTModel,
        MobileViTV2Backbone,
        MobileViTV2ForImageClassification,
        MobileViTV2Model,
    )
    from .runtimes import from_pretrained, image_processor
    from .tf import (
        TFMobileViTBackbone,
        TFMobileViTForImageClassification,
        TFMobileViTModel,
        TFMobileViTV2Backbone,
        TFMobileViTV2ForImageClassification,
        TFMobileViTV2Model,
    )
    from .training import train

# Public name -> module that has it.
_MODULES = {
    "MobileViTConfig": "configuration",
    "MobileViTV2Config": "configuration",
    "MobileViTImageProcessor": "image_processing",
    "load_image": "images",
    "get_preset": "presets",
    "list_presets": "presets",
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
    "evaluate": "evaluation",
    "train": "training",
    "from_pretrained": "runtimes",
    "image_processor": "runtimes",
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
