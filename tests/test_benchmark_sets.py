"""The benchmarks: their lists against timm's, ReaL against timm's own counting, local copies against brute force."""

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from pictures import encode
from test_label_maps import timm_info

from mobilevit_hub.errors import ConfigError, InputError, NotFoundError
from mobilevit_hub.evaluation import benchmark_sets
from mobilevit_hub.evaluation.benchmark_sets import (
    BENCHMARKS,
    find_benchmark,
    label_map,
    other_scores,
    read_real_labels,
    real_labels_of,
)
from mobilevit_hub.hub.imagenet import imagenet_labels, imagenet_wnids

IMAGENET_SAMPLE = Path(__file__).parents[2] / "shared" / "data" / "imagenet-sample"


def photo(seed):
    return encode(np.random.default_rng(seed).integers(0, 256, (72, 80, 3), dtype=np.uint8), "PNG")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small network with random weights and the labels of ImageNet-1k."""
    pytest.importorskip("torch")
    from networks import MODELS, awake, tiny_config

    from mobilevit_hub.images.processor import processor_for

    folder = tmp_path_factory.mktemp("models") / "tiny-1k"
    network = awake(MODELS["mobilevit"](tiny_config(1, num_labels=1000, id2label=dict(enumerate(imagenet_labels())))))
    network.save_pretrained(folder, processor=processor_for(72, 64, "bilinear", "bgr"))
    return folder


def probabilities(model, contents):
    """What the network says of photos, by transformers' way of calling it."""
    import torch

    import mobilevit_hub as mh

    network, processor = mh.from_pretrained(model), mh.image_processor(model)
    with torch.no_grad():
        logits = network(**processor(contents, return_tensors="pt")).logits
    return logits.softmax(-1).numpy()


# --- records -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("letter", ["a", "r"])
def test_subsets_are_those_of_timm(letter):
    benchmark = BENCHMARKS[f"imagenet-{letter}"]
    assert benchmark.restricted
    assert [imagenet_wnids()[i] for i in benchmark.classes] == timm_info(f"imagenet_{letter}_synsets.txt")
    assert benchmark.classes == [int(line) for line in timm_info(f"imagenet_{letter}_indices.txt")]


def test_other_benchmarks_have_all_classes():
    for name in ("imagenet-1k", "imagenet-real", "imagenet-v2", "imagenet-sketch"):
        assert BENCHMARKS[name].classes == list(range(1000)) and not BENCHMARKS[name].restricted


def test_names():
    assert find_benchmark("imagenet-1k") == (BENCHMARKS["imagenet-1k"], None)
    assert find_benchmark("imagenet-a:some/folder:x") == (BENCHMARKS["imagenet-a"], "some/folder:x")
    for other in ("./imagenet-1k", "imagefolder:imagenet-1k", "imagenet-1k:", "photos", "ILSVRC/imagenet-1k"):
        assert find_benchmark(other) == (None, None)


def test_what_others_measured():
    zoo, timm = other_scores(BENCHMARKS["imagenet-1k"], "mobilevit-s")
    assert (zoo["top1"], timm["top1"], timm["top5"]) == (0.783, 0.78298, 0.94168)
    assert other_scores(BENCHMARKS["imagenet-1k"], "apple/mobilevit-small") == [zoo, timm]
    (found,) = other_scores(BENCHMARKS["imagenet-a"], "mobilevitv2-2.0")
    assert found == {"by": "timm, results/results-imagenet-a.csv", "top1": 0.18613, "top5": None}
    assert other_scores(BENCHMARKS["imagenet-a"], "mobilevitv2-0.75") == []
    assert other_scores(BENCHMARKS["imagenet-1k"], "mobilevit-xxs-tiny-imagenet") == []
    assert other_scores(BENCHMARKS["imagenet-1k"], "my-folder") == []


# --- classes of copies ---------------------------------------------------------------------------------------------


def test_classes_of_copies():
    labels = imagenet_labels()
    v2 = label_map(BENCHMARKS["imagenet-v2"], ["0", "10", "2"], labels, "copy")
    assert v2.tolist() == [0, 10, 2]
    wnids = label_map(BENCHMARKS["imagenet-a"], ["n01498041", "n01531178"], labels, "copy")
    assert wnids.tolist() == [6, 11]
    assert label_map(BENCHMARKS["imagenet-1k"], labels, [f"class {i}" for i in range(1000)], "copy")[999] == 999
    with pytest.raises(InputError, match="copy: has the class 'n01440764', which is none of the 200 of ImageNet-A"):
        label_map(BENCHMARKS["imagenet-a"], ["n01440764"], labels, "copy")
    with pytest.raises(InputError, match="has the class 'gnome'"):
        label_map(BENCHMARKS["imagenet-1k"], ["gnome"], labels, "copy")


