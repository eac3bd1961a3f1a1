"""Hides installed modules: with `MOBILEVIT_HUB_HIDE=torch` a process runs as where PyTorch is not installed.

Several names are separated by commas. Imported before anything that could import what is hidden.
"""

import os
import sys
from importlib.machinery import PathFinder

VARIABLE = "MOBILEVIT_HUB_HIDE"
HIDDEN = set(filter(None, os.environ.get(VARIABLE, "").split(",")))


class _Finder(PathFinder):
    """Finds every module but the hidden ones, whose import fails as that of a missing one."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else super().find_spec(name, path, target)


if HIDDEN & sys.modules.keys():
    raise RuntimeError(f"{sorted(HIDDEN & sys.modules.keys())} cannot be hidden: imported before.")
sys.meta_path[:] = [_Finder if finder is PathFinder else finder for finder in sys.meta_path]
