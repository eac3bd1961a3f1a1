"""ONNX as a by-product of plain operations: both versions export, and onnxruntime computes the same."""

import numpy as np
import pytest
import torch
from networks import MODELS, awake, images, tiny_config
from reference import figure

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # raised inside the exporter
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


class Logits(torch.nn.Module):
    """The network as a phone wants it: one tensor in, one out."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixels):
        return self.model(pixels).logits


@pytest.fixture(scope="module", params=[(1, (64, 64)), (1, (72, 101)), (2, (64, 64)), (2, (72, 101))], ids=str)
def exported(request):
    version, size = request.param
    config = tiny_config(version, n_attn_blocks=[1, 1, 1])
    model = Logits(awake(MODELS[config.model_type](config)).eval())
    pixels = images(1, *size)
    program = torch.onnx.export(model, (pixels,), dynamo=True, input_names=["pixel_values"], output_names=["logits"])
    return model, pixels, program.model_proto


@torch.no_grad()
def test_onnxruntime_computes_the_same(exported):
    model, pixels, graph = exported
    onnx.checker.check_model(graph)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["pixel_values"]
    for seed in (0, 1):
        other = images(1, *pixels.shape[2:], seed=seed)
        (result,) = session.run(["logits"], {"pixel_values": other.numpy()})
        assert figure(result, model(other).numpy()) < 1e-4
    assert not np.allclose(result, model(pixels).numpy(), rtol=1e-3)  # another image gives another answer


def test_the_graph_has_standard_operators_of_rank_four_at_most(exported):
    graph = exported[2]
    assert {node.domain for node in graph.graph.node} == {""}
    shapes = [v.type.tensor_type.shape.dim for v in onnx.shape_inference.infer_shapes(graph).graph.value_info]
    assert shapes and max(len(shape) for shape in shapes) == 4
    assert {"Conv", "Softmax"} <= {node.op_type for node in graph.graph.node}
