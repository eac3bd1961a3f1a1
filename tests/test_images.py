"""Reading of pictures: right pixels for every way to store them.

Expected pixels are computed with NumPy from the array that a file was made of.
"""

import io
import os
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from pictures import (
    RNG_SEED,
    STORED,
    assert_close,
    chunk,
    corners,
    encode,
    grey,
    noise,
    oriented,
    pixels,
    png,
    png_16_bit,
    ramp_16_bit,
    smooth,
)
from PIL import ExifTags, Image, ImageFile, ImageOps, features

from mobilevit_hub.errors import ImageError, InputError
from mobilevit_hub.images.loading import load_image

LOSSLESS = {"PNG": {}, "BMP": {}, "PPM": {}, "TIFF": {}, "WEBP": {"lossless": True}}


# --------------------------------------------------------------------------------------------------
# Sources
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", LOSSLESS)
def test_lossless_formats_give_the_source_pixels(format):  # IMG-1
    array = noise()
    assert_close(pixels(encode(array, format, **LOSSLESS[format])), array, 0)


def test_every_kind_of_source_gives_the_same_pixels(tmp_path):
    torch = pytest.importorskip("torch")
    array = noise()
    data = encode(array, "PNG")
    path = tmp_path / "picture.jpg"  # IMG-21: the content counts, not the extension
    path.write_bytes(data)
    stream = io.BytesIO(data)
    stream.seek(30)
    with path.open("rb") as file:
        sources = [path, str(path), data, bytearray(data), memoryview(data), stream, file, Image.open(io.BytesIO(data))]
        sources += [array, torch.from_numpy(array.copy()), array.astype(np.float32) / 255, array[::-1][::-1]]
        for source in sources:
            assert_close(pixels(source), array, 0)
        assert not file.closed and not stream.closed
    assert_close(pixels(torch.from_numpy(array.copy()).permute(2, 0, 1), data_format="CHW"), array, 0)
    trained = (torch.from_numpy(array.copy()).float() / 255).requires_grad_()
    assert_close(pixels(trained), array, 0)


def test_a_pipe_that_gives_little_at_a_time_is_read_to_its_end():
    array = noise()
    data = encode(array, "PNG")
    reader, writer = os.pipe()
    os.write(writer, data[:5000])
    os.write(writer, data[5000:])
    os.close(writer)
    with open(reader, "rb", buffering=0) as file:
        assert_close(pixels(file), array, 0)


def test_the_result_is_a_copy_without_metadata():  # IMG-38
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "camera"
    source = Image.open(io.BytesIO(encode(noise(), "PNG", exif=exif, icc_profile=b"profile" * 20)))
    result = load_image(source)
    assert result.info == {} and not dict(result.getexif())
    assert b"camera" not in encode(result, "PNG") and b"iCCP" not in encode(result, "PNG")
    before = np.asarray(source).copy()
    result.paste((0, 0, 0), (0, 0, 64, 48))
    assert_close(np.asarray(source), before, 0)


