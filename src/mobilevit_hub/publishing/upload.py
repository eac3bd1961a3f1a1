"""Uploading a checkpoint to the Hub: checked before, as one commit, every failure explained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoints.fitting import fit_tensors
from ..checkpoints.loading import open_checkpoint
from ..checkpoints.saving import CARD_FILE
from ..errors import AccessError, CheckpointError, ConfigError, InputError, NotFoundError
from ..files import sha256_of
from ..hub import download as hub
from ..hub.failures import explained
from ..hub.find import Checkpoint, as_path
from ..network.structure import HEADS, Head, tensor_shapes
from .cards import PLACE, check_card, checkpoint_card

LOG_FILE = "training_log.json"
_PICTURE = re.compile(r"!\[[^\]]*\]\(([\w-][\w.-]*\.(?:png|jpg|jpeg|webp))\)")


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    message: str = "Upload the checkpoint with mobilevit_hub",
    description: str | None = None,
) -> str:
    """Uploads the checkpoint of a folder to the Hub as one commit; nothing is sent before it has been checked.

    Weights, config, processor and card go up, with the training log and the pictures that the card shows; other
    files of the folder do not. Where neither the folder nor the repository has a card, one is written for the upload.

    Args:
        folder: What `save_pretrained`, training or a conversion wrote.
        repo_id: `owner/repository`, or `repository` for the owner of the token; made when it does not exist.
        private: Whether a new repository is private. Default: as the account says.
        token: Access token; default: the one of `hf auth login` or `HF_TOKEN`.
        revision: Branch to commit to. Default: `main`.
        create_pr: Whether to propose the commit instead, as a pull request.
        message: First line of the commit.
        description: The other lines of the commit.

    Returns:
        Address of the commit.

    Raises:
        InputError: The repository's name or the message cannot be used, or `private` contradicts the repository.
        NotFoundError: There is no such folder, repository or branch.
        CheckpointError, ConfigError: The folder holds no checkpoint that loads, or its card has bad metadata.
        AccessError: There is no token, or it may not write there.
        OfflineError: The network may not or cannot be used.
        SourceError: The Hub did not take the upload.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    if repo_id is None or not hub.looks_like_hub_id(repo_id):
        raise InputError(
            f"repo_id is {repo_id!r}; expected 'owner/repository' of letters, digits, '-', '_' and '.'.",
            field="repo_id",
            found=repo_id,
        )
    if not message.strip():
        raise InputError(f"message is {message!r}; a commit needs one.", field="message", found=message)
    folder = as_path(str(folder))
    checkpoint, config, tensors = _open(folder)
    uploads: dict[str, Path | bytes] = {name: folder / name for name in _files_of(folder)}
    if CARD_FILE in uploads:
        uploads[CARD_FILE] = (folder / CARD_FILE).read_text("utf-8").replace(PLACE, repo_id).encode()
    _check_token(token)
    with explained(repo_id, revision, offline=f"Nothing is uploaded to {repo_id!r}: push again with network."):
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if private and not api.repo_info(repo_id).private:
            raise InputError(
                f"private is True, but {repo_id!r} exists and is public. Make it private on the Hub or choose another "
                "name.",
                field="private",
                found=private,
            )
        if CARD_FILE not in uploads and not api.file_exists(repo_id, CARD_FILE, revision=revision):
            uploads[CARD_FILE] = _new_card(checkpoint, config, tensors, repo_id).encode()
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(name, content) for name, content in uploads.items()],
            commit_message=message,
            commit_description=description,
            revision=revision,
            create_pr=create_pr,
        )
        return str(commit.commit_url)


def _open(folder: Path) -> tuple[Checkpoint, Any, dict[str, np.ndarray]]:
    """Opens the checkpoint of a folder, which must be in our format."""
    if not folder.is_dir():
        raise NotFoundError(f"There is no folder {str(folder)!r}.", path=folder)
    # As a whole path, since a relative one could be taken for an alias.
    checkpoint, config, tensors = open_checkpoint(folder.resolve())
    if checkpoint.is_timm or checkpoint.weights_file.name != hub.WEIGHT_FILES[0]:
        found = "is in timm's format" if checkpoint.is_timm else f"holds {checkpoint.weights_file.name}"
        raise CheckpointError(
            f"{folder}: {found}; expected {hub.CONFIG_FILE} and {hub.WEIGHT_FILES[0]} of this package or of "
            "transformers. Convert it first.",
            path=folder,
        )
    head: Head | None = "classifier" if any(name.startswith(HEADS) for name in tensors) else None
    fit_tensors(
        tensors,
        tensor_shapes(config, head),
        path=checkpoint.weights_file,
        model_name="the network of its config.json",
        prefix=config.model_type,
    )
    return checkpoint, config, tensors


def _files_of(folder: Path) -> list[str]:
    """Names of the files of a checkpoint, after a look at its card."""
    names = [hub.CONFIG_FILE, hub.PROCESSOR_FILE, hub.WEIGHT_FILES[0], CARD_FILE, LOG_FILE]
    card = folder / CARD_FILE
    if card.is_file():
        try:
            text = card.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{card}: is not UTF-8 text.", path=card, field=CARD_FILE) from error
        check_card(text, card)
        names += dict.fromkeys(_PICTURE.findall(text))
    names = [name for name in names if (folder / name).is_file()]
    for name in names:
        target = (folder / name).resolve()
        if target.parent != folder.resolve() and "blobs" not in target.parts:  # as the Hub's cache has them
            raise InputError(
                f"{folder / name} is a link to {str(target)!r}, outside the folder; only its own files are uploaded.",
                path=folder / name,
                found=str(target),
            )
    return names


def _new_card(checkpoint: Checkpoint, config: Any, tensors: dict[str, np.ndarray], repo_id: str) -> str:
    from ..images.processor import processor_from_dict

    parameters = sum(t.size for n, t in tensors.items() if not n.endswith(("_mean", "_var", "num_batches_tracked")))
    processor = checkpoint.processor_data
    facts = [
        ("network", config.model_type),
        ("parameters", f"{parameters:,}"),
        ("classes", f"{config.num_labels:,}"),
        ("sha256 of model.safetensors", sha256_of(checkpoint.weights_file)),
    ]
    return checkpoint_card(
        config,
        name=repo_id.split("/")[-1],
        facts=facts,
        processor=None if processor is None else processor_from_dict(processor),
        place=repo_id,
    )


def _check_token(token: str | bool | None) -> None:
    """Raises `AccessError` where there is no token or one that cannot be sent; its value is never shown."""
    from huggingface_hub.errors import LocalTokenNotFoundError
    from huggingface_hub.utils import build_hf_headers

    try:
        sent = build_hf_headers(token=token).get("authorization", "")
    except LocalTokenNotFoundError:
        sent = ""
    if not sent.removeprefix("Bearer").strip():
        raise AccessError(
            'Uploading needs an access token that may write: pass token=, set HF_TOKEN or run "hf auth login".',
            field="token",
        )
    if not re.fullmatch(r"Bearer [!-~]+", sent):
        raise AccessError(
            "token has a space, a line break or another character that no access token has; copy it again.",
            field="token",
        )
