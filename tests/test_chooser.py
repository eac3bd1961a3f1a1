"""The chooser: limits are read, the measured table is filtered, the best score comes first."""

import json

import pytest

from mobilevit_hub.cli.main import main
from mobilevit_hub.errors import InputError
from mobilevit_hub.hub import chooser
from mobilevit_hub.hub.chooser import MEASURED_RUNTIMES, Measurement, fitting, limit_of, measurements, notes
from mobilevit_hub.hub.presets import find_preset, get_preset

HEAD = "name,runtime,threads,milliseconds,megabytes,processor"
ROWS = """\
mobilevit-xxs,pt,1,12,5.1,A chip
mobilevit-xxs,tflite,1,8,5.2,A chip
mobilevit-xxs,tflite-int8,1,5,1.6,A chip
mobilevit-xxs,tflite,2,4,5.2,A chip
mobilevit-s,pt,1,30,22.4,A chip
mobilevit-s,tflite,1,25,22.5,A chip
mobilevit-s,tflite-int8,1,12,6.6,A chip
mobilevit-s,tflite,2,13,22.5,A chip
mobilevitv2-1.0,tflite,1,20,19.7,A chip
mobilevitv2-1.0,tflite-int8,1,9.5,5.8,A chip
"""


@pytest.fixture
def table(tmp_path, monkeypatch):
    path = tmp_path / "measured.csv"
    path.write_text(f"{HEAD}\n{ROWS}", "utf-8")
    monkeypatch.setattr(chooser, "TABLE", path)
    return path


def names(*limits, **options):
    return [preset.name for preset, _ in fitting(limits, **options)]


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("10ms", ("milliseconds", 10)),
        ("0.5 s", ("milliseconds", 500)),
        (" 12.5MS ", ("milliseconds", 12.5)),
        ("5MB", ("megabytes", 5)),
        ("800kB", ("megabytes", 0.8)),
    ],
)
def test_a_limit_has_a_unit(text, limit):
    assert limit_of(text) == (limit[0], pytest.approx(limit[1]))


@pytest.mark.parametrize(
    "text", ["", "10", "ms", "-1ms", "1e3ms", "10 min", "10ms5MB", "nanms", "١ms", "1,5ms", "5GiB"]
)
def test_another_limit_is_refused(text):
    with pytest.raises(InputError, match="expected a time or a size") as caught:
        limit_of(text)
    assert caught.value.field == "fits"


def test_best_published_score_comes_first(table):
    assert names(runtime="tflite") == ["mobilevit-s", "mobilevitv2-1.0", "mobilevit-xxs"]
    assert [get_preset(name).score for name in names(runtime="tflite")] == [78.3, 78.09, 69.0]


def test_what_is_slower_or_larger_is_left_out(table):
    assert names("20ms", runtime="tflite") == ["mobilevitv2-1.0", "mobilevit-xxs"]  # the bound itself fits
    assert names("19.9ms", runtime="tflite") == ["mobilevit-xxs"]
    assert names("6MB", runtime="tflite-int8") == ["mobilevitv2-1.0", "mobilevit-xxs"]
    assert names("9ms", "6MB") == ["mobilevit-xxs"]
    assert names("1ms") == []
    assert names("13ms", runtime="tflite", threads=2) == ["mobilevit-s", "mobilevit-xxs"]
    assert names(task="object-detection") == []


def test_each_is_shown_in_the_fastest_runtime_in_which_it_fits(table):
    found = {preset.name: row.runtime for preset, row in fitting()}
    assert found == {"mobilevit-s": "tflite-int8", "mobilevitv2-1.0": "tflite-int8", "mobilevit-xxs": "tflite-int8"}
    assert {row.runtime for _, row in fitting(["22MB"], threads=2)} == {"tflite"}


@pytest.mark.parametrize(
    ("options", "field"), [({"runtime": "onnx"}, "runtime"), ({"threads": 3}, "threads"), ({"threads": 0}, "threads")]
)
def test_what_was_not_measured_is_refused(table, options, field):
    with pytest.raises(InputError) as caught:
        fitting(**options)
    assert caught.value.field == field


def test_notes_say_where_the_numbers_come_from(table):
    rows = [row for _, row in fitting(runtime="tflite")]
    (line,) = notes(rows, 1)
    assert "A chip with 1 thread," in line and "python benchmarks/measured.py" in line
    assert "int8" in notes([row for _, row in fitting()], 2)[1]
    assert notes([], 1)[0] == "Nothing fits."


# --- the command ---------------------------------------------------------------------------------------------------


def test_list_shows_what_fits(table, capsys):
    assert main(["list", "--fits", "20ms", "--runtime", "tflite"]) == 0
    head, first, second, empty, note = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "data", "params", "score", "pixels", "loads", "runtime", "ms", "MB"]
    assert first.split()[0] == "mobilevitv2-1.0" and first.split()[-3:] == ["tflite", "20.0", "19.7"]
    assert second.split()[0] == "mobilevit-xxs" and empty == "" and "A chip" in note


def test_list_shows_what_fits_as_json(table, capsys):
    assert main(["list", "--fits", "9ms", "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["name"] == "mobilevit-xxs" and record["score"] == 69.0
    assert record["measured"] == {
        "name": "mobilevit-xxs", "runtime": "tflite-int8", "threads": 1, "milliseconds": 5.0, "megabytes": 1.6,
        "processor": "A chip",
    }  # fmt: skip


def test_nothing_fits(table, capsys):
    assert main(["list", "--fits", "1ms"]) == 0
    assert "Nothing fits." in capsys.readouterr().out
    assert main(["list", "--fits", "1ms", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize(
    "arguments",
    [["--fits", "fast"], ["--fits", "10ms", "many"], ["--threads", "7"], ["--threads", "0"], ["--fits", ""]],
)
def test_a_bad_value_is_one_line(table, capsys, arguments):
    assert main(["list", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--runtime", "onnx"], ["--threads", "two"], ["--fits"]])
def test_a_bad_argument_ends_with_2(capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["list", *arguments])
    assert stopped.value.code == 2


# --- the table that is shipped -------------------------------------------------------------------------------------


def test_the_shipped_table_is_whole():
    rows = measurements()
    assert rows and all(find_preset(row.name).name == row.name for row in rows)
    assert {row.runtime for row in rows} == set(MEASURED_RUNTIMES)
    keys = [(row.name, row.runtime, row.threads) for row in rows]
    assert len(keys) == len(set(keys))
    assert len(keys) == len({k[0] for k in keys}) * len({k[1] for k in keys}) * len({k[2] for k in keys})
    assert all(row.milliseconds > 0 and row.megabytes > 0 and row.processor for row in rows)
    assert len({row.processor for row in rows}) == 1
    assert isinstance(rows[0], Measurement)


def test_the_shipped_table_has_the_sizes_of_the_weights():
    for row in measurements():
        float_size = 4 * get_preset(row.name).params / 1e6
        # statistics of norms and the graph are beside the weights; int8 has a quarter and some floats
        low, high = (0.25, 0.5) if row.runtime == "tflite-int8" else (0.97, 1.3)
        assert low * float_size < row.megabytes < high * float_size, row
