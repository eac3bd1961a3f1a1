"""The README and the pages of docs/: every code block runs, what is shown comes out, tables and figures are current,
links lead somewhere, and the site builds without a warning.

Blocks of a page run one after the other, in a folder of their own with `examples/` in it. What is done with a command:

- `mobilevit-hub …`: runs inside this process, through `cli.main`; the same training as on an earlier page is not repeated
- `python examples/….py …`: runs inside this process as well
- `make …`: the target exists, and `make -n` understands it
- `pip install …`: its extras are those of `setup.py`
- `ls …`: runs

`<!-- needs: … -->` stands before a block, or in the first line of a page for all of it. `torch`, `tf` and `export` are what
has to be installed. With any other word, such as `network`, the block is not run: its commands are parsed, its Python is
compiled.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from mobilevit_hub.cli.main import build_parser, main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
    for path in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
}
OTHER_PAGES = [ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
sys.path.insert(0, str(DOCS))

INSTALLED = {
    "torch": find_spec("torch") is not None,
    "tf": find_spec("tensorflow") is not None and find_spec("keras") is not None,
    "export": all(find_spec(name) for name in ("tensorflow", "ai_edge_litert", "ai_edge_quantizer")),
}
NEEDS = re.compile(r"<!-- needs: ([^>]+?) -->")
FENCE = re.compile(r"(?:^<!-- needs: (?P<needs>[^>]+?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)


# --------------------------------------------------------------------------------------------------
# Reading a page
# --------------------------------------------------------------------------------------------------


@dataclass
class Block:
    """A code block."""

    language: str
    text: str
    line: int
    needs: frozenset[str]
    """What has to be there, of the page and of the block."""
    shown: str | None = None
    """Of Python, the output in the `text` block below."""

    @property
    def missing(self) -> set[str]:
        """What is not installed."""
        return {word for word in self.needs if not INSTALLED.get(word, True)}

    @property
    def runs(self) -> bool:
        """Whether it can run without anything from outside."""
        return self.needs <= INSTALLED.keys()

    def commands(self) -> list[tuple[str, str]]:
        """Of `console`, each command and the output shown below it."""
        text = re.sub(r" *\\\n *", " ", self.text)  # a command over several lines
        parts = re.split(r"^\$ (.+)$", text, flags=re.M)
        assert parts[0] == "", f"line {self.line}: a console block starts with a command"
        return [(command, shown.strip("\n")) for command, shown in zip(parts[1::2], parts[2::2], strict=True)]


def needs_of_page(page: str) -> frozenset[str]:
    found = NEEDS.match(page)
    return frozenset(found[1].split() if found else ())


def blocks_of(page: str) -> list[Block]:
    blocks: list[Block] = []
    for found in FENCE.finditer(page):
        needs = needs_of_page(page) | frozenset((found["needs"] or "").split())
        line = page.count("\n", 0, found.start()) + 1
        block = Block(found["language"], found["text"], line, needs)
        if block.language == "text" and blocks and blocks[-1].language == "python" and blocks[-1].shown is None:
            blocks[-1].shown = block.text.strip("\n")
        else:
            blocks.append(block)
    return blocks


# --------------------------------------------------------------------------------------------------
# Running it
# --------------------------------------------------------------------------------------------------

TIMES = re.compile(r"\b\d[\d.,]*(?= (?:ms|s|a second)\b)")


def assert_shown(shown: str, printed: str, where: str) -> None:
    """Whether what a page shows is what was printed; `…` stands for anything, and so does a time."""
    masked = [TIMES.sub("0", text).rstrip() for text in (shown, printed)]
    pattern = ".*".join(re.escape(part) for part in masked[0].split("…"))
    assert re.fullmatch(pattern, masked[1], re.S), f"{where}: shown is\n{shown}\nprinted was\n{printed}"


def run_command(command: str, capsys: Any) -> str | None:
    """Runs a command of a page; what it printed, or None where it is only checked."""
    words = shlex.split(command, comments=True)
    capsys.readouterr()
    if words[:2] == ["mobilevit-hub", "train"]:
        return run_training(words[1:], capsys)
    if Path(words[0]).name == "mobilevit-hub":  # also that of .venv
        assert main(words[1:]) == 0, f"{command}\n{capsys.readouterr().err}"
    elif words[0] == "python" and words[1].startswith("examples/"):
        run_script(words[1:])
    elif words[0] == "ls":
        return "\n".join(sorted(path.name for path in Path(words[1]).iterdir()))
    else:
        check_command(command)
        return None
    return capsys.readouterr().out


TRAINED: dict[tuple[str, ...], tuple[str, Path]] = {}


def run_training(words: list[str], capsys: Any) -> str:
    """Trains, or copies what an earlier page trained by the same words on the same sample photos."""
    output, key = Path(words[words.index("--output") + 1]), tuple(words)
    if key in TRAINED and not output.exists():
        shutil.copytree(TRAINED[key][1], output)
        return TRAINED[key][0]
    assert main(words) == 0, f"{words}\n{capsys.readouterr().err}"
    TRAINED[key] = (capsys.readouterr().out, output.absolute())
    return TRAINED[key][0]


def run_script(words: list[str]) -> None:
    before = sys.argv
    sys.argv = words
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        assert not end.code, f"{words}: {end.code}"
    finally:
        sys.argv = before


def check_command(command: str) -> None:
    """Whether a command could be run: its program, arguments and files are there."""
    words = shlex.split(command, comments=True)
    while "=" in words[0]:  # variables of the environment
        words = words[1:]
    if "mobilevit_hub.cli" in words and words[0] in ("accelerate", "torchrun", "python"):
        words = ["mobilevit-hub", *words[words.index("mobilevit_hub.cli") + 1 :]]
    if words[0] == "mobilevit-hub":
        assert callable(build_parser().parse_args(words[1:]).run)
    elif words[0] == "make":
        assert len(words) == 2 and shutil.which("make")
        done = subprocess.run(["make", "-n", words[1]], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    elif words[:2] == ["pip", "install"]:
        assert words[2:5] == ["-c", "constraints.txt", "-e"] and len(words) == 6
        assert set(re.fullmatch(r"\.\[([\w,]+)\]", words[5])[1].split(",")) <= extras()
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file(), words[1]
    else:
        raise AssertionError(f"{command!r}: say in tests/test_documentation.py what is done with {words[0]!r}")


def extras() -> set[str]:
    tree = ast.parse((ROOT / "setup.py").read_text("utf-8"))
    values = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}
    return {key.value for key in values["EXTRAS"].keys}


def marks_of(page: str) -> list[Any]:
    return [getattr(pytest.mark, word) for word in needs_of_page(page) if word in INSTALLED]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=marks_of(text)) for name, text in PAGES.items() if "```" in text]
)
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of TensorFlow
@pytest.mark.filterwarnings("ignore::mobilevit_hub.errors.MobileViTHubWarning")
def test_the_code_of_a_page_runs(name, tmp_path, monkeypatch, capsys):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks_of(PAGES[name]):
        where = f"{name}:{block.line}"
        if block.language == "python":
            code = compile(block.text, where, "exec")
            if block.missing or not block.runs:
                continue
            capsys.readouterr()
            exec(code, names)  # noqa: S102 - our own text
            if block.shown is not None:
                assert_shown(block.shown, capsys.readouterr().out, where)
        elif block.language == "console":
            for command, shown in block.commands():
                if block.missing or not block.runs:
                    check_command(command)
                    continue
                printed = run_command(command, capsys)
                if shown:
                    assert printed is not None, f"{where}: output of {command!r} is shown and cannot be checked"
                    assert_shown(shown, printed, where)
        else:
            assert block.language in ("bash", ""), f"{where}: a block of {block.language!r} is not checked"


def test_each_tutorial_runs_some_code():
    tutorials = {name: blocks_of(text) for name, text in PAGES.items() if "/tutorials/" in name}
    assert len(tutorials) == 8
    for name, blocks in tutorials.items():
        assert name.endswith("demo.md") or sum(block.runs for block in blocks) > 3, name
    few = [block for blocks in tutorials.values() for block in blocks if not block.runs]
    assert len(few) < 12


INLINE = re.compile(r"(?<!`)`(mobilevit-hub [^`]+)`(?!`)")


def test_commands_within_the_text_exist():
    verbs = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    found = [" ".join(command.split()) for text in PAGES.values() for command in INLINE.findall(text)]
    assert len(found) > 10
    for command in found:
        verb, *words = command.split()[1:]
        if verb in ("VERB", "--version"):
            continue
        known = {option for action in verbs[verb]._actions for option in action.option_strings}
        assert {word for word in words if word.startswith("--")} <= known, command


@pytest.mark.parametrize(
    ("shown", "printed"),
    [("a", "b"), ("1 of 2", "1 of 3"), ("a … c", "a b d"), ("…\nwrote x", "wrote y"), ("top-1 98.1 %", "top-1 97.1 %")],
)
def test_another_output_is_seen(shown, printed):
    with pytest.raises(AssertionError, match="shown is"):
        assert_shown(shown, printed, "here")
    assert_shown(f"{shown} … (12 ms)", f"{shown} and more (3.5 ms)", "here")


@pytest.mark.parametrize(
    "command",
    [
        "mobilevit-hub predict",
        "mobilevit-hub foresee x.jpg",
        "make coffee",
        'pip install -c constraints.txt -e ".[tensorflow]"',
        "python examples/nothing.py",
        "accelerate launch -m mobilevit_hub.cli train photos --output out --colour red",
        "rm -r photos",
    ],
)
def test_a_wrong_command_is_seen(command, capsys):
    with pytest.raises((AssertionError, SystemExit)):
        check_command(command)


# --------------------------------------------------------------------------------------------------
# Tables, figures, links, layout
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, text in PAGES.items() if "<!-- table: " in text])
def test_tables_are_what_the_command_makes(name):
    tables = import_module("tables")
    assert PAGES[name] == tables.filled(PAGES[name]), f"run `python docs/tables.py {name}`"


def test_there_are_tables_and_each_is_used():
    tables = import_module("tables")
    used = {found["name"] for text in PAGES.values() for found in tables.MARKED.finditer(text)}
    assert used == tables.TABLES.keys()
    assert all(text.count("<!-- table: ") == text.count("<!-- end of table -->") for text in PAGES.values())


def test_costs_of_the_stages_add_up_to_those_of_the_presets():
    tables = import_module("tables")
    presets = tables.list_presets("image-classification")
    assert len(presets) > 20
    for preset in presets:
        params, macs = zip(*tables.costs(tables.config_of(preset)), strict=True)
        assert (preset.name, sum(params), sum(macs)) == (preset.name, preset.params, preset.macs)


def test_figures_are_what_the_script_draws(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    figures = import_module("figures")
    monkeypatch.setattr(sys, "argv", ["figures.py", str(tmp_path)])
    assert figures.main() == 0
    drawn = {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()}
    kept = {path.name: path.read_text("utf-8") for path in (DOCS / "images").iterdir()}
    assert drawn.keys() == kept.keys() and len(kept) == 4
    pinned = re.search(r"^matplotlib==(.+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.M)[1]
    if version("matplotlib") == pinned:  # another one may draw letters in another way
        assert drawn == kept, "run `python docs/figures.py`"
    assert all(f"images/{name}" in PAGES["docs/architecture.md"] for name in kept)


LINK = re.compile(r"\]\(<?([^)>\s]+)>?\)")


def links_of(text: str) -> list[str]:
    return LINK.findall(re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))


@pytest.mark.parametrize("path", [*(ROOT / name for name in PAGES), *OTHER_PAGES], ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for link in links_of(path.read_text("utf-8")):
        if "://" in link:
            assert re.fullmatch(r"https?://[\w.-]+(:\d+)?(/[\w./%~#?=&+-]*)?", link), link
            continue
        file, _, anchor = link.partition("#")
        target = path if not file else (path.parent / file).resolve()
        assert target.is_file() and target.is_relative_to(ROOT), f"{path.name}: {link}"
        if anchor:
            assert anchor in anchors_of(target.read_text("utf-8")), f"{path.name}: {link}"


def anchors_of(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title.lower())).strip("-") for title in titles}


def test_the_readme_is_short_and_starts_with_what_to_do():
    lines = PAGES["README.md"].splitlines()
    assert len(lines) <= 150
    first = "\n".join(lines[:55])
    for part in (
        "docs/demo.png",
        "$ make demo",
        "mobilevit-hub predict",
        'framework="tf"',
        ".tflite",
        "<!-- table: models",
    ):
        assert part in first
    for task in ("mobilevit-hub train", "mobilevit-hub export", "make space", "make browser", "make docs"):
        assert task in PAGES["README.md"]


def test_the_layout_names_every_folder():
    layout = (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition("## Where things live")[2]
    folders = {
        p.parent.name for top in ("src", "tf", "conversion", "spaces") for p in (ROOT / top).rglob("__init__.py")
    } - {"mobilevit_hub"}
    assert {"pt", "tf", "conversion", "spaces", "training"} <= folders
    assert {name for name in folders if f"{name}/ " not in layout and f"{name}/:" not in layout} == set()


def test_nothing_names_a_machine_or_a_registry():
    texts = {**PAGES, **{path.name: path.read_text("utf-8") for path in OTHER_PAGES}}
    texts |= {path.name: path.read_text("utf-8") for path in (ROOT / ".github").rglob("*.yml")}
    found = re.compile(r"/home/|/root/|/tmp/|/work/|[A-Z]:\\\\|index-url|pypi\.|artifactory|nexus", re.I)
    assert {name: hit[0] for name, text in texts.items() if (hit := found.search(text))} == {}


def test_issue_templates_are_forms():
    folder = ROOT / ".github" / "ISSUE_TEMPLATE"
    templates = {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in folder.iterdir()}
    assert templates.keys() == {"config", "bug", "wrong_numbers", "feature"}
    for name in templates.keys() - {"config"}:
        assert {"name", "description", "body"} <= templates[name].keys()
        assert len({field["id"] for field in templates[name]["body"]}) == len(templates[name]["body"])
    for command in re.findall(r"mobilevit-hub (\w+) NAME", str(templates)):
        assert callable(build_parser().parse_args([command, "name"]).run)


def test_the_workflow_runs_the_stages_of_the_check():
    lines = re.findall(r"^make (.+)$", (ROOT / ".ci" / "run").read_text("utf-8"), re.M)
    stages = [word for line in lines for word in line.split() if re.fullmatch(r"[a-z-]+", word) and word[0] != "-"]
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "checks.yml").read_text("utf-8"))
    job = workflow["jobs"]["stage"]
    assert job["strategy"]["matrix"] == {"stage": stages} and {"check", "test"} < set(stages)
    assert job["steps"][-1] == {"run": "make ${{ matrix.stage }}"}


# --------------------------------------------------------------------------------------------------
# The site
# --------------------------------------------------------------------------------------------------


def public_names() -> set[str]:
    """What a user may call, by its full name; read from the sources, so that no framework is needed."""

    def names(path: Path, variable: str = "__all__") -> list[str]:
        tree = ast.parse(path.read_text("utf-8"))
        values = [node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == variable]
        return [element.value for element in values[0].elts]

    package = ROOT / "src" / "mobilevit_hub"
    top = {f"mobilevit_hub.{name}" for name in names(package / "__init__.py")}
    top -= {f"mobilevit_hub.{name}" for name in ("__version__", "conversion", "tflite")}
    conversion = {f"mobilevit_hub.conversion.{name}" for name in names(ROOT / "conversion" / "__init__.py")}
    functions = {f"mobilevit_hub.metrics.{name}" for name in names(package / "metrics" / "__init__.py")}
    classes = {f"mobilevit_hub.metrics.library.{n}" for n in names(package / "metrics" / "__init__.py", "_CLASSES")}
    errors = ast.parse((package / "errors.py").read_text("utf-8")).body
    errors = {f"mobilevit_hub.errors.{node.name}" for node in errors if isinstance(node, ast.ClassDef)}
    others = {"tflite.Model", "tf.image_dataset", "tf.inference.FusedModel", "pt.inference.InferenceModel"}
    return top | conversion | functions | classes | errors | {f"mobilevit_hub.{name}" for name in others}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as `make docs` does."""
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT, capture_output=True, text=True, timeout=600, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0 and "WARNING" not in done.stdout + done.stderr, done.stdout + done.stderr
    return folder


def test_every_page_is_in_the_site(site):
    expected = {path.relative_to(DOCS).with_suffix(".html").as_posix() for path in DOCS.rglob("*.md")}
    expected |= {"CONTRIBUTING.html", "CHANGELOG.html", "SECURITY.html", "benchmarks/results/inference.html"}
    assert {name for name in expected if not (site / name).is_file()} == set()
    assert not list(site.glob("*.py"))


def test_the_reference_has_every_public_name(site):
    pages = "".join(path.read_text("utf-8") for path in (site / "reference").glob("*.html"))
    assert {name for name in public_names() if f'id="{name}"' not in pages} == set()
    for name in ("TFMobileViTForImageClassification", "convert", "Model", "Accuracy", "wilson_interval"):
        assert any(known.endswith(f".{name}") for known in public_names())


def test_the_site_fetches_nothing_from_elsewhere(site):
    fetched = re.compile(r'<(?:link|script|img|iframe|source)\b[^>]*?(?:href|src)="?((?:https?:)?//[^"\s>]+)')
    for path in site.rglob("*.html"):
        assert fetched.findall(path.read_text("utf-8")) == [], path.name
