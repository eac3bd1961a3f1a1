"""What cannot be a picture is refused with one readable line, before it costs memory."""

import io
import os
import struct
import sys
import zlib

import numpy as np
import pytest
from pictures import (
    RNG_SEED,
    assert_close,
    chunk,
    encode,
    noise,
    oriented,
    pixels,
    png,
    png_16_bit,
    ramp_16_bit,
    smooth,
)
from PIL import Image, features

from mobilevit_hub.errors import ImageError, InputError, MissingDependencyError
from mobilevit_hub.images.loading import MAX_IMAGE_BYTES, load_image
from mobilevit_hub.images.sizes import check_resize

# --------------------------------------------------------------------------------------------------
# Damaged and foreign files
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["JPEG", "GIF", "BMP", "PNG", "WEBP", "TIFF", "PPM", "AVIF"])
def test_half_a_file_is_refused(format):  # IMG-16, 17
    data = encode(noise(64, 64), format)
    with pytest.raises(ImageError, match="cut short"):
        load_image(data[: len(data) // 2])
    try:
        assert_close(pixels(data[:-20]), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), 0)
    except ImageError as error:
        assert "cut short" in str(error)


def test_a_png_without_its_end_or_with_a_tail_is_complete():  # IMG-18
    array = noise()
    data = encode(array, "PNG")
    for changed in (data[:-12], data[:-20], data + b"x" * 700):
        assert_close(pixels(changed), array, 0)
    assert_close(pixels(encode(array, "BMP") + b"x" * 700), array, 0)


def test_a_flipped_byte_is_refused():  # IMG-19
    data = bytearray(encode(noise(), "PNG"))
    for position in (data.index(b"IDAT") + 200, data.index(b"IHDR") + 18):
        changed = data.copy()
        changed[position] ^= 0x55
        with pytest.raises(ImageError):
            load_image(bytes(changed))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"hello, this is not a picture", "not an image"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b"\xef\xbb\xbf<HTML><body>Sign in</body></HTML>", "web page"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG is not supported"),
        (b"%PDF-1.7\n%\xe2\xe3", "PDF"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"\xff\xd8\xff\xe0", "cut short"),
        (bytes(range(256)), "not an image"),
    ],
)
def test_foreign_files_are_named(data, reason, tmp_path):  # IMG-20
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=reason) as caught:
        load_image(path)
    assert str(path) in str(caught.value) and caught.value.path == str(path) and "\n" not in str(caught.value)


def test_other_image_formats_do_not_reach_a_decoder(monkeypatch):  # IMG-30
    Image.init()
    eps = encode(noise(), "EPS")
    ran = []
    for name in ("EPS", "PCX", "ICO"):
        factory, accept = Image.OPEN[name]

        def spy(*arguments, name=name, factory=factory):
            ran.append(name)
            return factory(*arguments)

        monkeypatch.setitem(Image.OPEN, name, (spy, accept))
    Image.open(io.BytesIO(eps)).close()
    assert ran == ["EPS"]  # the spy works
    ran.clear()
    for data, reason in (
        (eps, "PostScript"),
        (encode(noise(), "PCX"), "not an image"),
        (encode(noise(), "ICO"), "not"),
    ):
        with pytest.raises(ImageError, match=reason):
            load_image(data)
    assert not ran


def heic():
    return struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + bytes(200)


def test_heic_without_its_plug_in_says_what_to_install(monkeypatch):  # IMG-28
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"HEIC.*pip install \"mobilevit_hub\[heif\]\""):
        load_image(heic())


def test_avif_on_a_build_without_it(monkeypatch):  # IMG-29
    data = encode(noise(), "AVIF")
    monkeypatch.setattr(features, "check", lambda name: name != "avif")
    with pytest.raises(MissingDependencyError, match=r"AVIF.*pip install"):
        load_image(data)
    assert_close(pixels(encode(noise(), "PNG")), noise(), 0)


# --------------------------------------------------------------------------------------------------
# Sizes
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(100_000, 100_000), (13_350, 13_350), (50_001, 1000)])
def test_too_many_pixels_are_refused_before_decoding(width, height):  # IMG-22, 23
    with pytest.raises(ImageError, match=r"(?i)pixels.*limit.*50 million"):
        load_image(png(width, height, 8, 2))
    if width * height < 60_000_000:
        with pytest.raises(ImageError, match="50 million"):
            load_image(np.zeros((height, width), np.uint8))


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_compressed_chunks_cannot_fill_the_memory(kind):  # IMG-24
    bomb = chunk(kind, b"name\0\0" + zlib.compress(bytes(70_000_000), 1))
    rows = b"\0\1\2\3"
    try:
        assert_close(pixels(png(1, 1, 8, 2, rows, [bomb])), np.array([[[1, 2, 3]]]), 0)
    except ImageError as error:
        assert "damaged" in str(error)


def test_one_pixel_and_no_pixels():  # IMG-25, 27
    assert_close(pixels(png(1, 1, 8, 2, b"\0\x07\x2a\xff")), np.array([[[7, 42, 255]]]), 0)
    sources = [png(0, 4, 8, 2), png(4, 0, 8, 2), np.zeros((0, 8, 3), np.uint8), np.zeros((8, 0), np.uint8)]
    for source in [*sources, Image.new("RGB", (0, 5))]:
        with pytest.raises(ImageError):
            load_image(source)


