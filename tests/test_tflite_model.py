"""The runtime of `.tflite` files: answers by a formula, Apple's preprocessing, and nothing that a bad file can do.

The files are made here, by the schema alone: a mean over the image, a matrix product and, mostly, a softmax.
"""

import hashlib
import io
import json
import os
import subprocess
import sys
import textwrap
import threading
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor

import hiding
import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="needs LiteRT", exc_type=ImportError)
import flatbuffers
from ai_edge_litert import schema_py_generated as schema
from pictures import encode, noise, oriented, smooth

import mobilevit_hub as mh
from mobilevit_hub.cli.main import main
from mobilevit_hub.errors import (
    CheckpointError,
    ConfigError,
    InputError,
    IntegrityError,
    MissingDependencyError,
    MobileViTHubWarning,
    NotFoundError,
)
from mobilevit_hub.images.processor import MobileViTImageProcessor, processor_for
from mobilevit_hub.tflite import files as tflite_files
from mobilevit_hub.tflite.model import Model

COUNT = 5
LABELS = ["cat", "dog, hound", "café", "crane", "水"]
TYPES = {"float32": schema.TensorType.FLOAT32, "uint8": schema.TensorType.UINT8, "int8": schema.TensorType.INT8,
         "int32": schema.TensorType.INT32, "bool": schema.TensorType.BOOL}  # fmt: skip
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the limits and the signal are those of Linux")
DTYPES = pytest.mark.parametrize("dtype", ["uint8", "float32"])


# --- files made by hand --------------------------------------------------------------------------------------------


def weights():
    rng = np.random.default_rng(1)
    return rng.normal(size=(COUNT, 3)).astype(np.float32) * 4, rng.normal(size=COUNT).astype(np.float32)


def expected(pixels, output="probabilities"):
    """What the network of `network()` answers."""
    matrix, bias = weights()
    values = pixels.astype(np.float64) / (255 if pixels.dtype == np.uint8 else 1)
    logits = values.mean((1, 2)) @ matrix.T.astype(np.float64) + bias
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return logits if output == "logits" else powers / powers.sum(-1, keepdims=True)


def graph(tensors, inputs, outputs, operators):
    """A subgraph: tensors are (shape, type, number of the buffer), operators (number, inputs, outputs, options)."""
    made = schema.SubGraphT(name="main", inputs=inputs, outputs=outputs, tensors=[], operators=[])
    for i, (shape, dtype, buffer) in enumerate(tensors):
        made.tensors.append(schema.TensorT(name=f"t{i}", shape=list(shape), type=TYPES[dtype], buffer=buffer))
    for number, given, results, *options in operators:
        operator = schema.OperatorT(opcodeIndex=number, inputs=given, outputs=results)
        if options:
            operator.builtinOptions = options[0]
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, type(options[0]).__name__[:-1])
        made.operators.append(operator)
    return made


def packed(graphs, operators, buffers):
    """The bytes of a file; buffer 0 is empty, as the schema asks."""
    codes = [getattr(schema.BuiltinOperator, name) for name in operators]
    model = schema.ModelT(
        version=3,
        subgraphs=graphs,
        operatorCodes=[schema.OperatorCodeT(builtinCode=c, deprecatedBuiltinCode=c, version=1) for c in codes],
        buffers=[schema.BufferT(), *(schema.BufferT(np.frombuffer(b.tobytes(), np.uint8)) for b in buffers)],
    )
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def network(height=24, width=32, dtype="uint8", output="probabilities"):
    """A classifier of five classes; `expected` has its formula."""
    matrix, bias = weights()
    matrix = matrix / 255 if dtype == "uint8" else matrix
    tensors = [
        ((1, height, width, 3), dtype, 0), ((1, height, width, 3), "float32", 0), ((2,), "int32", 1),
        ((1, 3), "float32", 0), ((COUNT, 3), "float32", 2), ((COUNT,), "float32", 3),
        ((1, COUNT), "float32", 0), ((1, COUNT), "float32", 0),
    ]  # fmt: skip
    operators = [
        (0, [0], [1], schema.CastOptionsT()),
        (1, [0 if dtype == "float32" else 1, 2], [3], schema.ReducerOptionsT()),
        (2, [3, 4, 5], [6], schema.FullyConnectedOptionsT()),
        (3, [6], [7], schema.SoftmaxOptionsT(beta=1.0)),
    ]
    operators = operators[dtype == "float32" : 3 if output == "logits" else 4]
    made = graph(tensors, [0], [6 if output == "logits" else 7], operators)
    names = ["CAST", "MEAN", "FULLY_CONNECTED", "SOFTMAX"]
    return packed([made], names, [np.array([1, 2], np.int32), matrix.astype(np.float32), bias])


