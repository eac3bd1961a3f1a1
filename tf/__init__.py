"""MobileViT and MobileViTv2 in Keras 3: the twin of `mobilevit_hub.pt`. PyTorch is not needed."""

from mobilevit_hub.errors import require

require("keras", "tf", "mobilevit_hub.tf")

from .mobilevit import TFMobileViTBackbone, TFMobileViTForImageClassification, TFMobileViTModel  # noqa: E402
from .mobilevitv2 import TFMobileViTV2Backbone, TFMobileViTV2ForImageClassification, TFMobileViTV2Model  # noqa: E402

__all__ = [
    "TFMobileViTBackbone",
    "TFMobileViTForImageClassification",
    "TFMobileViTModel",
    "TFMobileViTV2Backbone",
    "TFMobileViTV2ForImageClassification",
    "TFMobileViTV2Model",
]
