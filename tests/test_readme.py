"""The README's code runs and its commands exist."""

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

from mobilevit_hub.cli import build_parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"^\$ mobilevit-hub (.+)$", README, re.MULTILINE)


def test_the_python_blocks_run_one_after_the_other(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    names: dict = {}
    for block in PYTHON:
        if 'framework="tf"' in block and find_spec("keras") is None:
            continue
        exec(compile(block, "README.md", "exec"), names)  # noqa: S102 - our own text
    assert len(PYTHON) >= 2
    printed = capsys.readouterr().out
    # The first block prints a label of the embedded checkpoint, the second the same, the third channels and strides.
    assert printed.splitlines()[0] in names["model"].config.id2label.values()
    assert "keras_model" not in names or printed.splitlines()[1] == printed.splitlines()[0]
    assert "[48, 64, 80] [8, 16, 32]" in printed
    assert [tuple(m.shape[1:2]) for m in names["maps"]] == [(48,), (64,), (80,)]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_parses(command):
    arguments = build_parser().parse_args(shlex.split(command))
    assert callable(arguments.run)


def test_every_linked_file_exists():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links and [link for link in links if not (ROOT / link).is_file()] == []


def test_every_make_target_of_the_readme_exists():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = re.findall(r"^\$ make (\S+)", README, re.MULTILINE)
    assert targets and all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_the_layout_of_the_readme_names_every_module():
    modules = {p.name for p in (ROOT / "src" / "mobilevit_hub").rglob("*.py") if p.name != "__init__.py"}
    assert {name for name in modules if name not in README} == set()
