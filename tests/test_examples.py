"""The examples run as they are, and notebooks are those of the scripts; most run in the documentation's tests as well."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from shapes import CLASSES, save_shapes

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_what_its_script_makes(notebook):
    jupytext = pytest.importorskip("jupytext", reason="notebooks are made by jupytext")
    cells, expected = (
        [(cell.cell_type, cell.source) for cell in jupytext.read(path).cells]
        for path in (notebook, notebook.with_suffix(".py"))
    )
    assert cells == expected, "run `make notebooks`"
    assert len(cells) > 5


def run(script: str, *arguments: object, timeout: int = 900) -> subprocess.CompletedProcess:
    """Runs a script in a process of its own, as its reader does."""
    return subprocess.run(
        [sys.executable, EXAMPLES / script, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "runtime"),
    [
        pytest.param("finetune_keras.py", "tf", marks=pytest.mark.tf),
        pytest.param("finetune_pytorch.py", "pt", marks=pytest.mark.torch),
    ],
)
def test_fine_tuning(script, runtime, tmp_path):
    photos = save_shapes(tmp_path / "photos")
    done = run(script, photos, tmp_path / "model")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "100.0 % of the validation photos are right" in done.stdout
    import mobilevit_hub as mh

    files = sorted((photos / "validation").rglob("*.png"))
    results = mh.predict(files, tmp_path / "model", runtime=runtime, top_k=1)
    assert [result["predictions"][0]["label"] for result in results] == [file.parent.name for file in files]
    assert set(mh.from_pretrained(tmp_path / "model", framework=runtime).config.id2label.values()) == set(CLASSES)


@pytest.mark.parity
@pytest.mark.export
@pytest.mark.slow
def test_first_steps(tmp_path):
    done = run("first_steps.py", tmp_path / "xxs.tflite")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "98.1 %  espresso" in done.stdout and "espresso.jpg: espresso" in done.stdout
    assert (tmp_path / "xxs.tflite").stat().st_size < 2e6


def test_sample_photos_are_the_same_each_time_and_for_every_command(tmp_path):
    for name in "ab":
        assert run("sample_photos.py", tmp_path / name, timeout=600).returncode == 0
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.jpg"))
    assert len(files) == 120 and len({file.parent for file in files}) == 4  # enough to calibrate int8 on
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)


@pytest.mark.parametrize(
    ("script", "needed", "arguments", "usage"),
    [
        ("finetune_keras.py", "keras", ["photos"], "PHOTOS OUTPUT"),
        ("finetune_pytorch.py", "torch", ["photos"], "PHOTOS OUTPUT"),
        ("sample_photos.py", "PIL", [], "FOLDER"),
    ],
)
def test_wrong_usage_of_a_script_says_the_right_one(script, needed, arguments, usage):
    pytest.importorskip(needed, reason="the script imports it")
    done = run(script, *arguments, timeout=600)
    assert done.returncode in (1, 2) and "usage: python" in done.stderr and usage in done.stderr
