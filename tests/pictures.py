"""Pictures and picture files for the tests, made by code; the arrays they are made of are the expected pixels."""

import io
import struct
import zlib

import numpy as np
from PIL import ExifTags, Image

from mobilevit_hub.images.loading import load_image

RNG_SEED = 20240607


def noise(height=48, width=64, channels=3):
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(RNG_SEED).integers(0, 256, shape, dtype=np.uint8)


def smooth(height=48, width=64):
    y, x = np.mgrid[0:height, 0:width]
    return np.stack(
        [y * 255 // (height - 1), x * 255 // (width - 1), (x + y) * 255 // (height + width - 2)], -1
    ).astype(np.uint8)


def encode(picture, format, **options):
    picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, color_type, rows=b"", extra=()):
    """A PNG written by hand: Pillow cannot write most 16-bit forms."""
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    body = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def png_16_bit(values, color_type, extra=()):
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(width, height, 16, color_type, rows, extra)


def pixels(source, **options):
    picture = load_image(source, **options)
    assert picture.mode == "RGB"
    return np.asarray(picture).astype(int)


def grey(values):
    return np.repeat(np.asarray(values)[:, :, None], 3, axis=2)


def assert_close(actual, expected, tolerance):
    assert actual.shape == expected.shape
    assert np.abs(actual.astype(int) - np.asarray(expected).astype(int)).max() <= tolerance


def ramp_16_bit():
    """64 columns from 0 to 65535; the top byte alone would lose the rounding."""
    return np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (8, 1))


# How a camera that was held in each of the eight ways stores the upright array.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


def corners():
    """128 × 64 with a different colour in each quarter."""
    array = np.zeros((64, 128, 3), np.uint8)
    array[:32, :64], array[:32, 64:] = (250, 10, 10), (10, 250, 10)
    array[32:, :64], array[32:, 64:] = (10, 10, 250), (240, 240, 240)
    return array


def oriented(orientation, format, **options):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored = np.ascontiguousarray(STORED.get(orientation, STORED[1])(corners()))
    return encode(stored, format, exif=exif, **options)


def on_its_side(photo):
    """The JPEG of an upright photo as a camera on its side stores it."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return encode(Image.open(photo).transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95)
