"""Photos prepared ahead: order, errors, and how far it reads."""

import threading
import time
from pathlib import Path

import pytest

import mobilevit_hub as mh
from mobilevit_hub.data import pipeline
from mobilevit_hub.data.pipeline import default_workers, prepare_ahead
from mobilevit_hub.errors import ImageError, InputError


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_order_is_kept(workers):
    def prepare(number):
        time.sleep(0.002 * (number % 3))
        return number**2

    found = list(prepare_ahead(range(40), prepare, workers=workers, ahead=8))
    assert found == [(i, i**2) for i in range(40)]


@pytest.mark.parametrize("workers", [0, 3])
def test_errors_of_photos_are_kept_and_others_raised(workers):
    def prepare(number):
        if number == 3:
            raise ImageError("broken")
        if number == 7:
            raise ZeroDivisionError
        return number

    found = []
    with pytest.raises(ZeroDivisionError):
        for source, result in prepare_ahead(range(10), prepare, workers=workers, ahead=2):
            found.append((source, result))
    assert [source for source, _ in found] == list(range(7))
    assert str(found[3][1]) == "broken" and found[4] == (4, 4)


def test_reads_as_far_ahead_as_said_and_no_further():
    read = []

    def sources():
        for i in range(100):
            read.append(i)
            yield i

    ahead = prepare_ahead(sources(), lambda i: i, workers=2, ahead=5)
    assert next(ahead) == (0, 0)
    assert len(read) == 6
    assert next(ahead) == (1, 1)
    assert len(read) == 7
    ahead.close()
    assert len(read) == 7


def test_without_threads_nothing_is_read_ahead():
    """So one buffer may be filled again and again, as of a camera."""
    buffer = [0]

    def camera():
        for i in range(5):
            buffer[0] = i
            yield buffer

    assert [result for _, result in prepare_ahead(camera(), lambda b: b[0], workers=0, ahead=9)] == list(range(5))


def test_threads_work_at_the_same_time():
    both = threading.Barrier(2, timeout=30)
    found = list(prepare_ahead(range(2), lambda i: both.wait() is not None, workers=2, ahead=2))
    assert found == [(0, True), (1, True)]


def test_a_failing_source_ends_it():
    def sources():
        yield 1
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(prepare_ahead(sources(), lambda i: i, workers=2, ahead=4))


def test_default_workers(monkeypatch):
    monkeypatch.setattr(pipeline.os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    assert default_workers() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert default_workers() == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert default_workers() == 1


@pytest.mark.parametrize("workers", [-1, 1.5, True, "2", 10**6])
def test_wrong_workers(workers):
    with pytest.raises(InputError, match="workers is"):
        pipeline.check_workers(workers)


@pytest.mark.torch
def test_torch_gets_its_threads_back():
    import torch

    before = torch.get_num_threads()
    with pipeline.room_for(1000):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    with pipeline.room_for(0):
        assert torch.get_num_threads() == before
    first, second = pipeline.room_for(1000), pipeline.room_for(1000)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)  # as of two predictions that are read in turns
    assert torch.get_num_threads() == 1
    second.__exit__(None, None, None)
    assert torch.get_num_threads() == before


@pytest.mark.torch
def test_predictions_are_the_same_with_and_without_threads():
    photos = sorted(map(str, (Path(__file__).parent.parent / "examples" / "photos").iterdir()))
    photos.insert(1, "no-such-photo.jpg")

    def predictions(images, **options):
        return [{**result, "ms": None} for result in mh.predict(images, **options)]

    expected = predictions(photos, workers=0)
    assert "no-such-photo.jpg" in expected[1]["error"]
    assert predictions(photos, workers=3) == expected
    assert predictions(iter(photos)) == expected
    with pytest.raises(InputError, match="workers is -1"):
        mh.predict(photos, workers=-1)
