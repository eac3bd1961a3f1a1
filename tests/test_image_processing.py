"""The processor: equal to stock transformers and to a formula in NumPy, for every published setting."""

import json
import warnings

import numpy as np
import pytest
from pictures import encode, noise, smooth
from PIL import Image
from transformers import AutoImageProcessor
from transformers.models.mobilevit.image_processing_pil_mobilevit import MobileViTImageProcessorPil

from mobilevit_hub.errors import ConfigError, ImageError, InputError, MobileViTHubWarning
from mobilevit_hub.images.processor import MobileViTImageProcessor, processor_for, processor_from_dict


def legacy(size, crop):
    """As the first Hub exports wrote it."""
    return {
        "crop_size": crop,
        "do_center_crop": True,
        "do_flip_channels": True,
        "do_resize": True,
        "feature_extractor_type": "MobileViTFeatureExtractor",
        "resample": 2,
        "size": size,
    }


def current(size, crop, flip=True, resample=2):
    return {
        "crop_size": {"height": crop, "width": crop},
        "do_center_crop": True,
        "do_flip_channel_order": flip,
        "do_rescale": True,
        "do_resize": True,
        "image_processor_type": "MobileViTImageProcessor",
        "resample": resample,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": size},
    }


PUBLISHED = {
    "v1": legacy(288, 256),
    "v1 DeepLab": legacy(544, 512),
    "v2": current(288, 256),
    "v2 VOC": current(544, 512),
    "v2 384": current(384, 384),
    "v2 as trained": current(288, 256, flip=False, resample=3),
}
SIZES = [(480, 640), (641, 427), (257, 300), (20, 31), (1, 1), (100, 700)]


def values(processor, source, **options):
    return processor(source, return_tensors="np", **options)["pixel_values"]


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_published_settings_give_the_bits_of_stock_transformers(name, height, width):
    picture = Image.fromarray(noise(height, width))
    ours = values(processor_from_dict(PUBLISHED[name]), picture)
    stock = MobileViTImageProcessorPil(**PUBLISHED[name])(picture, return_tensors="np")["pixel_values"]
    assert ours.dtype == np.float32 and ours.flags.c_contiguous
    assert ours.min() >= 0 and ours.max() <= 1
    np.testing.assert_array_equal(ours, stock)


def test_the_steps_as_a_formula():
    array = noise(333, 500)
    resized = Image.fromarray(array).resize((int(288 * 500 / 333), 288), Image.Resampling.BICUBIC)
    top, left = (288 - 256) // 2, (resized.width - 256) // 2
    expected = np.asarray(resized)[top : top + 256, left : left + 256].transpose(2, 0, 1) / 255
    rgb = values(processor_for(288, 256, "bicubic", "rgb"), array)
    np.testing.assert_allclose(rgb[0], expected, rtol=0, atol=1e-7)
    bgr = values(processor_for(288, 256, "bicubic", "bgr"), array)
    np.testing.assert_array_equal(bgr, rgb[:, ::-1])
    np.testing.assert_array_equal(bgr[:, ::-1][:, ::-1], bgr)
    assert np.abs(values(processor_for(288, 256, "bilinear", "rgb"), array) - rgb).max() > 0.01


def test_a_red_photo_ends_in_the_channel_that_the_name_says():
    red = np.zeros((300, 300, 3), np.uint8)
    red[:, :, 0] = 255
    for order, channel in (("bgr", 2), ("rgb", 0)):
        processor = processor_for(288, 256, "bilinear", order)
        assert processor.channel_order == order
        result = values(processor, red)[0]
        assert (result[channel] == 1).all() and np.delete(result, channel, axis=0).max() == 0


def test_legacy_do_flip_channels_is_obeyed():
    picture = Image.fromarray(noise(300, 300))
    off = processor_from_dict({**legacy(288, 256), "do_flip_channels": False})
    assert off.channel_order == "rgb"
    np.testing.assert_array_equal(
        values(off, picture),
        MobileViTImageProcessorPil(**current(288, 256, flip=False))(picture, return_tensors="np")["pixel_values"],
    )
    np.testing.assert_array_equal(
        values(processor_from_dict(legacy(288, 256)), picture, do_flip_channels=False), values(off, picture)
    )


