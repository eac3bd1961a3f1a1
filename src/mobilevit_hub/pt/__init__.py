"""MobileViT and MobileViTv2 in PyTorch."""

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
