"""Rows in files: whatever is cut off, damaged or foreign, the good part is read, and nothing wrong."""

import numpy as np
import pytest

from mobilevit_hub.errors import InputError, SourceError
from mobilevit_hub.evaluation import records
from mobilevit_hub.evaluation.records import Records, is_open, path_of

DTYPE = np.dtype([("state", "<u4"), ("label", "<i4", (1,))])
DIGEST, OTHER = b"a" * 32, b"b" * 32


def rows(batch, count=3):
    found = np.zeros((count, 2), DTYPE)
    found["label"] = 10 * batch + np.arange(count)[:, None, None]
    return found


def written(folder, batches=(0, 1, 2), rank=0, digest=DIGEST):
    """A closed file with some batches."""
    kept = Records(folder, digest, DTYPE, 2, rank)
    for batch in batches:
        kept.add(batch, rows(batch))
    kept.close()
    return path_of(folder, rank)


def read(folder, digest=DIGEST):
    found = Records(folder, digest, DTYPE, 2, rank=9, keep=True)
    found.read_all()
    found.close()
    return found.batches


def test_what_is_written_is_read(tmp_path):
    written(tmp_path, (0, 2), 0)
    written(tmp_path, (1,), 1)
    kept = Records(tmp_path, DIGEST, DTYPE, 2, rank=0, keep=True)
    kept.read_all()
    kept.total = 9
    assert kept.missing(3) == []
    assert np.array_equal(kept.rows(3), np.concatenate([rows(b) for b in range(3)]))
    kept.total = 10
    assert kept.missing(3) == [3]
    kept.close()


def test_a_file_cut_anywhere_gives_its_whole_records(tmp_path):
    file = written(tmp_path)
    content = file.read_bytes()
    size = (len(content) - 40) // 3
    for length in range(len(content)):
        file.write_bytes(content[:length])
        assert list(read(tmp_path)) == list(range(max(0, length - 40) // size))


def test_a_changed_byte_anywhere_gives_no_wrong_row(tmp_path):
    file = written(tmp_path)
    content = file.read_bytes()
    size = (len(content) - 40) // 3
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        found = read(tmp_path)
        assert list(found) == list(range(max(0, place - 40) // size if place >= 40 else 0))
        assert all(np.array_equal(found[b], rows(b)) for b in found)


def test_going_on_overwrites_the_damaged_end(tmp_path):
    file = written(tmp_path)
    file.write_bytes(file.read_bytes()[:-5])
    kept = Records(tmp_path, DIGEST, DTYPE, 2, keep=True)
    assert list(kept.batches) == [0, 1]
    kept.add(7, rows(7))
    kept.close()
    assert list(read(tmp_path)) == [0, 1, 7]


def test_rows_of_other_settings_are_ignored(tmp_path):
    written(tmp_path, digest=OTHER)
    assert read(tmp_path) == {}
    kept = Records(tmp_path, DIGEST, DTYPE, 2, keep=True)
    kept.add(5, rows(5))
    kept.close()
    assert list(read(tmp_path)) == [5]


def test_a_new_run_begins_with_an_empty_file(tmp_path):
    written(tmp_path)
    Records(tmp_path, DIGEST, DTYPE, 2).close()
    assert read(tmp_path) == {}


def test_the_end_of_a_stream_is_kept(tmp_path):
    kept = Records(tmp_path, DIGEST, DTYPE, 2)
    kept.end(12345)
    kept.close()
    again = Records(tmp_path, DIGEST, DTYPE, 2, keep=True)
    assert again.total == 12345
    again.close()


def test_in_memory_there_are_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = Records(None, DIGEST, DTYPE, 2)
    kept.add(0, rows(0))
    kept.total = 3
    kept.wait(3, 1)
    assert np.array_equal(kept.rows(3), rows(0))
    assert list(tmp_path.iterdir()) == []


def test_one_file_has_one_writer(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "LOCK_SECONDS", 0.1)
    first = Records(tmp_path, DIGEST, DTYPE, 2)
    assert is_open(path_of(tmp_path, 0))
    with pytest.raises(InputError, match="another process writes"):
        Records(tmp_path, DIGEST, DTYPE, 2, keep=True)
    first.close()
    assert not is_open(path_of(tmp_path, 0))


@pytest.mark.parametrize(("lives", "message"), [(False, "process 1 of 2 has ended"), (True, "are silent")])
def test_waiting_for_a_dead_or_silent_process_ends(tmp_path, monkeypatch, lives, message):
    monkeypatch.setattr(records, "DEAD_SECONDS", 0.3)
    monkeypatch.setattr(records, "SILENT_SECONDS", 0.6)
    kept, other = Records(tmp_path, DIGEST, DTYPE, 2), Records(tmp_path, DIGEST, DTYPE, 2, rank=1)
    if not lives:
        other.close()
    kept.total = 3
    with pytest.raises(SourceError, match=message):
        kept.wait(3, 2)
    other.close()
    kept.close()