@pytest.mark.torch
def test_a_copy_of_imagenet_v2(model, tmp_path):
    from mobilevit_hub import evaluate

    contents = [photo(i) for i in range(18)]
    order = np.argsort(-probabilities(model, contents), axis=1, kind="stable")
    # a third under what the network names first, a third under what it names third, a third under what it names last
    truth = [int(order[i, (0, 2, -1)[i % 3]]) for i in range(18)]
    for i, (content, label) in enumerate(zip(contents, truth, strict=True)):
        folder = tmp_path / "v2" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.png").write_bytes(content)
    found = evaluate(model, f"imagenet-v2:{tmp_path / 'v2'}", progress=False)
    assert found["dataset"] == "imagenet-v2" and found["count"] == 18 and not found["whole"]
    assert (found["metrics"]["top1"], found["metrics"]["top5"]) == (1 / 3, 2 / 3)


@pytest.mark.torch
def test_scores_of_imagenet_a_are_taken_over_its_200_classes(model, tmp_path):
    from mobilevit_hub import evaluate

    subset = np.array([int(line) for line in timm_info("imagenet_a_indices.txt")])
    contents = [photo(i) for i in range(24)]
    restricted = probabilities(model, contents)[:, subset]
    named = subset[restricted.argmax(1)]
    # half of the photos are filed under what the network names among the 200, half elsewhere
    truth = [int(c) if i % 2 else int(subset[i]) for i, c in enumerate(named)]
    for i, (content, label) in enumerate(zip(contents, truth, strict=True)):
        folder = tmp_path / "a" / imagenet_wnids()[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.png").write_bytes(content)
    found = evaluate(model, f"imagenet-a:{tmp_path / 'a'}", output=tmp_path / "out", progress=False)
    assert found["metrics"]["top1"] == np.mean(named == truth) >= 0.5
    assert evaluate(model, str(tmp_path / "a"), progress=False)["metrics"]["top1"] < 0.5  # over all 1000
    confidence = restricted.max(1) / restricted.sum(1)
    assert 0 < confidence.mean() < 1
    assert found["metrics"]["calibration_error"] <= 1


@pytest.mark.torch
def test_a_model_with_other_labels_is_refused(tmp_path):
    from mobilevit_hub import evaluate

    (tmp_path / "v2" / "0").mkdir(parents=True)
    (tmp_path / "v2" / "0" / "0.png").write_bytes(photo(0))
    with pytest.raises(InputError, match="has 200 labels such as 'goldfish"):
        evaluate("mobilevit-xxs-tiny-imagenet", f"imagenet-v2:{tmp_path / 'v2'}", progress=False)


@pytest.mark.parametrize("name", ["imagenet-v2", "imagenet-sketch"])
def test_a_benchmark_that_the_hub_cannot_open_says_where_it_is(name):
    from mobilevit_hub import evaluate

    with pytest.raises(NotFoundError, match=f"get it from https://.*pass the folder as {name}:path"):
        evaluate("mobilevit-xxs-tiny-imagenet", name, progress=False)


# --- ReaL ----------------------------------------------------------------------------------------------------------


@pytest.mark.torch
def test_real_is_counted_as_timm_counts_it(model, tmp_path, monkeypatch):
    from networks import import_timm

    import_timm()
    import torch
    from timm.data import RealLabelsImagenet

    from mobilevit_hub import evaluate

    # file number 1 has no label; the last photos have as their label what the network says second and fourth
    contents = [photo(i) for i in range(12)]
    scores = probabilities(model, contents)
    order = np.argsort(-scores, axis=1, kind="stable")
    labels = [[] if i % 4 == 0 else [5, int(order[i, (i % 5)])] for i in range(12)]
    published = labels + [[]] * (50_000 - 12)
    (tmp_path / "real.json").write_text(json.dumps(published))
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=imagenet_labels())})
    rows = [{"bytes": c, "path": f"ILSVRC2012_val_{i + 1:08d}_n01440764.JPEG"} for i, c in enumerate(contents)]
    # in another order than that of the numbers
    Dataset.from_dict({"image": rows[::-1], "label": [0] * 12}, features).to_parquet(tmp_path / "val.parquet")
    found = evaluate(
        model, f"imagenet-real:{tmp_path / 'val.parquet'}", real_labels=tmp_path / "real.json", batch_size=5,
        progress=False,
    )  # fmt: skip

    names = [f"ILSVRC2012_val_{i + 1:08d}.JPEG" for i in range(50_000)]
    reference = RealLabelsImagenet(names, real_json=str(tmp_path / "real.json"))
    reference.add_result(torch.from_numpy(scores))
    assert found["count"] == len(reference.is_correct[1]) == 9
    assert 100 * found["metrics"]["top1"] == pytest.approx(reference.get_accuracy(1))
    assert 100 * found["metrics"]["top5"] == pytest.approx(reference.get_accuracy(5))
    assert 0 < found["metrics"]["top1"] < found["metrics"]["top5"]


