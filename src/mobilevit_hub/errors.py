"""The errors of mobilevit_hub: one family, each also a built-in error that callers already catch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class MobileViTHubError(Exception):
    """Base of every error that bad input, a bad file or a bad network can cause.

    Args:
        message: One line: what is wrong with which value, what is accepted, what to do.
        path: File, folder or repository that was read, when there is one.
        field: Name of the option, config field or tensor at fault.
        found: The value as received.
        expected: What would have been accepted.
    """

    def __init__(
        self,
        message: str,
        *,
        path: Any = None,
        field: str | None = None,
        found: Any = None,
        expected: Any = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.path = None if path is None else str(path)
        self.field = field
        self.found = found
        self.expected = expected

    def __str__(self) -> str:
        return self.message


class MobileViTHubWarning(UserWarning):
    """The one warning category of this package."""


class InputError(MobileViTHubError, ValueError, TypeError):
    """An argument, array or tensor cannot be used."""


class ImageError(MobileViTHubError, ValueError):
    """A file or object cannot be used as an image."""


class ConfigError(MobileViTHubError, ValueError):
    """A config, preprocessor, label map or recipe is wrong."""


class CheckpointError(MobileViTHubError, ValueError):
    """Weights are damaged, unsafe, or do not fit the network.

    `missing`, `unexpected` and `mismatched` list the tensor names at fault.
    """

    def __init__(
        self,
        message: str,
        *,
        missing: list[str] | None = None,
        unexpected: list[str] | None = None,
        mismatched: list[str] | None = None,
        **details: Any,
    ) -> None:
        super().__init__(message, **details)
        self.missing = missing or []
        self.unexpected = unexpected or []
        self.mismatched = mismatched or []


class SourceError(MobileViTHubError, OSError):
    """A checkpoint or data set could not be reached."""


class NotFoundError(SourceError):
    """The name, repository, revision, folder or file does not exist."""


class OfflineError(SourceError):
    """The file is not in the local cache and the network may not or cannot be used."""


class AccessError(SourceError):
    """The Hub refused access (token missing, wrong, or the repository is gated)."""


class IntegrityError(SourceError):
    """A downloaded or cached file is not what the Hub or the presets table says it is."""


class SaveError(MobileViTHubError, OSError):
    """A file could not be written; what was there before is kept."""


class ExportError(MobileViTHubError, RuntimeError):
    """A conversion or export failed, or failed its own check; `report` is what the check found, if it ran."""

    def __init__(self, message: str, *, report: Any = None, **details: Any) -> None:
        super().__init__(message, **details)
        self.report = report


class MissingDependencyError(MobileViTHubError, ImportError):
    """An optional dependency is not installed; the message has the command that installs it."""


def require(module: str, extra: str, purpose: str) -> None:
    """Raises `MissingDependencyError` unless `module` can be imported.

    Only looks for the module, so a broken installation still shows its own error.
    """
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise MissingDependencyError(
            f'{purpose} needs {module}, which is not installed. Install it with: pip install "mobilevit_hub[{extra}]".',
            field=module,
        )


MAX_LISTED = 5


def listed(names: Iterable[str]) -> str:
    """The first five names, and how many more there are."""
    names = sorted(name if len(name) <= 200 else f"{name[:200]}…" for name in names)
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more
