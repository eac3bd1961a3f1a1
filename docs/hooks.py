"""What MkDocs does for these pages beyond its settings.

- The package is one folder for the API reference, as it is when installed: `tf/` and `conversion/` lie beside `src/`.
- A page may link to any file of the repository by the path that also works in the repository. The file, and what it
  links to in turn, becomes a part of the site.
"""

from __future__ import annotations

import atexit
import posixpath
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[1]
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
"""Files of the repository that are pages by themselves."""
LINK = re.compile(r"(?P<before>\]\()(?P<path>[^)#:\s]+)(?P<after>[^)]*\))")


@event_priority(100)  # before the plugin reads its settings
def on_config(config: Any) -> Any:
    """Lays out the sources as one package, and shows them to the API reference."""
    folder = tempfile.mkdtemp(prefix="mobilevit-hub-docs-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    package = Path(folder) / "mobilevit_hub"
    package.mkdir()
    for path in [*(ROOT / "src" / "mobilevit_hub").iterdir(), ROOT / "tf", ROOT / "conversion"]:
        (package / path.name).symlink_to(path)
    config.plugins["mkdocstrings"].config.handlers.setdefault("python", {})["paths"] = [folder]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the files of the repository that pages link to."""
    waiting = [f"docs/{file.src_uri}" for file in files.documentation_pages()] + list(PAGES)
    seen = set(waiting)
    for name in PAGES:
        files.append(_file_of_repository(name, config))
    while waiting:
        page = waiting.pop()
        for found in LINK.finditer((ROOT / page).read_text("utf-8")):
            target = _target(page, found["path"])
            if target is None or target in seen or target.startswith("docs/"):
                continue
            seen.add(target)
            files.append(_file_of_repository(target, config))
            if target.endswith(".md"):
                waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turns paths in the repository into paths in the site."""
    source = page.file.src_uri
    in_repository = source if source in files.src_uris and not (ROOT / "docs" / source).exists() else f"docs/{source}"

    def moved(found: re.Match[str]) -> str:
        target = _target(in_repository, found["path"])
        if target is None:
            return found[0]
        path = posixpath.relpath(target.removeprefix("docs/"), posixpath.dirname(source) or ".")
        return found["before"] + path + found["after"]

    return LINK.sub(moved, markdown)


def _target(page: str, link: str) -> str | None:
    """The file of the repository that a link of a page means; None if there is none."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    return path if not path.startswith("..") and (ROOT / path).is_file() else None


def _file_of_repository(name: str, config: Any) -> File:
    level = InclusionLevel.INCLUDED if name in PAGES else InclusionLevel.NOT_IN_NAV
    return File.generated(config, name, abs_src_path=str(ROOT / name), inclusion=level)
