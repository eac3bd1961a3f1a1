"""Wheel, sdist and editable install carry every module and file; importing the package loads no framework."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from importlib.metadata import Distribution, PathDistribution
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PACKAGE = "mobilevit_hub"
FOLDERS = {PACKAGE: ROOT / "src" / PACKAGE}
FOLDERS |= {f"{PACKAGE}.{name}": ROOT / name for name in ("tf", "conversion", "spaces")}
SOURCES = [
    (prefix, folder, path)
    for prefix, folder in FOLDERS.items()
    for path in sorted(folder.rglob("*.py"))
    if "browser" not in path.parts  # the page of JavaScript, and what npm installed
]
MODULES = sorted(
    ".".join([prefix, *(part for part in path.relative_to(folder).with_suffix("").parts if part != "__init__")])
    for prefix, folder, path in SOURCES
    if path.stem != "__main__"
)
FRAMEWORKS = {"torch", "tensorflow", "keras", "transformers", "datasets", "evaluate", "gradio", "matplotlib"}


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    """Standard output of a command that has to succeed."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# --- the three forms -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is packaged, so that building leaves nothing behind in the repository."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, copy)
    for name in ("src", "tf", "conversion", "spaces"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "browser"))
    return copy


@pytest.fixture(scope="module")
def sdist(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    run(sys.executable, "-c", build, cwd=checkout)
    return next(folder.glob("*.tar.gz"))


def build_wheel(source: Path, folder: Path) -> Path:
    """Builds with the setuptools that is installed, so that nothing is downloaded."""
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", folder, source)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(checkout, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def wheel_of_sdist(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(sdist, tmp_path_factory.mktemp("wheel-of-sdist"))


def fresh_environment(folder: Path, *what: str | Path) -> Path:
    """A new environment with `what` installed; the dependencies are those of the one that runs the tests."""
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # A line in a .pth file puts a folder behind the environment's own and does not run the .pth files in it,
    # so an editable install of this package in the running environment cannot stand in for the one tested.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = ["install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed"]
    run(sys.executable, "-m", "pip", "--python", python, *install, *what)
    return python


IMPORT_ALL = """
import importlib, json, sys
files = {name: importlib.import_module(name).__file__ for name in sys.argv[2:]}
import mobilevit_hub
models = [mobilevit_hub.from_pretrained("mobilevit-xxs-tiny-imagenet", framework=f) for f in sys.argv[1].split(",")]
print(json.dumps([files, [(type(model).__module__, model.config.num_labels) for model in models]]))
"""
FIND_ALL = """
import importlib.util, json, sys
print(json.dumps({name: importlib.util.find_spec(name).origin for name in sys.argv[1:]}))
"""


def runs_here(module: str) -> bool:
    """Whether what a module of one of the twins or of the web demo imports is installed."""
    needs = {f"{PACKAGE}.pt": "torch", f"{PACKAGE}.tf": "tensorflow", f"{PACKAGE}.spaces": "gradio"}
    return all(find_spec(framework) for part, framework in needs.items() if f"{module}.".startswith(f"{part}."))


def test_from_a_wheel_every_module_is_imported_and_the_embedded_checkpoint_loaded(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "env"
    python = fresh_environment(home, wheel)
    here = [name for name, needed in (("pt", "torch"), ("tf", "tensorflow")) if find_spec(needed)]
    printed = run(python, "-c", IMPORT_ALL, ",".join(here), *filter(runs_here, MODULES), cwd=tmp_path)
    files, models = json.loads(printed)
    assert f"{PACKAGE}.conversion" in files
    assert {name: file for name, file in files.items() if not Path(file).is_relative_to(home)} == {}
    assert models == [[f"{PACKAGE}.{name}.mobilevit", 200] for name in here]
    assert "predict" in run(python.with_name("mobilevit-hub"), "--help", cwd=tmp_path)


def test_an_editable_install_finds_the_sources(checkout: Path, tmp_path: Path) -> None:
    """The folders that stand beside `src/` too; what is in them is found by Python itself."""
    python = fresh_environment(tmp_path / "env", "--editable", checkout)
    names = [name for name in MODULES if name.count(".") < 2]
    assert {f"{PACKAGE}.{name}" for name in ("tf", "conversion", "spaces", "errors")} < set(names)
    files = json.loads(run(python, "-c", FIND_ALL, *names, cwd=tmp_path))
    assert {name: file for name, file in files.items() if not Path(file).is_relative_to(checkout)} == {}
    assert "predict" in run(python.with_name("mobilevit-hub"), "--help", cwd=tmp_path)


# --- what is inside ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Distribution:
    return PathDistribution(
        zipfile.Path(wheel, next(n for n in names_in(wheel) if n.endswith(".dist-info/METADATA"))).parent
    )


def names_in(archive: Path) -> list[str]:
    if archive.suffix == ".whl":
        return zipfile.ZipFile(archive).namelist()
    with tarfile.open(archive) as tar:
        return [name.partition("/")[2] for name in tar.getnames()]


def test_wheel_and_sdist_hold_the_same_files_as_the_sources(wheel: Path, sdist: Path, wheel_of_sdist: Path) -> None:
    sources = {path.relative_to(ROOT).as_posix() for _, _, path in SOURCES}
    package = FOLDERS[PACKAGE]
    assets = {path.relative_to(package).as_posix() for path in (package / "assets").rglob("*") if path.is_file()}
    assert assets

    assert sources <= set(names_in(sdist))
    assert {f"src/{PACKAGE}/{name}" for name in [*assets, "py.typed", "pt/inference/kernels.cpp"]} <= set(
        names_in(sdist)
    )

    modules = {name.replace(".", "/") for name in MODULES} | {f"{PACKAGE}/cli/__main__"}
    inside = {re.sub(r"(/__init__)?\.py$", "", name) for name in names_in(wheel) if name.endswith(".py")}
    assert inside == modules
    assert {f"{PACKAGE}/{name}" for name in [*assets, "py.typed", "pt/inference/kernels.cpp"]} <= set(names_in(wheel))
    sums = [{each.filename: each.CRC for each in zipfile.ZipFile(file).infolist()} for file in (wheel, wheel_of_sdist)]
    assert sums[0] == sums[1]


def test_licence_and_notice_travel_with_the_wheel(wheel: Path) -> None:
    names = names_in(wheel)
    assert {Path(name).name for name in names if "/licenses/" in name} == {"LICENSE", "NOTICE"}


def test_metadata_states_version_python_and_licence(metadata: Distribution) -> None:
    version = run(sys.executable, "-c", f"import {PACKAGE}; print({PACKAGE}.__version__)", PYTHONPATH=str(ROOT / "src"))
    assert metadata.version == version.strip()
    assert metadata.metadata["Requires-Python"] == ">=3.11"
    assert metadata.metadata["License-Expression"] == "Apache-2.0"


# --- requirements --------------------------------------------------------------------------------------------------

EXTRAS = ["torch", "tf", "tflite", "export", "train", "eval", "heif", "demo", "docs", "dev", "all"]


def requirements(metadata: Distribution, *extras: str) -> dict[str, Requirement]:
    """What pip would ask for with these extras, extras of our own followed."""
    found: dict[str, Requirement] = {}
    for requirement in map(Requirement, metadata.requires or []):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
            if canonicalize_name(requirement.name) == canonicalize_name(PACKAGE):
                found |= requirements(metadata, *requirement.extras)
            else:
                found[canonicalize_name(requirement.name)] = requirement
    return found


def pins() -> dict[str, Version]:
    """`constraints.txt` as name → version."""
    lines = [line for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if line and line[0] != "#"]
    return {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in lines)}


def test_extras_are_those_promised(metadata: Distribution) -> None:
    assert set(metadata.metadata.get_all("Provides-Extra")) == set(EXTRAS)


@pytest.mark.parametrize("extra", EXTRAS)
def test_constraints_pin_each_requirement_within_its_range(extra: str, metadata: Distribution) -> None:
    wanted, pinned = requirements(metadata, extra), pins()
    assert wanted.keys() <= pinned.keys()
    assert [str(r) for name, r in wanted.items() if not r.specifier.contains(pinned[name])] == []


def test_all_holds_every_extra_that_users_ask_for(metadata: Distribution) -> None:
    assert (
        requirements(metadata, "all").keys()
        == requirements(metadata, *[e for e in EXTRAS if e not in ("dev", "docs")]).keys()
    )


def test_base_install_has_no_framework_and_keras_users_get_no_torch(metadata: Distribution) -> None:
    heavy = {"torch", "tensorflow", "keras", "datasets", "evaluate", "gradio", "matplotlib"}
    assert not requirements(metadata).keys() & heavy
    assert "torch" not in requirements(metadata, "tf", "export")
    assert not requirements(metadata, "torch", "train").keys() & {"tensorflow", "keras"}


def test_security_floors_hold(metadata: Distribution) -> None:
    floors = {"pillow": "12.2.9", "pillow-heif": "1.2.9", "keras": "3.13.1", "transformers": "5.2.9", "torch": "2.9.9"}
    wanted = requirements(metadata, "all")
    assert [name for name, old in floors.items() if wanted[name].specifier.contains(old)] == []


def test_every_import_is_a_declared_requirement(metadata: Distribution) -> None:
    imported = set()
    for _, _, path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(str(node.module).split(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - {PACKAGE}
    distributions = {
        "PIL": "pillow",
        "yaml": "pyyaml",
        "ai_edge_litert": "ai-edge-litert",
        "ai_edge_quantizer": "ai-edge-quantizer",
    }
    # Compared with where it is installed, and not asked for: it would bring torchvision and another build of torch.
    declared = requirements(metadata, "all").keys() | {"timm"}
    assert {canonicalize_name(distributions.get(name, name)) for name in foreign} - declared == set()


# --- importing is cheap --------------------------------------------------------------------------------------------


@pytest.mark.alone
def test_importing_loads_no_framework_and_opens_no_connection() -> None:
    refuse = "import sys; sys.addaudithook(lambda event, args: event.startswith('socket.') and sys.exit(event))"
    loaded = run(
        sys.executable,
        "-c",
        f"{refuse}; import {PACKAGE}, {PACKAGE}.cli.main; dir({PACKAGE}); "
        "print(*{name.split('.')[0] for name in sys.modules})",
        PYTHONPATH=str(ROOT / "src"),
    ).split()
    assert PACKAGE in loaded
    assert FRAMEWORKS & set(loaded) == set()
