"""What `kernels.cpp` is to do for one image size: the steps of a folded network, its weights, places for its maps."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch

from ...errors import InputError
from ...inference import folding
from ...inference.folding import Convolution, InvertedResidual, Linear, Version1Block, Version2Block, stride_of

ALIGNMENT = 16
"""Floats from pixel to pixel are a multiple of this, whatever the vectors of the machine hold."""
ACTIVATIONS = {None: 0, "silu": 1, "relu": 2}
NORMS = {"none": 0, "layer": 1, "group": 2}
EPSILON = 1e-5


def padded(channels: int) -> int:
    """Floats that so many channels take in a map."""
    return -(-channels // ALIGNMENT) * ALIGNMENT


def zeros(count: int) -> np.ndarray:
    """Floats that begin where a line of the caches does: vectors from there on do not lie across two."""
    memory = np.zeros(count + 15, np.float32)
    start = -memory.ctypes.data % 64 // 4
    return memory[start : start + count]


class Map:
    """A map in the arena, `(height, width, channels)`; with a border of zeros where a 3 × 3 convolution reads it."""

    def __init__(self, height: int, width: int, channels: int, start: int, pixel: int, border: int) -> None:
        self.height, self.width, self.channels, self.pixel = height, width, channels, pixel
        self.row = (width + 2 * border) * pixel
        self.start, self.border = start, border
        self.place = start + border * (self.row + pixel)
        # One vector more, since reading in whole vectors may go beyond the last pixel.
        self.size = padded((height + 2 * border) * self.row + ALIGNMENT)

    def after(self, channels: int, start: int) -> Map:
        """The channels from `start` on, as a map of their own."""
        part = Map(self.height, self.width, channels, 0, self.pixel, 0)
        part.row, part.place = self.row, self.place + start
        return part


class Plan:
    """Steps, weights and arena of a network for images of one size.

    Args:
        network: The folded network.
        height: Height of the images in pixels.
        width: Width of the images in pixels.
        lanes: Floats in a vector of this machine.
        fields: What a step consists of, in this order.
        kinds: Names of the kinds of steps, by number.
        pairs: Pairs of bfloat16 that weights are packed by; 0 for float32.
        chunks: Parts of a map that statistics are kept of.
    """

    def __init__(
        self,
        network: folding.FoldedNetwork,
        height: int,
        width: int,
        lanes: int,
        fields: list[str],
        kinds: list[str],
        pairs: int,
        chunks: int,
    ) -> None:
        self.lanes, self.fields, self.kinds = lanes, fields, kinds
        self.pairs, self.chunks = pairs, chunks
        self.steps: list[list[int]] = []
        self.arrays: list[np.ndarray] = []
        self.free: list[tuple[int, int]] = []
        self.arena = self.floats = 0
        features = self._network(network, height, width)
        pooled = self._map(1, 1, features.channels)
        size = {"height": features.height, "width": features.width}
        self._step("pool", features, pooled, columns=padded(features.channels), **size)
        if network.classifier is not None:
            logits = self._map(1, 1, len(network.classifier.bias))
            self._convolution(network.classifier, pooled, logits)
            pooled = logits
        self.result, self.labels = pooled.place, pooled.channels
        self.table = np.array(self.steps, np.int64)
        self.weights = np.concatenate(self.arrays, out=zeros(self.floats))
        self.arrays.clear()  # they are as large again

    # --- memory

    def _map(
        self,
        height: int,
        width: int,
        channels: int,
        *,
        border: int = 0,
        pixel: int | None = None,
        fresh: bool = False,
    ) -> Map:
        """A map in memory that is not in use; `fresh`: that no other map has, since no step writes all of this one."""
        pixel = padded(channels) if pixel is None else pixel
        found = Map(height, width, channels, self.arena, pixel, border)
        fitting = [] if border or fresh else [part for part in self.free if part[1] >= found.size]
        if not fitting:
            self.arena += found.size
            return found
        start, size = min(fitting, key=lambda part: part[1])
        self.free.remove((start, size))
        self.free.append((start + found.size, size - found.size))
        return Map(height, width, channels, start, pixel, border)

    def _release(self, *maps: Map) -> None:
        """Lets later maps have the memory of these, but for those with a border, which has to stay zero."""
        self.free += [(part.start, part.size) for part in maps if not part.border]

    def _keep(self, array: np.ndarray) -> int:
        """Puts an array to the weights; returns its place."""
        flat = np.zeros(padded(array.size), np.float32)
        flat[: array.size] = array.ravel()
        place, self.floats = self.floats, self.floats + flat.size
        self.arrays.append(flat)
        return place

    def _vector(self, array: np.ndarray) -> int:
        return self._keep(np.pad(array, (0, padded(len(array)) - len(array))))

    def _matrix(self, weight: np.ndarray) -> int:
        """Packs `(K, out)` in the panels that the kernels read; see `Panels` in kernels.cpp."""
        weight = np.pad(weight, ((0, 0), (0, padded(weight.shape[1]) - weight.shape[1])))
        if self.pairs:  # two rows in the bits of one
            weight = np.pad(weight, ((0, -len(weight) % (2 * self.pairs)), (0, 0)))
            pairs = weight.reshape(-1, 2, weight.shape[1]).transpose(0, 2, 1)
            bits = torch.from_numpy(np.ascontiguousarray(pairs)).to(torch.bfloat16).view(torch.int16)
            weight = bits.numpy().view(np.float32)[..., 0]
        vectors = weight.shape[1] // self.lanes
        count = -(-vectors // 3)
        narrow, wider = divmod(vectors, count)
        starts = [(i * narrow + min(i, wider)) * self.lanes for i in range(count + 1)]
        parts = [weight[:, start:stop].ravel() for start, stop in pairwise(starts)]
        return self._keep(np.concatenate(parts))

    # --- steps

    def _step(self, kind: str, source: Map | None = None, target: Map | None = None, /, **values: Any) -> None:
        if source is not None:
            values = {
                "source": source.place,
                "source_row": source.row,
                "source_pixel": source.pixel,
                "source_height": source.height,
                "source_width": source.width,
                "channels": source.channels,
            } | values
        if target is not None:
            values |= {"target": target.place, "target_row": target.row, "target_pixel": target.pixel}
        chosen: Any = target or source
        values = {"height": chosen.height, "width": chosen.width} | values if chosen is not None else values
        none = dict.fromkeys(("weights", "other", "gate", "statistics"), -1)
        values = {"kind": self.kinds.index(kind), "stride": 1, "segments": 1} | none | values
        self.steps.append([values.get(name, 0) for name in self.fields])

    def _convolution(
        self,
        layer: Convolution | Linear,
        source: Map,
        target: Map,
        other: Map | None = None,
        space: int = 0,
        **values: Any,
    ) -> None:
        """A dense convolution or linear layer, after which `other` is added.

        The source may be two maps side by side with a space between their channels; it meets weights of zero.
        """
        weight = layer.weight
        weight = weight[:, :, None, None] if weight.ndim == 2 else weight
        side, half = weight.shape[2], weight.shape[1] // 2
        taps = np.insert(weight.transpose(2, 3, 1, 0), [half] * space, 0, axis=2)
        matrix, length = taps.reshape(-1, len(weight)), taps.shape[2]
        if side == 3 and source.pixel < ALIGNMENT:  # the image: pixels without space between them, a line is one piece
            length *= 3
            values |= {"segments": 3}
        elif side == 3:
            values |= {"segments": 9}
        if side == 3:
            values["source"] = source.place - source.row - source.pixel
        if other is not None:
            values |= {"other": other.place, "other_row": other.row, "other_pixel": other.pixel}
        self._step(
            "convolution",
            source,
            target,
            columns=padded(len(weight)),
            length=length,
            weights=self._matrix(matrix),
            bias=self._vector(layer.bias),
            **{"activation": ACTIVATIONS[layer.activation]} | {"stride": getattr(layer, "stride", 1)} | values,
        )

    def _inverted(self, depthwise: Convolution, reduce: Convolution, source: Map, target: Map, **values: Any) -> None:
        """The depthwise convolution and what follows it; `values` say what comes before."""
        hidden = len(depthwise.bias)
        taps = depthwise.weight.reshape(hidden, 9).T
        self._step(
            "inverted_residual",
            source,
            target,
            stride=depthwise.stride,
            hidden=padded(hidden),
            length=hidden,
            columns=padded(len(reduce.bias)),
            second_weights=self._keep(np.pad(taps, ((0, 0), (0, padded(hidden) - hidden)))),
            second_bias=self._vector(depthwise.bias),
            third_weights=self._matrix(reduce.weight[:, :, 0, 0].T),
            third_bias=self._vector(reduce.bias),
            **values,
        )

    def _block(self, block: InvertedResidual, source: Map, target: Map) -> None:
        """An inverted residual."""
        values: dict[str, Any] = {}
        if block.expand is None and len(block.depthwise.bias) != source.channels:  # PyTorch refuses it as well
            raise InputError(
                f"expand_ratio is 1, but {source.channels} channels are no multiple of 8: the depthwise kernel has "
                f"{len(block.depthwise.bias)}.",
                field="expand_ratio",
            )
        if block.expand is not None:
            values |= {
                "weights": self._matrix(block.expand.weight[:, :, 0, 0].T),
                "bias": self._vector(block.expand.bias),
            }
        if block.use_residual:
            values |= {"other": source.place, "other_row": source.row, "other_pixel": source.pixel}
        self._inverted(block.depthwise, block.reduce, source, target, **values)

    def _network(self, network: folding.FoldedNetwork, height: int, width: int) -> Map:
        image = self._map(height, width, 3, border=1, pixel=3)
        self._step("image", None, image, channels=3)
        source = image
        layers: list[Any] = list(network.features)
        for i, layer in enumerate(layers):
            stride = stride_of(layer)
            height, width = -(-source.height // stride), -(-source.width // stride)
            following = getattr(layers[i + 1], "downsampling", layers[i + 1]) if i + 1 < len(layers) else None
            # Without an expansion the depthwise convolution reads this map.
            border = int(isinstance(following, InvertedResidual) and following.expand is None)
            if isinstance(layer, Convolution):
                target = self._map(height, width, len(layer.bias), border=border)
                self._convolution(layer, source, target)
            elif isinstance(layer, InvertedResidual):
                target = self._map(height, width, len(layer.reduce.bias), border=border)
                self._block(layer, source, target)
            elif isinstance(layer, Version1Block):
                channels = len(layer.fusion.bias)  # type: ignore[union-attr]
                target = self._map(height, width, channels, border=border)
                self._version_1(layer, source, target)
            else:
                height, width = even(height), even(width)
                target = self._map(height, width, len(layer.projection.bias), border=border)
                self._version_2(layer, source, target)
            self._release(source)
            source = target
        return source

    def _version_1(self, block: Version1Block, source: Map, target: Map) -> None:
        height, width, channels = target.height, target.width, target.channels
        both = self._map(height, width, 2 * channels, border=1, pixel=2 * padded(channels))
        features, projected = both.after(channels, 0), both.after(channels, padded(channels))
        self._block(block.downsampling, source, features)
        local = self._map(height, width, channels)
        self._convolution(block.conv_kxk, features, local)
        wide, odd = len(block.conv_1x1.bias), bool(height % 2 or width % 2)
        size = even(height), even(width)
        tokens, other, qkv = (self._map(*size, channels) for channels in (wide, wide, 3 * wide))
        context = self._map(*size, wide, fresh=True)
        if odd:
            small = self._map(height, width, wide)
            self._convolution(block.conv_1x1, local, small)
            self._step("resize", small, tokens, columns=padded(wide), to_tokens=1)
        else:
            self._convolution(block.conv_1x1, local, tokens, to_tokens=1)
        counts = {"places": 4, "count": size[0] * size[1] // 4}
        for layer in block.layers:
            self._convolution(layer.qkv, tokens, qkv, norm=NORMS["layer"])
            self._step("attention", qkv, context, channels=wide, heads=layer.heads, **counts)
            self._convolution(layer.out, context, other, tokens)
            tokens, other = other, tokens
            self._feed_forward(layer.first, layer.second, tokens, norm=NORMS["layer"], **counts)
        values: dict[str, Any] = {"from_tokens": 1, "norm": NORMS["layer"]}
        activation = ACTIVATIONS[block.activation]
        if odd:
            large = self._map(*size, channels)
            self._convolution(block.projection, tokens, large, **values)
            self._step("resize", large, projected, columns=padded(channels), activation=activation)
        else:
            self._convolution(block.projection, tokens, projected, activation=activation, **values)
        space = padded(channels) - channels
        self._convolution(block.fusion, both, target, space=space)  # type: ignore[arg-type]
        self._release(local, tokens, other, qkv)

    def _feed_forward(self, first: Linear, second: Linear, tokens: Map, **values: Any) -> None:
        self._step(
            "feed_forward",
            tokens,
            hidden=padded(len(first.bias)),
            length=len(first.bias),
            columns=padded(len(second.bias)),
            weights=self._matrix(first.weight.T),
            bias=self._vector(first.bias),
            second_weights=self._matrix(second.weight.T),
            second_bias=self._vector(second.bias),
            activation=ACTIVATIONS[first.activation],
            **values,
        )

    def _version_2(self, block: Version2Block, source: Map, target: Map) -> None:
        height, width = target.height, target.width
        channels, wide = len(block.downsampling.reduce.bias), len(block.conv_1x1.bias)
        features = self._map(height, width, channels, border=1)
        stride = stride_of(block)
        small = (-(-source.height // stride), -(-source.width // stride))
        if small == (height, width):
            self._block(block.downsampling, source, features)
        else:
            odd = self._map(*small, channels)
            self._block(block.downsampling, source, odd)
            self._step("resize", odd, features, columns=padded(channels), corners=1)
        tokens = self._map(height, width, wide)
        self._inverted(block.conv_kxk, block.conv_1x1, features, tokens, to_tokens=1)
        context = self._map(4, 1, wide)
        moments = self._map(1, self.chunks, 3, pixel=3)
        counts = {"places": 4, "count": height * width // 4, "statistics": moments.place}
        group: dict[str, Any] = {"norm": NORMS["group"], **counts}
        for layer in block.layers:
            self._step("statistics", tokens, **counts)
            self._step(
                "context",
                tokens,
                context,
                columns=padded(wide),
                weights=self._matrix(layer.key.weight.T),
                bias=self._vector(layer.key.bias),
                second_weights=self._vector(layer.query.weight[0]),
                **counts,
            )
            self._feed_forward(layer.value, layer.out, tokens, gate=context.place, **group)
            self._step("statistics", tokens, **counts)
            self._feed_forward(layer.first, layer.second, tokens, **group)
        self._step("statistics", tokens, **counts)
        self._convolution(block.projection, tokens, target, from_tokens=1, **group)
        self._release(tokens)


def even(side: int) -> int:
    """The next whole number of patches of 2 pixels, in pixels."""
    return side + side % 2


def unsupported(network: folding.FoldedNetwork) -> str | None:
    """What the kernels cannot do of a network, in words; None if they can all of it."""
    for record in folding.records_in(network):
        match record:
            case Convolution(weight=weight, depthwise=depthwise):
                side = weight.shape[2]
                if (
                    side not in (1, 3)
                    or record.dilation != 1
                    or record.activation not in ACTIVATIONS
                    or (depthwise and (side != 3 or record.activation != "silu"))
                ):
                    return "a convolution is dilated, larger than 3 × 3, or has another activation than SiLU"
            case InvertedResidual(expand=Convolution(activation=activation)) if activation != "silu":
                return "an expansion has another activation than SiLU"
            case Linear() if record.activation not in ACTIVATIONS or not record.weight.size:
                return "a linear layer is empty or has another activation than SiLU"
            case folding.Norm() if record.epsilon != EPSILON:
                return f"the epsilon of a norm is {record.epsilon}"
            case Version1Block() if record.patch_size != 2 or record.fusion is None:
                return "a block has patches of another size than 2, or no fusion"
            case Version2Block() if record.patch_size != 2 or not record.norm.jointly or record.odd_map != "apple":
                return "a block has patches of another size than 2, another norm, or odd_map='stock'"
    if network.features[0].weight.shape[1] != 3:  # type: ignore[union-attr]
        return "the images have other than 3 channels"
    if np.prod([stride_of(layer) for layer in network.features if not isinstance(layer, Convolution)]) != 16:
        return "the output stride is below 32"
    return None
