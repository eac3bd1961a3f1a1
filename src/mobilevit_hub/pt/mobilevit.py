"""MobileViT (version 1) in PyTorch.

Source: MobileViT: Light-weight, General-purpose, and Mobile-friendly Vision Transformer,
arXiv 2110.02178. Read it top to bottom: attention, transformer layer, MobileViT block, network, heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
)

from ..architecture import downsampling_rules
from ..configuration import MobileViTConfig
from .layers import (
    ACTIVATIONS,
    ConvNormAct,
    InvertedResidual,
    InvertedResidualStage,
    check_pixel_values,
    fold_patches,
    resize_to_patch_multiple,
    unfold_patches,
)
from .pretrained import BackboneMixin, HubModel, init_like_version_1


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
        if self.config._attn_implementation == "eager":
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


class MobileViTEncoder(nn.Module):
    """Stages 1 to 5."""

    def __init__(self, config: MobileViTConfig) -> None:
        super().__init__()
        channels = config.stage_channels
        self.layer = nn.ModuleList(
            [
                InvertedResidualStage(config, channels[0], channels[1], stride=1, num_blocks=1),
                InvertedResidualStage(config, channels[1], channels[2], stride=2, num_blocks=3),
                *(MobileViTBlock(config, stage) for stage in (3, 4, 5)),
            ]
        )

    def forward(self, features: Tensor) -> list[Tensor]:
        """Maps the stem's `(B, C, H, W)` to the outputs of the five stages."""
        outputs = []
        for stage in self.layer:
            features = stage(features)
            outputs.append(features)
        return outputs


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


class MobileViTModel(MobileViTPreTrainedModel):
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
        self.encoder = MobileViTEncoder(config)
        if expand_output:
            self.conv_1x1_exp = ConvNormAct(widths[5], widths[6], activation=config.hidden_act)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPoolingAndNoAttention | tuple:
        """Computes features of images.

        Args:
            pixel_values: `(B, 3, H, W)` floats in [0, 1], channel order as the checkpoint wants it
                (its image processor knows), at least 32 pixels per side.
            output_hidden_states: Whether to return the outputs of the five stages. Default: config.
            return_dict: Whether to return named fields or a tuple. Default: config.

        Returns:
            `last_hidden_state` `(B, C, h, w)`, `pooler_output` `(B, C)` (mean over h and w), and
            `hidden_states`, the five stage outputs.
        """
        check_pixel_values(pixel_values, self.config.num_channels)
        stages = self.encoder(self.conv_stem(pixel_values))
        features, pooled = stages[-1], None
        if self.expand_output:
            features = self.conv_1x1_exp(features)
            pooled = features.mean(dim=(-2, -1))
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output = BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=features, pooler_output=pooled, hidden_states=tuple(stages) if wanted else None
        )
        return output if self.wants_dict(return_dict) else output.to_tuple()


class MobileViTForImageClassification(MobileViTPreTrainedModel):
    """MobileViT with a linear classifier on the pooled features."""

    def __init__(self, config: MobileViTConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.mobilevit = MobileViTModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout_prob)
        self.classifier = (
            nn.Linear(config.neck_hidden_sizes[-1], config.num_labels) if config.num_labels else nn.Identity()
        )
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ImageClassifierOutputWithNoAttention | tuple:
        """Scores images.

        Args:
            pixel_values: As for `MobileViTModel`.
            labels: `(B,)` class indices; `(B, num_labels)` floats for a multi-label problem.
            output_hidden_states: As for `MobileViTModel`.
            return_dict: As for `MobileViTModel`.

        Returns:
            `loss` when labels were given, `logits` `(B, num_labels)`, `hidden_states`.
        """
        outputs = self.mobilevit(pixel_values, output_hidden_states=output_hidden_states, return_dict=True)
        logits = self.classifier(self.dropout(outputs.pooler_output))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        output = ImageClassifierOutputWithNoAttention(loss=loss, logits=logits, hidden_states=outputs.hidden_states)
        return output if self.wants_dict(return_dict) else output.to_tuple()


class MobileViTBackbone(BackboneMixin, MobileViTPreTrainedModel):
    """MobileViT as a feature extractor for detection and segmentation frameworks."""

    def __init__(
        self, config: MobileViTConfig, out_features: list[str] | None = None, out_indices: list[int] | None = None
    ) -> None:
        super().__init__(config)
        self.mobilevit = MobileViTModel(config, expand_output=False)
        self.select_features(out_features, out_indices)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BackboneOutput | tuple:
        """Returns the maps named by `out_features`, `(B, channels, H / stride, W / stride)` each.

        `output_attentions` is accepted for transformers' sake; attention maps are not returned.
        """
        return self.feature_maps(self.mobilevit, pixel_values, output_hidden_states, return_dict)
