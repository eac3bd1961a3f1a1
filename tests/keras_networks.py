"""Small Keras networks, weights and images for the tests of the Keras twin; PyTorch is not imported."""

# ruff: noqa: E402 - what is imported below needs Keras, without which the tests are skipped

import os
import subprocess
import sys
import textwrap

import hiding
import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
keras = pytest.importorskip("keras", reason="needs Keras and its backend")

import reference

import mobilevit_hub.tf as twin
from mobilevit_hub.checkpoints.saving import save_checkpoint
from mobilevit_hub.network.configuration import MobileViTConfig, MobileViTV2Config, config_from_dict
from mobilevit_hub.tf.weights import layers_of, to_keras

# TensorFlow and Keras hand NumPy an array in a way that NumPy is about to drop.
QUIET = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
VERSIONS = pytest.mark.parametrize("version", [1, 2])
MODELS = {1: twin.TFMobileViTModel, 2: twin.TFMobileViTV2Model}
CLASSIFIERS = {1: twin.TFMobileViTForImageClassification, 2: twin.TFMobileViTV2ForImageClassification}
BACKBONES = {1: twin.TFMobileViTBackbone, 2: twin.TFMobileViTV2Backbone}
STAGES = ["stem", "stage1", "stage2", "stage3", "stage4", "stage5"]
SMALLEST = {1: "mobilevit_xxs", 2: "mobilevitv2_050"}
TINY = {
    1: {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 12, 16, 16, 24, 32], "num_attention_heads": 2},
    2: {"width_multiplier": 0.25},
}


def version_of(variant):
    return reference.manifest()[variant]["version"]


def tiny_config(version, **fields):
    """A config of version 1 or 2 whose network runs in milliseconds; 7 labels."""
    cls = MobileViTConfig if version == 1 else MobileViTV2Config
    return cls(**{**TINY[version], "n_attn_blocks": [1, 1, 1], "num_labels": 7, **fields})


def awake_tensors(shapes, seed=0):
    """A value for every tensor, BatchNorm statistics too, so that no swapped or forgotten one can hide."""
    rng, tensors = np.random.default_rng(seed), {}
    for name in sorted(shapes):
        shape = shapes[name]
        if name.endswith("num_batches_tracked"):
            tensors[name] = np.array(100)
        elif len(shape) == 1:
            positive = name.endswith(("running_var", "weight"))
            tensors[name] = (rng.random(shape) + (0.5 if positive else -0.5)).astype(np.float32)
        else:
            tensors[name] = (rng.normal(size=shape) * 1.4 / np.prod(shape[1:]) ** 0.5).astype(np.float32)
    return tensors


def shapes_of(model):
    return {name: weight.shape for name, weight in model.named_weights().items()}


def awake(model, seed=0):
    """Fills every weight of a model."""
    weights = model.named_weights()
    for name, value in awake_tensors(shapes_of(model), seed).items():
        weights[name].variable.assign(to_keras(value, weights[name].kind))
    return model


def tiny(version, **fields):
    """An awake tiny classifier."""
    return awake(CLASSIFIERS[version](tiny_config(version, **fields)))


def tiny_folder(folder, version, seed=0, **fields):
    """The folder of an awake tiny classifier."""
    config = tiny_config(version, **fields)
    save_checkpoint(folder, awake_tensors(shapes_of(CLASSIFIERS[version](config)), seed), config)
    return folder


def reference_folder(folder, variant):
    """The folder of a full network with the weights of the rule."""
    save_checkpoint(folder, reference.state_dict(variant), config_from_dict(reference.config(variant)))
    return folder


def images(count, height, width, seed=0, channels=3):
    """Noise in [0, 1], `(count, height, width, channels)` float32."""
    return np.random.default_rng(seed).random((count, height, width, channels), dtype=np.float32)


def numpy(output):
    """Tensors, and dictionaries of them, as arrays."""
    if isinstance(output, dict):
        return {name: numpy(value) for name, value in output.items()}
    return keras.ops.convert_to_numpy(keras.ops.stop_gradient(output))


def run(model, pixels, **options):
    return numpy(model(pixels, training=False, **options))


def channels_last(array):
    return array.transpose(0, 2, 3, 1)


def channels_first(array):
    return array.transpose(0, 3, 1, 2)


def pytorch_class(version, ending="ForImageClassification"):
    """The class of the PyTorch twin."""
    from mobilevit_hub import pt

    return getattr(pt, ("MobileViT", "MobileViTV2")[version - 1] + ending)


def pytorch_run(model, pixels, **options):
    """The output of a PyTorch network for channels-last images, in evaluation mode."""
    import torch

    with torch.no_grad():
        return model.eval()(torch.from_numpy(np.ascontiguousarray(channels_first(pixels))), **options)


def same_values(one, two):
    """Two models hold the same values in every weight."""
    pairs = zip(one.named_weights().items(), two.named_weights().items(), strict=True)
    return all(a == b and np.array_equal(numpy(v.variable + 0), numpy(w.variable + 0)) for (a, v), (b, w) in pairs)


def assert_trained_alike(before, ours, theirs):
    """Two sets of tensors went the same way from the same start.

    A few have gradients of zero but for rounding, such as a shift before a BatchNorm, and AdamW moves them by its
    sign: so it is the statistics, the median and the whole that agree, not each tensor.
    """
    assert before.keys() == ours.keys() == theirs.keys()
    names = [name for name in before if not name.endswith("num_batches_tracked")]
    way, apart = ({n: np.linalg.norm(theirs[n] - x[n]) for n in names} for x in (before, ours))
    share = {name: apart[name] / way[name] for name in names}
    assert max(share[name] for name in names if "running" in name) < 0.02
    assert np.median(list(share.values())) < 0.02
    assert np.linalg.norm(list(apart.values())) < 0.05 * np.linalg.norm(list(way.values()))


def statistics(model):
    """All that is not learnt by gradients, by name."""
    return {n: numpy(w.variable + 0) for n, w in model.named_weights().items() if not w.variable.trainable}


def worst(ours, theirs):
    """The largest relative difference of two gradients; one that is nearly zero counts against 1 % of the mean.

    The gradient of version 1's key bias is exactly zero, and rounding in both.
    """
    assert ours.keys() == theirs.keys()
    norms = {name: np.linalg.norm(value) for name, value in theirs.items()}
    floor = 0.01 * np.mean(list(norms.values()))
    return max((np.linalg.norm(ours[n] - theirs[n]) / (norms[n] + floor), n) for n in ours)


def check_same_step(ours, theirs):
    """Two pairs of gradients and statistics by name, after a step of both twins."""
    gradients, buffers = zip(ours, theirs, strict=True)
    value, name = worst(*gradients)
    assert value < 1e-3, (name, value)
    assert buffers[0].keys() == buffers[1].keys()
    for name in buffers[0]:
        np.testing.assert_allclose(buffers[0][name], buffers[1][name], rtol=1e-5, atol=1e-5, err_msg=name)


def layers(model, kind):
    """All layers of a class, at any depth."""
    found = [layer for _, layer in layers_of(model) if isinstance(layer, kind)]
    assert found
    return found


def fresh_process(code, *arguments, hide=(), **environment):
    """Runs Python code in a process of its own, where the modules in `hide` cannot be imported."""
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    environment[hiding.VARIABLE] = ",".join({*hide, *hiding.HIDDEN})
    done = subprocess.run(
        [sys.executable, "-c", f"import hiding\n{textwrap.dedent(code)}", *map(str, arguments)],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done
