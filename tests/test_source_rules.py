"""Rules for every source file: nothing unsafe is called, imports go one way, everything public is documented."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "mobilevit_hub"
FOLDERS = {PACKAGE: ROOT / "src" / PACKAGE}
FOLDERS |= {f"{PACKAGE}.{name}": ROOT / name for name in ("tf", "conversion", "spaces")}


def module_of(path: Path) -> str:
    """`src/mobilevit_hub/pt/layers.py` → `mobilevit_hub.pt.layers`."""
    prefix, folder = next((p, f) for p, f in FOLDERS.items() if path.is_relative_to(f))
    parts = path.relative_to(folder).with_suffix("").parts
    return ".".join([prefix, *(part for part in parts if part != "__init__")])


FILES = {
    module_of(path): path
    for folder in FOLDERS.values()
    for path in sorted(folder.rglob("*.py"))
    if "browser" not in path.parts  # the page of JavaScript, and what npm installed
}
TREES = {module: ast.parse(path.read_text("utf-8"), str(path)) for module, path in FILES.items()}

# --- SEC-1: what must not be called --------------------------------------------------------------------------------

UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "joblib", "cloudpickle", "marshal", "shelve", "imp"}
UNSAFE_CALLS = {"eval", "exec", "__import__", "system", "popen", "extractall", "unpack_archive"}
UNSAFE_NAMES = {"enable_unsafe_deserialization", "UnsafeLoader", "FullLoader", "unsafe_load", "full_load"}
UNSAFE_ARGUMENTS = {"weights_only": False, "allow_pickle": True, "shell": True, "safe_mode": False, "verify": False}


def name_of(node: ast.expr) -> str:
    """The last part of a called or accessed name: `load` for `torch.load`."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def owner_of(node: ast.expr) -> str:
    """The part before the last: `torch` for `torch.load`."""
    return name_of(node.value) if isinstance(node, ast.Attribute) else ""


