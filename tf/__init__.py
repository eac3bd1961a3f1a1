"""MobileViT and MobileViTv2 in Keras 3: the twin of `mobilevit_hub.pt`. PyTorch is not needed."""

import os

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

# transformers, which has the configs, says when it is first imported that its own models need PyTorch.
_QUIET = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
_before = os.environ.get(_QUIET)
os.environ[_QUIET] = "1"
try:
    from .mobilevit import TFMobileViTBackbone, TFMobileViTForImageClassification, TFMobileViTModel
    from .mobilevitv2 import TFMobileViTV2Backbone, TFMobileViTV2ForImageClassification, TFMobileViTV2Model
finally:
    if _before is None:
        del os.environ[_QUIET]
    else:
        os.environ[_QUIET] = _before

__all__ = [
    "TFMobileViTBackbone",
    "TFMobileViTForImageClassification",
    "TFMobileViTModel",
    "TFMobileViTV2Backbone",
    "TFMobileViTV2ForImageClassification",
    "TFMobileViTV2Model",
]
