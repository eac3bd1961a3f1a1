"""Quantised `.tflite` files, read by LiteRT's own schema: which numbers are 8-bit, on which grid, by which ranges."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from keras_networks import QUIET, fresh_process, keras, run, tiny

pytest.importorskip("tensorflow")
pytest.importorskip("ai_edge_litert")
if keras.backend.backend() != "tensorflow":
    pytest.skip("the conversion needs Keras on TensorFlow", allow_module_level=True)

from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from test_tflite_model import COUNT, expected, graph, network, packed, weights

from mobilevit_hub.conversion.tflite.inspection import check_form, inspect
from mobilevit_hub.conversion.tflite.measurement import check_photos
from mobilevit_hub.conversion.tflite.quantization import MIN_WEIGHTS, SWISH_FLOOR, activation_ranges, quantize
from mobilevit_hub.errors import ExportError, MissingDependencyError
from mobilevit_hub.tf.inference.phone import convert_network

pytestmark = [pytest.mark.export, QUIET]
SIDE = 64
LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
MOVES = ("RESHAPE", "TRANSPOSE", "SPLIT", "SPACE_TO_DEPTH", "DEPTH_TO_SPACE", "RESIZE_BILINEAR", "PAD")
NAMES = {value: name for name, value in vars(schema.BuiltinOperator).items() if name.isupper()}
TYPES = {value: name for name, value in vars(schema.TensorType).items() if name.isupper()}
ARRAYS = {"FLOAT32": "<f4", "FLOAT16": "<f2", "INT8": "i1", "INT32": "<i4"}


class File:
    """A `.tflite` file as lists and arrays."""

    def __init__(self, content):
        self.model, self.content = schema.ModelT.InitFromPackedBuf(content), content
        (subgraph,) = self.model.subgraphs
        self.tensors = subgraph.tensors
        self.operators = [(NAMES[self.model.operatorCodes[op.opcodeIndex].builtinCode],
                           [int(i) for i in op.inputs], [int(i) for i in op.outputs])
                          for op in subgraph.operators]  # fmt: skip

    def type(self, index):
        return TYPES[self.tensors[index].type]

    def array(self, index):
        """The values of a constant, which lie in the FlatBuffer or, in a large file, behind it."""
        tensor = self.tensors[index]
        buffer = self.model.buffers[tensor.buffer]
        data = self.content[buffer.offset : buffer.offset + buffer.size] if buffer.data is None else bytes(buffer.data)
        return np.frombuffer(data, ARRAYS[self.type(index)]).reshape(tensor.shape)

    def layers(self):
        """`(kind, input, weights, bias, output, whether a transformer has it)`, in the order of the graph."""
        inside = self.inside()
        return [(kind, *inputs, outputs[0], number in inside)
                for number, (kind, inputs, outputs) in enumerate(self.operators) if kind in LAYERS]  # fmt: skip

    def inside(self):
        """Operations between the unfolding of patches and their folding: the transformers."""
        reached, inside = set(), set()
        for number, (kind, inputs, outputs) in enumerate(self.operators):
            if kind == "SPACE_TO_DEPTH" or reached & set(inputs):
                inside.add(number)
                if kind != "DEPTH_TO_SPACE":
                    reached |= set(outputs)
        return inside


def photos():
    """Four real ones."""
    return [photo[None, ::2, ::2] for photo in check_photos()[::8]]


@functools.cache
def made_of(version):
    """A network, the ranges of its activations and its files of all precisions."""
    model = tiny(version, num_labels=40)
    content = convert_network(model.folded(), (SIDE, SIDE), input_type="uint8", output="logits", channel_order="rgb")
    ranges = activation_ranges(content, photos())
    files = {"fp32": content, "fp16": quantize(content, "fp16"), "int8-dynamic": quantize(content, "int8-dynamic"),
             "int8": quantize(content, "int8", ranges)}  # fmt: skip
    return model, ranges, {precision: File(file) for precision, file in files.items()}


@pytest.fixture(params=[1, 2], ids=["version 1", "version 2"])
def made(request):
    return made_of(request.param)


def answers(file, pixels):
    interpreter = Interpreter(model_content=file.content, num_threads=1)
    interpreter.allocate_tensors()
    run_file = interpreter.get_signature_runner()
    return np.concatenate([run_file(image=image)["logits"] for image in pixels])


# --- what is quantised -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "limit"), [("fp16", 1e-2), ("int8-dynamic", 0.1), ("int8", 0.25)])
def test_answers_stay_close_and_the_form_is_kept(made, precision, limit):
    model, _, files = made
    logits = run(model, np.concatenate(photos()).astype(np.float32) / np.float32(255))
    error = answers(files[precision], photos()) - logits
    assert 0 < np.linalg.norm(error) / np.linalg.norm(logits - logits.mean(1, keepdims=True)) < limit
    check_form(inspect(files[precision].content))
    sizes = [len(files[name].content) for name in ("fp32", "fp16", "int8-dynamic")]
    assert sizes == sorted(sizes, reverse=True)


def test_fp16_rounds_every_weight_and_nothing_else(made):
    _, _, files = made
    half, whole = files["fp16"], files["fp32"]
    assert [kind for kind, *_ in half.operators if kind != "DEQUANTIZE"] == [kind for kind, *_ in whole.operators]
    source = {outputs[0]: inputs[0] for kind, inputs, outputs in half.operators if kind == "DEQUANTIZE"}
    for (_, _, kernel, bias, _, _), (_, _, exact, exact_bias, _, _) in zip(half.layers(), whole.layers(), strict=True):
        np.testing.assert_array_equal(half.array(source[kernel]), whole.array(exact).astype(np.float16))
        assert half.type(source[kernel]) == "FLOAT16"
        np.testing.assert_array_equal(half.array(bias), whole.array(exact_bias))
    assert {half.type(i) for _, _, outputs in half.operators for i in outputs} == {"FLOAT32"}


def has_one_scale_a_channel(file, kind, kernel, exact):
    """8-bit weights are the exact ones over the largest of their channel, times 127, rounded."""
    steps, axis = file.tensors[kernel].quantization, 3 if kind == "DEPTHWISE_CONV_2D" else 0
    assert steps.quantizedDimension == axis and not any(steps.zeroPoint)
    largest = np.abs(exact).max(tuple(i for i in range(exact.ndim) if i != axis))
    np.testing.assert_allclose(steps.scale, largest / 127, rtol=1e-5)
    shape = [-1 if i == axis else 1 for i in range(exact.ndim)]
    np.testing.assert_allclose(file.array(kernel), exact / steps.scale.reshape(shape), atol=0.501)


def test_dynamic_has_8_bit_weights_where_they_pay(made):
    _, _, files = made
    file, whole, found = files["int8-dynamic"], files["fp32"], set()
    for (kind, given, kernel, bias, result, _), (_, _, exact, *_) in zip(file.layers(), whole.layers(), strict=True):
        array = whole.array(exact)
        eight = kind != "DEPTHWISE_CONV_2D" and array.size >= MIN_WEIGHTS
        found.add((kind, eight))
        assert [file.type(i) for i in (given, bias, result)] == ["FLOAT32"] * 3
        assert file.type(kernel) == ("INT8" if eight else "FLOAT32")
        if eight:
            has_one_scale_a_channel(file, kind, kernel, array)
        else:
            np.testing.assert_array_equal(file.array(kernel), array)
    assert {("CONV_2D", True), ("CONV_2D", False), ("DEPTHWISE_CONV_2D", False), ("FULLY_CONNECTED", True)} == found
    assert inspect(file.content).int8_weights == sum(file.type(layer[2]) == "INT8" for layer in file.layers())


def test_int8_computes_convolutions_in_8_bits_and_transformers_in_float(made):
    _, _, files = made
    file, whole = files["int8"], files["fp32"]
    for (kind, given, kernel, bias, result, inside), (_, _, exact, *_) in zip(
        file.layers(), whole.layers(), strict=True
    ):
        array = whole.array(exact)
        if kind == "FULLY_CONNECTED" or inside:
            eight = array.size >= MIN_WEIGHTS
            assert [file.type(i) for i in (given, bias, result)] == ["FLOAT32"] * 3
        else:
            eight = True
            assert [file.type(i) for i in (given, bias, result)] == ["INT8", "INT32", "INT8"]
            scale = file.tensors[given].quantization.scale * file.tensors[kernel].quantization.scale
            np.testing.assert_allclose(file.tensors[bias].quantization.scale, scale, rtol=1e-6)
        assert file.type(kernel) == ("INT8" if eight else "FLOAT32")
        if eight:
            has_one_scale_a_channel(file, kind, kernel, array)


def test_int8_leaves_norms_sums_and_averages_of_transformers_in_float(made):
    _, _, files = made
    file = files["int8"]
    inside, layers = file.inside(), {i for i, (kind, *_) in enumerate(file.operators) if kind in LAYERS}
    kinds = {kind for number, (kind, *_) in enumerate(file.operators) if number in inside}
    assert {"RSQRT", "ADD", "SOFTMAX", "BATCH_MATMUL", "MEAN", "MUL"} < kinds
    for number, (kind, inputs, outputs) in enumerate(file.operators):
        types = {file.type(i) for i in (*inputs, *outputs)} - {"INT32"}  # without sizes, axes and biases
        if number in inside - layers or kind in ("MEAN", "SOFTMAX"):  # the layers have a test of their own
            assert types == {"FLOAT32"}, kind
        elif kind not in ("CAST", "QUANTIZE", "DEQUANTIZE", *LAYERS, *MOVES):
            assert types == {"INT8"}, kind
    assert {kind for kind, *_ in file.operators} >= {"QUANTIZE", "DEQUANTIZE", "LOGISTIC"}
    counted = inspect(file.content).float_operations
    assert counted["RSQRT"] == sum(kind == "RSQRT" for kind, *_ in file.operators)
    assert "DEPTHWISE_CONV_2D" not in counted and "DEPTHWISE_CONV_2D" in inspect(file.content).operations


def test_the_grid_of_an_activation_spans_its_range(made):
    _, ranges, files = made
    file, checked = files["int8"], 0
    joined = {i for kind, inputs, _ in file.operators if kind == "CONCATENATION" for i in inputs}  # have one grid
    for kind, _, outputs in file.operators:
        tensor = file.tensors[outputs[0]]
        if kind in (*LAYERS, "ADD", "MUL") and file.type(outputs[0]) == "INT8" and outputs[0] not in joined:
            (scale,), (zero,) = tensor.quantization.scale, tensor.quantization.zeroPoint
            low, high = ranges[tensor.name.decode()]
            grid = scale * (-128 - zero), scale * (127 - zero)
            assert abs(grid[0] - min(low, 0)) <= scale and abs(grid[1] - max(high, 0)) <= scale
            checked += 1
    assert checked > 20


# --- ranges ----------------------------------------------------------------------------------------------------------


def test_ranges_are_those_of_all_images_by_the_formula(rng):
    """A mean over the image, a matrix product and a softmax, as `test_tflite_model` makes them."""
    pixels = (
        rng.integers(0, 256, (6, 24, 32, 3), np.uint8) // np.array([1, 2, 3, 4, 5, 6], np.uint8)[:, None, None, None]
    )
    matrix, bias = weights()
    means = pixels.astype(np.float64).mean((1, 2))
    logits = means / 255 @ matrix.T.astype(np.float64) + bias
    wanted = [pixels, means, logits, expected(pixels)]
    found = activation_ranges(network(), [image[None] for image in pixels])
    assert len(found) == len(wanted) and expected(pixels).shape == (6, COUNT)
    for (low, high), values in zip(found.values(), wanted, strict=True):
        assert (low, high) == pytest.approx((values.min(), values.max()), rel=1e-5, abs=1e-6)
    again = activation_ranges(network(), [image[None] for image in pixels[::-1]])
    assert again == found
    fewer = activation_ranges(network(), [pixels[5][None]])
    assert all(fewer[name][0] >= found[name][0] and fewer[name][1] <= found[name][1] for name in found)
    assert fewer != found


def test_ranges_of_a_network_are_those_of_the_keras_model(made):
    model, ranges, files = made
    logits = run(model, np.concatenate(photos()).astype(np.float32) / np.float32(255))
    scores = files["fp32"].layers()[-1][4]
    low, high = ranges[files["fp32"].tensors[scores].name.decode()]
    assert (low, high) == pytest.approx((logits.min(), logits.max()), abs=1e-3)
    computed = [i for _, _, outputs in files["fp32"].operators for i in outputs]
    assert set(ranges) == {files["fp32"].tensors[i].name.decode() for i in computed}
    swished = [inputs[0] for kind, inputs, _ in files["fp32"].operators if kind == "LOGISTIC"]
    assert all(ranges[files["fp32"].tensors[i].name.decode()][0] >= SWISH_FLOOR for i in swished)


def doubled(*others, tensors=2):
    """A file that doubles `(1, 3)` floats, and then does something else with that."""
    operators = [(0, [0, 0], [1], schema.AddOptionsT()), *others]
    made = graph([((1, 3), "float32", 0)] * tensors, [0], [tensors - 1], operators)
    return packed([made], ["ADD", "LOGISTIC", "MUL", "CONCATENATION"], [])


def ranges_of(file, *rows):
    """The range of the input, of its double, and of what follows."""
    return list(activation_ranges(file, [np.array([row], np.float32) for row in rows]).values())


def test_what_a_swish_reads_has_a_floor():
    swish = doubled((1, [1], [2]), (2, [1, 2], [3], schema.MulOptionsT()), tensors=4)
    image, read, opened, result = ranges_of(swish, [-20, 0, 1], [-1, 2, 3])
    assert image == (-20, 3) and read == (-6, 6) and opened == pytest.approx((0, 1 / (1 + np.exp(-6))), abs=1e-6)
    assert result[1] == pytest.approx(6 / (1 + np.exp(-6)))
    assert ranges_of(swish, [-2, 0, 1])[1] == (-4, 2)
    assert ranges_of(doubled(), [-20, 0, 1]) == [(-20, 1), (-40, 2)]


def test_what_is_joined_gets_at_least_a_200th_of_what_it_is_joined_with():
    """t1 = 2 x and t2 = t1 · t1, joined to t3; XNNPACK changes a scale up to 256-fold."""
    joined = [((1, 3), "float32", 0)] * 3 + [((1, 6), "float32", 0)]
    operators = [(0, [0, 0], [1], schema.AddOptionsT()), (1, [1, 1], [2], schema.MulOptionsT()),
                 (2, [1, 2], [3], schema.ConcatenationOptionsT(axis=1))]  # fmt: skip
    file = packed([graph(joined, [0], [3], operators)], ["ADD", "MUL", "CONCATENATION"], [])
    _, doubled, squared, both = ranges_of(file, [-1, 1, 500])
    assert (doubled, both) == ((-2, 1e6 / 200), (-2, 1e6))
    assert squared == pytest.approx((-2 / 200, 1e6))
    assert ranges_of(file, [-1, 1, 2])[1] == (-2, 4)


# --- without TensorFlow, and what fails ------------------------------------------------------------------------------


def test_quantising_needs_no_tensorflow(tmp_path):
    _, ranges, files = made_of(2)
    (tmp_path / "float.tflite").write_bytes(files["fp32"].content)
    np.save(tmp_path / "photos.npy", np.stack(photos()))
    code = """
        import sys
        from pathlib import Path
        import numpy as np
        from mobilevit_hub.conversion.tflite.quantization import activation_ranges, quantize
        folder = Path(sys.argv[1])
        content = (folder / "float.tflite").read_bytes()
        ranges = activation_ranges(content, np.load(folder / "photos.npy"))
        for precision in ("fp16", "int8-dynamic", "int8"):
            quantized = quantize(content, precision, ranges if precision == "int8" else None)
            (folder / precision).write_bytes(quantized)
        print(max(high for low, high in ranges.values()))
    """
    done = fresh_process(code, tmp_path, hide=("tensorflow", "keras", "torch", "datasets"))
    for precision in ("fp16", "int8-dynamic", "int8"):
        assert (tmp_path / precision).read_bytes() == files[precision].content
    assert float(done.stdout) == max(high for _, high in ranges.values())


@pytest.mark.parametrize("content", [b"", b"no model at all" * 20, network()[:200]], ids=["empty", "text", "cut"])
def test_what_is_no_model_cannot_be_quantised(content):
    with pytest.raises(ExportError, match="ai-edge-quantizer failed: ") as caught:
        quantize(content, "fp16")
    assert "\n" not in str(caught.value)


def test_int8_needs_ranges():
    _, _, files = made_of(2)
    with pytest.raises(ExportError, match="statistics"):
        quantize(files["fp32"].content, "int8", {})


def test_a_missing_quantizer_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"fp16.*mobilevit.hub\[export\]"):
        quantize(b"", "fp16")
