"""Folding of a Keras classifier for inference: arrays that two or more layers of the trainable model make together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from ..layers import ConvNormAct

Function = Callable[[Any], Any]


@dataclass(frozen=True)
class Linear:
    """`x @ kernel + bias` in float64, `(in, out)` and `(out,)`: what the rewrites work on."""

    kernel: np.ndarray
    bias: np.ndarray

    def after(self, norm: Any) -> Linear:
        """Takes in the scale and shift of the norm that is applied just before."""
        scale, shift = as_array(norm.gamma), as_array(norm.beta)
        return Linear(scale[:, None] * self.kernel, self.bias + shift @ self.kernel)

    def without_mean(self) -> Linear:
        """Subtracts the mean over the output channels."""
        return Linear(self.kernel - self.kernel.mean(1, keepdims=True), self.bias - self.bias.mean())

    def columns(self, start: int, stop: int | None) -> Linear:
        """Only some outputs."""
        return Linear(self.kernel[:, start:stop], self.bias[start:stop])


def as_array(variable: Any) -> np.ndarray:
    """A variable in float64."""
    return variable.numpy().astype(np.float64)


def is_depthwise(layer: ConvNormAct) -> bool:
    """Whether each channel has a kernel of its own."""
    return isinstance(layer.convolution, keras.layers.DepthwiseConv2D)


def folded_convolution(layer: ConvNormAct) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias, in float64 and Keras' layout, of a convolution and its BatchNorm together."""
    kernel = as_array(layer.convolution.kernel)
    channels = kernel.shape[2 if is_depthwise(layer) else 3]
    bias = as_array(layer.convolution.bias) if layer.convolution.use_bias else np.zeros(channels)
    if layer.normalization is not None:
        norm = layer.normalization
        scale = as_array(norm.gamma) / np.sqrt(as_array(norm.moving_variance) + norm.epsilon)
        kernel = kernel * (scale[:, None] if is_depthwise(layer) else scale)
        bias = as_array(norm.beta) + (bias - as_array(norm.moving_mean)) * scale
    return kernel, bias


def as_linear(layer: ConvNormAct | keras.layers.Dense) -> Linear:
    """A pointwise convolution, with its BatchNorm, or a dense layer."""
    if isinstance(layer, keras.layers.Dense):
        kernel = as_array(layer.kernel)
        return Linear(kernel, as_array(layer.bias) if layer.use_bias else np.zeros(kernel.shape[1]))
    kernel, bias = folded_convolution(layer)
    return Linear(kernel[0, 0], bias)
