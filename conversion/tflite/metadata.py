"""What a finished `.tflite` file carries beside the network: names, metadata for MediaPipe Tasks, labels, its record.

The metadata are a FlatBuffer in a buffer of the model, of the public schema `metadata_schema.fbs`; the attached files
are a zip archive after the end of the model. They come last, after the quantisation: ai-edge-quantizer drops what is
attached to a file, and keeps weights outside the FlatBuffer, at places in the file that every later change moves.
"""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np

from mobilevit_hub.errors import ExportError, require
from mobilevit_hub.files import json_bytes
from mobilevit_hub.tflite.files import LABELS, RECORD

require("ai_edge_litert", "export", "Finishing a .tflite file")
import flatbuffers  # noqa: E402
from ai_edge_litert import schema_py_generated as schema  # noqa: E402

ENTRY = b"TFLITE_METADATA"
ALIGNMENT = 16

# The fields of the schema's tables in their order, as far as they are used. A union takes two: its type and its table.
TABLES = {
    "AssociatedFile": ("name", "description", "type"),
    "ImageSize": ("width", "height"),
    "ImageProperties": ("color_space", "default_size"),
    "FeatureProperties": (),
    "Content": ("content_properties_type", "content_properties"),
    "NormalizationOptions": ("mean", "std"),
    "ProcessUnit": ("options_type", "options"),
    "Stats": ("max", "min"),
    "TensorMetadata": (
        *("name", "description", "dimension_names", "content", "process_units", "stats", "associated_files"),
    ),
    "SubGraphMetadata": ("name", "description", "input_tensor_metadata", "output_tensor_metadata"),
    "ModelMetadata": ("name", "description", "version", "subgraph_metadata", "author", "license"),
}
TENSOR_AXIS_LABELS, RGB, FEATURE_PROPERTIES, IMAGE_PROPERTIES, NORMALIZATION_OPTIONS = 2, 1, 1, 2, 1


