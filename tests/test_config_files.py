"""Config files and label maps that may be damaged or hostile."""

import json

import pytest
import transformers

from mobilevit_hub.errors import ConfigError, MobileViTHubWarning, NotFoundError
from mobilevit_hub.json_files import MAX_BYTES, parse_json, read_json
from mobilevit_hub.network.configuration import MobileViTConfig, MobileViTV2Config, config_from_dict

V1, V2 = MobileViTConfig, MobileViTV2Config
BOTH = pytest.mark.parametrize("cls", [V1, V2])
STOCK = {V1: transformers.MobileViTConfig, V2: transformers.MobileViTV2Config}


def file_content(cls, **fields):
    return {"model_type": cls.model_type, **fields}


# --------------------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------------------


@pytest.fixture
def config_file(tmp_path):
    def write(content):
        path = tmp_path / "config.json"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("", "empty", id="CFG-1 empty"),
        pytest.param(" \n\t", "empty", id="CFG-1 blank"),
        pytest.param('{"a": 1,\n "b": }', "line 2, column 7", id="CFG-1 not JSON"),
        pytest.param("model_type: mobilevit", "line 1, column 1", id="CFG-1 YAML"),
        pytest.param('{"a": 1,\n "n": "caf\xe9"}'.encode("latin-1"), "line 2, column 11", id="CFG-1 Latin-1"),
        pytest.param("[]", "object, found list", id="CFG-2 list"),
        pytest.param("null", "object, found NoneType", id="CFG-2 null"),
        pytest.param('"mobilevit"', "object, found str", id="CFG-2 text"),
        pytest.param('{"a":' * 200_000 + "1" + "}" * 200_000, "deeper than 32", id="CFG-3 objects"),
        pytest.param('{"a":' + "[" * 200_000 + "]" * 200_000 + "}", "deeper than 32", id="CFG-3 lists"),
        pytest.param('{"a":' + "[" * 32 + "]" * 32 + "}", "deeper than 32", id="CFG-3 33 levels"),
        pytest.param('{"layer_norm_eps": NaN}', "NaN is not a finite number", id="CFG-4 NaN"),
        pytest.param('{"a": -Infinity}', "-Infinity is not a finite number", id="CFG-4 Infinity"),
        pytest.param('{"a": 1e999}', "1e999 is not a finite number", id="CFG-4 1e999"),
        pytest.param('{"a": %s}' % ("9" * 5000), "5000 digits", id="CFG-4 long integer"),
        pytest.param('{"a": 1, "hidden_act": 1, "hidden_act": 2}', "'hidden_act' stands there twice", id="CFG-5"),
        pytest.param('{"a": {"b": 1, "b": 2}}', "'b' stands there twice", id="CFG-5 inner"),
        pytest.param(b" " * (MAX_BYTES + 1), "too large", id="CFG-6"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_with_its_name(config_file, content, message):
    path = config_file(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_json(path)
    assert str(caught.value).startswith(str(path)) and caught.value.path == str(path)
    with pytest.raises(ConfigError):
        V1.from_file(path)
    if content and not isinstance(content, bytes):
        with pytest.raises(ConfigError, match=message):
            parse_json(content, "text")


def test_what_stands_just_inside_the_limits_is_read(config_file):
    assert read_json(config_file('{"a":' + "[" * 31 + "]" * 31 + "}"))["a"][0][0] == [
        [[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]
    ]
    assert read_json(config_file(b"{}" + b" " * (MAX_BYTES - 2))) == {}
    assert read_json(config_file('{"a": 1e308, "b": -12345678901234567890}')) == {
        "a": 1e308,
        "b": -12345678901234567890,
    }


def test_a_byte_order_mark_is_accepted(config_file):
    """CFG-7."""
    path = config_file(b"\xef\xbb\xbf" + json.dumps(file_content(V2, width_multiplier=0.5)).encode())
    assert V2.from_file(path).width_multiplier == 0.5


def test_a_missing_file_a_folder_and_an_empty_object_are_different_messages(tmp_path, config_file):
    """CFG-8: nothing falls back to a default network."""
    with pytest.raises(NotFoundError, match="no such file"):
        V1.from_file(tmp_path / "config.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        V1.from_file(tmp_path)
    with pytest.raises(ConfigError, match="model_type is missing; expected 'mobilevit'"):
        V1.from_file(config_file("{}"))


@pytest.mark.parametrize("model_type", ["vit", "MobileViT", "", None, 1, ["mobilevit"], {}])
def test_another_model_type_is_refused(model_type):
    """CFG-9."""
    with pytest.raises(ConfigError, match="model_type.*expected 'mobilevit' or 'mobilevitv2'"):
        config_from_dict({"model_type": model_type})


def test_the_other_version_is_refused(config_file):
    with pytest.raises(ConfigError, match="model_type is 'mobilevitv2'; expected 'mobilevit'"):
        V1.from_file(config_file(json.dumps(file_content(V2))))
    with pytest.raises(ConfigError, match="model_type is 'mobilevit'; expected 'mobilevitv2'"):
        config_from_dict(file_content(V1), expected=V2)


@BOTH
def test_an_unknown_field_is_kept_with_a_warning_or_refused(cls):
    """CFG-10."""
    with pytest.warns(MobileViTHubWarning, match="'hiden_act'.*Did you mean 'hidden_act'"):
        config = config_from_dict(file_content(cls, hiden_act="relu"))
    assert config.hidden_act == cls().hidden_act
    assert config.to_dict()["hiden_act"] == "relu"
    with pytest.raises(ConfigError, match="'hiden_act'.*Did you mean 'hidden_act'"):
        config_from_dict(file_content(cls, hiden_act="relu"), strict=True)
    with pytest.warns(MobileViTHubWarning, match="no field 'colour'; it is kept but has no effect.$"):
        cls(colour="blue")


@BOTH
def test_what_transformers_writes_needs_no_warning(cls, recwarn):
    published = STOCK[cls](num_labels=3).to_dict() | {
        "torch_dtype": "float32",
        "_name_or_path": "a/b",
        "mlp_ratio": 2.0,
    }
    config_from_dict(published, strict=True)
    assert not [w for w in recwarn if issubclass(w.category, MobileViTHubWarning)]


@pytest.mark.parametrize(
    "name", ["to_dict", "from_preset", "stage_channels", "heads", "field_rules", "__class__", "sub_configs"]
)
def test_a_key_cannot_replace_a_part_of_the_class(name):
    """CFG-20: a file sets fields, never behaviour."""
    with pytest.raises(ConfigError, match=name):
        config_from_dict(file_content(V1, **{name: "x"}))


@BOTH
@pytest.mark.parametrize(
    "name",
    ["auto_map", "trust_remote_code", "custom_pipelines", "quantization_config", "attn_implementation",
     "_attn_implementation", "_attn_implementation_internal", "_attn_implementation_autoset",
     "experts_implementation", "_experts_implementation", "_auto_class"],
)  # fmt: skip
def test_a_key_that_chooses_code_is_ignored_and_listed(cls, name):
    """CFG-20: an attention "implementation" may be a repository with code in it."""
    with pytest.warns(MobileViTHubWarning, match=f"{name} would choose code to run and is ignored") as caught:
        config = config_from_dict(file_content(cls, **{name: "someone/kernel"}))
    assert len(caught) == 1
    assert config.to_dict() == cls().to_dict()
    assert config._attn_implementation == cls()._attn_implementation
    assert "someone/kernel" not in map(str, vars(config).values())


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_a_dtype_is_honoured_or_refused(key):
    """CFG-15, with the old spelling."""
    assert str(config_from_dict(file_content(V1, **{key: "float16"})).dtype) == "torch.float16"
    for wrong in ("int8", "nope", "auto", "__name__"):
        with pytest.raises(ConfigError, match=f"{wrong}.*expected float32, float16 or bfloat16"):
            config_from_dict(file_content(V1, **{key: wrong}))


# --------------------------------------------------------------------------------------------------
# Labels
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"0": "a", "2": "b"}, "2 labels but no label 1; expected the keys 0 to 1"),
        ({"1": "a", "2": "b"}, "no label 0"),
        ({"0": "a", "00": "b"}, "no label 1"),
        ({"0": "a", "one": "b"}, "'one'; expected whole numbers"),
        ({"0": "a", "1.0": "b"}, "whole numbers"),
        ({"0": "a", "-1": "b"}, "whole numbers"),
        ({"0": "a", "²": "b"}, "whole numbers"),
        ({0: "a", True: "b"}, "whole numbers"),
        ({}, "1 to 100000 labels"),
        (["a", "b"], "1 to 100000 labels"),
        ({"0": 7}, r"id2label\[0\] is 7; expected text"),
        ({"0": None}, "expected text"),
        ({"0": "x" * 513}, "at most 512"),
        ({"0": "a\nb"}, "control characters"),
        ({"0": "\x1b[31m"}, "control characters"),
        ({"0": "\x7f"}, "control characters"),
        ({"0": "\x9b"}, "control characters"),
        ({"0": "\ud800"}, "control characters"),
    ],
)
def test_a_damaged_label_map_is_refused(labels, message):
    """CFG-16."""
    for build in (lambda: config_from_dict(file_content(V2, id2label=labels)), lambda: V1(id2label=labels)):
        with pytest.raises(ConfigError, match=message) as caught:
            build()
        assert "id2label" in str(caught.value)


