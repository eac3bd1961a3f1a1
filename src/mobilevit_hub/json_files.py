"""Reading JSON objects from files that may be damaged or hostile."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from .errors import ConfigError, InputError, NotFoundError
from .files import json_bytes

MAX_BYTES = 8 * 1024 * 1024
MAX_DEPTH = 32


def read_json(path: str | Path) -> dict[str, Any]:
    """Reads a JSON object from a file that may be hostile: small, finite, no duplicate keys.

    Raises:
        ConfigError: The file is too large, not JSON, not an object, deeper than 32 levels, holds a
            non-finite number or names a key twice.
        NotFoundError: There is no such file.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ConfigError(
                f"{path}: {size:,} bytes is too large for a config; the limit is {MAX_BYTES:,}.", path=path
            )
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: no such file.", path=path) from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).", path=path) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        column = error.start - error.object.rfind(b"\n", 0, error.start)
        raise ConfigError(f"{path}: not UTF-8 text at line {line}, column {column}.", path=path) from error
    return parse_json(text, path)


def parse_json(text: str, path: Any) -> dict[str, Any]:
    """Parses JSON text under the rules of `read_json`; `path` only names the source in errors."""

    def no_constant(name: str) -> float:
        raise ConfigError(f"{path}: {name} is not a finite number.", path=path, found=name)

    def number(literal: str) -> float:
        value = float(literal)
        return value if math.isfinite(value) else no_constant(literal)

    def integer(literal: str) -> int:
        if len(literal) > 40:
            raise ConfigError(f"{path}: an integer with {len(literal)} digits.", path=path)
        return int(literal)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise ConfigError(f"{path}: key {key!r} stands there twice.", path=path, field=key)
            result[key] = value
        return result

    if not text.strip():
        raise ConfigError(f"{path}: the file is empty; expected a JSON object.", path=path)
    try:
        data = json.loads(
            text, parse_constant=no_constant, parse_float=number, parse_int=integer, object_pairs_hook=unique
        )
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{path}: not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}.", path=path
        ) from error
    except RecursionError as error:
        raise ConfigError(f"{path}: nested deeper than {MAX_DEPTH} levels.", path=path) from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must be a JSON object, found {type(data).__name__}.", path=path)
    if _depth(data) > MAX_DEPTH:
        raise ConfigError(f"{path}: nested deeper than {MAX_DEPTH} levels.", path=path)
    return data


def _depth(value: Any) -> int:
    """Nesting depth, without recursion: depth is what a hostile file attacks with."""
    deepest, level = 0, [value]
    while level:
        containers = [v for v in level if isinstance(v, dict | list)]
        deepest += bool(containers)
        level = [child for c in containers for child in (c.values() if isinstance(c, dict) else c)]
        if deepest > MAX_DEPTH:
            break
    return deepest


def check_same_settings(file: Path, settings: dict[str, Any]) -> None:
    """Raises `InputError` where a run is resumed with other settings than the file says that it began with."""
    earlier, now = read_json(file), json.loads(json_bytes(settings))
    if changed := sorted(name for name in now if now[name] != earlier.get(name)):
        was = ", ".join(f"{name}={earlier.get(name)!r}"[:200] for name in changed[:5])
        raise InputError(
            f"The run in {file.parent} was started with {was}; resume it with the same options, or choose another "
            "output folder.",
            path=file,
            field=changed[0],
        )