def test_real_labels_of_the_published_file_are_read():
    import importlib.util

    spec = importlib.util.find_spec("timm")
    if spec is None:
        pytest.skip("needs timm")
    labels = read_real_labels(Path(spec.origin).parent / "data" / "_info" / "imagenet_real_labels.json")
    assert sum(map(bool, labels)) == BENCHMARKS["imagenet-real"].count
    assert real_labels_of("val/ILSVRC2012_val_00000002.JPEG", labels) == [970, 795]


@pytest.mark.parametrize("content", ["{}", "[[1]]", "[1]", "no json", "[[1000]]", ""])
def test_another_file_than_real_json(tmp_path, content):
    (tmp_path / "real.json").write_text(content)
    with pytest.raises(ConfigError, match="is not the published real.json"):
        read_real_labels(tmp_path / "real.json")


def test_real_without_its_labels(tmp_path):
    with pytest.raises(InputError, match="--real-labels real.json"):
        read_real_labels(None)
    with pytest.raises(NotFoundError, match="there is no such file"):
        read_real_labels(tmp_path / "real.json")
    for name in (None, "cat.jpg", "ILSVRC2012_val_00000000.JPEG", "ILSVRC2012_val_00050001.JPEG"):
        with pytest.raises(InputError, match="has no number"):
            real_labels_of(name, [[]] * 50_000)


# --- the sample of ImageNet ----------------------------------------------------------------------------------------


@pytest.mark.torch
def test_the_whole_path_on_the_sample_of_imagenet(model):
    """The labels of the sample are names in another spelling; its rows are checked one by one."""
    from mobilevit_hub import evaluate
    from mobilevit_hub.data.opening import open_images

    if not IMAGENET_SAMPLE.is_dir():
        pytest.skip("needs the imagenet-sample data set beside the repository")
    images = open_images(IMAGENET_SAMPLE, "validation")
    indices = range(0, 1000, 10)
    scores = probabilities(model, [images[i] for i in indices])
    order = np.argsort(-scores, axis=1, kind="stable")
    found = evaluate([model, model], f"imagenet-1k:{IMAGENET_SAMPLE}", limit=100, progress=False)
    for result in found["results"]:
        assert result["count"] == 100 and result["dataset"] == "imagenet-1k"
        assert result["metrics"]["top1"] == (order[:, 0] == images.labels[::10]).mean()
        assert result["metrics"]["top5"] == (order[:, :5] == images.labels[::10, None]).any(1).mean()
    assert found["comparisons"][0]["agreement"] == 1


def test_text_columns_of_wordnet_ids(tmp_path):
    """As the copy of ImageNet-R on the Hub has them."""
    from mobilevit_hub.data.opening import open_images

    assert benchmark_sets.BENCHMARKS["imagenet-r"].label_column == "wnid"
    features = Features({"image": ImageFeature(), "wnid": Value("string"), "class_name": Value("string")})
    rows = {"image": [{"bytes": photo(i), "path": None} for i in range(3)], "wnid": ["n02", "n01", "n02"]}
    Dataset.from_dict({**rows, "class_name": ["b", "a", "b"]}, features).to_parquet(tmp_path / "test.parquet")
    images = open_images(tmp_path / "test.parquet", "test", label_column="wnid")
    assert images.label_names == ["n01", "n02"] and images.labels.tolist() == [1, 0, 1]
