"""Metrics against scikit-learn, SciPy and counting by hand; the `evaluate.Metric` classes against the functions."""

import os
import subprocess
import sys
from itertools import product

import evaluate
import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics as sk

from mobilevit_hub import metrics
from mobilevit_hub.metrics import (
    agreement,
    calibration_error,
    confusion_matrix,
    hits,
    mcnemar,
    most_confused,
    per_class,
    reliability,
    share,
    wilson_interval,
)


def predictions(rng, count=500, classes=12):
    """Classes, and probabilities that know a little about them."""
    truth = rng.integers(classes, size=count)
    logits = rng.normal(size=(count, classes)) + 1.5 * np.eye(classes)[truth]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return truth, probabilities, np.argsort(-probabilities, axis=1)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_hits_are_top_k_accuracy(rng, k):
    truth, probabilities, best = predictions(rng)
    expected = sk.top_k_accuracy_score(truth, probabilities, k=k, labels=range(12))
    assert hits(truth, best, k).mean() == pytest.approx(expected, abs=1e-12)
    assert hits(truth, best[:, :k], k).mean() == hits(truth, best, k).mean()


def test_hits_with_several_right_labels(rng):
    truth = rng.integers(-1, 6, (300, 3))
    best = np.argsort(rng.random((300, 6)), axis=1)[:, :4]
    for k in (1, 4):
        by_hand = [any(t in row[:k] for t in labels if t >= 0) for labels, row in zip(truth, best, strict=True)]
        assert hits(truth, best, k).tolist() == by_hand
    nothing_named = np.full((300, 4), -1)
    assert not hits(truth, nothing_named, 4).any()  # -1 fills up, it is no class


def test_share_and_its_interval():
    for right, count in product((0, 1, 7, 20), (20, 21, 400)):
        found, interval = share(np.arange(count) < right)
        expected = binomtest(right, count).proportion_ci(0.95, method="wilson")
        assert found == right / count
        assert interval == pytest.approx((expected.low, expected.high), abs=1e-12)
        assert interval == wilson_interval(right, count)


def test_mcnemar_is_the_binomial_test():
    for lost, gained in product(range(12), range(12)):
        expected = binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
        assert mcnemar(lost, gained) == pytest.approx(expected, abs=1e-12)


def test_confusion_matrix_and_per_class(rng):
    truth, _, best = predictions(rng)
    matrix = confusion_matrix(truth, best[:, 0], 12)
    assert np.array_equal(matrix, sk.confusion_matrix(truth, best[:, 0], labels=range(12)))
    count, right = per_class(truth, best[:, 0] == truth, 12)
    assert (right / count).mean() == pytest.approx(sk.balanced_accuracy_score(truth, best[:, 0]), abs=1e-12)
    assert np.array_equal(right / count, sk.recall_score(truth, best[:, 0], average=None))


def test_most_confused():
    matrix = np.array([[9, 3, 0], [5, 9, 0], [0, 1, 9]])
    assert most_confused(matrix) == [(1, 0, 5), (0, 1, 3), (2, 1, 1)]
    assert most_confused(matrix, 1) == [(1, 0, 5)]
    assert most_confused(np.eye(3, dtype=int)) == []


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_by_hand(rng, bins):
    truth, probabilities, best = predictions(rng)
    confidence, right = probabilities.max(1), best[:, 0] == truth
    error = 0.0
    for i in range(bins):
        inside = (confidence > i / bins) & (confidence <= (i + 1) / bins)
        if inside.any():
            error += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    found = reliability(confidence, right, bins)
    assert found.count.sum() == len(truth)
    assert calibration_error(found) == pytest.approx(error, abs=1e-12)


def test_bounds_of_confidence_fall_into_a_bin():
    found = reliability(np.array([0.0, 1.0, 0.5, 1 / 3]), np.array([True, True, False, True]), 2)
    assert found.count.tolist() == [3, 1]


def test_agreement_is_accuracy_of_one_against_the_other(rng):
    first, second = rng.integers(3, size=(2, 100))
    assert agreement(first, second) == sk.accuracy_score(first, second)


# --- evaluate.Metric -----------------------------------------------------------------------------------------------


def test_classes_are_metrics_that_take_batches(rng):
    truth, probabilities, best = predictions(rng)
    named, right = best[:, 0], best[:, 0] == truth
    other = rng.integers(12, size=len(truth))
    cases = [
        (metrics.Accuracy(top_k=3), best[:, :3], truth, "accuracy", sk.top_k_accuracy_score(truth, probabilities, k=3)),
        (metrics.PerClassAccuracy(12), named, truth, "mean_per_class", sk.balanced_accuracy_score(truth, named)),
        (metrics.ConfusionMatrix(12), named, truth, "confusion_matrix", sk.confusion_matrix(truth, named)),
        (metrics.Agreement(), named, other, "agreement", (named == other).mean()),
        (metrics.CalibrationError(), probabilities.max(1), right.astype(int), "calibration_error",
         calibration_error(reliability(probabilities.max(1), right))),
        (metrics.McNemar(), right.astype(int), (other == truth).astype(int), "p_value",
         binomtest(int((right & (other != truth)).sum()), int((right != (other == truth)).sum())).pvalue),
    ]  # fmt: skip
    for metric, given, references, key, expected in cases:
        assert isinstance(metric, evaluate.Metric)
        for start in range(0, len(truth), 128):
            metric.add_batch(predictions=given[start : start + 128], references=references[start : start + 128])
        assert metric.compute()[key] == pytest.approx(expected, abs=1e-12)


def test_accuracy_has_an_interval():
    found = metrics.Accuracy().compute(predictions=[[1], [0], [1]], references=[1, 1, 1])
    assert found["accuracy"] == 2 / 3
    assert found["interval"] == wilson_interval(2, 3)


def test_an_empty_class_is_nan():
    found = metrics.PerClassAccuracy(3).compute(predictions=[0, 1], references=[0, 0])
    assert found["mean_per_class"] == 0.5
    assert np.isnan(found["per_class"][1:]).all()


def test_metrics_use_no_network_and_leave_no_files(tmp_path):
    code = (
        "import sys\n"
        "sys.addaudithook(lambda e, a: sys.exit(e) if e in ('socket.connect', 'socket.getaddrinfo') else None)\n"
        "import mobilevit_hub.metrics as m\n"
        "assert 'evaluate' not in sys.modules\n"
        "print(m.Accuracy().compute(predictions=[[1]], references=[1])['accuracy'])\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.stdout == "1.0\n", done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_unknown_metric():
    with pytest.raises(AttributeError, match="has no attribute 'Bleu'"):
        _ = metrics.Bleu