def unsafe(tree: ast.Module) -> list[str]:
    """Each unsafe thing in `tree` as "line: what"."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found += [(node.lineno, f"imports {m}") for m in modules if m.split(".")[0] in UNSAFE_MODULES]
        elif isinstance(node, ast.Name | ast.Attribute) and name_of(node) in UNSAFE_NAMES:
            found.append((node.lineno, name_of(node)))
        elif isinstance(node, ast.Dict):
            keys = {key.value for key in node.keys if isinstance(key, ast.Constant)}
            found += [(node.lineno, "trust_remote_code")] if "trust_remote_code" in keys else []
        elif isinstance(node, ast.arg | ast.keyword) and node.arg == "trust_remote_code":
            found.append((node.lineno, "trust_remote_code"))
        elif isinstance(node, ast.Call):
            found += [(node.lineno, what) for what in unsafe_call(node)]
    return [f"{line}: {what}" for line, what in sorted(found)]


def unsafe_call(call: ast.Call) -> list[str]:
    """What is unsafe in one call."""
    name, owner = name_of(call.func), owner_of(call.func)
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    found = []
    # `model.eval()` is the network's mode, `eval(text)` runs code
    if name in UNSAFE_CALLS and not (name == "eval" and owner):
        found.append(f"{name}()")
    for argument, forbidden in UNSAFE_ARGUMENTS.items():
        value = keywords.get(argument)
        if isinstance(value, ast.Constant) and value.value is forbidden:
            found.append(f"{argument}={forbidden}")
    if (owner, name) == ("torch", "load"):
        value = keywords.get("weights_only")
        if not (isinstance(value, ast.Constant) and value.value is True):
            found.append("torch.load without weights_only=True")
    if (owner, name) in {("yaml", "load"), ("yaml", "load_all")}:
        found.append(f"yaml.{name}: use yaml.safe_load")
    return found


def test_source_calls_nothing_unsafe() -> None:
    assert {module: found for module, tree in TREES.items() if (found := unsafe(tree))} == {}


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(path, weights_only=False)",
        "torch.load(path)",
        "torch.load(path, weights_only=flag)",
        "import pickle",
        "from dill import loads",
        "import joblib.numpy_pickle",
        "import cloudpickle as c",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "yaml.full_load(text)",
        "eval(text)",
        "exec(text)",
        "subprocess.run(command, shell=True)",
        "os.system(command)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "def load(name, trust_remote_code=False): ...",
        "options = {'trust_remote_code': True}",
        "keras.models.load_model(path, safe_mode=False)",
        "keras.config.enable_unsafe_deserialization()",
        "archive.extractall(folder)",
        "requests.get(url, verify=False)",
    ],
)
def test_scan_finds_each_forbidden_form(code: str) -> None:
    assert unsafe(ast.parse(code))


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(path, weights_only=True)",
        "np.load(path)",
        "yaml.safe_load(text)",
        "model.eval()",
        "subprocess.run(c)",
    ],
)
def test_scan_accepts_the_safe_form(code: str) -> None:
    assert unsafe(ast.parse(code)) == []


# --- imports -------------------------------------------------------------------------------------------------------

# The rooms of the house, in order: each imports only what stands before it. The package itself, which re-exports from
# all of them, stands last, and nothing imports it.
ROOMS = [
    "errors",
    "version",
    "choices",
    "rules",
    "files",
    "json_files",
    "boxes",
    "figures",
    "hub",
    "presets",
    "network",
    "checkpoints",
    "images",
    "data",
    "metrics",
    "tasks",
    "publishing",
    "recipes",
    "inference",
    "pt.layers",
    "pt.inference",
    "pt",
    "pt.training",
    "tf.layers",
    "tf.weights",
    "tf.inference",
    "tf",
    "tf.training",
    "tflite",
    "models",
    "conversion.tflite",
    "conversion.apple",
    "conversion.onnx",
    "conversion",
    "prediction",
    "training",
    "evaluation",
    "spaces",
    "cli",
]
FRAMEWORKS = {"torch", "torchvision", "timm", "tensorflow", "tf_keras", "keras", "jax"}


def imports(module: str, *, at_import: bool = False) -> set[str]:
    """Absolute names of the modules that `module` imports, anywhere in it or, if asked, at the time of its own import."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            lazy = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
                isinstance(child, ast.If) and name_of(child.test) == "TYPE_CHECKING"
            )
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    package = module.split(".")
                    up = child.level - (FILES[module].name == "__init__.py")
                    base = ".".join([*package[: len(package) - up], *filter(None, [base])])
                inside = {f"{base}.{alias.name}" for alias in child.names} & set(FILES)
                found.update(inside or {base})
            elif isinstance(child, ast.Call) and name_of(child.func) == "import_module":
                found.add(literal_of(child.args[0]))
            if not (at_import and lazy):
                visit(child)

    visit(TREES[module])
    return found


