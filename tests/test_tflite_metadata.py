"""Finished `.tflite` files, read by zipfile, LiteRT's own schema, its Interpreter and a reader of the metadata's schema."""

from __future__ import annotations

import io
import json
import struct
import zipfile

import numpy as np
import pytest
from keras_networks import fresh_process, images, keras, tiny

pytest.importorskip("tensorflow")
pytest.importorskip("ai_edge_litert")
if keras.backend.backend() != "tensorflow":
    pytest.skip("the conversion needs Keras on TensorFlow", allow_module_level=True)

from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from mobilevit_hub.conversion.tflite.metadata import finish, labels_file
from mobilevit_hub.conversion.tflite.quantization import quantize
from mobilevit_hub.errors import ExportError
from mobilevit_hub.tf.inference.phone import convert_network

pytestmark = pytest.mark.export
HEIGHT, WIDTH = 64, 96
LABELS = ["cat", "hot\ndog", "crème brûlée", "", "a\r\nb", "two words", "last"]
TEXTS = {"description": "A tiny network.", "author": "Someone", "license": "Apache-2.0"}
BYTES = {"dtype": "uint8", "range": [0, 255]}
FLOATS = {"dtype": "float32", "range": [0, 1]}


def record_of(kind, output="probabilities"):
    image = {"name": "image", "shape": [1, HEIGHT, WIDTH, 3], "channels": "rgb", **kind}
    return {"name": "tiny", "input": image, "output": {"name": output, "shape": [1, 7]}, "calibration": None}


def finished(model, record=None, labels=LABELS, **texts):
    return finish(model, record or record_of(BYTES), labels, **{**TEXTS, **texts})


@pytest.fixture(scope="module")
def plain():
    options = {"input_type": "uint8", "output": "probabilities", "channel_order": "bgr"}
    model = tiny(2, width_multiplier=0.5)  # ai-edge-quantizer keeps weights outside from 256 kB on
    return convert_network(model.folded(), (HEIGHT, WIDTH), **options)


@pytest.fixture(scope="module")
def quantized(plain):
    return quantize(plain, "int8-dynamic")


@pytest.fixture(params=["plain", "quantized"])
def model(request):
    return request.getfixturevalue(request.param)


def unpacked(model):
    return schema.ModelT.InitFromPackedBuf(model)


def packed(model):
    builder = schema.flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def buffers_of(model):
    """Place in the file and bytes of every buffer, whether it lies in the FlatBuffer or behind it."""
    root = schema.Model.GetRootAs(model)
    found = []
    for buffer in map(root.Buffers, range(root.BuffersLength())):
        field = buffer._tab.Offset(4)  # of `data`, the first field of the table
        place = buffer._tab.Vector(field) if field else buffer.Offset()
        size = buffer.DataLength() if field else buffer.Size()
        found.append((place, model[place : place + size]))
    return found


def metadata_of(model):
    """Every metadata entry of the model: its name and what its buffer holds."""
    root = schema.Model.GetRootAs(model)
    entries = [root.Metadata(i) for i in range(root.MetadataLength())]
    buffers = buffers_of(model)
    return [(entry.Name().decode(), buffers[entry.Buffer()][1]) for entry in entries]


# --- the network stays what it was -----------------------------------------------------------------------------------


def opened(model):
    interpreter = Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    return interpreter


def test_answers_and_operations_stay(model):
    before, after = opened(model), opened(finished(model))
    pixels = np.rint(images(1, HEIGHT, WIDTH) * 255).astype(np.uint8)
    ours, theirs = (i.get_signature_runner()(image=pixels)["probabilities"] for i in (after, before))
    np.testing.assert_array_equal(ours, theirs)
    assert np.ptp(theirs) > 0.01
    # XNNPACK's part is in the list as DELEGATE.
    names = [[op["op_name"] for op in interpreter._get_ops_details()] for interpreter in (after, before)]
    assert names[0] == names[1]
    assert names[0].count("DELEGATE") == 1
    assert after.get_signature_list() == before.get_signature_list()


