"""What both versions put around their blocks: stages in a row, pooled features, a classifier, feature maps.

The twin of `mobilevit_hub.pt.heads`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras

from mobilevit_hub.inference.folding import FoldedNetwork, fold
from mobilevit_hub.network.architecture import STAGE_NAMES, feature_names

from .layers import ConvNormAct, image_input

if TYPE_CHECKING:
    from .pretrained import HubModel as Mixin
else:  # Keras puts its `Functional` below each base of a model, once per way up: two ways to one base would be a circle
    Mixin = object


class FeaturesMixin(Mixin):
    """The network without a head: a functional Keras model."""

    def __init__(
        self,
        config: Any,
        stages: list[Any],
        last_width: int | None,
        *,
        expand_output: bool,
        image_size: Any,
        **options: Any,
    ) -> None:
        inputs = image_input(config, image_size)
        conv_stem = ConvNormAct(config.stage_channels[0], 3, stride=2, activation=config.hidden_act, name="stem")
        maps = [conv_stem(inputs)]
        for stage in stages:
            maps.append(stage(maps[-1]))
        features = maps[-1]
        outputs = {"last_hidden_state": features}
        layers = {"conv_stem": conv_stem} | {f"encoder.layer.{i}": stage for i, stage in enumerate(stages)}
        if expand_output:
            if last_width is not None:
                layers["conv_1x1_exp"] = ConvNormAct(last_width, activation=config.hidden_act, name="conv_1x1_exp")
                features = layers["conv_1x1_exp"](features)
            pooled = keras.layers.GlobalAveragePooling2D(name="pooling")(features)
            outputs = {"last_hidden_state": features, "pooler_output": pooled}
        super().__init__(inputs=inputs, outputs=outputs, **options)
        self.feature_maps = dict(zip(STAGE_NAMES, maps, strict=True))
        self.remember(config, layers, expand_output=expand_output, image_size=image_size)


class ClassifierMixin(Mixin):
    """A linear classifier on the pooled features, in float32; its output is `logits` `(B, num_labels)`.

    Args:
        config: What to build; without labels the features are the output.
        image_size: Side, or height and width, of the only size it takes; None: any size from 32 pixels.
        options: `name` and other arguments of `keras.Model`.
    """

    base_class: Any
    """The network without a head."""
    dropout_field: str | None = None
    """Field of the config with the dropout before the classifier; None: there is none."""

    def __init__(self, config: Any, image_size: Any = None, **options: Any) -> None:
        backbone = self.base_class(config, image_size=image_size, name=self.base_model_prefix)
        inputs = image_input(config, image_size)
        output = backbone(inputs)["pooler_output"]
        if self.dropout_field:
            output = keras.layers.Dropout(getattr(config, self.dropout_field), name="dropout")(output)
        parts = {self.base_model_prefix: backbone}
        if config.num_labels:
            parts["classifier"] = keras.layers.Dense(config.num_labels, dtype="float32", name="classifier")
            output = parts["classifier"](output)
        super().__init__(inputs=inputs, outputs=output, **options)
        self.backbone = backbone
        self.remember(config, parts, image_size=image_size)

    def folded(self) -> FoldedNetwork:
        """The network folded for inference, from a copy of the weights of now."""
        return fold(self.config, self.checkpoint_tensors())


class BackboneMixin(Mixin):
    """A dictionary of the maps named by `out_features`; `out_indices`, `channels` and `strides` follow their order.

    Args:
        config: What to build.
        out_features: Names among `stem`, `stage1` … `stage5`. Default: `stage5`.
        out_indices: The same by number, 0 to 5.
        image_size: Side, or height and width, of the only size it takes; None: any size from 32 pixels.
        options: `name` and other arguments of `keras.Model`.
    """

    base_class: Any

    def __init__(
        self,
        config: Any,
        out_features: list[str] | None = None,
        out_indices: list[int] | None = None,
        image_size: Any = None,
        **options: Any,
    ) -> None:
        if out_features is None and out_indices is None:
            out_features = getattr(config, "out_features", None)
        names = feature_names(out_features, out_indices)
        network = self.base_class(config, expand_output=False, image_size=image_size, name=self.base_model_prefix)
        super().__init__(inputs=network.inputs[0], outputs={n: network.feature_maps[n] for n in names}, **options)
        self.select_features(config, names)
        self.remember(config, {self.base_model_prefix: network}, out_features=names, image_size=image_size)

    def select_features(self, config: Any, names: list[str]) -> None:
        """Sets `out_features`, `out_indices`, `channels` and `strides`, and the config's `out_features`."""
        self.out_features = config.out_features = names  # saved with the config
        self.out_indices = [STAGE_NAMES.index(name) for name in names]
        self.channels = [config.stage_channels[i] for i in self.out_indices]
        self.strides = [config.stage_strides[i] for i in self.out_indices]