def record_of(height=24, width=32, dtype="uint8", output="probabilities", resize=None, interpolation="bilinear"):
    labels = "".join(f"{label}\n" for label in LABELS).encode()
    return {
        "format": 1, "package": "mobilevit_hub 0.1.0", "name": "tiny", "model_type": "mobilevit", "precision": "fp32",
        "input": {"name": "image", "shape": [1, height, width, 3], "dtype": dtype,
                  "range": [0, 255] if dtype == "uint8" else [0, 1], "channels": "rgb"},
        "output": {"name": output, "shape": [1, COUNT], "dtype": "float32"},
        "preprocessing": {"resize": resize or {"shortest_edge": 36}, "interpolation": interpolation,
                          "crop": {"height": height, "width": width}},
        "labels": {"count": COUNT, "sha256": hashlib.sha256(labels).hexdigest()},
        "source": {"file": "model.safetensors", "sha256": "0" * 64, "channel_order": "bgr"},
        "calibration": None,
    }  # fmt: skip


def attach(content, **files):
    """Appends a zip archive with `labels` as labels.txt and `record` as mobilevit_hub.json."""
    file = io.BytesIO(content)
    names = {"labels": "labels.txt", "record": "mobilevit_hub.json"}
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(names[name], data)
    return file.getvalue()


