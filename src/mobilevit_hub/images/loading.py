"""`load_image`: any picture, however it is stored, becomes upright 8-bit RGB.

The one place of this package that decodes pictures; everything that looks at one starts here, so a
photo gives the same pixels in every framework and in the browser demo.

| source | accepted |
|---|---|
| path, bytes, binary file | JPEG, PNG, GIF, WebP, BMP, TIFF, PPM, AVIF; HEIC with the extra `heif` |
| PIL image | any mode with a fixed range, opened from any format |
| array or tensor | `(H, W)`, `(H, W, 1)`, `(H, W, 3)`, `(H, W, 4)`; with `data_format="CHW"` channels first |
| | `uint8`, `uint16`, or floats in [0, 1], which are rounded to 8 bits |
"""

from __future__ import annotations

import io
import os
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from ..errors import ImageError, InputError, MissingDependencyError, require
from .sizes import MAX_IMAGE_PIXELS

MAX_IMAGE_BYTES = 64 * 1024 * 1024
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF")

FILE_ENDINGS = frozenset(
    (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".heic", ".heif")
)

# What Pillow's decoders really raise on damaged files, plus what parsing code could.
DECODER_ERRORS: tuple[type[Exception], ...] = (OSError, SyntaxError, ValueError, RuntimeError, MemoryError, EOFError)
DECODER_ERRORS += (LookupError, TypeError, AttributeError, AssertionError, ArithmeticError, struct.error, zlib.error)

ORIENTATION_TAG = 0x0112
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
WHITE_IS_ZERO_TAG = 262

AVIF_BRANDS = {b"avif", b"avis"}
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}

_FILTERS = threading.Lock()

