"""What is in a `.tflite` file and what the runtimes of a phone make of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from mobilevit_hub.errors import ExportError

MAX_RANK = 4
REFUSED = {"VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "SPLIT_V", "GATHER_ND", "BROADCAST_TO", "SELECT"}
"""Operations that XNNPACK or a GPU delegate leaves to the slow path, or that do not run at all."""
GPU_OPERATIONS = {
    "ADD", "AVERAGE_POOL_2D", "BATCH_MATMUL", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "DEPTH_TO_SPACE",
    "DEQUANTIZE", "DIV", "EXP", "FULLY_CONNECTED", "GELU", "HARD_SWISH", "LOGISTIC", "MAXIMUM", "MAX_POOL_2D", "MEAN",
    "MINIMUM", "MUL", "PAD", "RELU", "RELU6", "RESHAPE", "RESIZE_BILINEAR", "RSQRT", "SLICE", "SOFTMAX",
    "SPACE_TO_DEPTH", "SPLIT", "SQRT", "SQUARE", "SQUARED_DIFFERENCE", "STRIDED_SLICE", "SUB", "SUM", "TANH",
    "TRANSPOSE",
}  # fmt: skip
"""Operations that the GPU delegate of LiteRT has a parser for, in float."""


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found."""

    size: int
    """Bytes."""
    operations: dict[str, int]
    """How often each operation occurs, the most frequent first."""
    rank: int
    """Highest rank of a tensor."""
    batched: list[str]
    """Shapes of activations whose first axis is not 1."""
    dynamic: bool
    """Whether a size is only known when it runs."""
    custom: list[str]
    """Operations that are not built in."""
    partitions: int
    """Pieces that XNNPACK takes."""
    not_delegated: dict[str, int]
    """Operations that XNNPACK does not take."""
    adjoints: int
    """Matrix products that transpose a factor themselves."""
    int8_weights: int
    """Operations with 8-bit weights."""
    float_operations: dict[str, int]
    """Operations that compute in float, of a file with 8-bit weights."""

    @property
    def count(self) -> int:
        """Number of operations."""
        return sum(self.operations.values())

    @property
    def delegated(self) -> float:
        """Share of the operations that XNNPACK takes."""
        return 1 - sum(self.not_delegated.values()) / self.count

    @property
    def gpu_obstacles(self) -> list[str]:
        """Why a GPU delegate would not take all but the input's CAST; by its rules, not by a run on a phone."""
        if self.int8_weights:
            return [f"{self.int8_weights} operations have 8-bit weights, and a GPU computes in floats; use fp16"]
        unknown = sorted(set(self.operations) - GPU_OPERATIONS - {"CAST"})
        reasons = [f"no GPU kernel for {', '.join(unknown)}"] if unknown else []
        if self.rank > MAX_RANK:
            reasons.append(f"a tensor has rank {self.rank}")
        if self.batched:
            reasons.append(f"the batch is not 1: {', '.join(self.batched[:3])}")
        if self.dynamic:
            reasons.append("a size is not static")
        if self.adjoints:
            reasons.append(f"{self.adjoints} BATCH_MATMUL transpose a factor, which some GPU delegates overlook")
        return reasons

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "bytes": self.size,
            "operations": self.operations,
            "operation_count": self.count,
            "highest_rank": self.rank,
            "xnnpack": {
                "partitions": self.partitions,
                "delegated": round(self.delegated, 4),
                "not_delegated": self.not_delegated,
            },
            "gpu": {"ready": not self.gpu_obstacles, "obstacles": self.gpu_obstacles},
            "int8_weights": self.int8_weights,
            "float_operations": self.float_operations,
        }


