"""Inference of every library: each function returns one from images to logits, `"call"`, and what else is timed.

`"prepare"` lays the images out as a library wants them, once and outside of the time; default: as they are.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measuring import PRODUCT, imported, milliseconds

Functions = dict[str, Callable[..., Any]]
ATTENTION_WIDTH = 144

# --- Keras -----------------------------------------------------------------------------------------------------------


def tf(network: str, weights: Path, threads: int) -> Functions:
    """The Keras twin's inference form."""
    model = keras_twin(network, weights, threads)
    from mobilevit_hub.tf.inference.model import fuse

    form = fuse(model)
    return {"call": lambda x: form(x).numpy(), "predict": form.predict}


def tf_trainable(network: str, weights: Path, threads: int) -> Functions:
    """The Keras twin's trainable model under `tf.function`."""
    model = keras_twin(network, weights, threads)
    import tensorflow

    compiled = tensorflow.function(lambda x: model(x, training=False))
    return {"call": lambda x: compiled(x).numpy()}


def keras_twin(network: str, weights: Path, threads: int) -> Any:
    """The trainable Keras model."""
    import tensorflow

    set_tensorflow_threads(tensorflow, threads)
    from mobilevit_hub import tf as twin

    imported()
    cls = twin.TFMobileViTV2ForImageClassification if "v2" in network else twin.TFMobileViTForImageClassification
    return cls.from_pretrained(weights)


def kecam(network: str, weights: Path, threads: int) -> Functions:
    """keras-cv-attention-models on tf-keras, under `tf.function`."""
    os.environ["TF_USE_LEGACY_KERAS"] = "1"  # before TensorFlow is imported
    import tensorflow

    set_tensorflow_threads(tensorflow, threads)
    model = kecam_model(network, weights)
    compiled = tensorflow.function(lambda x: model(x, training=False))
    return {"call": lambda x: compiled(x).numpy()}


def kecam_model(network: str, weights: Path, size: int = 256) -> Any:
    """The network of keras-cv-attention-models on tf-keras, with the weights of all."""
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    from keras_cv_attention_models import mobilevit

    imported()
    name = {"mobilevit-xxs": "MobileViT_XXS", "mobilevit-xs": "MobileViT_XS", "mobilevit-s": "MobileViT_S"}.get(network)
    name = name or f"MobileViT_V2_{round(float(network.removeprefix('mobilevitv2-')) * 100):03}"
    model = getattr(mobilevit, name)(input_shape=(size, size, 3), pretrained=None, classifier_activation=None)
    tensors = dict(np.load(weights))
    for layer in model.layers:
        for variable in layer.weights:
            variable.assign(tensors.pop(f"{layer.name}/{variable.name.split('/')[-1].removesuffix(':0')}"))
    if tensors:
        raise ValueError(f"{network}: keras-cv-attention-models has no place for {sorted(tensors)}.")
    return model


def set_tensorflow_threads(tensorflow: Any, threads: int) -> None:
    """Threads of one operation, and operations at a time."""
    tensorflow.config.threading.set_intra_op_parallelism_threads(threads)
    tensorflow.config.threading.set_inter_op_parallelism_threads(threads)


# --- PyTorch ---------------------------------------------------------------------------------------------------------


def pt(network: str, weights: Path, threads: int, **options: Any) -> Functions:
    """The PyTorch twin's inference form, compiled where there is a C++ compiler."""
    import torch

    torch.set_num_threads(threads)
    from mobilevit_hub.pt import MobileViTForImageClassification, MobileViTV2ForImageClassification

    imported()
    cls = MobileViTV2ForImageClassification if "v2" in network else MobileViTForImageClassification
    form = cls.from_pretrained(weights).optimize_for_inference(**options)
    return torch_functions(torch, lambda pixels: form(pixels).logits)


def pt_plain(network: str, weights: Path, threads: int) -> Functions:
    """The PyTorch twin's inference form, as where there is no compiler."""
    return pt(network, weights, threads, compile=False)


