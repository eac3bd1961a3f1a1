"""Reading weights from files that may be damaged or hostile, and writing them, without a framework."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize

from ..errors import CheckpointError, NotFoundError, require
from ..files import readable
from ..network.structure import COUNTER

MAX_TENSORS = 10_000
# A tensor's entry takes about 120 bytes, so this leaves room for long names and metadata.
MAX_HEADER_BYTES = 10_000_000
_NUMPY_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
                "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?"}  # fmt: skip
_TYPE_NAMES = {np.dtype(code): name for name, code in _NUMPY_TYPES.items()}
# Wrappers that training scripts put around a state dict.
_WRAPPERS = (
    "state_dict", "model_state_dict", "model", "ema", "ema_model_state_dict", "state_dict_ema", "model_ema",
    "ema_state_dict", "ema_model",
)  # fmt: skip


def read_tensors(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads all tensors of a `.safetensors`, `.bin` or `.pt` file.

    bfloat16 becomes float32, which loses nothing. Nothing in the file is executed.

    Returns:
        The tensors by name, and the file's metadata (empty for pickled files).

    Raises:
        NotFoundError: There is no such file.
        CheckpointError: The file is damaged, unsafe or no weights file.
        SourceError: It cannot be read.
    """
    path = Path(path)
    refuse_others(path)
    with readable(path):
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        return _read_pickle(path), {}


def refuse_others(path: Path) -> None:
    """Refuses what is no file, and names what people download by mistake in place of weights."""
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file.", path=path)
    with readable(path), open(path, "rb") as file:
        head, size = file.read(512), path.stat().st_size
    if not head:
        raise CheckpointError(f"{path}: the file is empty (0 bytes).", path=path)
    if head.startswith(b"version https://git-lfs"):
        stated = next((line.split()[-1].decode() for line in head.splitlines() if line.startswith(b"size ")), "?")
        raise CheckpointError(
            f"{path}: this is a Git LFS pointer of {size} bytes; the weights themselves ({stated} bytes) were not "
            'downloaded. Run "git lfs pull", or load by name.',
            path=path,
        )
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"{path}: this is a web page, not weights.", path=path)


def refused(path: Any, name: str, what: str) -> CheckpointError:
    """The error for a tensor that cannot be used: `what` follows its name."""
    return CheckpointError(f"{path}: tensor {name!r} {what}.", path=path, field=name, mismatched=[name])


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    # Read, not mapped: a mapped file that another process cuts short kills the reader.
    content = path.read_bytes()
    if len(content) < 8:
        raise CheckpointError(
            f"{path}: {len(content)} bytes is too short for a safetensors file; at least 8 are needed.", path=path
        )
    (header_size,) = struct.unpack("<Q", content[:8])
    if header_size > MAX_HEADER_BYTES or header_size > len(content) - 8:
        raise CheckpointError(
            f"{path}: its header claims {header_size:,} bytes, but the file has {len(content):,}; it is cut short or "
            "no safetensors file.",
            path=path,
        )
    # Counted before the header is parsed; the key may be spelt with escapes, hence again below.
    if content[8 : 8 + header_size].count(b"data_offsets") > MAX_TENSORS:
        raise _too_many(path)
    try:
        items = deserialize(content)
        metadata = json.loads(content[8 : 8 + header_size]).get("__metadata__") or {}
    except (SafetensorError, ValueError, RecursionError) as error:
        wanted = _stated_size(content, header_size) or len(content)
        size = "" if wanted == len(content) else f" ({len(content):,} bytes; its header describes {wanted:,})"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: damaged safetensors file{size}: {reason}.", path=path) from error
    if len(items) > MAX_TENSORS:
        raise _too_many(path)
    del content  # which the items are a copy of
    tensors = {}
    for name, item in items:
        if item["dtype"] == "BF16":
            bits = np.frombuffer(item["data"], dtype="<u2").astype(np.uint32) << 16
            array = bits.view(np.float32)
        elif item["dtype"] in _NUMPY_TYPES:
            array = np.frombuffer(item["data"], dtype=_NUMPY_TYPES[item["dtype"]])  # writable: each has its own bytes
        else:
            raise refused(path, name, f"has the type {item['dtype']}; expected float32, float16 or bfloat16")
        tensors[name] = array.reshape(item["shape"])
    return tensors, metadata


def _too_many(path: Path) -> CheckpointError:
    return CheckpointError(f"{path}: holds more than {MAX_TENSORS:,} tensors.", path=path)


def _stated_size(content: bytes, header_size: int) -> int | None:
    """File size that the header describes, or None where it cannot be read."""
    try:
        entries = json.loads(content[8 : 8 + header_size])
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
        return int(8 + header_size + max(ends, default=0))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return None