# First bytes of files that people pass by mistake, and what to say about them.
NOT_IMAGES = (
    (b"%PDF", "it is a PDF; export the page as PNG"),
    (b"%!PS", "PostScript is not supported; export it as PNG"),
    (b"PK\x03\x04", "it is a zip archive; unpack it first"),
    (b"version https://git-lfs", "it is a Git LFS pointer; fetch the picture with git lfs pull"),
)
IMAGE_STARTS = (b"\xff\xd8", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\x00", b"MM\x00*")


def load_image(
    source: Any,
    *,
    background: tuple[int, int, int] = (255, 255, 255),
    data_format: str = "HWC",
    max_pixels: int = MAX_IMAGE_PIXELS,
) -> Image.Image:
    """Reads one picture and returns it upright, as 8-bit RGB, without metadata.

    EXIF orientation is applied once. Transparent pixels show `background`. 16-bit values become
    8-bit by rounding; palettes, grey, CMYK and LAB become RGB (colour profiles are ignored, as
    Pillow does). Of an animation or a multi-page file the first picture is used. A file object is
    read from its start where it can seek, and stays open.

    Args:
        source: Path, bytes, binary file object, PIL image, NumPy array or tensor; the table at the
            top of this module has the array shapes and types. Addresses are not fetched.
        background: Red, green and blue, 0 to 255, shown where the picture is transparent.
        data_format: Order of the axes of an array or tensor, `"HWC"` or `"CHW"`; never guessed.
        max_pixels: The largest picture that is decoded; a service may take less than the 50 million of the default.

    Returns:
        A new `PIL.Image.Image` of mode `"RGB"`, at least 1 × 1 and at most `max_pixels`.

    Raises:
        ImageError: The file is missing, not a regular file, over 64 MiB, of another format, damaged
            or cut short; or the picture is empty, too large, or has 32-bit or float pixels.
        InputError: `source` is of a type, array shape or array type that is not accepted.
        MissingDependencyError: The format needs a package that is not installed.
    """
    background = _checked_background(background)
    if data_format not in ("HWC", "CHW"):
        raise InputError(f"data_format is {data_format!r}; expected 'HWC' or 'CHW'.", field="data_format")
    if isinstance(source, Image.Image):
        return _upright_rgb(source, "image", background, max_pixels)
    if isinstance(source, str | os.PathLike):
        path = os.fsdecode(source)
        name = path if path.isprintable() and path else repr(path)
        try:
            return _decode(_read_file(path, name), name, background, max_pixels)
        except (ImageError, MissingDependencyError) as error:
            error.path = path
            raise
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        if not data:
            raise InputError(f"The image is an empty {type(source).__name__} object; expected the bytes of a file.")
        return _decode(data, f"image of {len(data):,} bytes", background, max_pixels)
    if hasattr(source, "read"):
        name = str(getattr(source, "name", "file object"))
        return _decode(_read_stream(source, name), name, background, max_pixels)
    if hasattr(source, "__array__"):
        return _upright_rgb(_image_from_array(source, data_format, max_pixels), "array", background, max_pixels)
    accepted = "a path, bytes, a binary file, a PIL image, an array or a tensor"
    raise InputError(f"An image cannot be made from {type(source).__name__}; expected {accepted}.")


def image_files(folder: Path) -> list[Path]:
    """Files in a folder and its sub-folders whose name ends as an image's, in order of their paths."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in FILE_ENDINGS and path.is_file())


def count_frames(source: str | os.PathLike | bytes) -> int:
    """Counts the pictures in a file that `load_image` has read: more than 1 in an animation or several pages.

    Of a file with one picture only the head is read again.

    Args:
        source: Path or bytes of the file.
    """
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else Path(os.fsdecode(source)).open("rb") as file:
            formats = _allowed_formats(file.read(256), "image")
            with warnings.catch_warnings(action="ignore"), Image.open(file, formats=formats) as image:
                return getattr(image, "n_frames", 1)
    except DECODER_ERRORS:
        return 1  # damaged after the first picture, so nobody knows


def _checked_background(background: Any) -> tuple[int, int, int]:
    values = tuple(background) if isinstance(background, tuple | list) else ()
    if len(values) != 3 or any(type(v) is not int or not 0 <= v <= 255 for v in values):
        raise InputError(f"background is {background!r}; expected three integers from 0 to 255.", field="background")
    return values


def _read_file(path: str, name: str) -> bytes:
    if path.startswith(("http://", "https://")):
        raise ImageError(f"{name}: addresses are not fetched; download the image and pass the file.")
    try:
        status = Path(path).stat()
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file.") from error
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL or an unencodable character
        raise ImageError(f"{name}: cannot be opened ({_reason(error)}).") from error
    # Looked at before opening: opening a pipe or a device can wait for ever.
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(f"{name}: is a folder; expected an image file.")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{name}: is a pipe, socket or device; expected a regular image file.")
    if status.st_size > MAX_IMAGE_BYTES:
        raise _too_many_bytes(name)
    try:
        with Path(path).open("rb") as file:
            return _read_stream(file, name)
    except OSError as error:
        raise ImageError(f"{name}: cannot be read ({_reason(error)}).") from error


def _read_stream(file: Any, name: str) -> bytes:
    if isinstance(file, io.TextIOBase):
        raise InputError(f"{name}: the file object is in text mode; open it with mode 'rb'.")
    chunks: list[bytes] = []
    left = MAX_IMAGE_BYTES + 1
    try:
        if hasattr(file, "seekable") and file.seekable():
            file.seek(0)
        # In a loop, because pipes and sockets give less than asked for.
        while left > 0 and (chunk := file.read(left)):
            chunks.append(chunk)
            left -= len(chunk)
    except (OSError, ValueError) as error:  # ValueError: the file object is closed
        raise ImageError(f"{name}: cannot be read ({_reason(error)}).") from error
    if not all(isinstance(chunk, bytes) for chunk in chunks):
        raise InputError(f"{name}: read() gives {type(chunks[0]).__name__}; expected bytes.")
    if left <= 0:
        raise _too_many_bytes(name)
    return b"".join(chunks)


def _too_many_bytes(name: str) -> ImageError:
    return ImageError(f"{name}: the file is larger than {MAX_IMAGE_BYTES // 2**20} MiB; save it smaller.")


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split())[:120] or type(error).__name__


def _without_warnings(function: Callable[..., Image.Image]) -> Callable[..., Image.Image]:
    """Pillow warns about oddities that do not touch the pixels; where warnings are errors, they are ignored."""

    def wrapper(*args: Any) -> Image.Image:
        try:
            return function(*args)
        except Warning:
            # Only here, not always: the filters belong to all threads. One thread at a time, or they would be put back
            # in another order than they were taken.
            with _FILTERS, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return function(*args)

    return wrapper


@_without_warnings
def _decode(data: bytes, name: str, background: tuple[int, int, int], max_pixels: int) -> Image.Image:
    if not data:
        raise ImageError(f"{name}: the file is empty.")
    formats = _allowed_formats(data, name)
    with _as_image_error(name):
        try:
            image = Image.open(io.BytesIO(data), formats=formats)
        except UnidentifiedImageError as error:
            raise ImageError(f"{name}: {_what_it_is(data)}.") from error
        with image:
            return _upright_rgb(image, name, background, max_pixels)


@contextmanager
def _as_image_error(name: str) -> Iterator[None]:
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name}: {_reason(error)}; the limit here is {MAX_IMAGE_PIXELS // 10**6} million pixels. Make it smaller."
        ) from error
    except DECODER_ERRORS as error:
        raise ImageError(f"{name}: the image is cut short or damaged ({_reason(error)}).") from error


def _allowed_formats(data: bytes, name: str) -> list[str]:
    """Pillow formats that may look at these bytes: an allow list, so that no other plug-in runs."""
    brands = _brands(data)
    if brands & AVIF_BRANDS:
        if not features.check("avif"):
            raise MissingDependencyError(
                f"{name}: this build of Pillow cannot read AVIF. Install one that can: pip install --upgrade pillow.",
                field="avif",
            )
    elif brands & HEIC_BRANDS:
        require("pillow_heif", "heif", f"{name}: reading HEIC")
        from pillow_heif import register_heif_opener  # type: ignore[import-not-found, unused-ignore]

        register_heif_opener()
        return ["HEIF"]
    Image.init()
    # A name that this build of Pillow does not know would be a KeyError for every file.
    return [f for f in FORMATS if f in Image.OPEN and (f not in ("WEBP", "AVIF") or features.check(f.lower()))]


def _brands(data: bytes) -> set[bytes]:
    """Brands in the first box of an ISO media file; AVIF and HEIC differ only there."""
    if data[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(data[:4], "big"), 256)
    return {data[8:12], *(data[i : i + 4] for i in range(16, end, 4))}


def _what_it_is(data: bytes) -> str:
    start = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "it looks like a web page, so the download probably failed"
    if b"<svg" in start:
        return "SVG is not supported; export it as PNG"
    if text := next((text for prefix, text in NOT_IMAGES if data.startswith(prefix)), None):
        return text
    if data.startswith(IMAGE_STARTS) or _brands(data) & AVIF_BRANDS:
        return "the image is cut short or damaged"
    return "not an image that can be read; accepted are JPEG, PNG, GIF, WebP, BMP, TIFF, PPM, AVIF and HEIC"


def _image_from_array(source: Any, data_format: str, max_pixels: int) -> Image.Image:
    array = _to_numpy(source)
    if data_format == "CHW" and array.ndim == 3:
        array = np.moveaxis(array, 0, -1)
    if array.size == 0:
        raise ImageError(f"The array has shape {array.shape}: no pixels.")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        hint = ""
        if data_format == "HWC" and array.ndim == 3 and array.shape[0] in (1, 3, 4):
            hint = ' Channels first needs data_format="CHW" (in a processor: input_data_format="channels_first").'
        raise InputError(
            f"The array has shape {array.shape} (read as {data_format}); expected (H, W) or 1, 3 or 4 channels.{hint}"
        )
    _check_pixels(array.shape[1], array.shape[0], "array", max_pixels)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(_to_8_bit(array)))


def _to_numpy(source: Any) -> np.ndarray:
    try:
        # A torch tensor may need gradients or live on a GPU; torch itself is not imported for this.
        tensor = source.detach().cpu() if hasattr(source, "detach") else source
        return np.asarray(tensor)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{type(source).__name__} cannot become an array ({_reason(error)}); "
            "convert it to uint8, or to float32 in [0, 1]."
        ) from error


def _to_8_bit(array: np.ndarray) -> np.ndarray:
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "u" and size == 1:
        return array
    if kind == "u" and size == 2:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):  # also false for NaN
            raise InputError(
                f"The float array has values from {low:g} to {high:g}; expected [0, 1]. "
                "Divide by the largest possible value, or convert to uint8."
            )
        return np.rint(array * np.float32(255)).astype(np.uint8)
    raise InputError(f"The array has type {array.dtype}; expected uint8, uint16 or floats in [0, 1].")


def _check_pixels(width: int, height: int, name: str, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"{name}: {width} × {height} has no pixels.")
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: {width} × {height} is {width * height / 1e6:,.0f} million pixels; "
            f"the limit is {max_pixels // 10**6} million. Make it smaller."
        )


@_without_warnings
def _upright_rgb(image: Image.Image, name: str, background: tuple[int, int, int], max_pixels: int) -> Image.Image:
    with _as_image_error(name):
        _check_pixels(image.width, image.height, name, max_pixels)
        image.load()  # TIFF and HEIF plug-ins turn the picture themselves here and drop the tag, which is read after it
        transposition = TRANSPOSITIONS.get(_orientation(image))
        rgb = _to_rgb(image, name, background)
        rgb.info = {}
        return rgb if transposition is None else rgb.transpose(transposition)


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ORIENTATION_TAG)
    except DECODER_ERRORS:
        return None  # a broken EXIF block says nothing about the pixels


def _to_rgb(image: Image.Image, name: str, background: tuple[int, int, int]) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        image = _grey_from_16_bit(image)  # Pillow's own conversion would cut everything above 255 off
    elif image.mode in ("I", "F"):
        raise ImageError(f"{name}: 32-bit and float pixels have no fixed range; scale to 8 bits first.")
    elif image.mode == "La":  # premultiplied; RGBa converts by itself
        image = image.convert("LA")
    key = image.info.get("transparency")
    if image.mode == "RGB" and key is not None and max(key) > 255:
        # Pillow takes the top byte of 16-bit colours, but leaves the transparent colour as it was.
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in key)
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba, rgb = image.convert("RGBA"), Image.new("RGB", image.size, background)
    rgb.paste(rgba, mask=rgba.getchannel("A"))
    return rgb


def _grey_from_16_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.uint16)
    grey = Image.fromarray(_to_8_bit(values))
    if getattr(image, "tag_v2", {}).get(WHITE_IS_ZERO_TAG) == 0:  # Pillow inverts 8 bits, but not 16
        grey = Image.eval(grey, lambda value: 255 - value)
    transparent = image.info.get("transparency")
    if transparent is None:
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))))
