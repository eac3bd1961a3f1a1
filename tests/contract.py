"""What every model class must pass, in PyTorch and in Keras. A new class is one row of `ROWS`.

Weights are awake: no tensor has a value that another could have by chance. Each comparison has a twin that must fail.
"""

from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pytest
from keras_networks import (
    QUIET,
    STAGES,
    awake,
    channels_first,
    channels_last,
    check_same_step,
    images,
    numpy,
    same_values,
    statistics,
    tiny_config,
    twin,
)
from reference import figure

from mobilevit_hub import pt
from mobilevit_hub.tf.weights import to_checkpoint

tf = pytest.importorskip("tensorflow", reason="gradients are taken with TensorFlow")
torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.parity, QUIET]


@dataclass(frozen=True)
class Row:
    """A class of both frameworks."""

    name: str
    """In PyTorch; in Keras it has `TF` before it."""
    version: int
    fields: dict = field(default_factory=dict)
    """Of the config, beside those of the tiny network."""
    options: dict = field(default_factory=dict)
    """Of `from_pretrained`."""
    exported: bool = False
    """Whether there is a phone's file of it: images in, one tensor of logits out."""

    def __str__(self):
        return self.name

    @property
    def classes(self):
        return {"pt": getattr(pt, self.name), "tf": getattr(twin, f"TF{self.name}")}


