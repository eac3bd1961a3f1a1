"""The inference form of a PyTorch classifier: what `model.optimize_for_inference()` returns."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import InputError
from ...inference.folding import FoldedNetwork
from ..layers import check_pixel_values
from .folded import FoldedClassifier
from .kernels import Kernels
from .plan import unsupported

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MAP_BYTES = 16 << 20
"""Plain PyTorch computes as many images at a time on a CPU as have their widest maps in this, or one: more would push
each other out of its caches, fewer are too little work for an operation."""


class InferenceOutput(NamedTuple):
    """What an `InferenceModel` returns."""

    logits: Tensor
    """`(B, num_labels)` in float32."""


class InferenceModel:
    """A classifier for inference on CPUs. Its weights are a copy: the model it was made from stays as it is.

    Call it with `pixel_values` `(B, 3, H, W)`, floats in [0, 1] in the channel order of the checkpoint, and get an
    output with `logits` `(B, num_labels)` in float32. It takes the image sizes that the model takes; the
    first image of a size waits some milliseconds for its plan. `torch.set_num_threads` says how many threads it uses;
    safe to call from several threads, whose calls take turns.

    Args:
        network: The folded network: `folded()` of a classifier, or what `inference.folding.fold` makes of a checkpoint.
        device: Where plain PyTorch computes.
        dtype: As for `optimize_for_inference`.
        compile: As for `optimize_for_inference`.

    Attributes:
        labels: Names of the labels by index.
        report: What was done, a line each.
    """

    def __init__(
        self, network: FoldedNetwork, *, device: Any = "cpu", dtype: str = "float32", compile: bool | None = None
    ) -> None:
        name = str(dtype).removeprefix("torch.")
        if name not in DTYPES:
            raise InputError(f"dtype is {dtype!r}; expected float32 or bfloat16.", field="dtype", found=dtype)
        self._config, self.dtype, self._device = network.config, DTYPES[name], torch.device(device)
        self.labels: dict[int, str] = network.config.id2label
        self.report = [
            "every BatchNorm in the convolution before it, scale and shift of every norm in the linear layer after it",
            "query, key and value in one product"
            if network.config.model_type == "mobilevit"
            else "the key projected after the pooling, where one vector a place is left of the patches",
        ]
        self._kernels: Kernels | None = None
        reason = self._reason(network, compile)
        if reason is None:
            try:
                self._kernels = Kernels(network, self.dtype is torch.bfloat16)
            except OSError as error:
                reason = str(error)
        if reason is None:
            self.report.append("all of it in C++, compiled for this processor; wide maps never leave the caches")
            if self.dtype is torch.bfloat16:
                self.report.append("products of bfloat16, added up in float32")
            return
        if compile:
            raise InputError(f"compile is True, but {reason}.", field="compile", found=compile)
        self._plain = FoldedClassifier(network).to(self._device, self.dtype)
        size = f"{MAP_BYTES >> 20} MB"
        self.report.append(f"plain PyTorch, channels_last, on a CPU by images with maps of {size}, since {reason}")

    def _reason(self, network: FoldedNetwork, compile: bool | None) -> str | None:
        """Why the kernels are not used, as far as that is known before they are compiled."""
        if compile is False:
            return "compile is False"
        if self._device.type != "cpu":
            return f"the model is on {self._device}"
        return unsupported(network)

    @property
    def config(self) -> Any:
        """The config of the network."""
        from ...network.configuration import full_config  # which imports transformers

        return full_config(self._config)

    @property
    def compiled(self) -> bool:
        """Whether it runs in C++."""
        return self._kernels is not None

    def __call__(self, pixel_values: Tensor) -> InferenceOutput:
        """Scores images.

        Raises:
            InputError: `pixel_values` is not a batch of floating point images that the model takes.
        """
        check_pixel_values(pixel_values, self._config.num_channels)
        with torch.inference_mode():
            if self._kernels is not None:
                logits = self._kernels(pixel_values.detach().to("cpu", torch.float32))
            else:
                pixels = pixel_values.to(self._device, self.dtype, memory_format=torch.channels_last)
                parts = pixels.split(self._at_once(pixels))
                logits = torch.cat([self._plain(part) for part in parts]).float()
        return InferenceOutput(logits)

    def _at_once(self, pixels: Tensor) -> int:
        """How many images plain PyTorch computes at a time."""
        if pixels.device.type != "cpu":
            return len(pixels)
        largest_map = 4 * self._plain.widest * pixels.shape[-2] * pixels.shape[-1]
        return max(int(MAP_BYTES / largest_map), 1)