def pt_bf16(network: str, weights: Path, threads: int) -> Functions:
    """The PyTorch twin's inference form in bfloat16."""
    return pt(network, weights, threads, dtype="bfloat16")


def transformers(network: str, weights: Path, threads: int) -> Functions:
    """Stock transformers, eager, as `from_pretrained` returns it."""
    import torch

    return torch_functions(torch, transformers_model(torch, weights, threads))


def transformers_channels_last(network: str, weights: Path, threads: int) -> Functions:
    """Stock transformers, eager, channels_last."""
    import torch

    model = transformers_model(torch, weights, threads, memory_format=torch.channels_last)
    return torch_functions(torch, model, torch.channels_last)


def transformers_model(torch: Any, weights: Path, threads: int, **options: Any) -> Callable[[Any], Any]:
    """Stock transformers as a function from pixels to logits."""
    from transformers import AutoModelForImageClassification

    torch.set_num_threads(threads)
    imported()
    model = AutoModelForImageClassification.from_pretrained(weights).eval().to(**options)
    return lambda pixels: model(pixels).logits


def timm(network: str, weights: Path, threads: int) -> Functions:
    """timm, eager, channels_last."""
    import torch

    return torch_functions(torch, timm_model(torch, network, weights, threads), torch.channels_last)


def timm_compiled(network: str, weights: Path, threads: int) -> Functions:
    """timm, channels_last, `torch.compile`; every number of images has a graph of its own, which is the fastest."""
    import torch

    model = torch.compile(timm_model(torch, network, weights, threads), dynamic=False)
    return torch_functions(torch, model, torch.channels_last)


def timm_frozen(network: str, weights: Path, threads: int) -> Functions:
    """As `timm_compiled`, with the compiler's `freezing` of weights, which is off where nobody asks for it."""
    os.environ["TORCHINDUCTOR_FREEZING"] = "1"  # before torch is imported
    return timm_compiled(network, weights, threads)


def timm_model(torch: Any, network: str, weights: Path, threads: int) -> Any:
    """A network of timm, channels_last; without a file of weights, as timm initialises it."""
    from torchvision_stand_in import import_without_torchvision

    torch.set_num_threads(threads)
    create_model = import_without_torchvision("timm").create_model
    imported()
    name = network.replace("-", "_")
    if network.startswith("mobilevitv2-"):
        name = f"mobilevitv2_{round(float(network.removeprefix('mobilevitv2-')) * 100):03}"
    model = create_model(name)
    if weights.is_file():
        model.load_state_dict({key: torch.from_numpy(array) for key, array in np.load(weights).items()}, strict=True)
    return model.eval().to(memory_format=torch.channels_last)


def torch_functions(torch: Any, model: Callable[[Any], Any], layout: Any = None) -> Functions:
    """A PyTorch function from pixels `(B, 3, H, W)`, which lie in memory as `layout` says, to logits."""
    layout = layout or torch.contiguous_format

    def call(pixels: Any) -> np.ndarray:
        with torch.inference_mode():
            return model(pixels).float().numpy()

    return {"prepare": lambda x: torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(memory_format=layout), "call": call}


# --- other runtimes --------------------------------------------------------------------------------------------------


def tflite(network: str, weights: Path, threads: int) -> Functions:
    """A `.tflite` file in this package's runtime, image after image."""
    import ai_edge_litert.interpreter  # noqa: F401 - what `Model` runs on

    from mobilevit_hub.tflite.model import Model

    imported()
    return {"call": Model(weights, threads=threads).run}


def tflite_int8(network: str, weights: Path, threads: int) -> Functions:
    """The same with another file."""
    return tflite(network, weights, threads)