def test_too_elongated_pictures():  # IMG-26
    with pytest.raises(ImageError, match=r"too elongated.*1,244 million pixels \(limit 50 million\); crop it first"):
        check_resize(30_000, 2, 288)
    with pytest.raises(ImageError, match="332 million"):
        check_resize(1, 4000, 288)
    assert check_resize(2000, 100, 288) == (5760, 288)
    assert check_resize(100, 2000, 288) == (288, 5760)
    assert check_resize(333, 500, 288) == (288, int(288 * 500 / 333))


def test_too_many_bytes(tmp_path):
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)

    class Endless:
        def read(self, size):
            return bytes(min(size, 1 << 22))

    for source in (path, Endless()):
        with pytest.raises(ImageError, match="64 MiB"):
            load_image(source)


# --------------------------------------------------------------------------------------------------
# Wrong sources
# --------------------------------------------------------------------------------------------------


def test_paths_that_are_no_picture_file(tmp_path):  # IMG-31
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "file").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe")
    cases = {
        tmp_path: "is a folder",
        tmp_path / "missing.jpg": "no such file",
        tmp_path / "empty.jpg": "empty",
        tmp_path / "pipe": "pipe, socket or device",
        tmp_path / "file" / "below": "cannot be opened",
        tmp_path / ("x" * 300): "cannot be opened",
        "/dev/zero": "pipe, socket or device",
        "name\0with NUL": "cannot be opened",
        "odd\nname": r"'odd\\nname': no such file",
        "https://example.org/photo.jpg": "download",
    }
    for path, reason in cases.items():
        with pytest.raises(ImageError, match=reason) as caught:
            load_image(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", [None, 7, 1.5, {"bytes": b""}, ["a.jpg"], object])
def test_other_types_are_named(source):  # IMG-32
    with pytest.raises(InputError, match=f"from {type(source).__name__}"):
        load_image(source)


def test_empty_bytes_text_files_and_closed_files():
    with pytest.raises(InputError, match="empty bytes"):
        load_image(b"")
    with pytest.raises(InputError, match="text mode"):
        load_image(io.StringIO("x"))

    class Words:
        def read(self, size):
            return "word" * (size // 16 + 1)

    with pytest.raises(InputError, match="gives str; expected bytes"):
        load_image(Words())
    closed = io.BytesIO(encode(noise(), "PNG"))
    closed.close()
    with pytest.raises(ImageError, match="closed"):
        load_image(closed)


def test_a_pil_image_that_fails_later_is_an_image_error():
    data = encode(noise(), "PNG")
    with pytest.raises(ImageError, match="cut short"):
        load_image(Image.open(io.BytesIO(data[:900])))
    closed = Image.open(io.BytesIO(data))
    closed.close()
    with pytest.raises(ImageError):
        load_image(closed)


@pytest.mark.parametrize("options", [{"data_format": "NCHW"}, {"background": (0, 0)}, {"background": "white"}])
def test_wrong_options(options):
    with pytest.raises(InputError, match=next(iter(options))):
        load_image(noise(), **options)


# --------------------------------------------------------------------------------------------------
# Properties
# --------------------------------------------------------------------------------------------------

SEEDS = {
    "JPEG": lambda: encode(smooth(), "JPEG"),
    "progressive": lambda: encode(smooth(), "JPEG", progressive=True),
    "oriented": lambda: oriented(6, "JPEG"),
    "PNG": lambda: encode(noise(), "PNG"),
    "16-bit": lambda: png_16_bit(ramp_16_bit(), 0),
    "palette": lambda: encode(Image.fromarray(smooth()).quantize(16), "PNG", transparency=3),
    "GIF": lambda: encode(smooth(), "GIF"),
    "WEBP": lambda: encode(smooth(), "WEBP"),
    "BMP": lambda: encode(smooth(), "BMP"),
    "TIFF": lambda: encode(smooth(), "TIFF", compression="tiff_lzw"),
    "PPM": lambda: encode(smooth(), "PPM"),
    "AVIF": lambda: encode(smooth(), "AVIF"),
}


@pytest.mark.parametrize("kind", SEEDS)
def test_damaged_bytes_give_a_picture_or_an_image_error(kind):
    original = SEEDS[kind]()
    assert_close(pixels(original), pixels(original), 0)
    rng = np.random.default_rng([RNG_SEED, *kind.encode()])
    refused = 0
    for _ in range(60):
        data = bytearray(original)
        position = int(rng.integers(0, min(len(data), 128) if rng.random() < 0.7 else len(data)))
        change = rng.integers(0, 4)
        if change == 0:
            data[position] ^= 1 << int(rng.integers(0, 8))
        elif change == 1:
            data[position : position + 4] = rng.choice([b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff"])
        elif change == 2:
            del data[position:]
        else:
            data[position : position + 64] = bytes(64)
        try:
            picture = load_image(bytes(data) or b"\0")
            assert picture.mode == "RGB" and 1 <= picture.width * picture.height <= 50_000_000
        except ImageError:
            refused += 1
    assert refused > 0
