"""What every PyTorch model of this package shares: loading, saving, initialisation, feature maps."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BackboneOutput

from ..configuration import STAGE_NAMES
from ..errors import InputError


class HubModel(PreTrainedModel):
    """Base of the models."""

    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def wants_dict(self, return_dict: bool | None) -> bool:
        """Whether `forward` returns named fields: the argument, else the config."""
        return bool(self.config.return_dict if return_dict is None else return_dict)


def init_like_version_1(module: nn.Module, std: float) -> None:
    """Initialises one layer as Apple's first release did, the code that made the version 1 weights.

    Convolutions: Kaiming normal by fan-out, which counts all channels of a depthwise convolution.
    Linear layers: normal with `std`. Norms: scale 1, shift 0. Biases: 0.
    """
    if isinstance(module, nn.Conv2d):
        init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        init.trunc_normal_(module.weight, std=std)
    _init_norm_and_bias(module)


def init_like_version_2(module: nn.Module) -> None:
    """Initialises one layer as Apple's later releases really do, the code that made the version 2 weights.

    Their reset function is never applied, so convolutions keep the framework's uniform
    ±1/√fan_in; linear layers are Xavier uniform with bias 0. Norms: scale 1, shift 0.
    """
    if isinstance(module, nn.Conv2d):
        init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        if module.bias is not None:
            bound = 1 / math.sqrt(module.weight[0].numel())
            init.uniform_(module.bias, -bound, bound)
        return
    if isinstance(module, nn.Linear):
        init.xavier_uniform_(module.weight)
    _init_norm_and_bias(module)


def _init_norm_and_bias(module: nn.Module) -> None:
    if isinstance(module, nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm):
        init.ones_(module.weight)
    if isinstance(module, nn.BatchNorm2d):
        init.zeros_(module.running_mean)
        init.ones_(module.running_var)
        init.zeros_(module.num_batches_tracked)
    if getattr(module, "bias", None) is not None:
        init.zeros_(module.bias)


class BackboneMixin:
    """Feature maps by name, with the attributes that detection and segmentation frameworks ask for.

    `out_features` names the maps, `out_indices` counts them, `channels` and `strides` follow the same
    order; `stage_names` lists what can be asked for.
    """

    stage_names = STAGE_NAMES
    config: Any

    def select_features(self, names: list[str] | None) -> None:
        """Chooses the maps that `forward` returns; default: the last one."""
        names = list(names or getattr(self.config, "out_features", None) or [STAGE_NAMES[-1]])
        unknown = [name for name in names if name not in STAGE_NAMES]
        if unknown:
            raise InputError(
                f"out_features has {unknown[0]!r}; expected names from {', '.join(STAGE_NAMES)}.",
                field="out_features",
                found=unknown[0],
            )
        self.out_features = sorted(names, key=STAGE_NAMES.index)
        self.out_indices = [STAGE_NAMES.index(name) for name in self.out_features]

    @property
    def channels(self) -> list[int]:
        """Channels of each returned map."""
        return [self.config.stage_channels[i] for i in self.out_indices]

    @property
    def strides(self) -> list[int]:
        """Image pixels per map pixel of each returned map."""
        return [self.config.stage_strides[i] for i in self.out_indices]

    def feature_maps(
        self, model: Any, pixel_values: Tensor, output_hidden_states: bool | None, return_dict: bool | None
    ) -> BackboneOutput | tuple:
        """Runs stem and stages of `model` and picks the maps."""
        from .layers import check_pixel_values

        check_pixel_values(pixel_values, self.config.num_channels)
        stem = model.conv_stem(pixel_values)
        maps = [stem, *model.encoder(stem)]
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output = BackboneOutput(
            feature_maps=tuple(maps[i] for i in self.out_indices), hidden_states=tuple(maps) if wanted else None
        )
        return output if self.wants_dict(return_dict) else output.to_tuple()  # type: ignore[attr-defined]
