"""The phone form of the Keras networks: the answers of the trainable model, in a graph that phones take whole."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from keras_networks import CLASSIFIERS, QUIET, VERSIONS, images, keras, reference_folder, run, tiny

pytest.importorskip("tensorflow")
pytest.importorskip("ai_edge_litert")
if keras.backend.backend() != "tensorflow":
    pytest.skip("the conversion needs Keras on TensorFlow", allow_module_level=True)

import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from mobilevit_hub.conversion.tflite.quantization import activation_ranges, quantize
from mobilevit_hub.conversion.tflite.rewriting import without_adjoints
from mobilevit_hub.errors import ExportError
from mobilevit_hub.inference import folding
from mobilevit_hub.tf.inference import model as inference
from mobilevit_hub.tf.inference import phone
from mobilevit_hub.tf.inference.phone import convert_network

pytestmark = [pytest.mark.export, QUIET]
BYTES, FLOATS = ("uint8", "probabilities", "bgr"), ("float32", "logits", "rgb")
# Every choice of a config that changes the graph. 70×101 makes maps odd from the third stage on, 96×160 the last one.
CASES = [
    (1, {"use_fusion": False, "hidden_act": "relu", "qkv_bias": False, "expand_ratio": 1.0, "num_attention_heads": 4,
         "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32]}, (70, 101), ("float32", "probabilities", "bgr")),
    (1, {"output_stride": 8, "hidden_act": "gelu", "patch_size": [4, 1, 2]}, (70, 101), BYTES),
    (2, {}, (70, 101), ("uint8", "probabilities", "rgb")),
    (2, {"odd_map": "stock"}, (96, 160), ("uint8", "logits", "rgb")),
    (2, {"attn_norm": "layer", "hidden_act": "relu", "patch_size": 1}, (64, 64), FLOATS),
]  # fmt: skip
MORE_CASES = [
    (1, {"use_fusion": False, "hidden_act": "relu"}, (96, 160), ("uint8", "logits", "rgb")),
    (1, {"output_stride": 16, "patch_size": [1, 4, 2], "attention_head_size": 8}, (96, 64), BYTES),
    (1, {}, (64, 96), BYTES),
    (1, {}, (70, 101), FLOATS),
    (1, {}, (32, 32), FLOATS),
    (1, {"use_fusion": False, "conv_kernel_size": 5, "expand_ratio": 2.0}, (70, 101), BYTES),
    (2, {"conv_kernel_size": 5}, (64, 96), ("float32", "probabilities", "bgr")),
    (2, {"output_stride": 8, "layer_norm_eps": 1e-2, "hidden_act": "gelu"}, (70, 101), BYTES),
    (2, {"output_stride": 16, "odd_map": "stock", "patch_size": [2, 1, 3]}, (70, 101), BYTES),
]


def convert(model, size, form):
    input_type, output, order = form
    options = {"input_type": input_type, "output": output, "channel_order": order}
    return without_adjoints(convert_network(model.folded(), size, **options))


def answers(file, pixels, output):
    interpreter = Interpreter(model_content=file, num_threads=1)
    interpreter.allocate_tensors()
    run_file = interpreter.get_signature_runner()
    return np.concatenate([run_file(image=image[None])[output] for image in pixels])


def photos(count, size, input_type):
    """Noise in RGB with a cast of red, so that no two channels can be exchanged unseen."""
    pixels = images(count, *size) * np.float32([1, 0.6, 0.3])
    return np.rint(255 * pixels).astype(np.uint8) if input_type == "uint8" else pixels


def expected(model, pixels, order):
    """Logits of the trainable model."""
    values = pixels[..., ::-1] if order == "bgr" else pixels
    return run(model, values.astype(np.float32) / np.float32(255 if pixels.dtype == np.uint8 else 1))


def parts(got, logits, output="logits"):
    """Largest difference in parts of how much logits differ between images; probabilities fix logits but for a sum."""
    if output == "probabilities":
        np.testing.assert_allclose(got.sum(1), 1, atol=1e-5)
        got, logits = (x - x.mean(1, keepdims=True) for x in (np.log(got.astype(np.float64)), logits))
    return np.abs(got - logits).max() / logits.std(0).mean()


# --- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "fields", "size", "form"),
    [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE_CASES)],
)
def test_answers_are_those_of_the_trainable_model(version, fields, size, form):
    model, (input_type, output, order) = tiny(version, **fields), form
    file, pixels = convert(model, size, form), photos(3, size, input_type)
    logits = expected(model, pixels, order)
    assert parts(answers(file, pixels, output), logits, output) < 1e-4
    check_graph(file, size, input_type, output)


@VERSIONS
def test_other_channels_and_other_values_would_be_seen(version):
    model, pixels = tiny(version), photos(3, (70, 101), "float32")
    logits = expected(model, pixels, "rgb")
    assert parts(expected(model, pixels, "bgr"), logits) > 1e-2
    assert parts(expected(model, pixels * np.float32(255 / 256), "rgb"), logits) > 1e-3


def check_graph(file, size, input_type, output):
    """What every phone takes, read from the file itself."""
    model = schema.ModelT.InitFromPackedBuf(file)
    (graph,) = model.subgraphs
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if name.isupper()}
    operators = [names[model.operatorCodes[op.opcodeIndex].builtinCode] for op in graph.operators]
    assert not {"CUSTOM", "VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "SPLIT_V", "GATHER_ND", "BROADCAST_TO",
                "SELECT", "SELECT_V2", "SHAPE", "PACK", "SPACE_TO_BATCH_ND", "WHILE"} & set(operators)  # fmt: skip
    products = [
        op.builtinOptions for op, name in zip(graph.operators, operators, strict=True) if name == "BATCH_MATMUL"
    ]
    assert products and not any(options.adjX or options.adjY for options in products)
    assert operators.count("CAST") == (input_type == "uint8")
    assert all(len(tensor.shape) <= 4 for tensor in graph.tensors)
    assert all(tensor.shapeSignature is None or -1 not in tensor.shapeSignature for tensor in graph.tensors)
    assert not any(tensor.isVariable for tensor in graph.tensors)
    computed = [graph.tensors[i] for op in graph.operators for i in op.outputs]
    assert {tensor.shape[0] for tensor in computed} == {1}

    (signature,) = model.signatureDefs
    assert [entry.name for entry in signature.inputs] == [b"image"]
    assert [entry.name for entry in signature.outputs] == [output.encode()]
    (image,), (scores,) = graph.inputs, graph.outputs
    assert list(graph.tensors[image].shape) == [1, *size, 3]
    assert graph.tensors[image].type == getattr(schema.TensorType, input_type.upper())
    assert (list(graph.tensors[scores].shape), graph.tensors[scores].type) == ([1, 7], schema.TensorType.FLOAT32)
    assert delegated(file) == ([scores], [image] if input_type == "float32" else cast_of(model))


def cast_of(model):
    codes = [model.operatorCodes[op.opcodeIndex].builtinCode for op in model.subgraphs[0].operators]
    return list(model.subgraphs[0].operators[codes.index(schema.BuiltinOperator.CAST)].outputs)


def delegated(file):
    """Outputs and computed inputs of the one piece that XNNPACK takes."""
    interpreter = Interpreter(model_content=file, num_threads=1)
    interpreter.allocate_tensors()
    operations = interpreter._get_ops_details()
    (piece,) = [op for op in operations if op["op_name"] == "DELEGATE"]
    made = {int(i) for op in operations if op is not piece for i in op["outputs"]}
    made |= {tensor["index"] for tensor in interpreter.get_input_details()}
    return [int(i) for i in piece["outputs"]], [int(i) for i in piece["inputs"] if int(i) in made]


@pytest.mark.slow
def test_the_model_is_unchanged_and_equal_models_give_equal_bytes():
    model, pixels = tiny(2), photos(2, (64, 64), "float32")
    before = run(model, pixels)
    first = convert(model, (64, 64), FLOATS)
    np.testing.assert_array_equal(run(model, pixels), before)
    assert convert(model, (64, 64), FLOATS) == first


def test_a_failure_of_the_converter_is_one_line(monkeypatch):
    def failing(self):
        raise ValueError("<unknown>:0: error: op is\nneither a custom op nor a flex op")

    monkeypatch.setattr(tf.lite.TFLiteConverter, "convert", failing)
    # It is made by a subclass, which may have a method of its own.
    converter = type(tf.lite.TFLiteConverter.from_concrete_functions([identity().run.get_concrete_function()]))
    monkeypatch.setattr(converter, "convert", failing)
    with pytest.raises(ExportError, match=r"converter failed: <unknown>:0: error: op is neither a custom op") as caught:
        convert(tiny(2), (64, 64), FLOATS)
    assert "\n" not in str(caught.value)


def identity():
    module = tf.Module()
    module.run = tf.function(lambda image: image, [tf.TensorSpec((1, 2), tf.float32)], autograph=False)
    return module


# --- twins that fail -------------------------------------------------------------------------------------------------


def computed(model, pixels):
    """Logits of the graph before its conversion, one image at a time."""
    folded = model.folded()
    network = inference.folded_network(folded, phone.PhoneOperations(folded.features[0], 1.0, flip=False))
    return np.concatenate([network(tf.constant(image[None])).numpy() for image in pixels])


def without_shift(self, scale, shift):
    return folding.replace(self, weight=self.weight * scale)


def without_scale(self, scale, shift):
    return folding.replace(self, bias=self.bias + self.weight @ shift)


def swapped_corners(self, features, height, width, *, align_corners, resize=phone.PhoneOperations.resize):
    return resize(self, features, height, width, align_corners=not align_corners)


def in_another_order(self, tokens, patch, height, width):
    return tf.reshape(tokens, (1, height, width, tokens.shape[-1]))


def within_a_place_of_the_patch_only(self, features, patch):
    _, height, width, channels = features.shape
    return tf.reshape(features, (1, patch**2, height * width // patch**2, channels))


def heads_mixed(self, projected, heads, attend=phone.PhoneOperations.attend):
    return attend(self, projected, 1)


def over_places(self, scores, tokens):
    return tf.matmul(tf.nn.softmax(scores, axis=1), tokens, transpose_a=True)


def equal_weights(self, scores, tokens):
    return tf.reduce_mean(tokens, 2, keepdims=True)


def padded_at_the_far_sides(self, layer):
    convolution = inference.Operations.convolution(self, layer)
    if layer.stride == 1:
        return convolution
    kernel, run_convolution = inference.kernel_of(layer)
    activation = inference.ACTIVATIONS[layer.activation]
    return lambda features: activation(run_convolution(features, kernel, (1, 2, 2, 1), "SAME") + layer.bias)


TWINS = [
    ((1, 2), folding.Linear, "after", without_shift),
    ((1, 2), folding.Linear, "after", without_scale),
    ((1,), folding.Linear, "without_mean", lambda self: self),
    ((1, 2), phone.PhoneOperations, "resize", swapped_corners),
    ((1, 2), phone.PhoneOperations, "fold_patches", in_another_order),
    ((1, 2), phone.PhoneOperations, "unfold_patches", within_a_place_of_the_patch_only),
    ((1,), phone.PhoneOperations, "attend", heads_mixed),
    ((2,), phone.PhoneOperations, "pool", over_places),
    ((2,), phone.PhoneOperations, "pool", equal_weights),
    ((1, 2), phone.PhoneOperations, "convolution", padded_at_the_far_sides),
]


@VERSIONS
def test_a_wrong_rewrite_is_seen(monkeypatch, version):
    """The same images and sizes as above; the graph is run by TensorFlow."""
    model, pixels = tiny(version), photos(2, (70, 101), "float32")
    logits = run(model, pixels)
    assert parts(computed(model, pixels), logits) < 1e-4
    for versions, owner, name, broken in TWINS:
        if version in versions:
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, broken)
                assert parts(computed(model, pixels), logits) > 1e-3, (name, broken)


# --- the published networks ------------------------------------------------------------------------------------------

OTHER_SIZES = [(variant, side) for variant in ("mobilevit_xxs", "mobilevit_s", "mobilevitv2_100")
               for side in (192, 224, 320)]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "side"), [*((variant, 256) for variant in reference.VARIANTS), *OTHER_SIZES])
def test_every_network_in_every_precision(tmp_path, variant, side):
    """Weights by a rule: what 8 bits cost on trained ones is measured in `benchmarks/`."""
    version = reference.manifest()[variant]["version"]
    model = CLASSIFIERS[version].from_pretrained(reference_folder(tmp_path, variant))
    form = ("uint8", "logits", "bgr" if version == 1 else "rgb")
    file, pixels = convert(model, (side, side), form), photos(4, (side, side), "uint8")
    logits = expected(model, pixels, form[2])
    files = {"fp32": file, "fp16": quantize(file, "fp16"), "int8-dynamic": quantize(file, "int8-dynamic")}
    files["int8"] = quantize(file, "int8", activation_ranges(file, [image[None] for image in pixels]))
    size = logits - logits.mean(1, keepdims=True)
    assert np.abs(answers(file, pixels, "logits") - logits).max() / np.abs(size).mean() < 1e-4
    half = answers(files["fp16"], pixels, "logits") - logits
    assert np.linalg.norm(half) / np.linalg.norm(size) < 1e-2
    scores = [int(schema.ModelT.InitFromPackedBuf(file).subgraphs[0].outputs[0])]
    for precision, content in files.items():
        outputs, inputs = delegated(content)
        assert len(outputs) == len(inputs) == 1, precision
        assert inputs == cast_of(schema.ModelT.InitFromPackedBuf(content)), precision
    assert delegated(file)[0] == scores
    assert len(files["int8"]) < 0.32 * len(file)
    assert len(files["fp16"]) < 0.55 * len(file)
