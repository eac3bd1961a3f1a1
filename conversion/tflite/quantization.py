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
from collections.abc import Iterable
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

    calibration = None
    if ranges is not None:
        calibration = {
            name: {"min": np.array([[low]], np.float32), "max": np.array([[high]], np.float32)}
            for name, (low, high) in ranges.items()
        }
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():  # its progress bars
            warnings.simplefilter("ignore")  # of the interpreter that it opens
            quantizer = Quantizer(bytearray(model))
            _add_rules(quantizer, precision)
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


def _add_rules(quantizer: Any, precision: str) -> None:
    """Says what becomes of which operations; of several rules for one of them the last counts."""
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    kind = qtyping.TFLOperationName
    if precision == "fp16":
        quantizer.add_weight_only_config(".*", kind.ALL_SUPPORTED, 16, algorithm_key=AlgorithmName.FLOAT_CASTING)
        return
    dynamic = [(".*", kind.CONV_2D), (".*", kind.FULLY_CONNECTED)]  # not depthwise: XNNPACK has no such kernel
    if precision == "int8":
        quantizer.add_static_config(".*", kind.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8)
        in_float = [(".*", k) for k in (kind.INPUT, kind.OUTPUT, kind.MEAN, kind.SOFTMAX, kind.GELU)]
        for pattern, operation in (*in_float, (TRANSFORMER, kind.ALL_SUPPORTED)):
            quantizer.update_quantization_recipe(pattern, operation, algorithm_key=AlgorithmName.NO_QUANTIZE)
        dynamic = [(".*", kind.FULLY_CONNECTED), (TRANSFORMER, kind.CONV_2D), (TRANSFORMER, kind.FULLY_CONNECTED)]
    # One scale for each output channel: with one for all, depthwise kernels lose whole channels.
    weights = qtyping.TensorQuantizationConfig(8, granularity=qtyping.QuantGranularity.CHANNELWISE)
    settings = qtyping.OpQuantizationConfig(
        weight_tensor_config=weights,
        compute_precision=qtyping.ComputePrecision.INTEGER,  # of what the runtime quantises when it reads it
        min_weight_elements=MIN_WEIGHTS,
    )
    for pattern, operation in dynamic:
        quantizer.update_quantization_recipe(pattern, operation, settings)
