"""Quantisation of a float32 `.tflite` file by ai-edge-quantizer. Needs no TensorFlow.

What is safe to quantise was measured on trained MobileViTs. The convolutions stand 8-bit activations whose range is
fixed by calibration. The transformers do not: a variance does not fit on a grid of 256 steps, and their residual
stream has few large values among many small ones; there only the weights of the linear layers are 8-bit, and the
runtime quantises what they read at each call. The usual conversion to integers throughout is less accurate, and
slower: what LiteRT cannot run in integers cuts the graph into pieces.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from mobilevit_hub.errors import ExportError, require

MIN_WEIGHTS = 1024
"""Smaller kernels stay in float: their quantisation costs more time than it saves."""
TRANSFORMER = r"(^|/|;)transformer(_\d+)?/"
"""Names of what a transformer computes; `mobilevit_hub.tf.inference` puts them into this scope."""
SWISH_FLOOR = -6.0
"""Below it 8 bits of a sigmoid are 0 or 1/256. Codes for such inputs of a swish would be taken from the others.

Measured on the embedded checkpoint: error of the logits 4.7 % in place of 7.0 %.
"""
Ranges = dict[str, tuple[float, float]]


def quantize(model: bytes, precision: str, ranges: Ranges | None = None) -> bytes:
    """Quantises a float32 file.

    Args:
        model: The file, as `mobilevit_hub.tf.inference.phone.convert_network` makes it.
        precision: `"fp16"`, weights in float16; `"int8-dynamic"`, weights in 8 bits, activations where they are
            read; `"int8"`, convolutions in 8 bits throughout.
        ranges: For `"int8"`: what `activation_ranges` returned.

    Raises:
        ExportError: The quantiser failed.
    """
    require("ai_edge_quantizer", "export", f"The precision {precision!r}")
    from ai_edge_quantizer.quantizer import Quantizer

    recipe = {"fp16": _float16_recipe, "int8-dynamic": _dynamic_recipe, "int8": _static_recipe}[precision]()
    calibration = None
    if ranges is not None:
        calibration = {
            name: {"min": np.array([[low]], np.float32), "max": np.array([[high]], np.float32)}
            for name, (low, high) in ranges.items()
        }
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():  # its progress bars
            warnings.simplefilter("ignore")  # of the interpreter that it opens
            quantizer = Quantizer(bytearray(model), recipe)
            result = quantizer.quantize(calibration, enable_progress_bar=False, enable_progress_report=False)
    except Exception as error:  # of several classes
        raise ExportError(f"ai-edge-quantizer failed: {' '.join(str(error).split())[:300]}") from error
    return bytes(result.quantized_model)


def activation_ranges(model: bytes, images: Iterable[np.ndarray], *, threads: int = 2) -> Ranges:
    """Smallest and largest value of each activation over all images, for the precision `"int8"`.

    The union over the images: ai-edge-quantizer's own moving average leaves out what few images show.

    Args:
        model: The float32 file.
        images: Arrays as the file takes them, `(1, H, W, 3)`.
        threads: Threads of the interpreter.

    Returns:
        Range by name of the tensor; of what a swish reads, from `SWISH_FLOOR` at the lowest.
    """
    from ai_edge_litert.interpreter import Interpreter

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that tensors which are kept take memory
        interpreter = Interpreter(model_content=model, num_threads=threads, experimental_preserve_all_tensors=True)
        interpreter.allocate_tensors()
    source = interpreter.get_input_details()[0]["index"]
    operations = [op for op in interpreter._get_ops_details() if op["op_name"] != "DELEGATE"]
    details = {tensor["index"]: tensor for tensor in interpreter.get_tensor_details()}
    known = [source, *(i for op in operations for i in op["outputs"])]
    computed = [i for i in known if details[i]["dtype"] is np.float32]
    low, high = dict.fromkeys(computed, np.inf), dict.fromkeys(computed, -np.inf)
    for image in images:
        interpreter.set_tensor(source, image)
        interpreter.invoke()
        for index in computed:
            values = interpreter.get_tensor(index)
            low[index], high[index] = min(low[index], values.min()), max(high[index], values.max())
    for op in operations:
        inputs = op["inputs"]
        if op["op_name"] == "LOGISTIC":
            low[inputs[0]] = min(max(low[inputs[0]], SWISH_FLOOR), high[inputs[0]])
        if op["op_name"] == "CONCATENATION":  # whose inputs get one scale: XNNPACK changes scales up to 256-fold
            least = 1 / 200 * np.array([min(low[i] for i in inputs), max(high[i] for i in inputs)])
            for i in inputs:
                low[i], high[i] = min(low[i], least[0]), max(high[i], least[1])
    return {details[i]["name"]: (float(low[i]), float(high[i])) for i in computed}


def _float16_recipe() -> Any:
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    weights = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
    settings = qtyping.OpQuantizationConfig(
        weight_tensor_config=weights, compute_precision=qtyping.ComputePrecision.FLOAT, explicit_dequantize=True
    )
    return _recipe([(".*", "*", settings, AlgorithmName.FLOAT_CASTING)])


def _dynamic_recipe() -> Any:
    return _recipe(_dynamic_rules(".*"))


def _static_recipe() -> Any:
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    activations = qtyping.TensorQuantizationConfig(num_bits=8, symmetric=False)
    integers = qtyping.OpQuantizationConfig(
        activation_tensor_config=activations,
        weight_tensor_config=_weights(),
        compute_precision=qtyping.ComputePrecision.INTEGER,
        explicit_dequantize=False,
    )
    left_out = [
        ("INPUT", ".*"),
        ("OUTPUT", ".*"),
        ("MEAN", ".*"),
        ("SOFTMAX", ".*"),
        ("GELU", ".*"),
        ("*", TRANSFORMER),
    ]
    return _recipe(
        [
            (".*", "*", integers, AlgorithmName.MIN_MAX_UNIFORM_QUANT),
            *((pattern, kind, None, AlgorithmName.NO_QUANTIZE) for kind, pattern in left_out),
            *_dynamic_rules(".*", ("FULLY_CONNECTED",)),
            *_dynamic_rules(TRANSFORMER),
        ]
    )


def _dynamic_rules(pattern: str, kinds: tuple[str, ...] = ("CONV_2D", "FULLY_CONNECTED")) -> Iterator[tuple]:
    """8-bit weights; the runtime quantises what the layers read. Not of depthwise ones: XNNPACK has no such kernel."""
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    settings = qtyping.OpQuantizationConfig(
        weight_tensor_config=_weights(),
        compute_precision=qtyping.ComputePrecision.INTEGER,
        explicit_dequantize=False,
        min_weight_elements=MIN_WEIGHTS,
    )
    for kind in kinds:
        yield pattern, kind, settings, AlgorithmName.MIN_MAX_UNIFORM_QUANT


def _weights() -> Any:
    """One scale for each output channel: with one for all, depthwise kernels lose whole channels."""
    from ai_edge_quantizer import qtyping

    return qtyping.TensorQuantizationConfig(
        num_bits=8, symmetric=True, granularity=qtyping.QuantGranularity.CHANNELWISE
    )


def _recipe(rules: Iterable[tuple]) -> Any:
    from ai_edge_quantizer.qtyping import TFLOperationName
    from ai_edge_quantizer.recipe_manager import RecipeManager

    manager = RecipeManager()
    for pattern, kind, settings, algorithm in rules:
        manager.add_quantization_config(pattern, TFLOperationName(kind), settings, algorithm)
    return manager.get_quantization_recipe()