def save(path, content, sidecar=None, **changes):
    """Writes a file and the JSON beside it."""
    path.write_bytes(content)
    if sidecar is not None:
        facts = {"file": path.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        path.with_suffix(".json").write_text(json.dumps({**sidecar, **facts, "report": {}, **changes}))
    return path


def finished(path, *, sidecar=True, labels=LABELS, record=None, **options):
    """An exported classifier: labels and record attached, the JSON beside it."""
    record = record or record_of(**options)
    form = {key: value for key, value in options.items() if key in ("height", "width", "dtype", "output")}
    text = "".join(f"{label}\n" for label in labels)
    content = attach(network(**form), labels=text, record=json.dumps(record))
    return save(path, content, record if sidecar else None)


@pytest.fixture
def file(tmp_path):
    return finished(tmp_path / "tiny.tflite")


def pictures():
    """Real shapes: wide, tall, tiny, huge next to the crop, a single pixel."""
    sizes = [(24, 32), (25, 33), (48, 36), (36, 48), (100, 37), (37, 100), (200, 301), (7, 5), (5, 90), (1, 1)]
    return [noise(height, width) if i % 2 else smooth(height + 1, width + 1) for i, (height, width) in enumerate(sizes)]


def fresh_process(code, *arguments, hide=()):
    """Runs Python code in a process of its own, where the modules in `hide` cannot be imported."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        hiding.VARIABLE: ",".join({*hide, *hiding.HIDDEN}),
    }
    command = [sys.executable, "-c", f"import hiding\n{textwrap.dedent(code)}", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return done


# --- answers -------------------------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("output", ["probabilities", "logits"])
def test_answers_are_those_of_the_formula(tmp_path, rng, dtype, output):
    model = Model(finished(tmp_path / "m.tflite", dtype=dtype, output=output))
    pixels = rng.integers(0, 256, (3, 24, 32, 3), np.uint8)
    pixels = pixels if dtype == "uint8" else (pixels / 255).astype(np.float32)
    answers = model.run(pixels)
    assert (answers.shape, answers.dtype) == ((3, COUNT), np.float32)
    np.testing.assert_allclose(answers, expected(pixels, output), atol=1e-5)
    np.testing.assert_allclose(model.probabilities(pixels), expected(pixels), atol=1e-5)
    assert (model.labels, model.size, model.dtype, model.output) == (LABELS, (24, 32), dtype, output)
    assert model.record["name"] == "tiny"


@DTYPES
@pytest.mark.parametrize("output", ["probabilities", "logits"])
def test_call_returns_the_best_labels_with_probabilities(tmp_path, dtype, output):
    model = Model(finished(tmp_path / "m.tflite", dtype=dtype, output=output))
    for picture in pictures():
        scores = expected(model.prepare(picture))[0]
        order = np.argsort(-scores)
        results = model(picture)
        assert [(r["index"], r["label"]) for r in results] == [(i, LABELS[i]) for i in order]
        assert [r["score"] for r in results] == pytest.approx(scores[order].tolist(), abs=1e-5)
        assert model(picture, top_k=2) == results[:2]
        assert model(picture, 99) == results


def test_batches_of_any_size_and_any_memory_layout(file, rng):
    model = Model(file)
    pixels = rng.integers(0, 256, (4, 32, 24, 3), np.uint8).transpose(0, 2, 1, 3)
    assert not pixels.flags.c_contiguous
    np.testing.assert_allclose(model.run(pixels), expected(pixels), atol=1e-5)
    assert model.run(pixels[:0]).shape == (0, COUNT)
    assert np.array_equal(model.run(pixels)[2:3], model.run(pixels[2:3]))


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((1, 24, 32, 3), np.float32), np.zeros((1, 32, 24, 3), np.uint8), np.zeros((24, 32, 3), np.uint8),
        np.zeros((1, 3, 24, 32), np.uint8), np.zeros((1, 24, 32, 4), np.uint8), np.zeros((1, 24, 32, 3), np.int8),
        [[0]], None, "cat.jpg",
    ],
)  # fmt: skip
def test_arrays_of_another_form_are_refused(file, pixels):
    with pytest.raises(InputError, match=r"takes uint8 of shape \(B, 24, 32, 3\)"):
        Model(file).run(pixels)


@pytest.mark.parametrize("threads", [0, -1, 1.0, True, "2", None, 10**9])
def test_threads_are_checked(file, threads):
    with pytest.raises(InputError, match="threads is .*expected a whole number from 1"):
        Model(file, threads=threads)


@pytest.mark.parametrize("top_k", [0, -1, 1.0, True, "5"])
def test_top_k_is_checked(file, top_k):
    with pytest.raises(InputError, match="top_k is"):
        Model(file)(noise(), top_k)
    with pytest.raises(InputError, match="top_k is"):
        list(Model(file).predict([noise()], top_k=top_k))


# --- preprocessing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("resize", "height", "width"),
    [
        ({"shortest_edge": 36}, 32, 32),
        ({"shortest_edge": 33}, 24, 31),  # odd differences, where a crop could be off by one
        ({"shortest_edge": 32}, 32, 32),
        ({"shortest_edge": 24}, 25, 40),  # the crop is larger in one or both directions
        ({"shortest_edge": 9}, 32, 21),
        ({"height": 32, "width": 32}, 32, 32),
        ({"height": 40, "width": 29}, 31, 32),
    ],
)
def test_images_are_prepared_as_by_the_image_processor(tmp_path, resize, height, width, interpolation):
    form = {"height": height, "width": width, "resize": resize, "interpolation": interpolation}
    models = {d: Model(finished(tmp_path / f"{d}.tflite", dtype=d, **form)) for d in ("uint8", "float32")}
    with warnings.catch_warnings(action="ignore", category=MobileViTHubWarning):  # of the black border
        processor = MobileViTImageProcessor(
            size=resize, crop_size={"height": height, "width": width}, resample=interpolation,
            do_flip_channel_order=False,
        )  # fmt: skip
    for picture in pictures():
        for dtype, model in models.items():
            options = {"return_tensors": "np", "data_format": "channels_last", "do_rescale": dtype == "float32"}
            theirs, ours = processor(picture, **options)["pixel_values"], model.prepare(picture)
            assert (ours.dtype, ours.shape) == (np.dtype(dtype), (1, height, width, 3))
            assert theirs.dtype == ours.dtype and np.array_equal(ours, theirs)


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_photos_are_turned_upright_first(tmp_path, orientation):
    model = Model(finished(tmp_path / "m.tflite", height=64, width=128, resize={"shortest_edge": 64}))
    pixels = model.prepare(oriented(orientation, "PNG"))[0]
    assert [tuple(pixels[y, x]) for y, x in ((5, 5), (5, 120), (60, 5))] == [
        (250, 10, 10),
        (10, 250, 10),
        (10, 10, 250),
    ]


# --- bad files -----------------------------------------------------------------------------------------------------


def test_changed_bytes_anywhere_are_found(file, rng, monkeypatch):
    monkeypatch.setattr(tflite_files, "PATIENCE", ())
    content = file.read_bytes()
    positions = {*range(12), len(content) - 1, *rng.integers(0, len(content), 200).tolist()}
    for position in positions:
        damaged = bytearray(content)
        damaged[position] ^= int(rng.integers(1, 256))
        file.write_bytes(damaged)
        with pytest.raises(IntegrityError, match="damaged, or not the file that tiny.json beside it describes"):
            Model(file)
    for other in (b"", content[:-1], content[: len(content) // 2], content + b"\0"):
        file.write_bytes(other)
        with pytest.raises(IntegrityError):
            Model(file)
    file.write_bytes(content)
    assert Model(file).labels == LABELS


def test_a_damaged_file_never_reaches_the_interpreter(file):
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    code = """
    import sys
    from mobilevit_hub import errors, tflite
    try:
        tflite.Model(sys.argv[1])
    except errors.IntegrityError:
        print([name for name in sys.modules if name.startswith("ai_edge_litert")])
    """
    assert fresh_process(code, file).stdout == "[]\n"


def test_an_export_that_is_half_way_is_waited_for(file, monkeypatch):
    monkeypatch.setattr(tflite_files, "PATIENCE", (0.05,) * 200)
    sidecar = file.with_suffix(".json")
    right = sidecar.read_bytes()
    sidecar.write_text(json.dumps({**json.loads(right), "sha256": "0" * 64}))
    (new := sidecar.with_name("new")).write_bytes(right)
    timer = threading.Timer(0.15, lambda: new.replace(sidecar))
    timer.start()
    try:
        assert Model(file).labels == LABELS
    finally:
        timer.join()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"TFL", "no 'TFL3' at byte 4"),
        (b"<!DOCTYPE html><html>", "no 'TFL3' at byte 4"),
        (b"PK\x03\x04" + bytes(100), "no 'TFL3' at byte 4"),
        (b"\x1c\0\0\0TFL3", "LiteRT cannot run this file"),
        (b"\x1c\0\0\0TFL3" + bytes(500), "LiteRT cannot run this file"),
        (network()[:400], "LiteRT cannot run this file"),
        (network()[:-200], "LiteRT cannot run this file"),
    ],
)
def test_a_file_that_is_none_is_one_line(tmp_path, content, words):
    with pytest.raises(CheckpointError, match=words) as caught:
        Model(save(tmp_path / "x.tflite", content))
    assert "\n" not in str(caught.value) and str(tmp_path / "x.tflite") in str(caught.value)


def test_places_without_a_file(tmp_path):
    with pytest.raises(NotFoundError, match="no such file. Make one with: mobilevit-hub export"):
        Model(tmp_path / "x.tflite")
    with pytest.raises(CheckpointError, match="is a folder, pipe or device"):
        Model(tmp_path)
    for path in (None, 3, b"x.tflite"):
        with pytest.raises(InputError, match="expected the path of a .tflite file"):
            Model(path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1, "format": 2}', "\xff" * 3])
def test_broken_json_beside_the_file(file, text):
    file.with_suffix(".json").write_text(text, "latin-1")
    with pytest.raises(ConfigError, match="tiny.json"):
        Model(file)


def test_json_of_something_else_beside_the_file_is_left_alone(file):
    file.with_suffix(".json").write_text('{"shapes": [], "imagePath": "tiny.jpg"}')
    assert Model(file).record == record_of()


def looping():
    """A WHILE whose condition is always true."""
    image, loop = ((1, 8, 8, 3), "float32", 0), schema.WhileOptionsT(condSubgraphIndex=1, bodySubgraphIndex=2)
    graphs = [
        graph([image, image], [0], [1], [(0, [0], [1], loop)]),
        graph([image, ((1,), "bool", 1)], [0], [1], []),
        graph([image, image], [0], [1], [(1, [0], [1])]),
    ]
    return packed(graphs, ["WHILE", "FLOOR"], [np.array([True])])


def recursive():
    """A WHILE whose body is the graph that it stands in."""
    image, loop = ((1, 8, 8, 3), "float32", 0), schema.WhileOptionsT(condSubgraphIndex=1, bodySubgraphIndex=0)
    graphs = [
        graph([image, image], [0], [1], [(0, [0], [1], loop)]),
        graph([image, ((1,), "bool", 1)], [0], [1], []),
    ]
    return packed(graphs, ["WHILE"], [np.array([True])])


def large():
    """An image that is resized to 108 MB."""
    side = 3000
    tensors = [((1, 8, 8, 3), "float32", 0), ((2,), "int32", 1), ((1, side, side, 3), "float32", 0)]
    operators = [(0, [0, 1], [2], schema.ResizeBilinearOptionsT())]
    return packed([graph(tensors, [0], [2], operators)], ["RESIZE_BILINEAR"], [np.array([side, side], np.int32)])


def test_an_unknown_file_that_never_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(tflite_files, "TRIAL_SECONDS", 3)
    with pytest.raises(CheckpointError, match="did not come to an end with this file within 3 s"):
        Model(save(tmp_path / "x.tflite", looping()))


@LINUX
def test_an_unknown_file_that_crashes(tmp_path, monkeypatch):
    import resource

    monkeypatch.chdir(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    try:
        with pytest.raises(CheckpointError, match=r"crashed on this file \(SIGSEGV\)"):
            Model(save(tmp_path / "x.tflite", recursive()))
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["x.tflite"]  # and no core file
    assert Model(finished(tmp_path / "good.tflite")).labels == LABELS


@LINUX
@pytest.mark.parametrize(("limit", "words"), [(2**28, "LiteRT cannot run this file"), (2**32, "no image classifier")])
def test_an_unknown_file_that_takes_too_much_memory(tmp_path, monkeypatch, limit, words):
    monkeypatch.setattr(tflite_files, "TRIAL_BYTES", limit)
    with pytest.raises(CheckpointError, match=words):
        Model(save(tmp_path / "x.tflite", large()))


def swapped(**changes):
    """Files that LiteRT runs, and that are no classifier of the form that we run."""
    tensors = {"image": ((1, 8, 8, 3), "float32", 0), "scores": ((1, 8, 8, 3), "float32", 0), **changes}
    inputs, outputs = [0], [1]
    if "second" in tensors:
        outputs = [1, 2]
    operators = [(0, [0], [i]) for i in outputs]
    return packed([graph(list(tensors.values()), inputs, outputs, operators)], ["FLOOR"], [])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (swapped(), r"input float32 \(1, 8, 8, 3\) and output float32 \(1, 8, 8, 3\)"),
        (swapped(second=((1, 8, 8, 3), "float32", 0)), r"output float32 \(1, 8, 8, 3\), float32 \(1, 8, 8, 3\)"),
        (swapped(image=((1, 8), "float32", 0), scores=((1, 8), "float32", 0)), r"input float32 \(1, 8\)"),
        (swapped(image=((2, 8, 8, 3), "float32", 0), scores=((2, 8, 8, 3), "float32", 0)), r"input float32 \(2, 8"),
    ],
)
def test_a_network_that_is_no_classifier(tmp_path, content, words):
    with pytest.raises(CheckpointError, match=f"no image classifier of the form that can be run: .*{words}"):
        Model(save(tmp_path / "x.tflite", content))


# --- labels and record ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sidecar", [True, False])
@pytest.mark.parametrize("labels", [LABELS[:4], [*LABELS, "wolf"], []])
def test_a_wrong_number_of_labels(tmp_path, labels, sidecar):
    with pytest.raises(CheckpointError, match=f"has {len(labels) or 1} labels for 5 classes"):
        Model(finished(tmp_path / "x.tflite", labels=labels, sidecar=sidecar))


def test_labels_in_another_order_are_found(tmp_path):
    with pytest.raises(CheckpointError, match="its record says that labels.sha256 is"):
        Model(finished(tmp_path / "x.tflite", labels=LABELS[::-1]))


WRONG = [
    ("format", None, 2), ("format", None, "1"), ("input", "shape", [1, 32, 24, 3]), ("input", "dtype", "float32"),
    ("input", "range", [0, 1]), ("input", "channels", "bgr"), ("output", "shape", [1, 6]), ("output", "dtype", "uint8"),
    ("output", "name", "boxes"), ("output", "name", ["logits"]), ("labels", "count", 4), ("labels", "sha256", "0" * 64),
    ("labels", None, None), ("preprocessing", None, []), ("preprocessing", "crop", {"height": 32, "width": 32}),
    ("preprocessing", "crop", None), ("preprocessing", "resize", None), ("preprocessing", "resize", 36),
    ("preprocessing", "resize", {"shortest_edge": 0}), ("preprocessing", "resize", {"shortest_edge": "36"}),
    ("preprocessing", "resize", {"longest_edge": 36}), ("preprocessing", "resize", {"height": 36}),
    ("preprocessing", "resize", {"height": 36, "width": True}), ("preprocessing", "resize", {"shortest_edge": 10**9}),
    ("preprocessing", "interpolation", "linear"), ("preprocessing", "interpolation", {}),
]  # fmt: skip


@pytest.mark.parametrize(("part", "name", "value"), WRONG)
def test_a_record_that_does_not_fit(tmp_path, part, name, value):
    record = record_of()
    if name is None:
        record[part] = value
    else:
        record[part][name] = value
    with pytest.raises(CheckpointError, match=f"record (has {part}|says that {part}.{name or ''})") as caught:
        Model(finished(tmp_path / "x.tflite", record=record))
    assert "\n" not in str(caught.value)


def test_the_attached_record_serves_where_the_json_is_missing(tmp_path):
    form = {"height": 30, "width": 31, "resize": {"shortest_edge": 44}, "interpolation": "bicubic"}
    with_json, alone = (Model(finished(tmp_path / f"{s}.tflite", sidecar=s, **form)) for s in (True, False))
    assert alone.record == record_of(**form)
    for picture in pictures():
        assert np.array_equal(alone.prepare(picture), with_json.prepare(picture))
    assert alone(noise()) == with_json(noise())


def test_a_broken_attached_record(tmp_path):
    with pytest.raises(ConfigError, match="mobilevit_hub.json: not valid JSON at line 1"):
        Model(save(tmp_path / "a.tflite", attach(network(), record="{")))
    with pytest.raises(CheckpointError, match="what is attached to it is not UTF-8 text"):
        Model(save(tmp_path / "b.tflite", attach(network(), labels=b"\xff\xfe\n" * 5)))


@DTYPES
@pytest.mark.parametrize("output", ["probabilities", "logits"])
def test_a_foreign_classifier_is_prepared_by_apples_rule(tmp_path, dtype, output):
    path = save(tmp_path / "foreign.tflite", network(64, 64, dtype, output))
    with pytest.warns(MobileViTHubWarning, match=f"Apple's rule: short side 72, bilinear, crop 64 × 64.* as {output}"):
        model = Model(path)
    processor = processor_for(72, 64, "bilinear", "rgb")
    options = {"return_tensors": "np", "data_format": "channels_last", "do_rescale": dtype == "float32"}
    for picture in pictures():
        pixels = processor(picture, **options)["pixel_values"]
        assert np.array_equal(model.prepare(picture), pixels)
        best = model(picture, 1)[0]
        scores = expected(pixels)[0]
        assert (best["index"], best["label"]) == (scores.argmax(), f"class {scores.argmax()}")
        assert best["score"] == pytest.approx(scores.max(), abs=1e-5)
    assert (model.record, model.labels[-1]) == (None, "class 4")


@pytest.mark.parametrize(
    ("tail", "labels"),
    [
        (attach(b"", labels="a\r\nb\r\nc\r\nd\r\ne"), list("abcde")),  # as MediaPipe's own tools attach them
        (attach(b"", labels="\n" * 5_000_000), [f"class {i}" for i in range(5)]),  # 5 MB in 5 kB
        (b"PK\x05\x06" + bytes(18), [f"class {i}" for i in range(5)]),
        (attach(b"", labels="a\nb\nc\nd\ne\n").replace(b"PK\x01\x02", b"PK\x01\x03"), [f"class {i}" for i in range(5)]),
        (bytes(1000), [f"class {i}" for i in range(5)]),
    ],
)
def test_what_a_foreign_file_may_carry(tmp_path, tail, labels):
    with pytest.warns(MobileViTHubWarning, match="does not say how its images are prepared"):
        assert Model(save(tmp_path / "x.tflite", network() + tail)).labels == labels


# --- several threads -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_four_threads_get_the_answers_of_one(file, rng, threads):
    model = Model(file, threads=threads)
    images = rng.integers(0, 256, (200, 30, 40, 3), np.uint8)
    alone = [model(image) for image in images]
    assert len({result[0]["score"] for result in alone}) > 100
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(model, images)) == alone


# --- predict and the command ---------------------------------------------------------------------------------------


def test_predict_takes_a_file(file, tmp_path):
    (tmp_path / "a.png").write_bytes(encode(smooth(80, 50), "PNG"))
    (tmp_path / "broken.png").write_bytes(encode(noise(), "PNG")[:50])
    images = [tmp_path / "a.png", tmp_path / "broken.png", noise()]
    model = Model(file)
    for results in (mh.predict(images, file, top_k=2), list(model.predict(images, top_k=2)),
                    mh.predict(images, str(file), runtime="tflite", top_k=2, threads=2)):  # fmt: skip
        assert [result["path"] for result in results] == [str(images[0]), str(images[1]), "image 2"]
        assert [set(result) for result in results] == [
            {"path", "predictions", "ms"}, {"path", "error"}, {"path", "predictions", "ms"}
        ]  # fmt: skip
        assert results[0]["predictions"] == model(images[0], 2) and results[2]["predictions"] == model(images[2], 2)
        assert "broken.png" in results[1]["error"]


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("x.tflite", {"runtime": "pt"}, "runtime is 'pt', but 'x.tflite' is a .tflite file; only 'tflite' runs it"),
        ("x.tflite", {"runtime": "tf"}, "only 'tflite' runs it"),
        ("mobilevit-s", {"runtime": "tflite"}, "mobilevit-hub export mobilevit-s mobilevit-s.tflite"),
        ("x.tflite", {"runtime": "onnx"}, "runtime is 'onnx'; expected one of pt, tf, tflite"),
        ("x.tflite", {"revision": "main"}, "there is no option 'revision'"),
        ("x.tflite", {"threads": 0}, "threads is 0"),
    ],
)
def test_predict_refuses_what_does_not_go_together(model, options, words):
    with pytest.raises(InputError, match=words):
        mh.predict(noise(), model, **options)


def run(capsys, *arguments):
    """Exit code, stdout and stderr of the command in this process."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as exit:
        code = exit.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("option", [[], ["--runtime", "tflite"], ["--framework", "tflite"]])
def test_the_command_runs_a_file(capsys, file, tmp_path, option):
    photo = tmp_path / "a.png"
    photo.write_bytes(encode(smooth(80, 50), "PNG"))
    code, out, err = run(capsys, "predict", photo, "--model", file, "--top", 3, "--json", *option)
    assert (code, err) == (0, "")
    assert json.loads(out)[0]["predictions"] == Model(file)(photo, 3)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--model", "tiny.tflite", "--runtime", "pt"], 2, "is a .tflite file; only 'tflite' runs it"),
        (["--model", "mobilevit-s", "--runtime", "tflite"], 2, "mobilevit-hub export mobilevit-s mobilevit-s.tflite"),
        (["--model", "tiny.tflite", "--revision", "main"], 2, "there is no option 'revision'"),
        (["--model", "missing.tflite"], 1, "missing.tflite: no such file. Make one with: mobilevit-hub export"),
        (["--model", "damaged.tflite"], 1, "damaged.tflite: damaged, or not the file that damaged.json"),
        (["--model", "mobilvit-s", "--runtime", "tflite"], 1, "Did you mean 'mobilevit-s'"),
    ],
)
def test_the_command_says_in_one_line_what_does_not_work(capsys, file, tmp_path, monkeypatch, arguments, status, words):
    monkeypatch.chdir(tmp_path)
    damaged = finished(tmp_path / "damaged.tflite")
    damaged.write_bytes(damaged.read_bytes()[:-5])
    code, out, err = run(capsys, "predict", "a.png", *arguments)
    assert (code, out) == (status, "")
    assert err.count("\n") == 1 and words in err


