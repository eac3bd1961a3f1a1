"""The folded network of `inference.folding` in plain PyTorch.

Maps are channels-last in memory; tokens are `(B, P, N, C)` in both versions. `kernels` computes the same in C++.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ...inference import folding
from ..layers import fold_patches, resize_to_patch_multiple, unfold_patches


class Convolution(nn.Module):
    """A convolution and its activation."""

    weight: Tensor
    bias: Tensor

    def __init__(self, record: folding.Convolution) -> None:
        super().__init__()
        weight = torch.from_numpy(record.weight).contiguous(memory_format=torch.channels_last)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", torch.from_numpy(record.bias))
        self.activation = record.activation
        self.stride, self.padding, self.dilation = record.stride, record.padding, record.dilation
        self.groups = len(record.weight) if record.depthwise else 1

    def forward(self, features: Tensor) -> Tensor:
        """Maps `(B, in, H, W)` to `(B, out, H / stride, W / stride)`."""
        features = F.conv2d(features, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        return activate(features, self.activation)


class Linear(nn.Module):
    """`x @ weight.T + bias` on the last axis, and its activation."""

    weight: Tensor
    bias: Tensor

    def __init__(self, record: folding.Linear) -> None:
        super().__init__()
        self.register_buffer("weight", torch.from_numpy(record.weight))
        self.register_buffer("bias", torch.from_numpy(record.bias))
        self.activation = record.activation

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps `(…, in)` to `(…, out)`."""
        return activate(F.linear(tokens, self.weight, self.bias), self.activation)

    def added_to(self, tokens: Tensor, inputs: Tensor) -> Tensor:
        """`tokens` + this of `inputs`, without its activation, in the memory of `tokens`: two passes fewer over it."""
        flat = tokens.flatten(0, -2).add_(self.bias)
        return flat.addmm_(inputs.flatten(0, -2), self.weight.t()).view(tokens.shape)


def activate(features: Tensor, activation: str | None) -> Tensor:
    """Applies an activation, in place where there is one for that."""
    if activation is None:
        return features
    return F.gelu(features) if activation == "gelu" else getattr(F, activation)(features, inplace=True)


class Inverted(nn.Module):
    """Expansion, depthwise convolution and reduction."""

    def __init__(self, record: folding.InvertedResidual) -> None:
        super().__init__()
        self.expand = None if record.expand is None else Convolution(record.expand)
        self.depthwise, self.reduce = Convolution(record.depthwise), Convolution(record.reduce)
        self.use_residual = record.use_residual

    def forward(self, features: Tensor) -> Tensor:
        """Maps `(B, in, H, W)` to `(B, out, H / stride, W / stride)`."""
        wide = features if self.expand is None else self.expand(features)
        result = self.reduce(self.depthwise(wide))
        return result.add_(features) if self.use_residual else result


def standardise(tokens: Tensor, norm: folding.Norm) -> Tensor:
    """A norm without scale and shift, of tokens `(B, P, N, C)`."""
    return F.layer_norm(tokens, tokens.shape[1:] if norm.jointly else tokens.shape[-1:], eps=norm.epsilon)


class Version1Layer(nn.Module):
    """A transformer layer of version 1."""

    def __init__(self, record: folding.Version1Layer) -> None:
        super().__init__()
        self.heads, self.norm = record.heads, record.norm
        self.qkv, self.out = Linear(record.qkv), Linear(record.out)
        self.first, self.second = Linear(record.first), Linear(record.second)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps `(B, P, N, C)` to the same shape, in the memory of the tokens."""
        batch, places, count, width = tokens.shape
        qkv = self.qkv(standardise(tokens, self.norm)).view(batch * places, count, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind()
        context = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        context = context.transpose(1, 2).reshape(batch, places, count, width)
        tokens = self.out.added_to(tokens, context)
        return self.second.added_to(tokens, self.first(standardise(tokens, self.norm)))


class Version2Layer(nn.Module):
    """A transformer layer of version 2."""

    def __init__(self, record: folding.Version2Layer) -> None:
        super().__init__()
        self.norm = record.norm
        self.query, self.key, self.value = Linear(record.query), Linear(record.key), Linear(record.value)
        self.out, self.first, self.second = Linear(record.out), Linear(record.first), Linear(record.second)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps `(B, P, N, C)` to the same shape, in the memory of the tokens."""
        normal = standardise(tokens, self.norm)
        scores = torch.matmul(normal, self.query.weight[0]).softmax(dim=-1).unsqueeze(-2)
        context = self.key(torch.matmul(scores, normal))
        tokens = self.out.added_to(tokens, self.value(normal).mul_(context))
        return self.second.added_to(tokens, self.first(standardise(tokens, self.norm)))


