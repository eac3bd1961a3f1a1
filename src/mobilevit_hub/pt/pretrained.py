"""What every PyTorch model of this package shares: loading, saving, initialisation, feature maps."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init

from ..checkpoints.loading import Loading, number_type
from ..checkpoints.saving import describe_weights, save_checkpoint
from ..errors import ConfigError, InputError
from ..files import temporary_folder
from ..hub.find import Checkpoint
from ..publishing.upload import push


class HubModel(PreTrainedModel):
    """Base of the models: strict loading by name, atomic saving, and what transformers' tools expect."""

    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: Any, *arguments: Any, **options: Any) -> None:
        if not isinstance(config, self.config_class):
            raise ConfigError(
                f"{type(self).__name__} needs a mobilevit_hub {self.config_class.__name__}, got "
                f"{type(config).__module__.partition('.')[0]}'s {type(config).__name__}; make one by "
                "mobilevit_hub.network.configuration.config_from_dict(config.to_dict()).",
                field="config",
            )
        super().__init__(config, *arguments, **options)

    def wants_dict(self, return_dict: bool | None) -> bool:
        """Whether `forward` returns named fields: the argument, else the config."""
        return bool(self.config.return_dict if return_dict is None else return_dict)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike | Checkpoint,
        *,
        config: Any = None,
        num_labels: int | None = None,
        id2label: dict[int, str] | None = None,
        strict: bool = True,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        attn_implementation: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool = False,
        out_features: list[str] | None = None,
        out_indices: list[int] | None = None,
        **changes: Any,
    ) -> Any:
        """Loads a checkpoint by name; each of its tensors is used once and each weight is filled.

        Args:
            pretrained_model_name_or_path: An alias (`"mobilevit-s"`), a folder, a Hub id, or what
                `hub.find.find_checkpoint` found.
            config: Use this config in place of the checkpoint's; it is copied, and excludes `num_labels`,
                `id2label` and `changes`.
            num_labels: Number of classes. When it differs from the checkpoint's, the classifier is new
                and random, which is said once; every other weight is loaded.
            id2label: Names of the classes, by index; also makes a new classifier when the number or the
                names differ, since other names are other classes. To rename, set `model.config.id2label`.
            strict: When false, what does not fit is left out, and `(model, LoadReport)` is returned.
            dtype: Number type of the weights in memory: float32, float16 or bfloat16. Default: float32,
                whatever the file has.
            torch_dtype: Older name of `dtype`.
            attn_implementation: `"sdpa"` (default) or `"eager"`.
            revision: Branch, tag or commit on the Hub.
            token: Access token of the Hub.
            cache_dir: Folder of the Hub's cache.
            local_files_only: Never use the network.
            out_features: For a backbone: the maps to return, by name.
            out_indices: For a backbone: the maps to return, by number (0 is the stem).
            changes: Config fields to change, e.g. `output_stride=16`.

        Returns:
            The model in evaluation mode.

        Raises:
            InputError: An argument is unknown, or contradicts another.
            SourceError, ConfigError, CheckpointError: See `checkpoints.loading.open_checkpoint` and
                `checkpoints.fitting.fit_tensors`.
        """
        loading = Loading.read(
            cls,
            pretrained_model_name_or_path,
            config=config,
            num_labels=num_labels,
            id2label=id2label,
            attn_implementation=attn_implementation,
            changes=changes,
            features={"out_features": out_features, "out_indices": out_indices},
            places={
                "revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only
            },
        )  # fmt: skip
        number = getattr(torch, number_type(dtype, torch_dtype))
        config = loading.config
        config.architectures = [cls.__name__]
        if attn_implementation is not None:
            config._attn_implementation = attn_implementation
        chosen = {"out_features": out_features, "out_indices": out_indices}
        model = cls(config, **{name: value for name, value in chosen.items() if value is not None})
        state = model.state_dict()
        tensors, report = loading.fit({name: tuple(t.shape) for name, t in state.items()}, strict=strict)
        with torch.no_grad():
            for name, tensor in tensors.items():
                state[name].copy_(torch.from_numpy(tensor))
        model = model.to(number)
        model.name_or_path = config._name_or_path = loading.checkpoint.name
        model.eval()
        return model if strict else (model, report)

    def optimize_for_inference(self, *, dtype: str = "float32", compile: bool | None = None) -> Any:
        """Makes the inference form of a classifier, several times as fast; this model stays as it is.

        Norms are folded, and on a CPU the whole network runs in C++ that is compiled for its processor: once, in some
        seconds, where a C++ compiler is found. Without one it runs in plain PyTorch. Its `report` says what was done.

        Args:
            dtype: `"float32"`, whose logits differ from the model's by rounding only (1e-6 of the largest), or
                `"bfloat16"`: faster on processors with instructions for it, and less exact.
            compile: Whether to run in C++; None: where it is possible.

        Returns:
            An `inference.InferenceModel`: call it with `pixel_values` and take the `logits`.

        Raises:
            InputError: The model has no classifier, `dtype` is another one, or `compile` is true where it is not
                possible; the message says why.
        """
        from .inference.model import InferenceModel

        if not hasattr(self, "folded"):
            raise InputError(
                f"optimize_for_inference() is for models with a classifier, not for {type(self).__name__}.",
                field="model",
            )
        return InferenceModel(self.folded(), device=self.device, dtype=dtype, compile=compile)

    def checkpoint_tensors(self, state_dict: dict[str, Tensor] | None = None) -> dict[str, np.ndarray]:
        """Every weight of the model, or of another state of it, under its name in a checkpoint."""
        tensors = {}
        for name, tensor in (self.state_dict() if state_dict is None else state_dict).items():
            tensor = tensor.detach().cpu()
            # NumPy has no bfloat16; float32 holds the same values.
            tensors[name] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).contiguous().numpy()
        return tensors

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        *,
        processor: Any = None,
        card: str | None = None,
        **options: Any,
    ) -> None:
        """Writes `model.safetensors` and `config.json`: old content or new, never a mixture.

        The folder opens in both twins and in stock transformers.

        Args:
            save_directory: Folder to write; an earlier save in it is replaced.
            is_main_process: Whether this process writes; the others of a distributed run do not.
            state_dict: Weights to write in place of the model's own.
            push_to_hub: Also upload the files of a checkpoint that the folder holds then.
            processor: Image processor to write beside the weights.
            card: Text of the model card.
            options: For `push_to_hub`: `repo_id` (default: the folder's name), `commit_message`,
                `commit_description`, `revision`, `create_pr`, `private` and `token`. Others, which
                transformers' tools pass, have no effect.

        Raises:
            SaveError: It could not be written; what was there before is kept.
            CheckpointError: The weights contain NaN or infinity.
        """
        if not is_main_process:
            return
        tensors = self.checkpoint_tensors(state_dict)
        describe_weights(self.config, type(self).__name__, tensors)
        save_checkpoint(save_directory, tensors, self.config, processor=processor, card=card)
        if push_to_hub:
            _push(save_directory, options.pop("repo_id", None) or Path(save_directory).resolve().name, options)

    def push_to_hub(  # type: ignore[override]
        self, repo_id: str, *, processor: Any = None, card: str | None = None, **options: Any
    ) -> str:
        """Uploads what `save_pretrained` writes, as one commit.

        Args:
            repo_id: `owner/repository`; made when it does not exist.
            processor: Image processor to upload beside the weights.
            card: Text of the model card; without one, a card that the repository has is kept.
            options: `commit_message`, `commit_description`, `revision`, `create_pr`, `private` and `token`, as for
                `publishing.push`. Others, which transformers' tools pass, have no effect.

        Returns:
            Address of the commit.
        """
        with temporary_folder() as folder:
            self.save_pretrained(folder, processor=processor, card=card)
            return _push(folder, repo_id, options)


def _push(folder: str | os.PathLike, repo_id: str, options: dict[str, Any]) -> str:
    """Uploads a folder; transformers' names of the options become ours."""
    names = {"commit_message": "message", "commit_description": "description"}
    names |= {name: name for name in ("revision", "create_pr", "private", "token")}
    given = {ours: options[theirs] for theirs, ours in names.items() if options.get(theirs) is not None}
    return push(os.fspath(folder), repo_id, **given)


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