def inspect(model: bytes) -> Inspection:
    """Opens a file with XNNPACK and counts.

    Args:
        model: Content of the file. It is opened in this process: only for files that were made here.
    """
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    interpreter = Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    details = {tensor["index"]: tensor for tensor in interpreter.get_tensor_details()}
    entries = interpreter._get_ops_details()
    operations = [op for op in entries if op["op_name"] != "DELEGATE"]
    delegates = [op for op in entries if op["op_name"] == "DELEGATE"]
    computed = {i for op in operations if op["op_name"] != "DEQUANTIZE" for i in op["outputs"]}  # of fp16 weights
    activations = [details[i] for i in computed if i in details]
    histogram = Counter(op["op_name"] for op in operations)
    left = Counter(op["op_name"] for op in _outside_partitions(operations, delegates))
    known = {name for name in vars(BuiltinOperator) if name.isupper()}
    quantized = [op for op in operations if _has_int8_weights(op, details)]
    floats = Counter(op["op_name"] for op in operations if _computes_in_float(op, details))
    return Inspection(
        size=len(model),
        operations=dict(histogram.most_common()),
        rank=max(len(tensor["shape"]) for tensor in details.values()),
        batched=sorted(
            {str(list(map(int, t["shape"]))) for t in activations if len(t["shape"]) and t["shape"][0] != 1}
        ),
        dynamic=any(-1 in tensor["shape_signature"] for tensor in details.values()),
        custom=sorted(set(histogram) - known),
        partitions=len(delegates),
        not_delegated=dict(left.most_common()),
        adjoints=_count_adjoints(model),
        int8_weights=len(quantized),
        float_operations=dict(floats.most_common()) if quantized else {},
    )


def check_form(found: Inspection) -> None:
    """Raises `ExportError` unless a file keeps what `mobilevit_hub.tf.inference.phone` promises of all files."""
    reasons = [f"it has the operations {', '.join(found.custom)}, which are not built in"] if found.custom else []
    if refused := sorted(set(found.operations) & REFUSED):
        reasons.append(f"it has {', '.join(refused)}")
    if found.rank > MAX_RANK:
        reasons.append(f"a tensor has rank {found.rank}")
    if found.batched or found.dynamic:
        reasons.append("its batch or its sizes are not static and 1")
    if set(found.not_delegated) - {"CAST"} or found.partitions != 1:
        left = ", ".join(f"{count} {name}" for name, count in found.not_delegated.items())
        reasons.append(f"XNNPACK takes it in {found.partitions} pieces and leaves {left or 'nothing'}")
    if reasons:
        raise ExportError(f"The file would not run well on a phone: {'; '.join(reasons)}.")


def _outside_partitions(operations: list[dict[str, Any]], delegates: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What no delegate computes: found by walking back from the outputs of each one to its inputs."""
    maker = {int(i): op for op in operations for i in op["outputs"]}
    taken: set[int] = set()
    for delegate in delegates:
        inputs, waiting = set(map(int, delegate["inputs"])), list(map(int, delegate["outputs"]))
        while waiting:
            index = waiting.pop()
            if index in inputs or index not in maker or maker[index]["index"] in taken:
                continue
            taken.add(maker[index]["index"])
            waiting += map(int, maker[index]["inputs"])
    return [op for op in operations if op["index"] not in taken]


def _count_adjoints(model: bytes) -> int:
    from ai_edge_litert.schema_py_generated import BuiltinOptions, ModelT

    operators = ModelT.InitFromPackedBuf(model).subgraphs[0].operators
    products = [op.builtinOptions for op in operators if op.builtinOptionsType == BuiltinOptions.BatchMatMulOptions]
    return sum(bool(options.adjX or options.adjY) for options in products)


def _has_int8_weights(op: dict[str, Any], details: dict[int, Any]) -> bool:
    kinds = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
    return op["op_name"] in kinds and details[op["inputs"][1]]["dtype"] is np.int8


def _computes_in_float(op: dict[str, Any], details: dict[int, Any]) -> bool:
    """Whether its result is float and its weights are not 8-bit; what only moves values is not counted."""
    moves = ("RESHAPE", "TRANSPOSE", "CAST", "QUANTIZE", "DEQUANTIZE", "SPLIT", "SPACE_TO_DEPTH", "DEPTH_TO_SPACE")
    if op["op_name"] in moves or _has_int8_weights(op, details):
        return False
    return details[op["outputs"][0]]["dtype"] is np.float32
