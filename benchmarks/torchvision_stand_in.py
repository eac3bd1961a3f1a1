"""Imports a library that imports torchvision without using it for what is measured here (timm's networks)."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _Anything(type):
    """Metaclass of a class that has every attribute."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {})


class _StandIns:
    """Finds an empty module for `torchvision` and everything in it."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] == "torchvision" else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        module.__getattr__ = lambda name: getattr(_Anything("stand_in", (), {}), name)  # type: ignore[method-assign]
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Leaves it empty."""


def import_without_torchvision(library: str) -> Any:
    """Imports `library` while every torchvision module is an empty one."""
    sys.meta_path.append(_StandIns())  # type: ignore[arg-type]
    return import_module(library)
