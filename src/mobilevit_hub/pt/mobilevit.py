"""MobileViT (version 1) in PyTorch.

Source: MobileViT: Light-weight, General-purpose, and Mobile-friendly Vision Transformer,
arXiv 2110.02178. Read it top to bottom: attention, transformer layer, MobileViT block, network, heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers.modeling_layers import GradientCheckpointingLayer

from ..network.architecture import downsampling_rules
from ..network.configuration import MobileViTConfig
from .heads import BackboneMixin, ClassifierMixin, Encoder, FeaturesMixin
from .layers import (
    ACTIVATIONS,
    ConvNormAct,
    InvertedResidual,
    InvertedResidualStage,
    fold_patches,
    resize_to_patch_multiple,
    unfold_patches,
)
from .pretrained import HubModel, init_like_version_1


class SelfAttention(nn.Module):
    """Multi-head self-attention between the pixels that share a place in their patches."""

    def __init__(self, config: MobileViTConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.heads = config.heads(width)
        self.query = nn.Linear(width, width, bias=config.qkv_bias)
        self.key = nn.Linear(width, width, bias=config.qkv_bias)
        self.value = nn.Linear(width, width, bias=config.qkv_bias)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps `(B·P, N, width)` to the same shape, before the output projection."""
        query, key, value = (self._split_heads(layer(tokens)) for layer in (self.query, self.key, self.value))
        # A CPU's flash kernel takes up to 8 times as long as plain products for few tokens in bfloat16.
        slow = query.dtype == torch.bfloat16 and query.device.type == "cpu" and query.shape[2] <= 256
        if slow or self.config._attn_implementation == "eager":
            scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
            context = self.dropout(scores.softmax(dim=-1)) @ value
        else:
            dropout = self.dropout.p if self.training else 0.0
            context = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return context.transpose(1, 2).flatten(2)

    def _split_heads(self, tokens: Tensor) -> Tensor:
        """`(B·P, N, width)` to `(B·P, heads, N, width / heads)`."""
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class _Linear(nn.Module):
    """A linear layer with dropout, nested as the published checkpoints name it (`….dense`)."""

    def __init__(self, in_features: int, out_features: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, out_features)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.dropout(self.dense(tokens))


class Attention(nn.Module):
    """Self-attention and its output projection."""

    def __init__(self, config: MobileViTConfig, width: int) -> None:
        super().__init__()
        self.attention = SelfAttention(config, width)
        self.output = _Linear(width, width, config.hidden_dropout_prob)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps `(B·P, N, width)` to the same shape."""
        return self.output(self.attention(tokens))


class TransformerLayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer: attention, then feed-forward, each added to its input.

    The unit of gradient checkpointing: it holds no BatchNorm, whose statistics a second forward pass
    would move twice.
    """

    def __init__(self, config: MobileViTConfig, width: int) -> None:
        super().__init__()
        hidden = int(width * config.mlp_ratio)
        self.attention = Attention(config, width)
        self.intermediate = _Linear(width, hidden, config.ffn_dropout)
        self.activation = ACTIVATIONS[config.hidden_act]()
        self.output = _Linear(hidden, width, config.hidden_dropout_prob)
        self.layernorm_before = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.layernorm_after = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps `(B·P, N, width)` to the same shape."""
        tokens = tokens + self.attention(self.layernorm_before(tokens))
        hidden = self.intermediate.dense(self.layernorm_after(tokens))
        hidden = self.intermediate.dropout(self.activation(hidden))
        return tokens + self.output(hidden)


class Transformer(nn.Module):
    """A stack of transformer layers; their final LayerNorm belongs to the block."""

    def __init__(self, config: MobileViTConfig, width: int, num_layers: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(TransformerLayer(config, width) for _ in range(num_layers))

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps `(B·P, N, width)` to the same shape."""
        for layer in self.layer:
            tokens = layer(tokens)
        return tokens


