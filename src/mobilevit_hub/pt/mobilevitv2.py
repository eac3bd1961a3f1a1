"""MobileViTv2 in PyTorch.

Source: Separable Self-attention for Mobile Vision Transformers, arXiv 2206.02680. Read it top to
bottom: separable attention, transformer layer, MobileViTv2 block, network, heads.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers.modeling_layers import GradientCheckpointingLayer

from ..errors import InputError
from ..network.architecture import downsampling_rules
from ..network.configuration import MobileViTV2Config
from .heads import BackboneMixin, ClassifierMixin, Encoder, FeaturesMixin
from .layers import (
    ConvNormAct,
    InvertedResidual,
    InvertedResidualStage,
    fold_patches,
    resize_to_patch_multiple,
    unfold_patches,
)
from .pretrained import HubModel, init_like_version_2


class TokenLayerNorm(nn.LayerNorm):
    """LayerNorm of each token of a `(B, width, P, N)` map over its channels (`attn_norm="layer"`)."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Keeps the shape `(B, width, P, N)`."""
        return super().forward(tokens.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def attention_norm(config: MobileViTV2Config, width: int) -> nn.Module:
    """The norm of the attention layers.

    Apple's is a GroupNorm with one group: mean and variance over channels, places and patches of an
    image together, which is not a LayerNorm per token.
    """
    if config.attn_norm == "layer":
        return TokenLayerNorm(width, eps=config.layer_norm_eps)
    return nn.GroupNorm(1, width, eps=config.layer_norm_eps)


class SeparableSelfAttention(nn.Module):
    """Separable self-attention (paper, section 3.2): linear in the number of patches.

    One score per token, normalised over the patches, weighs the keys into one context vector per
    place; the context then gates every value.
    """

    def __init__(self, config: MobileViTV2Config, width: int) -> None:
        super().__init__()
        self.width = width
        self.qkv_proj = ConvNormAct(width, 1 + 2 * width, bias=True, norm=False)
        self.attn_dropout = nn.Dropout(config.attn_dropout)
        self.out_proj = ConvNormAct(width, width, bias=True, norm=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps `(B, width, P, N)` to the same shape."""
        query, key, value = self.qkv_proj(tokens).split([1, self.width, self.width], dim=1)
        context_scores = self.attn_dropout(query.softmax(dim=-1))
        context_vector = (key * context_scores).sum(dim=-1, keepdim=True)
        return self.out_proj(F.relu(value) * context_vector)


class FeedForward(nn.Module):
    """Two pointwise convolutions with an activation between them."""

    def __init__(self, config: MobileViTV2Config, width: int) -> None:
        super().__init__()
        hidden = config.ffn_size(width)
        self.conv1 = ConvNormAct(width, hidden, bias=True, norm=False, activation=config.hidden_act)
        self.dropout1 = nn.Dropout(config.ffn_dropout)
        self.conv2 = ConvNormAct(hidden, width, bias=True, norm=False)
        self.dropout2 = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps `(B, width, P, N)` to the same shape."""
        return self.dropout2(self.conv2(self.dropout1(self.conv1(tokens))))


class TransformerLayer(GradientCheckpointingLayer):
    """Pre-norm layer: separable attention, then feed-forward, each added to its input.

    The unit of gradient checkpointing: it holds no BatchNorm, whose statistics a second forward pass
    would move twice.
    """

    def __init__(self, config: MobileViTV2Config, width: int) -> None:
        super().__init__()
        self.layernorm_before = attention_norm(config, width)
        self.attention = SeparableSelfAttention(config, width)
        self.dropout1 = nn.Dropout(config.hidden_dropout_prob)
        self.layernorm_after = attention_norm(config, width)
        self.ffn = FeedForward(config, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps `(B, width, P, N)` to the same shape."""
        tokens = tokens + self.dropout1(self.attention(self.layernorm_before(tokens)))
        return tokens + self.ffn(self.layernorm_after(tokens))


class Transformer(nn.Module):
    """A stack of transformer layers; their final norm belongs to the block."""

    def __init__(self, config: MobileViTV2Config, width: int, num_layers: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(TransformerLayer(config, width) for _ in range(num_layers))

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps `(B, width, P, N)` to the same shape."""
        for layer in self.layer:
            tokens = layer(tokens)
        return tokens


class MobileViTV2Block(nn.Module):
    """An inverted residual that downsamples, then the MobileViTv2 block (paper, section 3.3).

    Unlike version 1: the local convolution is depthwise and takes part in dilation, there is no
    fusion, the projection has no activation, and an odd map is enlarged before the block for good.
    """

    def __init__(self, config: MobileViTV2Config, stage: int) -> None:
        super().__init__()
        i = stage - 3
        in_channels, channels = config.stage_channels[stage - 1 : stage + 1]
        width = config.hidden_sizes[i]
        rule = downsampling_rules(config.output_stride)[i]
        self.patch_size = config.patch_sizes[i]
        self.odd_map = config.odd_map
        self.downsampling_layer = InvertedResidual(
            config, in_channels, channels, stride=rule.stride, dilation=rule.dilation
        )
        self.conv_kxk = ConvNormAct(
            channels,
            channels,
            config.conv_kernel_size,
            dilation=rule.block_dilation,
            groups=channels,
            activation=config.hidden_act,
        )
        self.conv_1x1 = ConvNormAct(channels, width, norm=False)
        self.transformer = Transformer(config, width, config.n_attn_blocks[i])
        self.layernorm = attention_norm(config, width)
        self.conv_projection = ConvNormAct(width, channels)

    def forward(self, features: Tensor) -> Tensor:
        """Maps `(B, in_channels, H, W)` to `(B, channels, H / stride, W / stride)`, made a patch multiple."""
        features = self.downsampling_layer(features)
        if self.odd_map == "apple":
            features = resize_to_patch_multiple(features, self.patch_size, align_corners=True)
        features = self.conv_1x1(self.conv_kxk(features))
        return self.conv_projection(self.global_representation(features))

    def global_representation(self, features: Tensor) -> Tensor:
        """Attention between the patches of a `(B, width, H, W)` map."""
        height, width = features.shape[-2:]
        # Only with odd_map="stock": transformers drops what does not fill a patch and puts zeros there.
        spare_rows, spare_columns = height % self.patch_size, width % self.patch_size
        if spare_rows or spare_columns:
            height, width = height - spare_rows, width - spare_columns
            if min(height, width) == 0:
                raise InputError(
                    f"The feature map is smaller than one patch of {self.patch_size} pixels, and "
                    "odd_map='stock' does not enlarge it; use larger images or odd_map='apple'.",
                    field="pixel_values",
                )
            features = features[..., :height, :width]
        tokens = unfold_patches(features, self.patch_size).permute(0, 3, 1, 2)
        tokens = self.layernorm(self.transformer(tokens)).permute(0, 2, 3, 1)
        features = fold_patches(tokens, self.patch_size, height, width)
        return F.pad(features, (0, spare_columns, 0, spare_rows)) if spare_rows or spare_columns else features


def encoder_stages(config: MobileViTV2Config) -> list[nn.Module]:
    """Stages 1 to 5."""
    channels = config.stage_channels
    return [
        InvertedResidualStage(config, channels[0], channels[1], stride=1, num_blocks=1),
        InvertedResidualStage(config, channels[1], channels[2], stride=2, num_blocks=2),
        *(MobileViTV2Block(config, stage) for stage in (3, 4, 5)),
    ]


class MobileViTV2PreTrainedModel(HubModel):
    """What the MobileViTv2 models share: config class, loading, saving and initialisation."""

    config_class = MobileViTV2Config
    base_model_prefix = "mobilevitv2"
    _no_split_modules = ["InvertedResidualStage", "MobileViTV2Block"]

    def _init_weights(self, module: nn.Module) -> None:
        init_like_version_2(module)


class MobileViTV2Model(FeaturesMixin, MobileViTV2PreTrainedModel):
    """The network without a classifier.

    Args:
        config: What to build.
        expand_output: Whether pooling belongs to it. (Version 2 has no last 1×1 convolution.)
    """

    def __init__(self, config: MobileViTV2Config, expand_output: bool = True) -> None:
        super().__init__(config)
        self.expand_output = expand_output
        self.conv_stem = ConvNormAct(
            config.num_channels, config.stage_channels[0], 3, stride=2, activation=config.hidden_act
        )
        self.encoder = Encoder(encoder_stages(config))
        self.post_init()


class MobileViTV2ForImageClassification(ClassifierMixin, MobileViTV2PreTrainedModel):
    """MobileViTv2 with a linear classifier on the pooled features."""

    base_class = MobileViTV2Model

    def __init__(self, config: MobileViTV2Config) -> None:
        super().__init__(config, config.stage_channels[-1])


class MobileViTV2Backbone(BackboneMixin, MobileViTV2PreTrainedModel):
    """MobileViTv2 as a feature extractor for detection and segmentation frameworks."""

    base_class = MobileViTV2Model
