"""What every Keras model of this package shares: loading, saving, initialisation, layout of the weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from mobilevit_hub.checkpoints.loading import Loading, number_type
from mobilevit_hub.checkpoints.saving import describe_weights, save_checkpoint
from mobilevit_hub.files import temporary_folder
from mobilevit_hub.hub.find import Checkpoint
from mobilevit_hub.network.architecture import STAGE_NAMES
from mobilevit_hub.network.configuration import config_from_dict
from mobilevit_hub.publishing.upload import push

from .layers import check_pixel_values
from .legacy import open_checkpoint
from .weights import Initializers, Weight, dtype_policy_scope, layers_of, to_checkpoint, to_keras, weights_of


class HubModel(keras.Model):
    """Base of the models: a functional Keras model with strict loading by name and atomic saving."""

    config_class: Any
    base_model_prefix: str
    stage_names = STAGE_NAMES

    def remember(self, config: Any, parts: dict[str, Any], **arguments: Any) -> None:
        """Keeps what saving and rebuilding need, and draws the new weights.

        Args:
            config: What was built.
            parts: Layers and models inside, by their names in the checkpoints.
            arguments: Those of the constructor beside the config.
        """
        self.config = config
        self.parts = parts
        self.arguments = arguments
        self.preprocessing: dict[str, Any] | None = None
        self.draw_weights()

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Runs the network on `(B, H, W, C)`; the keyword arguments are those of `keras.Model`."""
        if isinstance(inputs, Mapping) and "pixel_values" in inputs:  # as image processors return them
            inputs = inputs["pixel_values"]
        check_pixel_values(inputs, self.input_shape)
        return super().__call__(inputs, *args, **kwargs)

    def summary(
        self,
        line_length: int | None = None,
        positions: list[float] | None = None,
        print_fn: Any = None,
        expand_nested: bool = True,
        **options: Any,
    ) -> None:
        """Prints the layers; those of the network inside as well, unless `expand_nested` is false."""
        super().summary(line_length, positions, print_fn, expand_nested=expand_nested, **options)

    def get_config(self) -> dict[str, Any]:
        """What `from_config` rebuilds the model from: the config, the arguments beside it, what is frozen.

        The content of the checkpoint's `preprocessor_config.json` stands there as well, so that a `.keras` file
        says how its images are prepared.
        """
        return {
            "name": self.name,
            "config": self.config.to_dict(),
            **self.arguments,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            "frozen": [name for name, layer in layers_of(self) if not layer.trainable],
            "preprocessing": self.preprocessing,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """Builds the model that `get_config` described."""
        values = {**config}
        network = config_from_dict(values.pop("config"), "model config", expected=cls.config_class)
        frozen, policy = values.pop("frozen", []), values.pop("dtype", None)
        preprocessing = values.pop("preprocessing", None)
        with dtype_policy_scope(keras.dtype_policies.deserialize(policy) if policy else None):
            model = cls(network, **values)
        model.preprocessing = preprocessing
        if frozen:
            for name, layer in layers_of(model):
                layer.trainable = name not in frozen
        return model

    def named_weights(self) -> dict[str, Weight]:
        """Every weight by its name in the checkpoint."""
        return {weight.name: weight for weight in weights_of(self)}

    def checkpoint_tensors(self) -> dict[str, np.ndarray]:
        """Every weight under its name and in its layout in a checkpoint."""
        tensors = {}
        for name, weight in self.named_weights().items():
            array = weight.variable.numpy()
            # Neither NumPy nor our files have bfloat16; float32 holds the same values.
            array = array.astype(np.float32) if array.dtype.name == "bfloat16" else array
            tensors[name] = to_checkpoint(array, weight.kind)
        return tensors

    def freeze_norms(self) -> None:
        """Keeps statistics, scale and shift of every BatchNorm, also in training: for fine-tuning on few photos.

        Compile the model afterwards. `model.backbone.trainable = True` unfreezes them.
        """
        for _, layer in layers_of(self):
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = False

    @staticmethod
    def initializers(config: Any) -> Initializers:
        """How new weights are drawn."""
        raise AttributeError  # pragma: no cover - both subclasses define it

    def draw_weights(self) -> None:
        """Sets convolutions, linear layers and their biases as Apple initialises them; norms start at 1 and 0.

        Models inside are left alone: they have drawn theirs.
        """
        seed = int(keras.ops.convert_to_numpy(keras.random.randint((), 0, 2**31 - 1, dtype="int32")))
        rng, rules = np.random.default_rng(seed), self.initializers(self.config)
        new = {name: part for name, part in self.parts.items() if not isinstance(part, HubModel)}
        weights = {w.name: w for name, part in new.items() for w in weights_of(part, name)}
        for name, weight in weights.items():
            shape = weight.shape
            if weight.kind in ("conv", "depthwise"):
                value = rules.conv(shape, rng)
                bias = weights.get(name.removesuffix("weight") + "bias")
                if bias is not None:
                    bias.variable.assign(rules.conv_bias(bias.variable.shape, np.prod(shape[1:]), rng))
            elif weight.kind == "linear":
                value = rules.linear(shape, rng)
            else:
                continue
            weight.variable.assign(to_keras(value.astype(np.float32), weight.kind))

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike | Checkpoint,
        *,
        config: Any = None,
        num_labels: int | None = None,
        id2label: dict[int, str] | None = None,
        strict: bool = True,
        dtype: Any = None,
        torch_dtype: Any = None,
        attn_implementation: str | None = None,
        image_size: Any = None,
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
            name: An alias (`"mobilevit-s"`), a folder, a Hub id, or what `hub.find.find_checkpoint` found.
            config: Use this config in place of the checkpoint's; it is copied, and excludes `num_labels`,
                `id2label` and `changes`.
            num_labels: Number of classes. When it differs from the checkpoint's, the classifier is new
                and random, which is said once; every other weight is loaded.
            id2label: Names of the classes, by index; also makes a new classifier when they differ.
            strict: When false, what does not fit is left out, and `(model, LoadReport)` is returned.
            dtype: Number type of the weights as in the PyTorch twin, or a Keras dtype policy such as
                `"mixed_bfloat16"`. Default: the global policy.
            torch_dtype: Older name of `dtype`.
            attn_implementation: As in the PyTorch twin, `"sdpa"` or `"eager"`; Keras computes the same by both.
            image_size: Side, or height and width, of the only size the model takes. Default: any size.
            revision: Branch, tag or commit on the Hub.
            token: Access token of the Hub.
            cache_dir: Folder of the Hub's cache.
            local_files_only: Never use the network.
            out_features: For a backbone: the maps to return, by name.
            out_indices: For a backbone: the maps to return, by number (0 is the stem).
            changes: Config fields to change, e.g. `output_stride=16`.

        Raises:
            InputError: An argument is unknown, or contradicts another.
            SourceError, ConfigError, CheckpointError: See `checkpoints.loading.open_checkpoint` and
                `checkpoints.fitting.fit_tensors`.
        """
        loading = Loading.read(
            cls,
            name,
            config=config,
            num_labels=num_labels,
            id2label=id2label,
            attn_implementation=attn_implementation,
            changes=changes if image_size is None or config is not None else {**changes, "image_size": image_size},
            features={"out_features": out_features, "out_indices": out_indices},
            places={
                "revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only
            },
            opener=open_checkpoint,
        )  # fmt: skip
        chosen = {"image_size": image_size, "out_features": out_features, "out_indices": out_indices}
        with dtype_policy_scope(_policy(dtype, torch_dtype)):
            model = cls(loading.config, **{name: value for name, value in chosen.items() if value is not None})
        checkpoint = loading.checkpoint
        if checkpoint.preset is None or checkpoint.preset.folder:  # of others the record counts, not the file
            model.preprocessing = checkpoint.processor_data
        weights = model.named_weights()
        tensors, report = loading.fit({weight.name: weight.shape for weight in weights.values()}, strict=strict)
        while tensors:  # each is let go when it has been copied
            tensor_name, tensor = tensors.popitem()
            weights[tensor_name].variable.assign(to_keras(tensor, weights[tensor_name].kind))
        return model if strict else (model, report)

    def save_pretrained(
        self, save_directory: str | os.PathLike, *, processor: Any = None, card: str | None = None
    ) -> None:
        """Writes `model.safetensors` and `config.json`: old content or new, never a mixture.

        The folder opens in both twins and in stock transformers, and has the bytes that the PyTorch
        twin would write.

        Args:
            save_directory: Folder to write; an earlier save in it is replaced.
            processor: Image processor to write beside the weights.
            card: Text of the model card.

        Raises:
            SaveError: It could not be written; what was there before is kept.
            CheckpointError: The weights contain NaN or infinity.
        """
        tensors = self.checkpoint_tensors()
        describe_weights(self.config, type(self).__name__.removeprefix("TF"), tensors)
        save_checkpoint(save_directory, tensors, self.config, processor=processor, card=card)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        processor: Any = None,
        card: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload the checkpoint with mobilevit_hub",
    ) -> str:
        """Uploads what `save_pretrained` writes, as one commit.

        Args:
            repo_id: `owner/repository`; made when it does not exist.
            processor: Image processor to upload beside the weights.
            card: Text of the model card; without one, a card that the repository has is kept.
            private: Whether a new repository is private. Default: as the account says.
            token: Access token; default: the one of `hf auth login` or `HF_TOKEN`.
            revision: Branch to commit to. Default: `main`.
            commit_message: First line of the commit.

        Returns:
            Address of the commit.
        """
        with temporary_folder() as folder:
            self.save_pretrained(folder, processor=processor, card=card)
            return push(folder, repo_id, private=private, token=token, revision=revision, message=commit_message)

    def fuse(self, image_size: int | tuple[int, int] | None = None) -> Any:
        """The inference form of a classifier, several times faster than `predict`; see `inference.fuse`."""
        from .inference.model import fuse

        return fuse(self, image_size)


def _policy(dtype: Any, torch_dtype: Any) -> Any:
    """The dtype policy of a `from_pretrained`; None: the global one."""
    is_policy = isinstance(dtype, keras.DTypePolicy) or str(dtype).startswith("mixed_")
    if is_policy or (dtype is None and torch_dtype is None):
        return dtype
    return number_type(dtype, torch_dtype)
