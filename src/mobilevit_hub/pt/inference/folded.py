"""The network folded for inference, in plain PyTorch: fewer layers that compute the same.

Exact rewrites, on a copy of the weights, the same as in the Keras twin's `tf/inference.py`:

- BatchNorm goes into the kernel and bias of its convolution;
- scale and shift of a norm go into the linear layer that reads it;
- version 1: one matrix product for query, key and value, with the scale of the attention in the query;
- version 2: the key is projected after the pooling, where one vector per place is left of N; the query's bias, which
  the softmax does not see, goes.

Maps are channels-last in memory; tokens are `(B, P, N, C)` in both versions. This form is not trained and not saved.
`kernels` computes the same steps in C++.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ..layers import ConvNormAct, InvertedResidual, fold_patches, resize_to_patch_multiple, unfold_patches
from ..mobilevit import MobileViTBlock
from ..mobilevitv2 import MobileViTV2Block, TokenLayerNorm


class Convolution(nn.Module):
    """A convolution with its BatchNorm folded in, and its activation."""

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: ConvNormAct) -> None:
        super().__init__()
        convolution: Any = layer.convolution
        norm: Any = layer.normalization
        weight = convolution.weight.detach().cpu().double()
        bias = weight.new_zeros(len(weight)) if convolution.bias is None else convolution.bias.detach().cpu().double()
        if norm is not None:
            scale = norm.weight.detach().cpu().double() / torch.sqrt(norm.running_var.cpu().double() + norm.eps)
            weight = weight * scale[:, None, None, None]
            bias = norm.bias.detach().cpu().double() + (bias - norm.running_mean.cpu().double()) * scale
        self.register_buffer("weight", weight.float().contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias.float())
        self.activation = layer.activation
        self.stride, self.padding = convolution.stride[0], convolution.padding[0]
        self.dilation, self.groups = convolution.dilation[0], convolution.groups

    def forward(self, features: Tensor) -> Tensor:
        """Maps `(B, in, H, W)` to `(B, out, H / stride, W / stride)`."""
        features = F.conv2d(features, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        return activate(features, self.activation)


class Linear(nn.Module):
    """`x @ weight.T + bias` on the last axis, and its activation."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight.float().contiguous())
        self.register_buffer("bias", bias.float().contiguous())
        self.activation = activation

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps `(…, in)` to `(…, out)`."""
        return activate(F.linear(tokens, self.weight, self.bias), self.activation)

    def added_to(self, tokens: Tensor, inputs: Tensor) -> Tensor:
        """`tokens` + this of `inputs`, without its activation, in the memory of `tokens`: two passes fewer over it."""
        flat = tokens.flatten(0, -2).add_(self.bias)
        return flat.addmm_(inputs.flatten(0, -2), self.weight.t()).view(tokens.shape)


def activate(features: Tensor, activation: nn.Module | None) -> Tensor:
    """Applies an activation, in place where there is one for that."""
    if isinstance(activation, nn.SiLU):
        return F.silu(features, inplace=True)
    if isinstance(activation, nn.ReLU):
        return F.relu(features, inplace=True)
    return features if activation is None else activation(features)


def arrays_of(layer: Any, norm: Any = None) -> tuple[Tensor, Tensor]:
    """Weight `(out, in)` and bias, in float64, of a linear layer or pointwise convolution and the norm before it."""
    if isinstance(layer, ConvNormAct):
        folded = Convolution(layer)
        weight, bias = folded.weight[:, :, 0, 0].double(), folded.bias.double()
    else:
        weight = layer.weight.detach().cpu().double()
        bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().cpu().double()
    if norm is not None:
        bias = bias + weight @ norm.bias.detach().cpu().double()
        weight = weight * norm.weight.detach().cpu().double()
    return weight, bias


class Inverted(nn.Module):
    """Expansion, depthwise convolution and reduction."""

    expand: Convolution | None

    def __init__(self, block: InvertedResidual) -> None:
        super().__init__()
        self.expand = None if block.expand_1x1 is None else Convolution(block.expand_1x1)
        self.depthwise, self.reduce = Convolution(block.conv_3x3), Convolution(block.reduce_1x1)
        self.use_residual = block.use_residual

    def forward(self, features: Tensor) -> Tensor:
        """Maps `(B, in, H, W)` to `(B, out, H / stride, W / stride)`."""
        wide = features if self.expand is None else self.expand(features)
        result = self.reduce(self.depthwise(wide))
        return result.add_(features) if self.use_residual else result


class Standardise(nn.Module):
    """A norm without its scale and shift, on tokens `(B, P, N, C)`.

    Args:
        norm: The norm of the trainable model.
        jointly: Whether an image has one mean and deviation (GroupNorm with one group), or each token its own.
    """

    def __init__(self, norm: Any, *, jointly: bool) -> None:
        super().__init__()
        self.eps, self.jointly = norm.eps, jointly

    def forward(self, tokens: Tensor) -> Tensor:
        """Keeps the shape."""
        if not self.jointly:
            return F.layer_norm(tokens, tokens.shape[-1:], eps=self.eps)
        return F.layer_norm(tokens, tokens.shape[1:], eps=self.eps)


class Version1Layer(nn.Module):
    """A transformer layer of version 1."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        inner = layer.attention.attention
        self.heads = inner.heads
        parts = [arrays_of(part, layer.layernorm_before) for part in (inner.query, inner.key, inner.value)]
        scale = (len(parts[0][1]) // self.heads) ** -0.5
        parts[0] = (parts[0][0] * scale, parts[0][1] * scale)
        self.norm_before = Standardise(layer.layernorm_before, jointly=False)
        self.qkv = Linear(torch.cat([weight for weight, _ in parts]), torch.cat([bias for _, bias in parts]))
        self.out = Linear(*arrays_of(layer.attention.output.dense))
        self.norm_after = Standardise(layer.layernorm_after, jointly=False)
        self.first = Linear(*arrays_of(layer.intermediate.dense, layer.layernorm_after), layer.activation)
        self.second = Linear(*arrays_of(layer.output.dense))

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps `(B, P, N, C)` to the same shape, in the memory of the tokens."""
        batch, places, count, width = tokens.shape
        qkv = self.qkv(self.norm_before(tokens)).view(batch * places, count, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind()
        context = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        context = context.transpose(1, 2).reshape(batch, places, count, width)
        tokens = self.out.added_to(tokens, context)
        return self.second.added_to(tokens, self.first(self.norm_after(tokens)))


class Version2Layer(nn.Module):
    """A transformer layer of version 2."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        jointly, width = not isinstance(layer.layernorm_before, TokenLayerNorm), layer.attention.width
        weight, bias = arrays_of(layer.attention.qkv_proj, layer.layernorm_before)
        self.norm_before = Standardise(layer.layernorm_before, jointly=jointly)
        self.query = Linear(weight[:1], bias[:1])
        self.key = Linear(weight[1 : 1 + width], bias[1 : 1 + width])
        self.value = Linear(weight[1 + width :], bias[1 + width :], nn.ReLU())
        self.out = Linear(*arrays_of(layer.attention.out_proj))
        self.norm_after = Standardise(layer.layernorm_after, jointly=jointly)
        self.first = Linear(*arrays_of(layer.ffn.conv1, layer.layernorm_after), layer.ffn.conv1.activation)
        self.second = Linear(*arrays_of(layer.ffn.conv2))

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps `(B, P, N, C)` to the same shape, in the memory of the tokens."""
        normal = self.norm_before(tokens)
        scores = torch.matmul(normal, self.query.weight[0]).softmax(dim=-1).unsqueeze(-2)
        context = self.key(torch.matmul(scores, normal))
        tokens = self.out.added_to(tokens, self.value(normal).mul_(context))
        return self.second.added_to(tokens, self.first(self.norm_after(tokens)))


class Version1Block(nn.Module):
    """A MobileViT block and the inverted residual before it."""

    def __init__(self, block: MobileViTBlock) -> None:
        super().__init__()
        self.patch_size = block.patch_size
        self.downsampling = Inverted(block.downsampling_layer)
        self.conv_kxk, self.conv_1x1 = Convolution(block.conv_kxk), Convolution(block.conv_1x1)
        self.layers = nn.ModuleList(Version1Layer(layer) for layer in block.transformer.layer)
        self.norm = Standardise(block.layernorm, jointly=False)
        self.projection = Linear(*arrays_of(block.conv_projection, block.layernorm))
        self.activation = block.conv_projection.activation
        self.fusion = None if block.fusion is None else Convolution(block.fusion)

    def forward(self, features: Tensor) -> Tensor:
        """Maps `(B, in, H, W)` to `(B, out, H / stride, W / stride)`."""
        features = self.downsampling(features)
        size = features.shape[-2:]
        local = resize_to_patch_multiple(self.conv_1x1(self.conv_kxk(features)), self.patch_size, align_corners=False)
        height, width = local.shape[-2:]
        tokens = unfold_patches(local, self.patch_size)
        for layer in self.layers:
            tokens = layer(tokens)
        tokens = self.projection(self.norm(tokens))
        projected = fold_patches(tokens, self.patch_size, height, width)
        if (height, width) != tuple(size):
            projected = F.interpolate(projected, size=size, mode="bilinear", align_corners=False)
        projected = activate(projected, self.activation)
        return projected if self.fusion is None else self.fusion(torch.cat([features, projected], dim=1))


class Version2Block(nn.Module):
    """A MobileViTv2 block and the inverted residual before it."""

    def __init__(self, block: MobileViTV2Block) -> None:
        super().__init__()
        self.patch_size, self.odd_map = block.patch_size, block.odd_map
        self.downsampling = Inverted(block.downsampling_layer)
        self.conv_kxk, self.conv_1x1 = Convolution(block.conv_kxk), Convolution(block.conv_1x1)
        self.layers = nn.ModuleList(Version2Layer(layer) for layer in block.transformer.layer)
        self.norm = Standardise(block.layernorm, jointly=not isinstance(block.layernorm, TokenLayerNorm))
        self.projection = Linear(*arrays_of(block.conv_projection, block.layernorm))
        self.rest: Tensor
        self.register_buffer("rest", arrays_of(block.conv_projection)[1].float())
        """What the projection makes of the zeros that transformers leaves where no patch fits (`odd_map="stock"`)."""

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
        features = fold_patches(self.projection(self.norm(tokens)), self.patch_size, height, width)
        if (height, width) == (full_height, full_width):
            return features
        whole = self.rest[:, None, None].expand(len(features), -1, full_height, full_width).clone()
        whole[..., :height, :width] = features
        return whole


def _stage(layer: Any) -> list[nn.Module]:
    if isinstance(layer, MobileViTBlock):
        return [Version1Block(layer)]
    if isinstance(layer, MobileViTV2Block):
        return [Version2Block(layer)]
    return [Inverted(block) for block in layer.layer]


def stride_of(layer: Any) -> int:
    """By how much a part of the network makes the map smaller."""
    if isinstance(layer, Convolution):
        return layer.stride
    return getattr(layer, "downsampling", layer).depthwise.stride


class FoldedClassifier(nn.Module):
    """A classifier as one chain: stem, stages, in version 1 the last convolution, mean, classifier.

    Args:
        model: A `MobileViTForImageClassification` or `MobileViTV2ForImageClassification`.

    Attributes:
        widest: Values of the largest map, for each pixel of an image.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        backbone = getattr(model, model.base_model_prefix)
        features: list[nn.Module] = [Convolution(backbone.conv_stem)]
        for layer in backbone.encoder.layer:
            features += _stage(layer)
        if hasattr(backbone, "conv_1x1_exp"):
            features.append(Convolution(backbone.conv_1x1_exp))
        self.features = nn.Sequential(*features)
        self.classifier = Linear(*arrays_of(model.classifier)) if isinstance(model.classifier, nn.Linear) else None
        self.widest, pixels = 0.0, 1.0
        for layer in features:
            inverted = getattr(layer, "downsampling", layer)
            if isinstance(inverted, Inverted):
                self.widest = max(self.widest, pixels * len(inverted.depthwise.bias))
            pixels /= stride_of(layer) ** 2
            if isinstance(layer, Convolution):
                self.widest = max(self.widest, pixels * len(layer.bias))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Maps images `(B, 3, H, W)` to logits `(B, num_labels)`."""
        pooled = self.features(pixel_values).mean(dim=(-2, -1))
        return pooled if self.classifier is None else self.classifier(pooled)
