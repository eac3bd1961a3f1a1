"""MobileViT and MobileViTv2 in Keras 3: the twin of `mobilevit_hub.pt`. PyTorch is not needed."""

import logging

from mobilevit_hub.errors import MissingDependencyError, require

require("keras", "tf", "mobilevit_hub.tf")

try:
    import keras  # noqa: F401 - which loads its backend
except ModuleNotFoundError as error:
    raise MissingDependencyError(
        f"mobilevit_hub.tf needs {error.name}, the backend that Keras is set to, which is not installed. Install "
        'TensorFlow with: pip install "mobilevit_hub[tf]", or set KERAS_BACKEND.',
        field=error.name,
    ) from error

# transformers, which has the configs, says whenever it is imported that its own models need PyTorch.
logging.getLogger("transformers").addFilter(lambda record: "PyTorch was not found" not in record.getMessage())

from .data import image_dataset  # noqa: E402
from .mobilevit import TFMobileViTBackbone, TFMobileViTForImageClassification, TFMobileViTModel  # noqa: E402
from .mobilevitv2 import TFMobileViTV2Backbone, TFMobileViTV2ForImageClassification, TFMobileViTV2Model  # noqa: E402

__all__ = [
    "TFMobileViTBackbone",
    "TFMobileViTForImageClassification",
    "TFMobileViTModel",
    "TFMobileViTV2Backbone",
    "TFMobileViTV2ForImageClassification",
    "TFMobileViTV2Model",
    "image_dataset",
]
