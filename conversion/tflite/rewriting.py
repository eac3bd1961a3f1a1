"""Rewrites of a `.tflite` file that TensorFlow's converter cannot be talked into."""

from __future__ import annotations

import copy

import numpy as np

LAST_TWO = np.array([0, 1, 3, 2], np.int32)


def without_adjoints(model: bytes) -> bytes:
    """Gives each matrix product that transposes its second factor a TRANSPOSE before it; the answers are the same.

    The converter folds such a transposition into the product, where several GPU delegates overlook it and compute
    something else. XNNPACK takes as long for both.

    Args:
        model: A float32 file of `mobilevit_hub.tf.inference.phone.convert_network`, before anything else is done to it.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    unpacked = schema.ModelT.InitFromPackedBuf(model)
    graph = unpacked.subgraphs[0]
    products = [op for op in graph.operators if op.builtinOptionsType == schema.BuiltinOptions.BatchMatMulOptions]
    if not any(op.builtinOptions.adjY for op in products):
        return model
    axes = schema.BufferT()
    axes.data = np.frombuffer(LAST_TWO.tobytes(), np.uint8)
    unpacked.buffers.append(axes)
    order = schema.TensorT()
    order.name, order.shape, order.type = b"last_two_axes", np.array([4], np.int32), schema.TensorType.INT32
    order.buffer = len(unpacked.buffers) - 1
    graph.tensors.append(order)
    order_index = len(graph.tensors) - 1
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in unpacked.operatorCodes]
    operators = []
    for op in graph.operators:
        if op in products and op.builtinOptions.adjY:
            factor = op.inputs[1]
            turned = copy.copy(graph.tensors[factor])
            turned.name, turned.shape, turned.shapeSignature = turned.name + b"/turned", turned.shape[LAST_TWO], None
            turned.buffer = 0  # it is computed
            graph.tensors.append(turned)
            transpose = schema.OperatorT()
            transpose.opcodeIndex = codes.index(schema.BuiltinOperator.TRANSPOSE)
            transpose.inputs = np.array([factor, order_index], np.int32)
            transpose.outputs = np.array([len(graph.tensors) - 1], np.int32)
            transpose.builtinOptionsType = schema.BuiltinOptions.TransposeOptions
            transpose.builtinOptions = schema.TransposeOptionsT()
            operators.append(transpose)
            op.inputs = np.array([op.inputs[0], len(graph.tensors) - 1], np.int32)
            op.builtinOptions.adjY = False
        operators.append(op)
    graph.operators = operators
    builder = flatbuffers.Builder(len(model) + 4096)
    builder.Finish(unpacked.Pack(builder), b"TFL3")
    return bytes(builder.Output())
