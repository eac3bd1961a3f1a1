"""Checks a checkpoint again: its hashes, and what it computes in every library."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilevit_hub.checkpoints.loading import open_checkpoint
from mobilevit_hub.checkpoints.saving import save_id_of
from mobilevit_hub.errors import IntegrityError
from mobilevit_hub.hub.find import SAVE_ID

from .parity import ParityReport, compare
from .sources import file_digests


@dataclass(frozen=True)
class Verification:
    """What was found out about a checkpoint."""

    name: str
    weights: str
    """The file of its weights."""
    sha256: str
    git_blob: str
    hashes: list[str]
    """What its content was compared with, one line each."""
    parity: ParityReport

    @property
    def passed(self) -> bool:
        """Whether the libraries agree; a wrong hash is an error."""
        return self.parity.passed

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {**vars(self), "passed": self.passed, "parity": self.parity.to_dict()}


def verify(name: str | Path, *, sha256: str | None = None, progress: bool = False, **places: Any) -> Verification:
    """Hashes a checkpoint again, where a hash is known, and compares what it computes in every library.

    Hashes are known of what this package saved (`save_id` in `config.json`) and of what the Hub stores by hash.

    Args:
        name: An alias, a folder, or a Hub id.
        sha256: What its weights must hash to.
        progress: Whether to show a progress bar.
        places: Options of `hub.find.find_checkpoint`.

    Raises:
        IntegrityError: A hash is another one.
        SourceError, ConfigError, CheckpointError: It cannot be opened.
    """
    checkpoint, _, tensors = open_checkpoint(name, **places)
    file = checkpoint.weights_file
    found = file_digests(file, sha256)
    hashes = ["the SHA-256 is the one that was given"] if sha256 else []
    if file.resolve().name == found[0]:  # as the Hub's cache names what the Hub stores by hash
        hashes.append("the SHA-256 is the one that the Hub states")
    stated = checkpoint.config_data.get(SAVE_ID)
    if stated not in (None, "none"):
        computed = save_id_of(tensors, checkpoint.config_data)
        if computed != stated:
            raise IntegrityError(
                f"{checkpoint.config_file.parent}: weights and config hash to {computed}, but were saved as {stated}: "
                "a value was changed since.",
                path=checkpoint.config_file,
                field=SAVE_ID,
                found=computed,
                expected=stated,
            )
        hashes.append("weights and config are as they were saved (save_id)")
    return Verification(
        str(name),
        str(file),
        *found,
        hashes=hashes,
        parity=compare(checkpoint.config_file.parent.absolute(), progress=progress),
    )
