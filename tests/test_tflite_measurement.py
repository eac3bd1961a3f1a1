"""What an export says about its file: what is in it, how far it is from its source, how sure that is."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="needs LiteRT", exc_type=ImportError)
from ai_edge_litert import schema_py_generated as schema
from test_tflite_model import finished, graph, network, packed

from mobilevit_hub.conversion.tflite.inspection import Inspection, check_form, inspect
from mobilevit_hub.conversion.tflite.measurement import (
    check_photos,
    compare,
    difference,
    latency,
    mcnemar,
    processor_name,
    wilson_interval,
)
from mobilevit_hub.errors import ExportError, InputError

# --- what is in a file -----------------------------------------------------------------------------------------------


def chain(*kinds, shape=(1, 4)):
    """A file of operations one after the other; ADD doubles."""
    tensors = [(shape, "float32", 0)] * (len(kinds) + 1)
    names = sorted(set(kinds))
    operators = [(names.index(kind), [i, i] if kind == "ADD" else [i], [i + 1]) for i, kind in enumerate(kinds)]
    return packed([graph(tensors, [0], [len(kinds)], operators)], names, [])


def test_a_file_that_is_taken_whole():
    file = chain("ADD", "LOGISTIC", "ADD")
    found = inspect(file)
    assert found == Inspection(
        size=len(file), operations={"ADD": 2, "LOGISTIC": 1}, rank=2, batched=[], dynamic=False, custom=[],
        partitions=1, not_delegated={}, adjoints=0, int8_weights=0, float_operations={},
    )  # fmt: skip
    assert (found.count, found.delegated, found.gpu_obstacles) == (3, 1, [])
    check_form(found)


def test_operations_that_xnnpack_leaves_cut_the_graph():
    found = inspect(chain("ADD", "ZEROS_LIKE", "ADD", "ADD", "ZEROS_LIKE", "ADD", "ZEROS_LIKE"))
    assert (found.partitions, found.not_delegated, found.delegated) == (3, {"ZEROS_LIKE": 3}, pytest.approx(4 / 7))
    assert found.operations == {"ADD": 4, "ZEROS_LIKE": 3}
    assert found.gpu_obstacles == ["no GPU kernel for ZEROS_LIKE"]
    with pytest.raises(ExportError, match="XNNPACK takes it in 3 pieces and leaves 3 ZEROS_LIKE"):
        check_form(found)


def test_the_cast_of_the_input_may_be_left():
    found = inspect(network())
    assert (found.partitions, found.not_delegated) == (1, {"CAST": 1})
    assert found.operations == {"CAST": 1, "MEAN": 1, "FULLY_CONNECTED": 1, "SOFTMAX": 1}
    check_form(found)


def test_a_file_of_which_xnnpack_takes_nothing():
    found = inspect(chain("ZEROS_LIKE"))
    assert (found.partitions, found.delegated) == (0, 0)
    with pytest.raises(ExportError, match="in 0 pieces and leaves 1 ZEROS_LIKE"):
        check_form(found)


def test_rank_and_batch():
    found = inspect(chain("ADD", "ADD", shape=(1, 2, 1, 2, 3)))
    assert (found.rank, found.batched) == (5, [])
    assert "a tensor has rank 5" in found.gpu_obstacles
    found = inspect(chain("ADD", "ADD", shape=(2, 4)))
    assert (found.rank, found.batched) == (2, ["[2, 4]"])
    assert found.gpu_obstacles == ["the batch is not 1: [2, 4]"]


@pytest.mark.parametrize("turned", [False, True])
def test_products_that_transpose_a_factor_themselves(turned):
    tensors = [((1, 4, 4), "float32", 0)] * 3
    operators = [(0, [0, 0], [1], schema.AddOptionsT()), (1, [0, 1], [2], schema.BatchMatMulOptionsT(adjY=turned))]
    found = inspect(packed([graph(tensors, [0], [2], operators)], ["ADD", "BATCH_MATMUL"], []))
    assert found.adjoints == turned
    assert found.gpu_obstacles == ["1 BATCH_MATMUL transpose a factor, which some GPU delegates overlook"] * turned
    check_form(found)


def test_a_size_that_is_not_static():
    model = schema.ModelT.InitFromPackedBuf(chain("ADD"))
    for tensor in model.subgraphs[0].tensors:
        tensor.shapeSignature = [-1, 4]
    builder = schema.flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    found = inspect(bytes(builder.Output()))
    assert found.dynamic and found.gpu_obstacles == ["a size is not static"]
    with pytest.raises(ExportError, match="not static"):
        check_form(found)


GOOD = Inspection(1000, {"CONV_2D": 3, "CAST": 1}, 4, [], False, [], 1, {"CAST": 1}, 0, 0, {})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"operations": {"SPLIT_V": 2, "CONV_2D": 1}}, "it has SPLIT_V"),
        ({"operations": {"READ_VARIABLE": 2, "BROADCAST_TO": 1}}, "it has BROADCAST_TO, READ_VARIABLE"),
        ({"custom": ["FlexConv2D"]}, "it has the operations FlexConv2D, which are not built in"),
        ({"rank": 5}, "a tensor has rank 5"),
        ({"batched": ["[4, 16]"]}, "its batch or its sizes are not static and 1"),
        ({"dynamic": True}, "its batch or its sizes are not static and 1"),
        ({"partitions": 2}, "XNNPACK takes it in 2 pieces and leaves 1 CAST"),
        ({"not_delegated": {"CAST": 1, "ADD": 2}}, "XNNPACK takes it in 1 pieces and leaves 1 CAST, 2 ADD"),
    ],
)
def test_a_form_that_does_not_run_well_is_refused(changes, reason):
    check_form(GOOD)
    with pytest.raises(ExportError) as caught:
        check_form(replace(GOOD, **changes))
    assert str(caught.value) == f"The file would not run well on a phone: {reason}."
    with pytest.raises(ExportError, match="; ") as caught:
        check_form(replace(GOOD, **changes | {"operations": {"SELECT": 1}, "rank": 6}))
    assert "SELECT" in str(caught.value) and "rank 6" in str(caught.value)


def test_what_a_gpu_does_not_take():
    assert GOOD.gpu_obstacles == []
    assert replace(GOOD, int8_weights=7).gpu_obstacles == [
        "7 operations have 8-bit weights, and a GPU computes in floats; use fp16"
    ]
    assert replace(GOOD, operations={"GATHER": 2, "ADD": 1, "QUANTIZE": 1}).gpu_obstacles == [
        "no GPU kernel for GATHER, QUANTIZE"
    ]
    assert replace(GOOD, rank=5, int8_weights=1).to_dict()["gpu"]["ready"] is False


# --- difference ------------------------------------------------------------------------------------------------------

LOGITS = np.array([[1.0, -1.0, 0.0, 4.0], [-3.0, 2.0, 1.0, 0.0]])


def softmax(values):
    powers = np.exp(values - values.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


CHANGE = np.array([[0.25, -0.25, 0, 0], [0, 0.5, 0, -0.5]])


@pytest.mark.parametrize("probabilities", [False, True])
def test_difference_by_the_formula(probabilities):
    """The logits have 12 / 8 as their mean size, and 28 as their sum of squares without the mean of each image."""
    outputs = LOGITS + CHANGE
    found = difference(softmax(outputs) if probabilities else outputs, LOGITS, probabilities=probabilities)
    assert found.largest == pytest.approx(0.5 / (12 / 8))
    assert found.error == pytest.approx(math.sqrt(0.625 / 28))
    assert (found.agreement, found.images) == (1.0, 2)


def test_what_a_softmax_does_not_see_is_a_difference_of_logits_only():
    shifted = LOGITS + np.array([[100.0], [-7.0]])
    found = difference(softmax(shifted), LOGITS, probabilities=True)
    assert found.largest < 1e-12 and found.error < 1e-12
    found = difference(shifted, LOGITS, probabilities=False)
    assert (found.largest, found.error) == pytest.approx((100 / (12 / 8), math.sqrt(4 * (10_000 + 49) / 28)))
    assert found.agreement == 1


def test_agreement_counts_the_best_class():
    outputs = np.array([[9, 0, 0, 8], [0, 1, 2, 0], [0, 1, 0, 0], [1, 0, 0, 0]])
    logits = np.array([[0, 0, 0, 1], [0, 1, 2, 0], [0, 1, 0, 0], [0, 0, 1, 0]])
    assert difference(outputs, logits, probabilities=False).agreement == 0.5


def test_probabilities_that_are_zero_count_as_far_below():
    logits = np.array([[0.0, -200.0, -300.0]])
    assert difference(np.float32(softmax(logits)), logits, probabilities=True).largest < 1e-6
    found = difference(np.float32([[0.5, 0.5, 0]]), logits, probabilities=True)
    assert found.largest > 1


def test_nan_is_a_difference():
    found = difference(np.array([[np.nan, 0.0]]), np.array([[1.0, 0.0]]), probabilities=False)
    assert not found.largest <= 1e9 and not found.error <= 1e9


def test_logits_that_are_all_equal_have_the_scale_one():
    found = difference(np.array([[0.0, 0.5]]), np.zeros((1, 2)), probabilities=False)
    assert (found.largest, found.error) == (0.5, 0.5)


def test_the_built_in_photos():
    photos = check_photos()
    assert len(photos) == 32
    assert {(photo.shape, photo.dtype) for photo in photos} == {((128, 128, 3), np.dtype("uint8"))}
    assert len({photo.tobytes() for photo in photos}) == 32
    assert min(photo.std() for photo in photos) > 10


# --- how sure it is --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_intervals_are_the_published_ones(successes, count, low, high):
    """R. G. Newcombe, Two-sided confidence intervals for the single proportion (1998), table I, method 3."""
    assert wilson_interval(successes, count) == pytest.approx((low, high), abs=5.1e-5)
    above = wilson_interval(count - successes, count)
    assert above == pytest.approx((1 - high, 1 - low), abs=5.1e-5)


def test_the_bounds_of_an_interval_are_just_not_refuted():
    for count in (1, 7, 100, 10_000):
        for successes in {0, 1, count // 3, count}:
            bounds = wilson_interval(successes, count)
            assert 0 <= bounds[0] <= successes / count + 1e-12 and successes / count - 1e-12 <= bounds[1] <= 1
            for bound in bounds:
                if 1e-9 < bound < 1 - 1e-9:
                    deviations = abs(successes / count - bound) / math.sqrt(bound * (1 - bound) / count)
                    assert deviations == pytest.approx(1.959964, abs=1e-5)


def test_mcnemar_counts_throws_of_a_coin():
    for count in range(11):
        throws = [sum(throw) for throw in itertools.product((0, 1), repeat=count)]
        for lost in range(count + 1):
            as_uneven = sum(abs(heads - count / 2) >= abs(lost - count / 2) for heads in throws)
            assert mcnemar(lost, count - lost) == pytest.approx(as_uneven / len(throws))


@pytest.mark.parametrize(("lost", "gained", "p_value"), [(0, 0, 1), (0, 5, 2 / 32), (8, 1, 20 / 512), (10, 10, 1)])
def test_mcnemar(lost, gained, p_value):
    assert mcnemar(lost, gained) == mcnemar(gained, lost) == p_value


def test_mcnemar_of_thousands_is_finite():
    assert mcnemar(900, 900) == 1
    assert 0 < mcnemar(800, 900) < 0.02 and mcnemar(0, 3000) == 0


# --- accuracy and latency --------------------------------------------------------------------------------------------


def naming(classes):
    """A classifier that names, for the photo whose first byte is i, class number `classes[i]` of 4."""
    return lambda pixels: np.eye(4, dtype=np.float32)[[classes[int(pixels[0, 0, 0, 0])]]]


def test_compare_counts():
    labels = np.array([0, 1, 2, 3, 0, 1, 2, 3])
    source = naming([0, 1, 2, 3, 0, 1, 0, 0])  # 6 right
    worse = naming([0, 1, 2, 0, 1, 2, 2, 0])  # 3, 4 and 5 lost, 6 gained
    photos = (np.full((1, 2, 2, 3), i, np.uint8) for i in range(8))
    models = [SimpleNamespace(run=source), SimpleNamespace(run=worse)]
    same, other = compare(models, lambda pixels: source(pixels)[0], photos, labels, "photos/")
    assert (same.dataset, same.count, same.source_top1, same.top1, same.agreement) == ("photos/", 8, 0.75, 0.75, 1)
    assert (same.lost, same.gained, same.p_value) == (0, 0, 1)
    assert (other.source_top1, other.top1, other.agreement) == (0.75, 0.5, 0.5)
    assert (other.lost, other.gained) == (3, 1)
    assert other.p_value == 2 * (1 + 4) / 16
    assert other.interval == pytest.approx((0.2152, 0.7848), abs=1e-4)  # of 4 in 8
    assert other.to_dict()["interval"] == other.interval


def test_photos_that_cannot_be_read_are_not_counted():
    labels, run = np.array([0, 1, 2, 3]), naming([0, 1, 0, 0])
    photos = [np.full((1, 2, 2, 3), i, np.uint8) if i % 2 else None for i in range(4)]
    (found,) = compare([SimpleNamespace(run=run)], lambda pixels: run(pixels)[0], photos, labels, "photos/")
    assert (found.count, found.source_top1, found.top1) == (2, 0.5, 0.5)
    with pytest.raises(InputError, match="photos/: none of its photos can be read"):
        compare([], run, [None] * 4, labels, "photos/")


def test_latency_of_files(tmp_path):
    sizes = [{"height": 24, "width": 32, "dtype": "uint8"}, {"height": 40, "width": 24, "dtype": "float32"}]
    found = latency([finished(tmp_path / f"{i}.tflite", **size) for i, size in enumerate(sizes)], 2)
    assert len(found) == 2
    for entry in found:
        assert 0 < entry.low <= entry.median <= entry.high
        assert (entry.threads, entry.calls) == (2, 30)
        assert set(entry.to_dict()) == {"threads", "median", "low", "high", "calls"}
    assert processor_name()
