"""What both versions put around their blocks: stages in a row, pooled features, a classifier, feature maps.

The classes of `mobilevit` and `mobilevitv2` say which network, these what comes out of it.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
)

from ..inference.folding import FoldedNetwork, fold
from ..network.architecture import STAGE_NAMES, feature_names
from .layers import check_pixel_values
from .pretrained import HubModel


class Encoder(nn.Module):
    """Stages 1 to 5."""

    def __init__(self, stages: list[nn.Module]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(stages)

    def forward(self, features: Tensor) -> list[Tensor]:
        """Maps the stem's `(B, C, H, W)` to the outputs of the five stages."""
        outputs = []
        for stage in self.layer:
            features = stage(features)
            outputs.append(features)
        return outputs


class FeaturesMixin(HubModel):
    """The network without a head: `conv_stem`, `encoder` and, in version 1, `conv_1x1_exp`."""

    expand_output: bool

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
            features = self.conv_1x1_exp(features) if hasattr(self, "conv_1x1_exp") else features
            pooled = features.mean(dim=(-2, -1))
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output = BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=features, pooler_output=pooled, hidden_states=tuple(stages) if wanted else None
        )
        return output if self.wants_dict(return_dict) else output.to_tuple()


class ClassifierMixin(HubModel):
    """A linear classifier on the pooled features."""

    base_class: Any
    """The network without a head, which becomes the attribute `base_model_prefix`."""

    def __init__(self, config: Any, width: int, dropout: float = 0.0) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        setattr(self, self.base_model_prefix, self.base_class(config))
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, config.num_labels) if config.num_labels else nn.Identity()
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
            pixel_values: As for the network without a head.
            labels: `(B,)` class indices; `(B, num_labels)` floats for a multi-label problem.
            output_hidden_states: Whether to return the outputs of the five stages. Default: config.
            return_dict: Whether to return named fields or a tuple. Default: config.

        Returns:
            `loss` when labels were given, `logits` `(B, num_labels)`, `hidden_states`.
        """
        outputs = self.base_model(pixel_values, output_hidden_states=output_hidden_states, return_dict=True)
        logits = self.classifier(self.dropout(outputs.pooler_output))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        output = ImageClassifierOutputWithNoAttention(loss=loss, logits=logits, hidden_states=outputs.hidden_states)
        return output if self.wants_dict(return_dict) else output.to_tuple()

    def folded(self) -> FoldedNetwork:
        """The network folded for inference, from a copy of the weights of now."""
        return fold(self.config, self.checkpoint_tensors())


class BackboneMixin(HubModel):
    """Feature maps by name, with the attributes that detection and segmentation frameworks ask for.

    `out_features` names the maps, `out_indices` counts them, `channels` and `strides` follow the same
    order; `stage_names` lists what can be asked for.
    """

    base_class: Any
    stage_names = STAGE_NAMES

    def __init__(
        self, config: Any, out_features: list[str] | None = None, out_indices: list[int] | None = None
    ) -> None:
        super().__init__(config)
        setattr(self, self.base_model_prefix, self.base_class(config, expand_output=False))
        self.select_features(out_features, out_indices)
        self.post_init()

    def select_features(self, names: list[str] | None, indices: list[int] | None = None) -> None:
        """Chooses the maps that `forward` returns, by name or by number; default: the config's, or the last one."""
        if names is None and indices is None:
            names = getattr(self.config, "out_features", None)
        self.out_features = feature_names(names, indices)
        self.out_indices = [STAGE_NAMES.index(name) for name in self.out_features]
        self.config.out_features = self.out_features  # saved with the config

    @property
    def out_feature_channels(self) -> dict[str, int]:
        """Channels of every map that can be asked for, by name."""
        return dict(zip(STAGE_NAMES, self.config.stage_channels, strict=True))

    @property
    def num_features(self) -> list[int]:
        """Channels of every map that can be asked for, in order."""
        return list(self.config.stage_channels)

    def forward_with_filtered_kwargs(self, *inputs: Any, **options: Any) -> Any:
        """Calls the backbone with those options only that its `forward` knows, as transformers' users of one do."""
        known = inspect.signature(self.forward).parameters
        return self(*inputs, **{k: v for k, v in options.items() if k in known})

    @property
    def channels(self) -> list[int]:
        """Channels of each returned map."""
        return [self.config.stage_channels[i] for i in self.out_indices]

    @property
    def strides(self) -> list[int]:
        """Image pixels per map pixel of each returned map."""
        return [self.config.stage_strides[i] for i in self.out_indices]

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
        check_pixel_values(pixel_values, self.config.num_channels)
        stem = self.base_model.conv_stem(pixel_values)
        maps = [stem, *self.base_model.encoder(stem)]
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output = BackboneOutput(
            feature_maps=tuple(maps[i] for i in self.out_indices), hidden_states=tuple(maps) if wanted else None
        )
        return output if self.wants_dict(return_dict) else output.to_tuple()
