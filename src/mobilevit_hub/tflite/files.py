"""What belongs to a `.tflite` file and whether it may be run: its JSON, its labels, its record, a trial.

LiteRT checks hardly anything: a few changed bytes give other answers, a crash or a run without end. So a file with a
JSON of ours beside it is refused unless it hashes to what that says, and one without is first run in a process of its
own, which runs this file as well.
"""

from __future__ import annotations

import glob
import hashlib
import io
import os
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..choices import TFLITE_OUTPUTS
from ..errors import CheckpointError, IntegrityError, NotFoundError
from ..files import readable, temporary_folder
from ..images.preparing import FILTERS, MAX_EDGE, Preprocessing
from ..json_files import parse_json, read_json

FORMAT = 1
"""Version of the record."""
LABELS, RECORD = "labels.txt", "mobilevit_hub.json"
"""Names of the attached files."""
DTYPES = {"uint8": [0, 255], "float32": [0, 1]}
"""Types of the input, and the range of its values."""
MAX_BYTES = 2**31
MAX_ATTACHED_BYTES = 4 * 1024 * 1024
PATIENCE = (0.05, 0.05, 0.05)
"""Seconds before each further look at a file that does not hash to its JSON: an export replaces one after the other."""
TRIAL_SECONDS = 20
TRIAL_BYTES = 4 * 1024**3


def read_tflite(path: Path) -> tuple[bytes, dict[str, Any] | None]:
    """The bytes of a `.tflite` file, and the JSON beside it if that is an export's; the bytes then hash to it.

    Raises:
        NotFoundError: There is no such file.
        SourceError: One of the two cannot be read.
        IntegrityError: The bytes do not hash to what the JSON says.
        ConfigError: The JSON is none.
        CheckpointError: It is no regular file, empty, or no TFLite file.
    """
    for seconds in (*PATIENCE, None):
        content, sidecar = _read_file(path), _read_sidecar(path.with_suffix(".json"))
        found = hashlib.sha256(content).hexdigest()
        if sidecar is None or sidecar["sha256"] == found:
            break
        if seconds is None:
            raise IntegrityError(
                f"{path}: damaged, or not the file that {path.with_suffix('.json').name} beside it describes: its "
                f"SHA-256 is {found}, not {str(sidecar['sha256'])[:64]}. Copy both files again, or export again.",
                path=path,
                found=found,
                expected=sidecar["sha256"],
            )
        time.sleep(seconds)
    if not content:
        raise CheckpointError(f"{path}: the file is empty; expected a .tflite file.", path=path)
    if content[4:8] != b"TFL3":
        raise CheckpointError(f"{path}: not a .tflite file; it has no 'TFL3' at byte 4.", path=path)
    return content, sidecar


def _read_file(path: Path) -> bytes:
    with readable(path):
        if not path.exists():
            siblings = ", ".join(sorted(file.name for file in path.parent.glob(f"{glob.escape(path.stem)}-*.tflite")))
            advice = f"There is {siblings}." if siblings else f"Make one with: mobilevit-hub export NAME {path}"
            raise NotFoundError(f"{path}: no such file. {advice}", path=path)
        if not path.is_file():  # opening a pipe or a device can wait for ever
            raise CheckpointError(f"{path}: is a folder, pipe or device; expected a .tflite file.", path=path)
        if (size := path.stat().st_size) > MAX_BYTES:
            raise CheckpointError(f"{path}: {size:,} bytes; the limit of the format is {MAX_BYTES:,}.", path=path)
        return path.read_bytes()


def _read_sidecar(path: Path) -> dict[str, Any] | None:
    with readable(path):
        if not path.is_file():
            return None
    data = read_json(path)
    return data if {"format", "sha256"} <= data.keys() else None  # else it belongs to something else


def read_attached(path: Path, content: bytes) -> tuple[str | None, dict[str, Any] | None]:
    """The text of `labels.txt` and the record in the zip archive at the end of a file; None what is not there.

    Args:
        path: Names the file in errors.
        content: Its bytes.

    Raises:
        CheckpointError: One of the two is not UTF-8 text.
        ConfigError: The record is no JSON.
    """
    texts = {}
    # Broken archives make zipfile raise errors of a dozen classes; a file with such a tail has nothing attached.
    with suppress(Exception), zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in {LABELS, RECORD} & set(archive.namelist()):
            if archive.getinfo(name).file_size <= MAX_ATTACHED_BYTES:
                texts[name] = archive.read(name)
    try:
        labels, record = (texts[name].decode() if name in texts else None for name in (LABELS, RECORD))
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: what is attached to it is not UTF-8 text.", path=path) from error
    return labels, None if record is None else parse_json(record, f"{path}: {RECORD}")


def lines_of(text: str) -> list[str]:
    """The lines of a text, without an empty one at the end."""
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n")


def steps_before(resize: dict[str, int], size: tuple[int, int], resample: int, dtype: str) -> Preprocessing:
    """How photos are prepared for a file; the channel order of its weights is inside.

    Args:
        resize: The size that is resized to, as a preprocessor has it.
        size: Height and width of the input of the file in pixels, to which photos are cropped.
        resample: The filter, a `PIL.Image.Resampling`.
        dtype: Type of the input.
    """
    return Preprocessing(
        size=resize,
        crop_size=dict(zip(("height", "width"), size, strict=True)),
        resample=resample,
        do_rescale=dtype == "float32",
        do_flip_channel_order=False,
    )