def finish(
    model: bytes, record: dict[str, Any], labels: list[str], *, description: str, author: str, license: str
) -> bytes:
    """Adds names, metadata, labels and the record to a classifier; its answers stay what they are.

    Weights that ai-edge-quantizer keeps behind the FlatBuffer move into it. The signature stays. Whatever is attached
    to the file is replaced. Equal arguments give equal bytes.

    Args:
        model: A `.tflite` file with one input `(1, H, W, 3)` and one output `(1, C)`.
        record: What the file says of itself: `name`, `input` and `output` are read, all of it is attached.
        labels: The name of each of the C classes.
        description: What the model is, for people.
        author: Who made it.
        license: Its licence.

    Returns:
        The file. A zip reader finds `labels.txt` and `mobilevit_hub.json` in it.

    Raises:
        ExportError: The file has more than one subgraph, input or output, or another number of classes than `labels`.
    """
    unpacked = schema.ModelT.InitFromPackedBuf(model)
    if len(unpacked.subgraphs) != 1:
        raise ExportError(f"The file has {len(unpacked.subgraphs)} subgraphs; expected 1.")
    graph = unpacked.subgraphs[0]
    if (len(graph.inputs), len(graph.outputs)) != (1, 1):
        raise ExportError(
            f"The file has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs; expected 1 and 1."
        )
    image, scores = graph.tensors[graph.inputs[0]], graph.tensors[graph.outputs[0]]
    if len(labels) != scores.shape[-1]:
        raise ExportError(
            f"There are {len(labels)} labels for an output of shape {scores.shape.tolist()}; give one for each class.",
            field="labels",
        )
    image.name, scores.name = record["input"]["name"], record["output"]["name"]

    for buffer in unpacked.buffers:
        if buffer.offset:
            buffer.data = np.frombuffer(model, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    _set_metadata(unpacked, _metadata(record, description, author, license))
    unpacked.buffers = [_AlignedBuffer(buffer.data) for buffer in unpacked.buffers]
    builder = flatbuffers.Builder(2 * len(model))
    builder.Finish(unpacked.Pack(builder), b"TFL3")

    file = io.BytesIO(builder.Output())
    with zipfile.ZipFile(file, "a") as archive:  # "a" counts places from the start of the file
        for name, content in {LABELS: labels_file(labels), RECORD: json_bytes(record)}.items():
            entry = zipfile.ZipInfo(name)  # of 1980, whenever it is made
            entry.create_system = 3  # wherever it is made
            archive.writestr(entry, content)
    return file.getvalue()


def labels_file(labels: list[str]) -> bytes:
    r"""The content of `labels.txt`: a label a line, UTF-8. Line breaks within a label become spaces.

    Examples:
        >>> labels_file(["cat", "hot\ndog"])
        b'cat\nhot dog\n'
    """
    return "".join(f"{' '.join(label.splitlines())}\n" for label in labels).encode()


class _AlignedBuffer(schema.BufferT):
    """A buffer whose bytes begin at a multiple of 16, as the schema asks; the generated class does not see to it."""

    def Pack(self, builder: flatbuffers.Builder) -> int:  # noqa: N802
        if self.data is not None:
            builder.Prep(ALIGNMENT, len(self.data))
        return super().Pack(builder)


def _set_metadata(model: schema.ModelT, content: bytes) -> None:
    """Puts the metadata into the buffer of the entry that there is, or into a new one."""
    model.metadata = model.metadata or []
    entry = next((entry for entry in model.metadata if entry.name == ENTRY), None)
    if entry is None:
        entry = schema.MetadataT(ENTRY, len(model.buffers))
        model.metadata.append(entry)
        model.buffers.append(schema.BufferT())
    model.buffers[entry.buffer].data = np.frombuffer(content, np.uint8)


def _metadata(record: dict[str, Any], description: str, author: str, license: str) -> bytes:
    """The metadata of a classifier, as the schema has them."""
    (_, height, width, _), (low, high) = record["input"]["shape"], record["input"]["range"]
    size = _table("ImageSize", width=np.uint32(width), height=np.uint32(height))
    pixels = _table("ImageProperties", color_space=np.uint8(RGB), default_size=size)
    # MediaPipe takes bytes, subtracts the mean and divides by std.
    scale = 255 / (high - low)
    normalization = _table("NormalizationOptions", mean=[-low * scale], std=[scale])
    image = _table(
        "TensorMetadata",
        name=record["input"]["name"],
        description=f"RGB image, {low} to {high}.",
        content=_union("Content", "content_properties", IMAGE_PROPERTIES, pixels),
        process_units=[_union("ProcessUnit", "options", NORMALIZATION_OPTIONS, normalization)],
        stats=_table("Stats", max=[float(high)], min=[float(low)]),
    )
    names = _table("AssociatedFile", name=LABELS, description="A class a line.", type=np.uint8(TENSOR_AXIS_LABELS))
    range_ = {"stats": _table("Stats", max=[1.0], min=[0.0])}
    scores = _table(
        "TensorMetadata",
        name=record["output"]["name"],
        description="One number for each class.",
        content=_union("Content", "content_properties", FEATURE_PROPERTIES, _table("FeatureProperties")),
        associated_files=[names],
        **(range_ if record["output"]["name"] == "probabilities" else {}),
    )
    graph = _table("SubGraphMetadata", input_tensor_metadata=[image], output_tensor_metadata=[scores])
    texts = {"name": record["name"], "description": description, "author": author, "license": license}
    builder = flatbuffers.Builder(1024)
    builder.Finish(_write(builder, _table("ModelMetadata", subgraph_metadata=[graph], **texts)), b"M001")
    return bytes(builder.Output())


def _table(kind: str, **fields: Any) -> dict[int, Any]:
    """A table of the schema: its fields by their number."""
    return {TABLES[kind].index(name): value for name, value in fields.items()}


def _union(kind: str, field: str, which: int, table: dict[int, Any]) -> dict[int, Any]:
    """A table of the schema with a field that may hold tables of several kinds."""
    return _table(kind, **{f"{field}_type": np.uint8(which), field: table})


def _write(builder: flatbuffers.Builder, value: Any) -> int:
    """Writes a text, a list of floats or of tables, or a table; returns its place."""
    if isinstance(value, str):
        return builder.CreateString(value)
    if isinstance(value, list) and isinstance(value[0], float):
        return builder.CreateNumpyVector(np.array(value, np.float32))
    if isinstance(value, list):
        places = [_write(builder, table) for table in value]
        builder.StartVector(4, len(places), 4)
        for place in reversed(places):
            builder.PrependUOffsetTRelative(place)
        return builder.EndVector()
    # What a field points to has to be there before its table is begun.
    fields = {i: field if isinstance(field, np.generic) else _write(builder, field) for i, field in value.items()}
    builder.StartObject(max(fields, default=-1) + 1)
    for i, field in fields.items():
        if isinstance(field, np.uint8):
            builder.PrependUint8Slot(i, int(field), 0)
        elif isinstance(field, np.uint32):
            builder.PrependUint32Slot(i, int(field), 0)
        else:
            builder.PrependUOffsetTRelativeSlot(i, field, 0)
    return builder.EndObject()