class Version1Block(nn.Module):
    """A MobileViT block and the inverted residual before it."""

    def __init__(self, record: folding.Version1Block) -> None:
        super().__init__()
        self.patch_size, self.norm, self.activation = record.patch_size, record.norm, record.activation
        self.downsampling = Inverted(record.downsampling)
        self.conv_kxk, self.conv_1x1 = Convolution(record.conv_kxk), Convolution(record.conv_1x1)
        self.layers = nn.ModuleList(Version1Layer(layer) for layer in record.layers)
        self.projection = Linear(record.projection)
        self.fusion = None if record.fusion is None else Convolution(record.fusion)

    def forward(self, features: Tensor) -> Tensor:
        """Maps `(B, in, H, W)` to `(B, out, H / stride, W / stride)`."""
        features = self.downsampling(features)
        size = features.shape[-2:]
        local = resize_to_patch_multiple(self.conv_1x1(self.conv_kxk(features)), self.patch_size, align_corners=False)
        height, width = local.shape[-2:]
        tokens = unfold_patches(local, self.patch_size)
        for layer in self.layers:
            tokens = layer(tokens)
        tokens = self.projection(standardise(tokens, self.norm))
        projected = fold_patches(tokens, self.patch_size, height, width)
        if (height, width) != tuple(size):
            projected = F.interpolate(projected, size=size, mode="bilinear", align_corners=False)
        projected = activate(projected, self.activation)
        return projected if self.fusion is None else self.fusion(torch.cat([features, projected], dim=1))


class Version2Block(nn.Module):
    """A MobileViTv2 block and the inverted residual before it."""

    rest: Tensor

    def __init__(self, record: folding.Version2Block) -> None:
        super().__init__()
        self.patch_size, self.odd_map, self.norm = record.patch_size, record.odd_map, record.norm
        self.downsampling = Inverted(record.downsampling)
        self.conv_kxk, self.conv_1x1 = Convolution(record.conv_kxk), Convolution(record.conv_1x1)
        self.layers = nn.ModuleList(Version2Layer(layer) for layer in record.layers)
        self.projection = Linear(record.projection)
        self.register_buffer("rest", torch.from_numpy(record.rest))

    def forward(self, features: Tensor) -> Tensor:
        """Maps `(B, in, H, W)` to `(B, out, H / stride, W / stride)`, made a patch multiple."""
        features = self.downsampling(features)
        if self.odd_map == "apple":
            features = resize_to_patch_multiple(features, self.patch_size, align_corners=True)
        features = self.conv_1x1(self.conv_kxk(features))
        full_height, full_width = features.shape[-2:]
        height, width = (side // self.patch_size * self.patch_size for side in (full_height, full_width))
        if (height, width) != (full_height, full_width):
            features = features[..., :height, :width]
        tokens = unfold_patches(features, self.patch_size)
        for layer in self.layers:
            tokens = layer(tokens)
        features = fold_patches(self.projection(standardise(tokens, self.norm)), self.patch_size, height, width)
        if (height, width) == (full_height, full_width):
            return features
        whole = self.rest[:, None, None].expand(len(features), -1, full_height, full_width).clone()
        whole[..., :height, :width] = features
        return whole


MODULES: dict[type, Any] = {
    folding.Convolution: Convolution,
    folding.InvertedResidual: Inverted,
    folding.Version1Block: Version1Block,
    folding.Version2Block: Version2Block,
}


class FoldedClassifier(nn.Module):
    """A folded network in plain PyTorch.

    Attributes:
        widest: Values of the largest map, for each pixel of an image.
    """

    def __init__(self, network: folding.FoldedNetwork) -> None:
        super().__init__()
        self.features = nn.Sequential(*(MODULES[type(layer)](layer) for layer in network.features))
        self.classifier = None if network.classifier is None else Linear(network.classifier)
        self.widest, pixels = 0.0, 1.0
        for layer in network.features:
            inverted = getattr(layer, "downsampling", layer)
            if isinstance(inverted, folding.InvertedResidual):
                self.widest = max(self.widest, pixels * len(inverted.depthwise.bias))
            pixels /= folding.stride_of(layer) ** 2
            if isinstance(layer, folding.Convolution):
                self.widest = max(self.widest, pixels * len(layer.bias))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Maps images `(B, 3, H, W)` to logits `(B, num_labels)`."""
        pooled = self.features(pixel_values).mean(dim=(-2, -1))
        return pooled if self.classifier is None else self.classifier(pooled)