def test_a_picture_smaller_than_the_crop_gets_a_black_border():
    processor = processor_for(64, 64, "bilinear", "rgb")
    white = np.full((10, 10, 3), 255, np.uint8)
    result = values(processor, white, do_resize=False)[0]
    assert result.shape == (3, 64, 64) and result.sum() == 3 * 10 * 10
    assert (result[:, 27:37, 27:37] == 1).all()
    with pytest.warns(MobileViTHubWarning, match="black border"):
        processor_for(224, 256, "bilinear", "rgb")


def test_without_crop_and_without_aspect():
    result = values(processor_for(64, None, "bilinear", "rgb"), smooth(48, 96))
    assert result.shape == (1, 3, 64, 128)
    assert values(processor_for(320, None, "bicubic", "bgr", keep_aspect=False), smooth(48, 96)).shape[2:] == (320, 320)


def test_every_source_and_container(tmp_path):
    torch = pytest.importorskip("torch")
    array = noise(60, 80)
    data = encode(array, "PNG")
    (tmp_path / "a.png").write_bytes(data)
    processor = processor_for(48, 32, "bilinear", "bgr")
    one = values(processor, Image.fromarray(array))
    sources = [tmp_path / "a.png", str(tmp_path / "a.png"), data, array, array.astype(np.float32) / 255]
    for source in sources:
        np.testing.assert_array_equal(values(processor, source), one)
    many = values(processor, sources)
    np.testing.assert_array_equal(many, np.repeat(one, len(sources), axis=0))
    np.testing.assert_array_equal(values(processor, tuple(sources)), many)
    np.testing.assert_array_equal(values(processor, np.stack([array, array])), many[:2])
    channels_first = torch.from_numpy(array.transpose(2, 0, 1).copy())
    np.testing.assert_array_equal(values(processor, channels_first, input_data_format="channels_first"), one)
    batch = torch.stack([channels_first, channels_first])
    np.testing.assert_array_equal(values(processor, batch, input_data_format="channels_first"), many[:2])

    tensors = processor(array, return_tensors="pt")["pixel_values"]
    assert isinstance(tensors, torch.Tensor)
    np.testing.assert_array_equal(tensors.numpy(), one)
    (plain,) = processor(array)["pixel_values"]
    np.testing.assert_array_equal(torch.from_numpy(plain).numpy(), one[0])
    last = values(processor, array, data_format="channels_last")
    np.testing.assert_array_equal(last, one.transpose(0, 2, 3, 1))


def test_formats_that_keep_all_pixels_give_one_result():
    array = noise(60, 80)
    processor = processor_for(48, 32, "bicubic", "bgr")
    results = [values(processor, encode(array, format)) for format in ("PNG", "BMP", "PPM", "TIFF")]
    for result in results:
        np.testing.assert_array_equal(result, results[0])