def _read_pickle(path: Path) -> dict[str, np.ndarray]:
    require("torch", "torch", f"Reading {path.name}")
    import torch

    with open(path, "rb") as file:
        start = file.read(16)
    if start.startswith(b"PK\3\4"):  # PyTorch has two formats
        _check_zip(path)
    elif not start.startswith(b"\x80"):
        hint = " It looks like safetensors: rename it so." if b"{" in start[8:10] else ""
        raise CheckpointError(f"{path}: no PyTorch file; it begins with {start[:4]!r}.{hint}", path=path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # the unpickler raises nearly anything on damaged files
        if type(error).__name__ == "UnpicklingError" and "eights" in str(error):
            raise CheckpointError(
                f"{path}: contains code or non-tensor objects and was not opened; re-save it as safetensors.",
                path=path,
            ) from None
        raise CheckpointError(f"{path}: damaged PyTorch file ({type(error).__name__}).", path=path) from error
    state = _unwrap(content, path)
    if len(state) > MAX_TENSORS:
        raise _too_many(path)
    tensors = {}
    for name, value in state.items():
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_meta:
            raise CheckpointError(
                f"{path}: {name!r} is {type(value).__name__}, expected a plain tensor.", path=path, field=str(name)
            )
        # A tiny file can describe a huge tensor by strides of 0: look before anything copies it.
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise refused(path, str(name), f"claims {value.numel():,} values but stores fewer")
        value = value.detach()
        try:
            tensors[str(name)] = (value.float() if value.dtype == torch.bfloat16 else value).contiguous().numpy()
        except (TypeError, RuntimeError) as error:  # 8-bit floats, quantised tensors
            what = f"has the type {value.dtype}; expected float32, float16 or bfloat16"
            raise refused(path, str(name), what) from error
    return tensors


def _check_zip(path: Path) -> None:
    """Refuses parts that unpack to more than the file, and parts that changed since they were written."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            bomb = any(m.compress_type != zipfile.ZIP_STORED for m in members) or (
                sum(m.file_size for m in members) > path.stat().st_size
            )
            # PyTorch does not compare the checksums that it writes.
            damaged = None if bomb else archive.testzip()
    except Exception as error:  # as for the unpickler
        raise CheckpointError(f"{path}: damaged PyTorch file ({error}).", path=path) from error
    if bomb:
        raise CheckpointError(
            f"{path}: its parts are compressed, which weights files never are; refused as a possible zip bomb.",
            path=path,
        )
    if damaged is not None:
        raise CheckpointError(f"{path}: damaged PyTorch file (checksum of {damaged!r}).", path=path)


def _unwrap(content: Any, path: Path) -> dict[str, Any]:
    """Finds the state dict in what a training script saved."""
    for _ in range(3):
        if not isinstance(content, dict):
            raise CheckpointError(
                f"{path}: holds {type(content).__name__}, expected a dictionary of tensors.", path=path
            )
        inside = [key for key in _WRAPPERS if isinstance(content.get(key), dict)]
        if not inside:
            break
        if len(inside) > 1:
            raise CheckpointError(
                f"{path}: holds several sets of weights ({', '.join(inside)}); save the one you want by itself.",
                path=path,
            )
        content = content[inside[0]]
    for prefix in ("module.", "_orig_mod.", "module."):  # of parallel and of compiled models, in either order
        if content and all(str(key).startswith(prefix) for key in content):
            content = {key.removeprefix(prefix): value for key, value in content.items()}
    return content


def to_safetensors(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> bytes:
    """Serialises tensors so that equal tensors give equal bytes; the library's own writer shuffles the metadata."""
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    chunks, end = [], 0
    # Wide types first, so that each tensor is aligned to its type.
    for name in sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name)):
        data = tensors[name].astype(tensors[name].dtype.newbyteorder("<"), copy=False).tobytes()
        header[name] = {
            "dtype": _TYPE_NAMES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [end, end + len(data)],
        }
        end += len(data)
        chunks.append(data)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *chunks])


def check_values(tensors: dict[str, np.ndarray], path: Any) -> None:
    """Refuses integer weights, NaN, infinity and negative variances.

    Raises:
        CheckpointError: Naming the first tensor at fault.
    """
    for name, tensor in tensors.items():
        if name.endswith(COUNTER):
            continue
        if tensor.dtype.kind != "f":
            raise refused(path, name, f"has the type {tensor.dtype}; expected floating point numbers")
        if not np.isfinite(tensor).all():
            raise refused(path, name, "contains NaN or infinity; the file is damaged or training diverged")
        if name.endswith("running_var") and tensor.size and tensor.min() < 0:
            raise refused(path, name, "contains a negative variance")
