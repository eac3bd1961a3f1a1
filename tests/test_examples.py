"""The examples run as they are, and the notebooks are those of the scripts."""

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


@pytest.mark.tf
@pytest.mark.slow
def test_fine_tuning_in_keras(tmp_path):
    photos = save_shapes(tmp_path / "photos")
    done = subprocess.run(
        [sys.executable, EXAMPLES / "finetune_keras.py", photos, tmp_path / "model"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "100.0 % of the validation photos are right" in done.stdout
    import mobilevit_hub as mh

    files = sorted((photos / "validation").rglob("*.png"))
    results = mh.predict(files, tmp_path / "model", runtime="tf", top_k=1)
    assert [result["predictions"][0]["label"] for result in results] == [file.parent.name for file in files]
    assert set(mh.from_pretrained(tmp_path / "model", framework="tf").config.id2label.values()) == set(CLASSES)


@pytest.mark.parametrize("arguments", [[], ["photos"]])
def test_wrong_usage_of_a_script_says_the_right_one(arguments):
    pytest.importorskip("keras", reason="the script imports Keras")
    done = subprocess.run(
        [sys.executable, EXAMPLES / "finetune_keras.py", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1 and "usage: python" in done.stderr and "PHOTOS OUTPUT" in done.stderr