def check_record(
    path: Path, record: dict[str, Any], size: tuple[int, int], dtype: str, count: int, labels: str | None
) -> None:
    """Raises `CheckpointError` unless a record describes the file that it belongs to, in a way that can be used.

    Args:
        path: The file.
        record: The record.
        size: Height and width of the input of the file in pixels.
        dtype: Type of its input.
        count: Number of its classes.
        labels: Text of its `labels.txt`; None: it has none.
    """
    if record.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: its record has format {record.get('format')!r}; this version of mobilevit_hub reads {FORMAT}.",
            path=path,
            field="format",
        )
    height, width = size
    facts = {
        ("input", "shape"): [1, height, width, 3],
        ("input", "dtype"): dtype,
        ("input", "range"): DTYPES[dtype],
        ("input", "channels"): "rgb",
        ("output", "shape"): [1, count],
        ("output", "dtype"): "float32",
        ("labels", "count"): count,
        ("labels", "sha256"): None if labels is None else hashlib.sha256(labels.encode()).hexdigest(),
        ("preprocessing", "crop"): {"height": height, "width": width},
    }
    for keys, fact in facts.items():
        if (said := _field(record, *keys)) != fact:
            raise _wrong_record(path, keys, said, f"of the file it is {fact!r}")
    resize = _field(record, "preprocessing", "resize")
    names = set(resize) if isinstance(resize, dict) else set()
    if names not in ({"shortest_edge"}, {"height", "width"}) or any(
        type(edge) is not int or not 1 <= edge <= MAX_EDGE for edge in resize.values()
    ):
        accepted = f'{{"shortest_edge": …}} or {{"height": …, "width": …}}, 1 to {MAX_EDGE}'
        raise _wrong_record(path, ("preprocessing", "resize"), resize, f"expected {accepted}")
    for keys, allowed in ((("preprocessing", "interpolation"), tuple(FILTERS)), (("output", "name"), TFLITE_OUTPUTS)):
        if (said := _field(record, *keys)) not in allowed:
            raise _wrong_record(path, keys, said, f"expected one of {', '.join(allowed)}")


def _field(record: dict[str, Any], part: str, name: str) -> Any:
    values = record.get(part)
    return values.get(name) if isinstance(values, dict) else None


def _wrong_record(path: Path, keys: tuple[str, str], said: Any, fact: str) -> CheckpointError:
    field = ".".join(keys)
    return CheckpointError(
        f"{path}: its record says that {field} is {str(said)[:80]!r}; {fact}. Export it again.", path=path, field=field
    )


def try_in_process(path: Path, content: bytes) -> None:
    """Runs an unknown file once in a process of its own, which it may bring down.

    Raises:
        CheckpointError: It crashed, did not end, needed too much memory, or LiteRT refused the file.
    """
    # -P: nothing in the current folder is taken for one of the modules.
    command = [sys.executable, "-P", "-m", __name__, str(TRIAL_BYTES), str(TRIAL_SECONDS)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)]),
        "OPENBLAS_NUM_THREADS": "1",  # NumPy would reserve memory for each processor
    }
    with temporary_folder() as folder, open(folder / "log", "wb") as log:
        try:
            done = subprocess.run(  # noqa: S603 - this interpreter and this module
                command,
                input=content,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=environment,
                timeout=TRIAL_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise CheckpointError(
                f"{path}: the interpreter did not come to an end with this file within {TRIAL_SECONDS} s.", path=path
            ) from error
        said = (folder / "log").read_text("utf-8", "replace").split("\n")
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise CheckpointError(f"{path}: the interpreter crashed on this file ({name}).", path=path)
    if done.returncode:
        last = next((line for line in reversed(said) if line.strip()), f"status {done.returncode}")
        raise CheckpointError(f"{path}: LiteRT cannot run this file: {last[:300]}", path=path)


def _run_once(content: bytes, memory: int, seconds: int) -> None:
    """What that process does: runs the file on zeros, within limits of memory in bytes and time."""
    with suppress(ImportError):  # not every system has them
        import resource

        # The parent sees to the time, unless it has ended itself.
        limits = {resource.RLIMIT_AS: memory, resource.RLIMIT_CPU: seconds + 1, resource.RLIMIT_CORE: 0}
        for kind, limit in limits.items():
            with suppress(ValueError, OSError):  # a lower one is set already
                resource.setrlimit(kind, (limit, limit))
    from ai_edge_litert.interpreter import Interpreter

    try:
        interpreter = Interpreter(model_content=content, num_threads=1)
        interpreter.allocate_tensors()
        for tensor in interpreter.get_input_details():
            interpreter.set_tensor(tensor["index"], np.zeros(tensor["shape"], tensor["dtype"]))
        interpreter.invoke()
        for tensor in interpreter.get_output_details():
            interpreter.get_tensor(tensor["index"])
    except Exception as error:  # whatever LiteRT raises is the answer
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")


if __name__ == "__main__":
    _run_once(sys.stdin.buffer.read(), *map(int, sys.argv[1:]))