def test_hard_pictures_come_out_right():
    """Where stock transformers is wrong: palettes, transparency, one bit, 16 bits, floats (IMG-2, 5, 7, 8, 33)."""
    processor = processor_for(32, 32, "bilinear", "rgb")
    palette = Image.new("P", (32, 32), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    for source, expected in (
        (palette, (200, 100, 50)),
        (Image.new("RGBA", (32, 32), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("1", (32, 32), 1), (255, 255, 255)),
        (np.full((32, 32), 32896, np.uint16), (128, 128, 128)),
        (np.full((32, 32, 3), 0.5), (128, 128, 128)),
    ):
        result = values(processor, source)[0]
        np.testing.assert_allclose(result.transpose(1, 2, 0), np.broadcast_to(expected, (32, 32, 3)) / 255.0, atol=1e-6)


def test_scripts_that_normalise_change_nothing():
    processor = processor_for(48, 32, "bilinear", "bgr")
    assert processor.image_mean == [0, 0, 0] and processor.image_std == [1, 1, 1]
    assert processor.size["shortest_edge"] == 48 and processor.crop_size["height"] == 32
    one = values(processor, smooth())
    mean, std = (np.reshape(v, (3, 1, 1)) for v in (processor.image_mean, processor.image_std))
    np.testing.assert_array_equal((one - mean) / std, one)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_saved_processor_opens_in_stock_transformers(name, tmp_path):
    processor = processor_from_dict(PUBLISHED[name])
    processor.save_pretrained(tmp_path)
    data = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert data["image_processor_type"] == "MobileViTImageProcessor"
    picture = Image.fromarray(noise(300, 400))
    stock = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    assert type(stock) is MobileViTImageProcessorPil
    expected = values(processor, picture)
    np.testing.assert_array_equal(values(stock, picture), expected)
    for again in (MobileViTImageProcessor.from_pretrained(tmp_path), processor_from_dict(data)):
        assert again.to_dict() == processor.to_dict()
        np.testing.assert_array_equal(values(again, picture), expected)


def test_a_processor_saved_by_stock_transformers_opens_here(tmp_path):
    stock = MobileViTImageProcessorPil(**current(300, 200, flip=False, resample=3))
    stock.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = MobileViTImageProcessor.from_pretrained(tmp_path)
    assert (ours.channel_order, ours.interpolation) == ("rgb", "bicubic")
    np.testing.assert_array_equal(values(ours, noise(310, 400)), values(stock, Image.fromarray(noise(310, 400))))


@pytest.mark.torch
def test_inside_a_transformers_pipeline():
    torch = pytest.importorskip("torch")
    from transformers import MobileViTConfig, MobileViTForImageClassification, pipeline

    torch.manual_seed(0)
    config = MobileViTConfig(
        hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 12, 16, 16, 24, 32], num_attention_heads=2, num_labels=7
    )
    model = MobileViTForImageClassification(config).eval()
    processor = processor_for(72, 64, "bilinear", "rgb")
    pictures = [Image.fromarray(noise(90, 80)), Image.fromarray(smooth(90, 100))]
    with torch.no_grad():
        scores = model(**processor(pictures, return_tensors="pt")).logits.softmax(-1)
    for results, expected in zip(
        pipeline("image-classification", model=model, image_processor=processor)(pictures, top_k=7), scores, strict=True
    ):
        found = {result["label"]: result["score"] for result in results}
        for index, score in enumerate(expected.tolist()):
            assert found[config.id2label[index]] == pytest.approx(score, abs=1e-6)


def test_segmentation_maps_come_back_as_labels():
    processor = processor_for(48, 32, "bilinear", "bgr")
    labels = np.random.default_rng(0).integers(0, 21, (60, 80)).astype(np.uint8)
    before = labels.copy()
    arguments = {"segmentation_maps": labels.copy(), "do_reduce_labels": True, "return_tensors": "np"}
    stock = MobileViTImageProcessorPil(**current(48, 32))(Image.fromarray(noise(60, 80)), **arguments)
    result = processor(noise(60, 80), segmentation_maps=labels, do_reduce_labels=True, return_tensors="np")
    np.testing.assert_array_equal(result["labels"], stock["labels"])
    np.testing.assert_array_equal(labels, before)  # stock transformers changes the caller's map


def test_a_bad_picture_in_a_batch_is_named(tmp_path):  # IMG-35
    paths = []
    for index in range(8):
        paths.append(tmp_path / f"{index}.png")
        paths[-1].write_bytes(encode(noise(), "PNG")[: 900 if index == 5 else None])
    processor = processor_for(48, 32, "bilinear", "bgr")
    with pytest.raises(ImageError, match=r"^Image 5 of 8: .*5\.png: the image is cut short") as caught:
        processor(paths)
    assert caught.value.field == "images[5]" and caught.value.path == str(paths[5])
    processor = processor_for(288, 256, "bilinear", "bgr")
    with pytest.raises(ImageError, match="Image 1 of 2: A 30000 × 2 image is too elongated"):
        processor([noise(), np.zeros((2, 30_000), np.uint8)])


def test_wrong_calls():
    processor = processor_for(48, None, "bilinear", "bgr")
    with pytest.raises(InputError, match="empty"):
        processor([])
    with pytest.raises(InputError, match="input_data_format is 'CHW'"):
        processor(noise(), input_data_format="CHW")
    with pytest.raises(InputError, match='input_data_format="channels_first"'):
        processor(noise().transpose(2, 0, 1))
    with pytest.raises(InputError, match="differ in size"):
        processor([noise(50, 60), noise(60, 50)], return_tensors="np")
    assert [v.shape for v in processor([noise(50, 60), noise(60, 50)])["pixel_values"]] == [(3, 48, 57), (3, 57, 48)]
    with pytest.raises(ConfigError, match="size.shortest_edge is 0"):
        processor(noise(), size=0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("size", v) for v in (0, 4097, True, 288.0, "288", [288, 288], {}, {"longest_edge": 9}, {"height": 9})),
        ("size", {"shortest_edge": 288, "longest_edge": 300}),
        ("size", {"height": 10, "width": -1}),
        *(("crop_size", v) for v in (0, 4097, "256", {"shortest_edge": 256}, {"height": 256})),
        *(("resample", v) for v in (6, -1, True, 2.5, "cubic", None.__class__)),
        *(("rescale_factor", v) for v in (0, -1, float("nan"), float("inf"), "1/255", True)),
        *(("image_mean", v) for v in (0.5, [0, 0], [0, 0, "0"], [0, 0, float("nan")])),
        *(("image_std", v) for v in ([1, 1, 0], [1, 1, 1, 1], [1, -1, 1])),
        *((name, "yes") for name in ("do_resize", "do_center_crop", "do_rescale", "do_flip_channel_order")),
        ("do_flip_channels", 1),
        ("do_flip_channels", False),
        ("do_pad", True),
        ("default_to_square", True),
    ],
)
def test_settings_out_of_range_are_named(field, value):  # CFG-21
    data = {**current(288, 256), field: value}
    with pytest.raises(ConfigError, match=rf"^folder/preprocessor_config.json: {field}") as caught:
        processor_from_dict(data, "folder/preprocessor_config.json")
    assert caught.value.field.startswith(field) and caught.value.path == "folder/preprocessor_config.json"
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


