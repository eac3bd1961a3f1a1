"""The snippets for phones read what an exported file has: names of files, and fields of its record."""

from __future__ import annotations

import copy
import re
import shlex
from pathlib import Path

import pytest

from mobilevit_hub.cli.main import build_parser
from mobilevit_hub.errors import CheckpointError
from mobilevit_hub.tflite.files import LABELS, RECORD, check_record

EXAMPLES = Path(__file__).parents[1] / "examples"
READMES = {name: (EXAMPLES / name / "README.md").read_text("utf-8") for name in ("android", "ios")}
COMMANDS = sorted(
    {c for text in READMES.values() for c in re.findall(r"^ *\$ mobilevit-hub (.+)$", text, re.MULTILINE)}
)
PLATFORM = pytest.mark.parametrize("platform", ["android", "ios"])
MODEL = "mobilevit.tflite"


def sources(platform: str) -> dict[str, str]:
    files = sorted(p for p in (EXAMPLES / platform).iterdir() if p.suffix in (".kt", ".swift"))
    return {path.name: path.read_text("utf-8") for path in files}


def record(resize: dict[str, int]) -> dict:
    return {
        "format": 1,
        "input": {"name": "image", "shape": [1, 24, 32, 3], "dtype": "uint8", "range": [0, 255], "channels": "rgb"},
        "output": {"name": "probabilities", "shape": [1, 5], "dtype": "float32"},
        "preprocessing": {"resize": resize, "interpolation": "bilinear", "crop": {"height": 24, "width": 32}},
        "labels": {"count": 5, "sha256": None},
    }


RECORDS = [record({"shortest_edge": 36}), record({"height": 30, "width": 40})]


def check(changed: dict) -> None:
    check_record(Path(MODEL), changed, (24, 32), "uint8", 5, None)


def paths(tree: dict, *above: str) -> set[tuple[str, ...]]:
    """Every field of a record and where it stands."""
    found = set()
    for key, value in tree.items():
        found |= {(*above, key)} | (paths(value, *above, key) if isinstance(value, dict) else set())
    return found


def fields_read(platform: str) -> set[tuple[str, ...]]:
    """The fields that the code of a platform reads from the record, by its own words."""
    if platform == "android":
        code = sources(platform)["ModelInput.kt"]
        found = {tuple(re.findall(r'"(\w+)"', chain)) for chain in re.findall(r'record((?:\.get\w+\("\w+"\))+)', code)}
        parts = {
            name: tuple(re.findall(r'"(\w+)"', chain)) for name, chain in re.findall(r"val (\w+) = record(.+)", code)
        }
        found |= {(*parts[name], key) for name, key in re.findall(r'(crop|resize)\.(?:getInt|has)\("(\w+)"\)', code)}
        return found | {(*parts["resize"], side) for side in re.findall(r'scale\("(\w+)", ', code)}
    code = sources(platform)["ModelInput.swift"].split("static func load")
    types = dict(re.findall(r"    struct (\w+): Decodable \{(.*?)\n    \}", code[0], re.DOTALL))

    def members(text: str, *above: str) -> set[tuple[str, ...]]:
        found = set()
        for name, kind in re.findall(r"let (\w+): (\S+)", text):
            found |= {(*above, name)} | members(types.get(kind, ""), *above, name)
        return found

    outer = re.sub(r"    struct .*?\n    \}", "", code[0], flags=re.DOTALL)
    return members(outer) | {("preprocessing", "resize", key) for key in re.findall(r'resize\["(\w+)"\]', code[1])}


@PLATFORM
def test_the_snippets_read_fields_of_the_record_that_the_package_itself_relies_on(platform):
    read = fields_read(platform)
    assert {
        ("input", "dtype"), ("output", "name"), ("labels", "count"),
        ("preprocessing", "crop", "width"), ("preprocessing", "crop", "height"),
        ("preprocessing", "resize", "shortest_edge"),
        ("preprocessing", "resize", "width"), ("preprocessing", "resize", "height"),
    } <= read  # fmt: skip
    assert read <= set().union(*map(paths, RECORDS))
    for original in RECORDS:
        check(original)
        for *above, last in read & paths(original):
            changed = copy.deepcopy(original)
            part = changed
            for key in above:
                part = part[key]
            part[last] = "another"
            with pytest.raises(CheckpointError):
                check(changed)


@PLATFORM
def test_the_snippets_open_the_files_that_come_out_of_an_export(platform):
    code = "\n".join(sources(platform).values())
    if platform == "android":
        opened = set(re.findall(r'"(\w+\.(?:tflite|txt|json))"', code))
    else:
        opened = {f"{stem}.{ending}" for stem, ending in re.findall(r'resource\("(\w+)", "(\w+)"\)', code)}
    assert opened == {MODEL, LABELS, RECORD}
    assert all(f"`{name}`" in READMES[platform] for name in (LABELS, RECORD))
    assert f"python -m zipfile -e {MODEL} " in READMES[platform]


@PLATFORM
def test_names_and_options_in_the_readme_are_those_of_the_export(platform):
    readme, code = READMES[platform], "\n".join(sources(platform).values())
    for part in ("input", "output"):
        name, dtype = RECORDS[0][part]["name"], RECORDS[0][part]["dtype"]
        assert re.search(rf"^\| {part} \| `{name}` \| .*\b{dtype}\b", readme, re.MULTILINE)
        assert name in code
    exports = [build_parser().parse_args(shlex.split(command)) for command in COMMANDS]
    assert {arguments.output for arguments in exports} == {MODEL}
    assert {(arguments.precision, arguments.input_type) for arguments in exports} == {
        ("int8", "uint8"),
        ("fp16", "float32"),
    }
    advised = re.findall(r"with (--[\w-]+ \w+)", code)
    assert len(advised) == 2
    for option in advised:  # what the code says to do about a file of another form
        build_parser().parse_args(["export", "name", MODEL, *option.split()])


@PLATFORM
def test_every_linked_file_exists_and_every_snippet_is_linked(platform):
    links = {link for link in re.findall(r"\]\(([^)#]+)\)", READMES[platform]) if "://" not in link}
    assert links == set(sources(platform))


def test_the_sizes_are_the_same_in_both():
    tables = [re.findall(r"^\| mobilevit.*$", text, re.MULTILINE) for text in READMES.values()]
    assert len(tables[0]) == 3 and tables[0] == tables[1]
