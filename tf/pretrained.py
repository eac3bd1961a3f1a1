"""What every Keras model of this package shares: loading, saving, initialisation, layout of the weights."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import keras
import numpy as np

from mobilevit_hub.architecture import STAGE_NAMES
from mobilevit_hub.checkpoints import check_version, head_changes, load_config, warn_of_new_head
from mobilevit_hub.configuration import config_from_dict
from mobilevit_hub.errors import InputError
from mobilevit_hub.files import temporary_folder
from mobilevit_hub.fitting import fit_tensors
from mobilevit_hub.publishing import push
from mobilevit_hub.saving import describe_weights, save_checkpoint

from .layers import check_pixel_values, children_of
from .legacy import open_checkpoint


class Weight(NamedTuple):
    """A Keras variable and how a checkpoint stores it."""

    name: str
    """Name in the checkpoint, which is PyTorch's."""
    variable: Any
    kind: str
    """`"conv"`, `"depthwise"`, `"linear"` or `"plain"`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape in the checkpoint."""
        shape = tuple(self.variable.shape)
        return tuple(shape[axis] for axis in LAYOUTS[self.kind][1]) or shape


# Kind of weight -> axes that take a checkpoint's array to Keras' layout, and back.
LAYOUTS = {
    "conv": ((2, 3, 1, 0), (3, 2, 0, 1)),  # (O, I, kh, kw) <-> (kh, kw, I, O)
    "depthwise": ((2, 3, 0, 1), (2, 3, 0, 1)),  # (C, 1, kh, kw) <-> (kh, kw, C, 1)
    "linear": ((1, 0), (1, 0)),  # (out, in) <-> (in, out)
    "plain": ((), ()),
}


def to_keras(array: np.ndarray, kind: str) -> np.ndarray:
    """Turns a checkpoint's array into Keras' layout."""
    return array.transpose(LAYOUTS[kind][0]) if LAYOUTS[kind][0] else array


def to_checkpoint(array: np.ndarray, kind: str) -> np.ndarray:
    """Turns a Keras array into the checkpoint's layout."""
    return np.ascontiguousarray(array.transpose(LAYOUTS[kind][1])) if LAYOUTS[kind][1] else array


def weights_of(layer: Any, name: str = "") -> Iterator[Weight]:
    """All weights of a layer under the names of the checkpoints, which are the attribute names.

    An attribute that Keras forbids (`output`) carries an underscore here.
    """
    dot = f"{name}." if name else ""
    if isinstance(layer, keras.layers.BatchNormalization):
        yield Weight(f"{dot}weight", layer.gamma, "plain")
        yield Weight(f"{dot}bias", layer.beta, "plain")
        yield Weight(f"{dot}running_mean", layer.moving_mean, "plain")
        yield Weight(f"{dot}running_var", layer.moving_variance, "plain")
        yield Weight(f"{dot}num_batches_tracked", layer.num_batches_tracked, "plain")
    elif isinstance(layer, keras.layers.DepthwiseConv2D | keras.layers.Conv2D | keras.layers.Dense):
        kinds = {keras.layers.DepthwiseConv2D: "depthwise", keras.layers.Conv2D: "conv", keras.layers.Dense: "linear"}
        kind = next(k for cls, k in kinds.items() if isinstance(layer, cls))
        yield Weight(f"{dot}weight", layer.kernel, kind)
        if layer.use_bias:
            yield Weight(f"{dot}bias", layer.bias, "plain")
    elif hasattr(layer, "gamma"):
        yield Weight(f"{dot}weight", layer.gamma, "plain")
        yield Weight(f"{dot}bias", layer.beta, "plain")
    else:
        for attribute, child in parts_of(layer):
            yield from weights_of(child, dot + attribute)


def parts_of(layer: Any) -> Iterator[tuple[str, Any]]:
    """The layers inside a layer or model, under their names in the checkpoints."""
    return iter(layer.parts.items()) if isinstance(layer, HubModel) else children_of(layer)