def test_normalisation_is_refused_unless_it_changes_nothing():
    with pytest.raises(ConfigError, match="do_normalize"):
        processor_from_dict(
            {**current(288, 256), "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        )
    neutral = {"do_normalize": True, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}
    assert processor_from_dict({**current(288, 256), **neutral}).image_mean == [0, 0, 0]


def test_missing_and_unknown_fields_are_reported():
    with pytest.warns(MobileViTHubWarning, match=r"size .*288.*crop_size .*256.*bilinear.*bgr"):
        processor = processor_from_dict({})
    picture = noise(300, 300)
    np.testing.assert_array_equal(values(processor, picture), values(processor_from_dict(legacy(288, 256)), picture))
    for name in ("do_flip_chanel_order", "auto_map", "resize", "self"):
        with pytest.warns(MobileViTHubWarning, match=f"Unknown preprocessor fields '{name}'"):
            processor = processor_from_dict({**current(288, 256), name: 1})
        assert values(processor, picture).shape == (1, 3, 256, 256) and name not in processor.to_dict()
    with pytest.raises(ConfigError, match="must be a JSON object, found list"):
        processor_from_dict([1])
    for arguments in ((288, 256, "lanczos", "rgb"), (288, 256, "bilinear", "RGB"), (0, 256, "bilinear", "rgb")):
        with pytest.raises(ConfigError):
            processor_for(*arguments)