def literal_of(node: ast.expr) -> str:
    """The text of a literal; of anything else a name that no module has."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else f"<{ast.unparse(node)}>"


def room_of(module: str) -> str:
    """The nearest room that a module stands in: `mobilevit_hub.pt.layers` → `pt.layers`; the package itself → ``."""
    parts = module.split(".")[1:]
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in names if name in ROOMS), ".".join(parts))


def is_ours(name: str) -> bool:
    """Whether an imported name is of this package."""
    return name.split(".")[0] == PACKAGE


INSIDE = [module for module in FILES if module != PACKAGE]


def test_every_module_has_a_room() -> None:
    assert [module for module in INSIDE if room_of(module) not in ROOMS] == []


@pytest.mark.parametrize("module", INSIDE)
def test_a_room_imports_only_what_stands_before_it(module: str) -> None:
    allowed = ROOMS[: ROOMS.index(room_of(module)) + 1]
    names = {name for name in imports(module) if is_ours(name)}
    assert {name for name in names if room_of(name) not in allowed} == set()


@pytest.mark.parametrize("module", [m for m in INSIDE if FILES[m].name != "__init__.py"])
def test_modules_are_imported_by_name(module: str) -> None:
    """Only a package that re-exports may compute what it imports."""
    assert [name for name in imports(module) if name.startswith("<")] == []


def test_no_import_runs_in_a_circle() -> None:
    """Not even one that an import inside a function hides."""
    graph = {module: imports(module) & set(FILES) - {module, PACKAGE} for module in INSIDE}
    # what nothing of ours is needed for goes first, until nothing is left; a circle is what stays
    while ready := {module for module, needed in graph.items() if not needed & set(graph)}:
        graph = {module: needed for module, needed in graph.items() if module not in ready}
    assert graph == {}


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("def f():\n    from ..evaluation.run import evaluate", "mobilevit_hub.evaluation.run"),
        ("def f():\n    import_module('mobilevit_hub.cli.main')", "mobilevit_hub.cli.main"),
        ("if TYPE_CHECKING:\n    from .. import models", "mobilevit_hub.models"),
        ("def f(name):\n    importlib.import_module(f'mobilevit_hub.{name}')", "<f'mobilevit_hub.{name}'>"),
    ],
)
def test_imports_are_found_wherever_they_hide(code: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TREES, "mobilevit_hub.hub.find", ast.parse(code))
    assert imports("mobilevit_hub.hub.find") == {found}


@pytest.mark.parametrize("module", [m for m in INSIDE if m.split(".")[1] in {"pt", "tf"}])
def test_twins_never_import_each_other(module: str) -> None:
    names = imports(module)
    other, frameworks = ("tf", {"tensorflow", "keras"}) if module.split(".")[1] == "pt" else ("pt", {"torch", "timm"})
    assert not [name for name in names if name.startswith(f"{PACKAGE}.{other}")]
    assert not {name.split(".")[0] for name in names} & frameworks


@pytest.mark.parametrize("module", [m for m in FILES if (m.split(".") + [""])[1] not in {"pt", "tf"}])
def test_shared_code_imports_no_framework_when_imported(module: str) -> None:
    names = imports(module, at_import=True)
    assert not {name.split(".")[0] for name in names} & FRAMEWORKS
    assert not [name for name in names if name.startswith((f"{PACKAGE}.pt", f"{PACKAGE}.tf."))]


# --- documentation, size, machine paths ----------------------------------------------------------------------------


def undocumented(tree: ast.Module) -> list[str]:
    """Public classes, functions and methods of `tree` without a docstring; overrides inside functions do not count."""
    missing = [] if ast.get_docstring(tree) else ["the module"]

    def visit(node: ast.Module | ast.ClassDef, prefix: str) -> None:
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef) and not child.name.startswith("_"):
                if not ast.get_docstring(child):
                    missing.append(prefix + child.name)
                if isinstance(child, ast.ClassDef):
                    visit(child, f"{prefix}{child.name}.")

    visit(tree, "")
    return missing


def test_everything_public_is_documented() -> None:
    assert {module: missing for module, tree in TREES.items() if (missing := undocumented(tree))} == {}


def test_a_file_has_one_subject_and_at_most_400_lines() -> None:
    lengths = {module: path.read_text("utf-8").count("\n") for module, path in FILES.items()}
    assert {module: length for module, length in lengths.items() if length > 400} == {}


def tracked() -> list[Path]:
    """The files of the repository, or of the folder where it is no git checkout."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode == 0 and listing.stdout:
        names = listing.stdout.rstrip("\0").split("\0")
        return [ROOT / name for name in names if (ROOT / name).is_file()]
    skipped = re.compile(r"(^|/)(\.(?!ci/|gitignore)|build/|dist/|__pycache__/|[^/]*\.egg-info/)")
    paths = [path for path in ROOT.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in paths if not skipped.search(path.relative_to(ROOT).as_posix())]


def test_no_tracked_file_is_above_5_mb() -> None:
    sizes = {path.relative_to(ROOT).as_posix(): path.stat().st_size for path in tracked()}
    assert "src/mobilevit_hub/__init__.py" in sizes
    assert {name: size for name, size in sizes.items() if size > 5_000_000} == {}