@pytest.mark.parametrize("output", ["probabilities", "logits"])
def test_tensors_have_the_names_of_the_record(quantized, output):
    interpreter = opened(finished(quantized, record_of(BYTES, output)))
    assert [tensor["name"] for tensor in interpreter.get_input_details()] == ["image"]
    assert [tensor["name"] for tensor in interpreter.get_output_details()] == [output]


def test_every_buffer_is_in_the_flatbuffer_and_aligned(model, quantized):
    before, file = buffers_of(model), finished(model)
    assert any(buffer.offset for buffer in unpacked(model).buffers) == (model is quantized)
    assert all(buffer.offset == buffer.size == 0 for buffer in unpacked(file).buffers)
    after = buffers_of(file)
    assert [data for _, data in after[: len(before)]] == [data for _, data in before]
    assert [data[4:8] for _, data in after[len(before) :]] == [b"M001"]
    assert {place % 16 for place, data in after if data} == {0}
    assert file[4:8] == b"TFL3"


# --- metadata --------------------------------------------------------------------------------------------------------

# The tables of the public metadata_schema.fbs with all their fields in order. A union has a field for its type first.
SCHEMA = {
    "AssociatedFile": "name:string description:string type:byte locale:string version:string",
    "FeatureProperties": "",
    "ImageSize": "width:uint height:uint",
    "ImageProperties": "color_space:byte default_size:ImageSize",
    "ValueRange": "min:uint max:uint",
    "Content": "content_properties_type:byte content_properties:|FeatureProperties|ImageProperties range:ValueRange",
    "NormalizationOptions": "mean:[float] std:[float]",
    "ProcessUnit": "options_type:byte options:|NormalizationOptions",
    "Stats": "max:[float] min:[float]",
    "TensorMetadata": "name:string description:string dimension_names:[string] content:Content "
    "process_units:[ProcessUnit] stats:Stats associated_files:[AssociatedFile]",
    "SubGraphMetadata": "name:string description:string input_tensor_metadata:[TensorMetadata] "
    "output_tensor_metadata:[TensorMetadata]",
    "ModelMetadata": "name:string description:string version:string subgraph_metadata:[SubGraphMetadata] "
    "author:string license:string associated_files:[AssociatedFile] min_parser_version:string",
}
NUMBERS = {"byte": "<b", "uint": "<I", "float": "<f"}


def number(data, place, kind="uint"):
    return struct.unpack_from(NUMBERS[kind], data, place)[0]


def value_at(data, place, kind):
    if kind in NUMBERS:
        return number(data, place, kind)
    place += number(data, place)
    if kind == "string":
        return data[place + 4 : place + 4 + number(data, place)].decode()
    if kind.startswith("["):
        return [value_at(data, place + 4 + 4 * i, kind[1:-1]) for i in range(number(data, place))]
    fields, value = place - struct.unpack_from("<i", data, place)[0], {}
    size = struct.unpack_from("<H", data, fields)[0]
    for i, (name, field) in enumerate(part.split(":") for part in SCHEMA[kind].split()):
        offset = struct.unpack_from("<H", data, fields + 4 + 2 * i)[0] if 4 + 2 * i < size else 0
        if offset:
            if field.startswith("|"):
                field = field.split("|")[value[f"{name}_type"]]
            value[name] = value_at(data, place + offset, field)
    return value


def metadata(model):
    content = dict(metadata_of(model))["TFLITE_METADATA"]
    assert content[4:8] == b"M001"
    return value_at(content, 0, "ModelMetadata")


@pytest.mark.parametrize(("kind", "std"), [(BYTES, 1.0), (FLOATS, 255.0)], ids=["uint8", "float32"])
def test_metadata(plain, kind, std):
    size = {"width": WIDTH, "height": HEIGHT}
    image = {
        "name": "image",
        "content": {"content_properties_type": 2, "content_properties": {"color_space": 1, "default_size": size}},
        "process_units": [{"options_type": 1, "options": {"mean": [0.0], "std": [std]}}],  # (byte - mean) / std
        "stats": {"max": [float(kind["range"][1])], "min": [0.0]},
    }
    scores = {
        "name": "probabilities",
        "content": {"content_properties_type": 1, "content_properties": {}},
        "stats": {"max": [1.0], "min": [0.0]},
        "associated_files": [{"name": "labels.txt", "type": 2}],
    }
    found = metadata(finished(plain, record_of(kind)))
    (graph,) = found.pop("subgraph_metadata")
    assert found == {"name": "tiny", **TEXTS}
    for tensor in (*graph["input_tensor_metadata"], *graph["output_tensor_metadata"]):
        assert tensor.pop("description")
    assert graph["output_tensor_metadata"][0]["associated_files"][0].pop("description")
    assert graph == {"input_tensor_metadata": [image], "output_tensor_metadata": [scores]}