ROWS = [
    Row("MobileViTModel", 1),
    Row("MobileViTForImageClassification", 1, exported=True),
    Row("MobileViTBackbone", 1, options={"out_features": STAGES}),
    Row("MobileViTV2Model", 2),
    Row("MobileViTV2ForImageClassification", 2, exported=True),
    Row("MobileViTV2Backbone", 2, options={"out_features": STAGES}),
]
EACH = pytest.mark.parametrize("row", ROWS, ids=str)
NO_DROPOUT = {
    1: dict.fromkeys(
        ("hidden_dropout_prob", "attention_probs_dropout_prob", "ffn_dropout", "classifier_dropout_prob"), 0.0
    ),
    2: dict.fromkeys(("hidden_dropout_prob", "attn_dropout", "ffn_dropout", "classifier_dropout_prob"), 0.0),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a row: its awake tiny network, saved by Keras."""

    @cache
    def save(name):
        row = next(row for row in ROWS if row.name == name)
        labels = dict(enumerate(("cat", "dög", "水", "a, b", "c", "d", "e")))
        fields = {"num_labels": None, "id2label": labels, **NO_DROPOUT[row.version], **row.fields}
        config = tiny_config(row.version, **fields)
        model, place = awake(row.classes["tf"](config, **row.options)), tmp_path_factory.mktemp(name)
        model.save_pretrained(place)
        return place

    return lambda row: save(row.name)


def opened(row, framework, place, **options):
    return row.classes[framework].from_pretrained(place, **row.options, **options)


def named(model, output):
    """The tensors of an output by their names, which are the same in both frameworks."""
    if hasattr(output, "feature_maps"):
        return dict(zip(model.out_features, output.feature_maps, strict=True))
    if hasattr(output, "items"):
        return {name: value for name, value in output.items() if value is not None}
    return {"logits": output}


def outputs(model, pixels):
    """What a network of either framework makes of channels-last images, as channels-first arrays."""
    if isinstance(model, torch.nn.Module):
        with torch.no_grad():
            found = named(model, model.eval()(to_torch(pixels).to(model.dtype)))
        return {name: value.float().numpy() for name, value in found.items()}
    found = named(model, numpy(model(pixels, training=False)))
    return {name: channels_first(x) if x.ndim == 4 else x for name, x in found.items()}


def to_torch(pixels):
    return torch.from_numpy(np.ascontiguousarray(channels_first(pixels)))


def apart(ours, theirs):
    """The largest difference of two outputs."""
    assert ours.keys() == theirs.keys()
    return max(figure(ours[name], theirs[name]) for name in ours)


def changed(model):
    """A Keras network with one value of its stem off by the largest."""
    variable = next(w.variable for name, w in model.named_weights().items() if name.endswith("stem.convolution.weight"))
    values = numpy(variable + 0)
    values.flat[0] += np.abs(values).max()
    variable.assign(values)
    return model


# --- save and load -------------------------------------------------------------------------------------------------


@EACH
def test_what_one_framework_saves_the_other_loads_and_saves_to_the_same_bytes(row, folder, tmp_path):
    place = folder(row)
    for framework in ("pt", "tf"):
        opened(row, framework, place).save_pretrained(tmp_path / framework)
        for name in ("model.safetensors", "config.json"):
            assert (tmp_path / framework / name).read_bytes() == (place / name).read_bytes(), (framework, name)
    first, again = (opened(row, "tf", path) for path in (place, tmp_path / "pt"))
    assert same_values(first, again)
    assert not same_values(first, changed(again))


# --- parity --------------------------------------------------------------------------------------------------------


@EACH
def test_both_frameworks_compute_the_same_at_every_size(row, folder):
    """Even, odd and very small maps."""
    theirs, ours = (opened(row, framework, folder(row)) for framework in ("pt", "tf"))
    for size in ((64, 96), (101, 77), (32, 32), (33, 47), (32, 300)):
        pixels = images(2, *size)
        assert apart(outputs(ours, pixels), outputs(theirs, pixels)) < 1e-4, size
    assert apart(outputs(changed(ours), pixels), outputs(theirs, pixels)) > 1e-3


@EACH
@pytest.mark.parametrize("framework", ["pt", "tf"])
@pytest.mark.parametrize(("kind", "tolerance"), [("float16", 0.01), ("bfloat16", 0.08)])
def test_half_precision_is_near(row, folder, framework, kind, tolerance):
    """By the mean square: one value of a map may be far off."""
    pixels = images(2, 75, 96)
    full, half = (outputs(opened(row, framework, folder(row), dtype=dtype), pixels) for dtype in (None, kind))
    assert full.keys() == half.keys()
    for name, value in full.items():
        got = half[name].astype(np.float32)
        assert got.shape == value.shape
        assert 0 < np.linalg.norm(got - value) / np.linalg.norm(value) < tolerance, name


# --- gradients -----------------------------------------------------------------------------------------------------


def step(model, pixels):
    """Gradients of a sum over all outputs, each value with a weight of its own, and the statistics after it."""
    rng = np.random.default_rng(3)

    def weigh(shape):
        return rng.normal(size=shape).astype(np.float32) / np.float32(np.sqrt(np.prod(shape)))

    if isinstance(model, torch.nn.Module):
        found = named(model, model.train()(to_torch(pixels)))
        sum((value * torch.from_numpy(weigh(value.shape))).sum() for value in found.values()).backward()
        gradients = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
        return gradients, {name: b.numpy() for name, b in model.named_buffers()}
    weights = {n: w for n, w in model.named_weights().items() if w.variable.trainable}
    with tf.GradientTape() as tape:
        total = 0.0
        for value in named(model, model(pixels, training=True)).values():
            shape = tuple(value.shape)
            if len(shape) == 4:
                total += tf.reduce_sum(value * channels_last(weigh((shape[0], shape[3], *shape[1:3]))))
            else:
                total += tf.reduce_sum(value * weigh(shape))
    gradients = tape.gradient(total, [w.variable.value for w in weights.values()])
    pairs = [(w, g) for w, g in zip(weights.values(), gradients, strict=True) if g is not None]
    return {w.name: to_checkpoint(numpy(g), w.kind) for w, g in pairs}, statistics(model)


@EACH
def test_gradients_and_statistics_of_a_step_are_the_same(row, folder):
    pixels = images(4, 72, 104, seed=1)
    ours, theirs = (step(opened(row, framework, folder(row)), pixels) for framework in ("tf", "pt"))
    check_same_step(ours, theirs)
    for part, ending, factor in (
        (0, "conv_stem.convolution.weight", 1.01),
        (1, "conv_stem.normalization.running_var", 1.01),
    ):
        name = next(name for name in ours[part] if name.endswith(ending))
        wrong = [dict(values) for values in ours]
        wrong[part][name] = wrong[part][name] * np.float32(factor)
        with pytest.raises(AssertionError, match=name):
            check_same_step(wrong, theirs)


# --- export --------------------------------------------------------------------------------------------------------

EXPORTED = pytest.mark.parametrize("row", [row for row in ROWS if row.exported], ids=str)
SIZE = (72, 101)


@pytest.mark.export
@EXPORTED
def test_the_phones_file_computes_the_same(row, folder):
    from ai_edge_litert.interpreter import Interpreter

    from mobilevit_hub.tf.inference.phone import convert_network

    model, pixels = opened(row, "tf", folder(row)), images(1, *SIZE)
    file = convert_network(model.folded(), SIZE, input_type="float32", output="logits", channel_order="rgb")
    interpreter = Interpreter(model_content=file, num_threads=1)
    interpreter.allocate_tensors()
    found = interpreter.get_signature_runner()(image=pixels)
    assert apart(found, outputs(opened(row, "pt", folder(row)), pixels)) < 1e-4
    assert apart(found, outputs(changed(model), pixels)) > 1e-3


class Plain(torch.nn.Module):
    """A network as a phone wants it: one tensor in, one out."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixels):
        return self.model(pixels).logits


@EXPORTED
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised inside the exporter
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_onnx_computes_the_same_with_standard_operators_of_rank_four_at_most(row, folder):
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, pixels = opened(row, "pt", folder(row)).eval(), images(1, *SIZE)
    program = torch.onnx.export(
        Plain(model), (to_torch(pixels),), dynamo=True, input_names=["pixel_values"], output_names=["logits"]
    )
    graph = program.model_proto
    onnx.checker.check_model(graph)
    session = runtime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    other = images(1, *SIZE, seed=1)
    found = [session.run(["logits"], {"pixel_values": to_torch(x).numpy()})[0] for x in (pixels, other)]
    expected = [outputs(model, x)["logits"] for x in (pixels, other)]
    assert max(map(figure, found, expected)) < 1e-4 < 1e-3 < figure(found[0], expected[1])
    assert {node.domain for node in graph.graph.node} == {""}
    shapes = [v.type.tensor_type.shape.dim for v in onnx.shape_inference.infer_shapes(graph).graph.value_info]
    assert shapes and max(len(shape) for shape in shapes) == 4
    assert {"Conv", "Softmax"} <= {node.op_type for node in graph.graph.node}