class MobileViTBlock(nn.Module):
    """An inverted residual that downsamples, then the MobileViT block (paper, section 3.1).

    Local representation by convolutions, global representation by a transformer over patches,
    projection, and fusion with the block's input. The convolutions are never dilated.
    """

    def __init__(self, config: MobileViTConfig, stage: int) -> None:
        super().__init__()
        i = stage - 3
        in_channels, channels = config.stage_channels[stage - 1 : stage + 1]
        width, kernel, act = config.hidden_sizes[i], config.conv_kernel_size, config.hidden_act
        rule = downsampling_rules(config.output_stride)[i]
        self.patch_size = config.patch_sizes[i]
        self.downsampling_layer = InvertedResidual(
            config, in_channels, channels, stride=rule.stride, dilation=rule.dilation
        )
        self.conv_kxk = ConvNormAct(channels, channels, kernel, activation=act)
        self.conv_1x1 = ConvNormAct(channels, width, norm=False)
        self.transformer = Transformer(config, width, config.n_attn_blocks[i])
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.conv_projection = ConvNormAct(width, channels, activation=act)
        self.fusion = ConvNormAct(2 * channels, channels, kernel, activation=act) if config.use_fusion else None

    def forward(self, features: Tensor) -> Tensor:
        """Maps `(B, in_channels, H, W)` to `(B, channels, H / stride, W / stride)`."""
        features = self.downsampling_layer(features)
        local = self.conv_1x1(self.conv_kxk(features))
        projected = self.conv_projection(self.global_representation(local))
        if self.fusion is None:
            return projected
        return self.fusion(torch.cat([features, projected], dim=1))

    def global_representation(self, features: Tensor) -> Tensor:
        """Attention between the patches of a `(B, width, H, W)` map.

        A map that is not a multiple of the patch is enlarged here and brought back at the end.
        """
        size = features.shape[-2:]
        features = resize_to_patch_multiple(features, self.patch_size, align_corners=False)
        height, width = features.shape[-2:]
        tokens = unfold_patches(features, self.patch_size)
        batch, area = tokens.shape[:2]
        tokens = self.layernorm(self.transformer(tokens.flatten(0, 1)))
        features = fold_patches(tokens.unflatten(0, (batch, area)), self.patch_size, height, width)
        if (height, width) != tuple(size):
            features = F.interpolate(features, size=size, mode="bilinear", align_corners=False)
        return features


def encoder_stages(config: MobileViTConfig) -> list[nn.Module]:
    """Stages 1 to 5."""
    channels = config.stage_channels
    return [
        InvertedResidualStage(config, channels[0], channels[1], stride=1, num_blocks=1),
        InvertedResidualStage(config, channels[1], channels[2], stride=2, num_blocks=3),
        *(MobileViTBlock(config, stage) for stage in (3, 4, 5)),
    ]


class MobileViTPreTrainedModel(HubModel):
    """What the MobileViT models share: config class, loading, saving and initialisation."""

    config_class = MobileViTConfig
    base_model_prefix = "mobilevit"
    _no_split_modules = ["InvertedResidualStage", "MobileViTBlock"]

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        # `SelfAttention` reads the choice at each call; transformers guesses from the source text that it does not.
        return True

    def _init_weights(self, module: nn.Module) -> None:
        init_like_version_1(module, self.config.initializer_range)


class MobileViTModel(FeaturesMixin, MobileViTPreTrainedModel):
    """The network without a classifier.

    Args:
        config: What to build.
        expand_output: Whether the last 1×1 convolution and the pooling belong to it.
    """

    def __init__(self, config: MobileViTConfig, expand_output: bool = True) -> None:
        super().__init__(config)
        self.expand_output = expand_output
        widths = config.neck_hidden_sizes
        self.conv_stem = ConvNormAct(config.num_channels, widths[0], 3, stride=2, activation=config.hidden_act)
        self.encoder = Encoder(encoder_stages(config))
        if expand_output:
            self.conv_1x1_exp = ConvNormAct(widths[5], widths[6], activation=config.hidden_act)
        self.post_init()


class MobileViTForImageClassification(ClassifierMixin, MobileViTPreTrainedModel):
    """MobileViT with a linear classifier on the pooled features."""

    base_class = MobileViTModel

    def __init__(self, config: MobileViTConfig) -> None:
        super().__init__(config, config.neck_hidden_sizes[-1], config.classifier_dropout_prob)


class MobileViTBackbone(BackboneMixin, MobileViTPreTrainedModel):
    """MobileViT as a feature extractor for detection and segmentation frameworks."""

    base_class = MobileViTModel