def layers_of(layer: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All layers inside a layer or model by their names in the checkpoints, outer ones first."""
    for attribute, child in parts_of(layer):
        yield name + attribute, child
        yield from layers_of(child, f"{name}{attribute}.")


def image_input(config: Any, image_size: Any) -> Any:
    """The symbolic input `pixel_values` `(B, H, W, C)`."""
    sides = tuple(image_size) if isinstance(image_size, list | tuple) else (image_size, image_size)
    known = [side for side in sides if side is not None]
    if len(sides) != 2 or not all(type(side) is int and side >= 32 for side in known):
        raise InputError(
            f"image_size is {image_size!r}; expected None, a side in pixels or (height, width), at least 32 each.",
            field="image_size",
            found=image_size,
        )
    return keras.Input((*sides, config.num_channels), name="pixel_values")


def with_classifier(parts: dict[str, Any], pooled: Any, num_labels: int) -> tuple[dict[str, Any], Any]:
    """Adds a linear classifier, which computes in float32; without labels the features are the output.

    Returns:
        The parts of the model by their names in the checkpoints, and the output.
    """
    if num_labels == 0:
        return parts, pooled
    classifier = keras.layers.Dense(num_labels, dtype="float32", name="classifier")
    return {**parts, "classifier": classifier}, classifier(pooled)


@contextmanager
def dtype_policy_scope(policy: Any) -> Iterator[None]:
    """Makes a Keras dtype policy the global one for a while; None leaves the global one."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy or before)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


# --------------------------------------------------------------------------------------------------
# Initialisation
# --------------------------------------------------------------------------------------------------


class Initializers(NamedTuple):
    """How new weights are drawn: functions of the shape in the checkpoint's layout and a generator."""

    conv: Any
    linear: Any
    conv_bias: Any


def version_1_initializers(std: float) -> Initializers:
    """Apple's first release: Kaiming normal by fan-out, where a depthwise fan-out counts all channels."""
    return Initializers(
        conv=lambda shape, rng: rng.normal(0, np.sqrt(2 / (shape[0] * shape[2] * shape[3])), shape),
        linear=lambda shape, rng: np.clip(rng.normal(0, std, shape), -2, 2),
        conv_bias=lambda shape, fan_in, rng: np.zeros(shape),
    )


def version_2_initializers() -> Initializers:
    """Apple's later releases as they really run: uniform ±1/√fan_in, linear layers Xavier uniform."""
    return Initializers(
        conv=lambda shape, rng: _uniform(1 / np.sqrt(np.prod(shape[1:])), shape, rng),
        linear=lambda shape, rng: _uniform(np.sqrt(6 / sum(shape)), shape, rng),
        conv_bias=lambda shape, fan_in, rng: _uniform(1 / np.sqrt(fan_in), shape, rng),
    )


def _uniform(bound: float, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(-bound, bound, shape)


# --------------------------------------------------------------------------------------------------
# The base of the models
# --------------------------------------------------------------------------------------------------


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
            array = np.asarray(keras.ops.convert_to_numpy(weight.variable))
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
        name: str | os.PathLike,
        *,
        num_labels: int | None = None,
        id2label: dict[int, str] | None = None,
        strict: bool = True,
        dtype: Any = None,
        image_size: Any = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool = False,
        out_features: list[str] | None = None,
        **changes: Any,
    ) -> Any:
        """Loads a checkpoint by name; each of its tensors is used once and each weight is filled.

        Args:
            name: An alias (`"mobilevit-s"`), a folder, or a Hub id.
            num_labels: Number of classes. When it differs from the checkpoint's, the classifier is new
                and random, which is said once; every other weight is loaded.
            id2label: Names of the classes, by index; also makes a new classifier when they differ.
            strict: When false, what does not fit is left out, and `(model, LoadReport)` is returned.
            dtype: A Keras dtype policy such as `"mixed_bfloat16"`. Default: the global one.
            image_size: Side, or height and width, of the only size the model takes. Default: any size.
            revision: Branch, tag or commit on the Hub.
            token: Access token of the Hub.
            cache_dir: Folder of the Hub's cache.
            local_files_only: Never use the network.
            out_features: For a backbone: the maps to return.
            changes: Config fields to change, e.g. `output_stride=16`.

        Raises:
            SourceError, ConfigError, CheckpointError: See `checkpoints.open_checkpoint` and `fit_tensors`.
        """
        checkpoint, own, tensors = open_checkpoint(
            os.fspath(name), revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
        )
        of_head, new_head, headless = head_changes(own, tensors, num_labels, id2label)
        changes |= of_head
        config = load_config(checkpoint, **changes) if changes else own
        check_version(checkpoint, config, cls)
        arguments = {"image_size": image_size} | ({"out_features": out_features} if out_features else {})
        with dtype_policy_scope(dtype):
            model = cls(config, **arguments)
        if checkpoint.preset is None or checkpoint.preset.folder:  # of others the record counts, not the file
            model.preprocessing = checkpoint.processor_data
        weights = model.named_weights()
        tensors, report = fit_tensors(
            tensors,
            {weight.name: weight.shape for weight in weights.values()},
            path=checkpoint.weights_file,
            model_name=cls.__name__,
            prefix=cls.base_model_prefix,
            new_head=new_head,
            strict=strict,
        )
        while tensors:  # each is let go when it has been copied
            tensor_name, tensor = tensors.popitem()
            weights[tensor_name].variable.assign(to_keras(tensor, weights[tensor_name].kind))
        if report.new_head:
            warn_of_new_head(own, config, headless)
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
        from .inference import fuse

        return fuse(self, image_size)

    # Feature extractors ---------------------------------------------------------------------------

    def select_features(self, config: Any, names: list[str]) -> None:
        """Sets `out_features`, `out_indices`, `channels` and `strides` of a backbone."""
        self.out_features = names
        self.out_indices = [STAGE_NAMES.index(name) for name in names]
        self.channels = [config.stage_channels[i] for i in self.out_indices]
        self.strides = [config.stage_strides[i] for i in self.out_indices]


def checked_features(config: Any, names: list[str] | None) -> list[str]:
    """The names of feature maps in the order of the network; default: the config's, else the last one."""
    names = list(names or getattr(config, "out_features", None) or [STAGE_NAMES[-1]])
    unknown = [name for name in names if name not in STAGE_NAMES]
    if unknown:
        raise InputError(
            f"out_features has {unknown[0]!r}; expected names from {', '.join(STAGE_NAMES)}.",
            field="out_features",
            found=unknown[0],
        )
    return sorted(names, key=STAGE_NAMES.index)