def test_reading_needs_neither_torch_nor_transformers():
    code = (
        "import sys, numpy; from mobilevit_hub.images.loading import load_image;"
        "load_image(numpy.zeros((2, 2, 3), 'uint8'));"
        "sys.exit(bool({'torch', 'transformers', 'tensorflow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_global_settings_and_open_files_stay_as_they_are(tmp_path):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    good.write_bytes(encode(noise(), "PNG"))
    bad.write_bytes(encode(noise(), "PNG")[:900])

    def state():
        limits = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, ImageFile.MAXBLOCK
        return limits, list(warnings.filters), sorted(Path("/proc/self/fd").iterdir())

    load_image(good)
    before = state()
    load_image(good)
    with pytest.raises(ImageError):
        load_image(bad)
    assert state() == before


# --------------------------------------------------------------------------------------------------
# Modes
# --------------------------------------------------------------------------------------------------


def tiff_16_bit(values, byte_order, photometric):
    """A one-strip TIFF written by hand: Pillow writes neither order nor photometric at will."""
    data = values.astype(f"{byte_order}u2").tobytes()
    height, width = values.shape
    tags = {256: width, 257: height, 258: 16, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = b"".join(struct.pack(f"{byte_order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    mark = b"II*\0" if byte_order == "<" else b"MM\0*"
    start = struct.pack(f"{byte_order}I", 8 + len(data))
    return mark + start + data + struct.pack(f"{byte_order}H", len(tags)) + entries + b"\0\0\0\0"


def test_16_bit_grey_keeps_its_range():  # IMG-2
    values = ramp_16_bit()
    expected = grey(np.rint(values / 257))
    assert len(np.unique(expected)) == 64
    pgm = b"P5 64 8 65535\n" + values.astype(">u2").tobytes()
    sources = [png_16_bit(values, 0), pgm, Image.fromarray(values), values, values.astype(">u2"), values[:, :, None]]
    sources += [
        encode(Image.fromarray(values), "TIFF"),
        encode(Image.fromarray(values), "TIFF", compression="tiff_lzw"),
    ]
    sources += [tiff_16_bit(values, "<", 1), tiff_16_bit(values, ">", 1)]
    for source in sources:
        assert_close(pixels(source), expected, 0)
    assert_close(pixels(tiff_16_bit(values, "<", 0)), 255 - expected, 0)  # white is zero


def test_16_bit_grey_with_a_transparent_value():
    values = ramp_16_bit()
    expected = grey(np.rint(values / 257))
    expected[values == values[0, 20]] = 255
    transparency = chunk(b"tRNS", struct.pack(">H", values[0, 20]))
    assert_close(pixels(png_16_bit(values, 0, [transparency])), expected, 0)


@pytest.mark.parametrize(("color_type", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_16_bit_colour_equals_its_8_bit_twin(color_type, channels):  # IMG-3
    values = np.random.default_rng(RNG_SEED).integers(0, 65536, (8, 16, channels)).astype(np.uint16)
    eight = np.rint(values / 257).astype(np.uint8)
    if channels == 2:
        eight = np.concatenate([grey(eight[:, :, 0]), eight[:, :, 1:]], axis=2)
    expected = eight if channels == 3 else over(eight, (255, 255, 255))
    assert_close(pixels(png_16_bit(values, color_type)), expected, 2 if channels != 3 else 1)


def test_16_bit_colour_with_a_transparent_value():
    values = np.zeros((2, 3, 3), np.uint16)
    values[0, 0] = 0x1234, 0x5678, 0x9ABC
    values[1] = 0x4242
    key = chunk(b"tRNS", struct.pack(">HHH", 0x1234, 0x5678, 0x9ABC))
    expected = np.rint(values / 257)
    expected[0, 0] = 255
    assert_close(pixels(png_16_bit(values, 2, [key])), expected, 1)


@pytest.mark.parametrize(
    "values",
    [
        np.arange(12, dtype=np.int32).reshape(3, 4),
        np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4),
        np.linspace(0, 300, 12, dtype=np.float32).reshape(3, 4),
        np.full((3, 4), np.nan, np.float32),
    ],
)
def test_32_bit_and_float_pixels_are_refused(values):  # IMG-4
    for source in (encode(Image.fromarray(values), "TIFF"), Image.fromarray(values)):
        with pytest.raises(ImageError, match="scale to 8 bits first"):
            load_image(source)


def over(rgba, background):
    """Porter-Duff "over" on an opaque background."""
    alpha = rgba[:, :, 3:] / 255
    return np.rint(rgba[:, :, :3] * alpha + np.array(background) * (1 - alpha))


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), (10, 200, 90)])
def test_transparent_pixels_show_the_background(background):  # IMG-5
    rgba = noise(16, 16, 4)
    rgba[:, :8, :] = 200, 30, 40, 0
    rgba[:, 8, 3], rgba[:, 9, 3] = 128, 255
    for source in (encode(rgba, "PNG"), encode(rgba, "WEBP", lossless=True, exact=True), rgba):
        result = pixels(source, background=background)
        assert (result[:, :8] == background).all()
        assert_close(result, over(rgba, background), 1)
    assert (pixels(encode(rgba, "PNG"))[:, :8] == 255).all()


def test_premultiplied_alpha():
    rgba = noise(16, 16, 4)
    rgba[:, :, 3] |= 128
    assert_close(pixels(Image.fromarray(rgba).convert("RGBa")), over(rgba, (255, 255, 255)), 3)
    la = Image.fromarray(rgba).convert("LA")
    expected = over(np.asarray(la.convert("RGBA")), (255, 255, 255))
    assert_close(pixels(la.convert("La")), expected, 3)


def test_every_form_of_transparency():  # IMG-6
    index = np.tile(np.arange(16, dtype=np.uint8), (4, 1))
    colours = noise(16, 3, 0)
    palette = Image.fromarray(index)
    palette.putpalette(colours.tobytes())
    assert palette.mode == "P"
    expected = colours[index].astype(int)

    one = expected.copy()
    one[index == 5] = 255
    assert_close(pixels(encode(palette, "PNG", transparency=5)), one, 0)
    assert_close(pixels(encode(palette, "GIF", transparency=5)), one, 0)

    alphas = np.arange(0, 256, 17, dtype=np.uint8)
    rgba = np.concatenate([colours[index], alphas[index][:, :, None]], axis=2)
    assert_close(pixels(encode(palette, "PNG", transparency=alphas.tobytes())), over(rgba, (255, 255, 255)), 1)

    plain = grey(index)
    plain[index == 7] = 255
    assert_close(pixels(encode(index, "PNG", transparency=7)), plain, 0)

    array = noise(6, 6)
    red = array.astype(int)
    red[2, 3] = 255
    assert_close(pixels(encode(array, "PNG", transparency=tuple(int(v) for v in array[2, 3]))), red, 0)


def test_palette_grey_and_one_bit():  # IMG-7, 8, 9
    quantized = Image.fromarray(smooth()).quantize(16)
    colours = np.array(quantized.getpalette()).reshape(-1, 3)
    assert_close(pixels(encode(quantized, "PNG")), colours[np.asarray(quantized)], 0)
    assert_close(pixels(encode(quantized, "GIF")), colours[np.asarray(quantized)], 0)

    bits = noise(20, 30, 0) > 127
    assert_close(pixels(encode(Image.fromarray(bits), "PNG")), grey(bits * 255), 0)

    values = noise(20, 30, 0)
    assert_close(pixels(encode(values, "PNG")), grey(values), 0)
    opaque = Image.merge("LA", (Image.fromarray(values), Image.new("L", (30, 20), 255)))
    assert_close(pixels(encode(opaque, "PNG")), grey(values), 0)

    nibbles = b"".join(b"\0" + bytes(range(0x01, 0xFF, 0x22)) for _ in range(3))  # 0, 1, 2 … 15 in 4 bits each
    assert_close(pixels(png(16, 3, 4, 0, nibbles)), grey(np.tile(np.arange(16) * 17, (3, 1))), 0)


def test_cmyk_and_lab():  # IMG-10, 11
    array = smooth()
    cmyk = Image.fromarray(array).convert("CMYK")
    assert_close(pixels(encode(cmyk, "TIFF")), array, 2)
    jpeg = encode(cmyk, "JPEG", quality=100, subsampling=0)
    at = jpeg.index(b"\xff\xee\x00\x0eAdobe")
    for data in (jpeg, jpeg[:at] + jpeg[at + 16 :]):
        assert_close(pixels(data), array, 4)

    array = 64 + array // 2  # muted: 8-bit LAB cannot hold pure colours
    lab = Image.fromarray(array).convert("LAB")
    for source in (lab, encode(lab, "TIFF")):
        assert_close(pixels(source), array, 8)


def test_other_pil_modes():
    array = smooth()
    picture = Image.fromarray(array)
    for mode, tolerance in (("YCbCr", 3), ("HSV", 8), ("RGBX", 0)):
        assert_close(pixels(picture.convert(mode)), array, tolerance)


# --------------------------------------------------------------------------------------------------
# Orientation and frames
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize("orientation", STORED)
def test_orientation_is_applied_once(format, orientation):  # IMG-12, 13
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    data = oriented(orientation, format)
    opened, loaded = Image.open(io.BytesIO(data)), Image.open(io.BytesIO(data))
    loaded.load()
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    for source in (data, opened, loaded, turned, load_image(data)):
        result = pixels(source)
        assert result.shape == (64, 128, 3)
        # The inside of each quarter; lossy formats blur the borders between them.
        for y, x in ((4, 4), (4, 123), (59, 4), (59, 123), (16, 32), (48, 96)):
            assert np.abs(result[y, x] - corners()[y, x]).max() <= 16


def test_bad_orientation_and_broken_exif_leave_the_picture_as_stored():  # IMG-14
    array = corners()
    jpeg = np.asarray(Image.open(io.BytesIO(encode(array, "JPEG"))))
    assert_close(pixels(oriented(9, "PNG")), array, 0)
    for exif in (b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01", b"Exif\0\0MM"):
        assert_close(pixels(encode(array, "JPEG", exif=exif)), jpeg, 0)
        png_file = encode(array, "PNG", exif=exif)
        assert_close(pixels(png_file), array, 0)
        assert_close(pixels(Image.open(io.BytesIO(png_file))), array, 0)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_the_first_frame_counts(format):  # IMG-15
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "green", "blue")]
    data = encode(frames[0], format, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 3
    result = pixels(data)
    assert result.shape == (30, 40, 3)
    assert_close(result, np.broadcast_to([255, 0, 0], (30, 40, 3)), 3)


# --------------------------------------------------------------------------------------------------
# Arrays
# --------------------------------------------------------------------------------------------------


def test_float_arrays():  # IMG-33
    values = np.linspace(0, 1, 3 * 256).reshape(16, 16, 3)
    for dtype in (np.float16, np.float32, np.float64):
        assert_close(pixels(values.astype(dtype)), np.rint(values.astype(dtype).astype(float) * 255), 0)
    for bad in (values * 255, values - 0.1, np.where(values > 0.5, np.nan, values), np.where(values > 0.5, np.inf, 0)):
        with pytest.raises(InputError, match=r"expected \[0, 1\]"):
            load_image(bad)


def test_array_shapes_and_types():  # IMG-34
    array = noise(8, 9)
    for accepted in (array[:, :, 0], array[:, :, :1], array, noise(8, 9, 4)):
        assert load_image(accepted).size == (9, 8)
    ambiguous = noise(3, 3)
    assert_close(pixels(ambiguous), ambiguous, 0)
    assert_close(pixels(ambiguous, data_format="CHW"), ambiguous.transpose(1, 2, 0), 0)
    assert_close(pixels(noise(8, 9, 0), data_format="CHW"), grey(noise(8, 9, 0)), 0)
    with pytest.raises(InputError, match=r"\(3, 8, 9\).*data_format=\"CHW\""):
        load_image(array.transpose(2, 0, 1))
    for shape in ((8, 9, 2), (8, 9, 5), (2, 8, 9, 3), (8,), ()):
        with pytest.raises(InputError, match="shape"):
            load_image(np.ones(shape, np.uint8))
    for dtype in (np.int64, np.int8, np.uint32, bool, complex, "U1", object):
        with pytest.raises(InputError, match="expected uint8, uint16 or floats"):
            load_image(np.ones((4, 4, 3)).astype(dtype))
    torch = pytest.importorskip("torch")
    with pytest.raises(InputError, match="float32"):
        load_image(torch.zeros(4, 4, 3, dtype=torch.bfloat16))