def onnxruntime(network: str, weights: Path, threads: int) -> Functions:
    """ONNX Runtime: the batch at once or image after image, whichever is faster."""
    import onnxruntime as runtime

    imported()
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    settings.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.add_session_config_entry("session.force_spinning_stop", "1")  # its threads are quiet after a call
    session = runtime.InferenceSession(str(weights), settings, providers=["CPUExecutionProvider"])
    (name,) = (entry.name for entry in session.get_inputs())

    def whole(x: np.ndarray) -> np.ndarray:
        return session.run(None, {name: x})[0]

    return {"prepare": channels_first, "call": fastest(whole, lambda x: np.concatenate([whole(i[None]) for i in x]))}


def openvino(network: str, weights: Path, threads: int) -> Functions:
    """OpenVINO: the batch at once, image after image, or images side by side, whichever is fastest."""
    import openvino as runtime

    imported()
    core = runtime.Core()

    @functools.lru_cache
    def compiled(count: int, size: int, hint: str) -> Any:
        network = core.read_model(str(weights))
        network.reshape([count, 3, size, size])
        settings = {"PERFORMANCE_HINT": hint, "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        return core.compile_model(network, "CPU", settings)

    def whole(x: np.ndarray) -> np.ndarray:
        return compiled(len(x), x.shape[-1], "LATENCY")(x)[0]

    def side_by_side(x: np.ndarray) -> np.ndarray:
        results: list[Any] = [None] * len(x)
        queue = runtime.AsyncInferQueue(compiled(1, x.shape[-1], "THROUGHPUT"))
        queue.set_callback(lambda request, i: results.__setitem__(i, request.get_output_tensor().data.copy()))
        for i, image in enumerate(x):
            queue.start_async({0: image[None]}, i)
        queue.wait_all()
        return np.concatenate(results)

    one_by_one = lambda x: np.concatenate([whole(image[None]) for image in x])  # noqa: E731
    return {"prepare": channels_first, "call": fastest(whole, one_by_one, side_by_side)}


def channels_first(x: np.ndarray) -> np.ndarray:
    """`(B, H, W, 3)` to `(B, 3, H, W)`."""
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def fastest(whole: Callable[..., Any], *others: Callable[..., Any]) -> Callable[..., Any]:
    """Runs `whole` on one image; on more, what took least time when as many came first."""
    chosen = {1: whole}

    def call(batch: np.ndarray) -> Any:
        if len(batch) not in chosen:
            for function in (whole, *others):  # the first call prepares
                function(batch)
            chosen[len(batch)] = min((whole, *others), key=lambda function: milliseconds(function, batch))
        return chosen[len(batch)](batch)

    return call


# --- no network ------------------------------------------------------------------------------------------------------


def peak(network: str, weights: Path, threads: int) -> Functions:
    """The highest rate of arithmetic: a product of two matrices, whatever the images."""
    import torch

    torch.set_num_threads(threads)
    first, second = torch.randn(2, PRODUCT, PRODUCT)
    low = first.bfloat16(), second.bfloat16()
    return {"float32": lambda x: first @ second, "bfloat16": lambda x: low[0] @ low[1]}


def attention(network: str, weights: Path, threads: int) -> Functions:
    """One attention layer of a version, eager, on the tokens that its first block makes of an image."""
    import torch

    torch.set_num_threads(threads)
    from mobilevit_hub.network.configuration import MobileViTConfig, MobileViTV2Config
    from mobilevit_hub.pt.mobilevit import Attention
    from mobilevit_hub.pt.mobilevitv2 import SeparableSelfAttention

    imported()
    width, patch_area = ATTENTION_WIDTH, 4
    if "v2" in network:
        layer = SeparableSelfAttention(MobileViTV2Config(), width).eval()
        shape = (1, width, patch_area, -1)
    else:
        layer = Attention(MobileViTConfig(), width).eval()
        shape = (patch_area, -1, width)

    def tokens(images: np.ndarray) -> Any:
        return torch.randn(width * (images.shape[1] // 8) ** 2).reshape(shape)

    def call(x: Any) -> Any:
        with torch.inference_mode():
            return layer(x)

    return {"prepare": tokens, "call": call}