def test_logits_have_no_known_range(plain):
    (graph,) = metadata(finished(plain, record_of(BYTES, "logits")))["subgraph_metadata"]
    (scores,) = graph["output_tensor_metadata"]
    assert scores["name"] == "logits"
    assert "stats" not in scores


def test_finishing_again_replaces_what_was_there(quantized):
    first, other = finished(quantized), record_of(BYTES, "logits")
    again = finished(first, other, labels=list("abcdefg"), author="Another")
    assert again == finished(quantized, other, labels=list("abcdefg"), author="Another")
    assert metadata(again)["author"] == "Another"
    before, after = metadata_of(quantized), metadata_of(again)
    assert "min_runtime_version" in dict(before)
    assert after[:-1] == before
    assert after[-1][0] == "TFLITE_METADATA"


# --- attached files --------------------------------------------------------------------------------------------------


def test_attached_files(model):
    record, file = record_of(BYTES), finished(model)
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        assert archive.namelist() == ["labels.txt", "mobilevit_hub.json"]
        assert archive.testzip() is None
        lines = archive.read("labels.txt").decode().split("\n")
        text = archive.read("mobilevit_hub.json").decode()
        entries = archive.infolist()
    assert lines == ["cat", "hot dog", "crème brûlée", "", "a b", "two words", "last", ""]
    assert json.loads(text) == record
    assert text.index('"calibration"') < text.index('"input"') < text.index('"name": "tiny"')
    # MediaPipe reads it where it lies, and no clock is in it.
    assert {entry.compress_type for entry in entries} == {zipfile.ZIP_STORED}
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}


def test_equal_input_gives_equal_bytes_without_tensorflow(quantized, tmp_path):
    (tmp_path / "model.tflite").write_bytes(quantized)
    record = record_of(BYTES)
    code = """
        import json, sys
        from pathlib import Path
        from mobilevit_hub.conversion.tflite.metadata import finish
        path, record, labels, texts = Path(sys.argv[1]), *map(json.loads, sys.argv[2:])
        path.write_bytes(finish(path.read_bytes(), record, labels, **texts))
    """
    others = (dict(reversed(record.items())), LABELS, TEXTS)
    path = tmp_path / "model.tflite"
    fresh_process(code, path, *map(json.dumps, others), hide=("tensorflow", "keras", "torch"))
    assert path.read_bytes() == finished(quantized, record)


@pytest.mark.parametrize("label", ["a\nb", "a\r\nb", "a\rb", "a\x0bb", "a\x85b", "a\u2028b", "a b\n"])
def test_a_label_is_one_line(label):
    assert labels_file([label, "c"]) == b"a b\nc\n"


# --- what cannot be finished -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [LABELS[:-1], [*LABELS, "one more"], []], ids=len)
def test_another_number_of_labels(plain, labels):
    with pytest.raises(ExportError, match=rf"^There are {len(labels)} labels for an output of shape \[1, 7\]; "):
        finished(plain, labels=labels)


def test_a_second_subgraph(plain):
    model = unpacked(plain)
    model.subgraphs.append(model.subgraphs[0])
    with pytest.raises(ExportError, match="2 subgraphs; expected 1"):
        finished(packed(model))


@pytest.mark.parametrize(
    ("field", "message"), [("inputs", "2 inputs and 1 outputs"), ("outputs", "1 inputs and 2 out")]
)
def test_a_second_input_or_output(plain, field, message):
    model = unpacked(plain)
    setattr(model.subgraphs[0], field, np.array([0, 1], np.int32))
    with pytest.raises(ExportError, match=message):
        finished(packed(model))
