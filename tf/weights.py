"""The weights of the Keras models: their names and layouts in a checkpoint, and how new ones are drawn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import keras
import numpy as np

from .layers import children_of


class Weight(NamedTuple):
    """A Keras variable and how a checkpoint stores it."""

    name: str
    """Name in the checkpoint, which is PyTorch's."""
    variable: Any
    kind: str
    """`"conv"`, `"depthwise"`, `"linear"` or `"plain"`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape in the checkpoint."""
        shape = tuple(self.variable.shape)
        return tuple(shape[axis] for axis in LAYOUTS[self.kind][1]) or shape


# Kind of weight -> axes that take a checkpoint's array to Keras' layout, and back.
LAYOUTS = {
    "conv": ((2, 3, 1, 0), (3, 2, 0, 1)),  # (O, I, kh, kw) <-> (kh, kw, I, O)
    "depthwise": ((2, 3, 0, 1), (2, 3, 0, 1)),  # (C, 1, kh, kw) <-> (kh, kw, C, 1)
    "linear": ((1, 0), (1, 0)),  # (out, in) <-> (in, out)
    "plain": ((), ()),
}


def to_keras(array: np.ndarray, kind: str) -> np.ndarray:
    """Turns a checkpoint's array into Keras' layout."""
    return array.transpose(LAYOUTS[kind][0]) if LAYOUTS[kind][0] else array


def to_checkpoint(array: np.ndarray, kind: str) -> np.ndarray:
    """Turns a Keras array into the checkpoint's layout."""
    return np.ascontiguousarray(array.transpose(LAYOUTS[kind][1])) if LAYOUTS[kind][1] else array


def weights_of(layer: Any, name: str = "") -> Iterator[Weight]:
    """All weights of a layer under the names of the checkpoints, which are the attribute names.

    An attribute that Keras forbids (`output`) carries an underscore here.
    """
    dot = f"{name}." if name else ""
    if isinstance(layer, keras.layers.BatchNormalization):
        yield Weight(f"{dot}weight", layer.gamma, "plain")
        yield Weight(f"{dot}bias", layer.beta, "plain")
        yield Weight(f"{dot}running_mean", layer.moving_mean, "plain")
        yield Weight(f"{dot}running_var", layer.moving_variance, "plain")
        yield Weight(f"{dot}num_batches_tracked", layer.num_batches_tracked, "plain")
    elif isinstance(layer, keras.layers.DepthwiseConv2D | keras.layers.Conv2D | keras.layers.Dense):
        kinds = {keras.layers.DepthwiseConv2D: "depthwise", keras.layers.Conv2D: "conv", keras.layers.Dense: "linear"}
        kind = next(k for cls, k in kinds.items() if isinstance(layer, cls))
        yield Weight(f"{dot}weight", layer.kernel, kind)
        if layer.use_bias:
            yield Weight(f"{dot}bias", layer.bias, "plain")
    elif hasattr(layer, "gamma"):
        yield Weight(f"{dot}weight", layer.gamma, "plain")
        yield Weight(f"{dot}bias", layer.beta, "plain")
    else:
        for attribute, child in parts_of(layer):
            yield from weights_of(child, dot + attribute)


def parts_of(layer: Any) -> Iterator[tuple[str, Any]]:
    """The layers inside a layer or model, under their names in the checkpoints."""
    return iter(layer.parts.items()) if isinstance(layer, keras.Model) else children_of(layer)


def layers_of(layer: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All layers inside a layer or model by their names in the checkpoints, outer ones first."""
    for attribute, child in parts_of(layer):
        yield name + attribute, child
        yield from layers_of(child, f"{name}{attribute}.")


@contextmanager
def dtype_policy_scope(policy: Any) -> Iterator[None]:
    """Makes a Keras dtype policy the global one for a while; None leaves the global one."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy or before)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


class Initializers(NamedTuple):
    """How new weights are drawn: functions of the shape in the checkpoint's layout and a generator."""

    conv: Any
    linear: Any
    conv_bias: Any


def version_1_initializers(std: float) -> Initializers:
    """Apple's first release: Kaiming normal by fan-out, where a depthwise fan-out counts all channels."""
    return Initializers(
        conv=lambda shape, rng: rng.normal(0, np.sqrt(2 / (shape[0] * shape[2] * shape[3])), shape),
        linear=lambda shape, rng: np.clip(rng.normal(0, std, shape), -2, 2),
        conv_bias=lambda shape, fan_in, rng: np.zeros(shape),
    )


def version_2_initializers() -> Initializers:
    """Apple's later releases as they really run: uniform ±1/√fan_in, linear layers Xavier uniform."""
    return Initializers(
        conv=lambda shape, rng: _uniform(1 / np.sqrt(np.prod(shape[1:])), shape, rng),
        linear=lambda shape, rng: _uniform(np.sqrt(6 / sum(shape)), shape, rng),
        conv_bias=lambda shape, fan_in, rng: _uniform(1 / np.sqrt(fan_in), shape, rng),
    )


def _uniform(bound: float, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(-bound, bound, shape)