# --- what is needed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sidecar", [True, False])
def test_no_framework_is_loaded(tmp_path, sidecar):
    path = finished(tmp_path / "m.tflite", sidecar=sidecar)
    photo = tmp_path / "a.png"
    photo.write_bytes(encode(smooth(80, 50), "PNG"))
    code = """
    import sys
    import mobilevit_hub as mh
    from mobilevit_hub.cli.main import main

    path, photo = sys.argv[1:]
    assert mh.tflite.Model(path)(photo) == mh.predict(photo, path)[0]["predictions"]
    assert main(["predict", photo, "--model", path]) == 0
    heavy = ("torch", "tensorflow", "keras", "transformers", "huggingface_hub", "datasets")
    print([name for name in heavy if name in sys.modules])
    """
    done = fresh_process(code, path, photo)
    assert done.stdout.endswith("[]\n")
    hidden = fresh_process(code, path, photo, hide=("torch", "tensorflow", "keras", "transformers"))
    assert hidden.stdout.splitlines()[1:] == done.stdout.splitlines()[1:]  # the first has the time


def test_without_litert_the_extra_is_named(file):
    code = f"""
    import sys
    import mobilevit_hub as mh
    try:
        mh.tflite.Model(sys.argv[1])
    except mh.errors.{MissingDependencyError.__name__} as error:
        print(error)
    """
    done = fresh_process(code, file, hide=("ai_edge_litert",))
    assert 'needs ai_edge_litert, which is not installed. Install it with: pip install "mobilevit_hub[tflite]"' in (
        done.stdout
    )