def test_labels_are_ordered_and_counted():
    config = config_from_dict(file_content(V1, id2label={"1": "b", "0": "ä", "2": "c" * 512}))
    assert list(config.id2label.items()) == [(0, "ä"), (1, "b"), (2, "c" * 512)]
    assert config.num_labels == 3 and config.label2id == {"ä": 0, "b": 1, "c" * 512: 2}
    assert len(V2(num_labels=100_000).id2label) == 100_000
    with pytest.raises(ConfigError, match="num_labels=4 but id2label has 3"):
        V1(id2label={0: "a", 1: "b", 2: "c"}, num_labels=4)


def test_labels_are_checked_when_assigned():
    config = V1(num_labels=3)
    with pytest.raises(ConfigError, match="no label 0"):
        config.id2label = {3: "a"}
    config.num_labels = 5
    assert list(config.id2label) == [0, 1, 2, 3, 4]


def test_a_label_that_stands_twice_is_accepted(recwarn):
    """CFG-17: ImageNet has two cranes and two maillots."""
    cranes = {"0": "crane", "1": "lion", "2": "crane"}
    for label2id in (None, {"crane": 0, "lion": 1}, {"crane": 2, "lion": 1}):
        config = config_from_dict(file_content(V1, id2label=cranes, label2id=label2id))
        assert config.num_labels == 3 and config.id2label == {0: "crane", 1: "lion", 2: "crane"}
    assert not list(recwarn)


@pytest.mark.parametrize(
    "wrong",
    [{"crane": 1, "lion": 0}, {"crane": 0}, {"crane": 0, "lion": 1, "dog": 2}, {"crane": "0", "lion": 1}, [1], "x"],
)
@pytest.mark.parametrize("labels", [{"0": "crane", "1": "lion"}, {"0": "crane", "1": "lion", "2": "crane"}])
def test_a_contradicting_label2id_warns_and_loses(labels, wrong):
    """CFG-18."""
    with pytest.warns(MobileViTHubWarning, match="label2id contradicts id2label; id2label is used"):
        config = config_from_dict(file_content(V2, id2label=labels, label2id=wrong))
    assert config.id2label == {int(i): label for i, label in labels.items()}
    assert config.id2label[config.label2id["lion"]] == "lion"


def test_label2id_alone_names_the_labels():
    assert V1(label2id={"b": 1, "a": 0}).id2label == {0: "a", 1: "b"}
    with pytest.raises(ConfigError, match="no label 1"):
        V1(label2id={"b": 7, "a": 0})
