"""Small networks, weights and images for the tests of the PyTorch twin."""

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch
import transformers

from mobilevit_hub.network.configuration import MobileViTConfig, MobileViTV2Config
from mobilevit_hub.pt.mobilevit import MobileViTForImageClassification
from mobilevit_hub.pt.mobilevitv2 import MobileViTV2ForImageClassification

MODELS = {"mobilevit": MobileViTForImageClassification, "mobilevitv2": MobileViTV2ForImageClassification}
STOCK_MODELS = {
    "mobilevit": (transformers.MobileViTConfig, transformers.MobileViTForImageClassification),
    "mobilevitv2": (transformers.MobileViTV2Config, transformers.MobileViTV2ForImageClassification),
}
TINY = {
    1: {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 12, 16, 16, 24, 32], "num_attention_heads": 2},
    2: {"width_multiplier": 0.25, "n_attn_blocks": [1, 1, 1]},
}


def tiny_config(version, **fields):
    """A config of version 1 or 2 whose network runs in milliseconds; 7 labels."""
    cls = MobileViTConfig if version == 1 else MobileViTV2Config
    return cls(**{**TINY[version], "num_labels": 7, **fields})


def awake(model, seed=0):
    """Fills every tensor, BatchNorm statistics too, so that no swapped or forgotten one can hide."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            tensor.fill_(100)
        elif tensor.dim() == 1:
            positive = name.endswith(("running_var", "weight"))
            values = torch.rand(tensor.shape, generator=generator) - 0.5
            tensor.copy_(values + 1 if positive else values)
        else:
            fan_in = tensor[0].numel()
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 1.4 / fan_in**0.5)
    return model


def tiny(version, **fields):
    """An awake tiny classifier in float64, in evaluation mode."""
    config = tiny_config(version, **fields)
    return awake(MODELS[config.model_type](config)).double().eval()


@torch.no_grad()
def logits(model, pixels):
    return model(pixels).logits


def images(count, height, width, seed=0):
    """Noise in [0, 1], `(count, 3, height, width)` float32."""
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def to_torch(tensors):
    """NumPy state dict to PyTorch."""
    return {name: torch.from_numpy(value.copy()) for name, value in tensors.items()}


class _Anything(type):
    """Metaclass of a class that has every attribute."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {})


class _StandIns:
    """Finds an empty module for `torchvision` and everything in it."""

    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] == "torchvision" else None

    def create_module(self, spec):
        module = ModuleType(spec.name)
        module.__getattr__ = lambda name: getattr(_Anything("stand_in", (), {}), name)
        return module

    def exec_module(self, module):
        pass


def import_timm():
    """timm, or a skip. Its networks need no torchvision but importing it does: without one, it gets empty modules."""
    if find_spec("timm") is None:
        pytest.skip("needs timm")
    if "timm" in sys.modules or find_spec("torchvision") is not None:
        return import_module("timm")
    finder = _StandIns()
    sys.meta_path.append(finder)
    try:
        return import_module("timm")
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
