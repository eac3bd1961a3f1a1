"""MobileViT and MobileViTv2 in PyTorch. The classes are imported when they are asked for: they need transformers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .mobilevit import MobileViTBackbone, MobileViTForImageClassification, MobileViTModel
    from .mobilevitv2 import MobileViTV2Backbone, MobileViTV2ForImageClassification, MobileViTV2Model

__all__ = [
    "MobileViTBackbone",
    "MobileViTForImageClassification",
    "MobileViTModel",
    "MobileViTV2Backbone",
    "MobileViTV2ForImageClassification",
    "MobileViTV2Model",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".mobilevitv2" if "V2" in name else ".mobilevit", __name__), name)
