import math

import pytest

from rdmldg_ray.config.parse import read_yaml, read_yaml_texts


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("y", "y"),
        ("true", True),
        ("FALSE", False),
        ("2024-05-01", "2024-05-01"),
        ("12:30:00", "12:30:00"),
        ("010", "010"),
        ("1_000", "1_000"),
        ("0", 0),
        ("-12", -12),
        ("1e-3", 0.001),
        ("1.", 1.0),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("~", None),
        ("null", None),
        ("", None),
        ("'1'", "1"),
        ("[1, no, 1e3]", [1, "no", 1000.0]),
        ("a: &x {b: 1}\nc: {<<: *x, d: 2}", {"a": {"b": 1}, "c": {"b": 1, "d": 2}}),
        (
            "z: &z {x: 1}\nq: {a: &a {<<: *z, x: 2}}\nb: {<<: *a}",
            {"z": {"x": 1}, "q": {"a": {"x": 2}}, "b": {"x": 2}},
        ),
        ("1: a\ntrue: b", {"1": "a", "true": "b"}),
        (b"\xef\xbb\xbfa: 1", {"a": 1}),
        ("a:\r\n  b: 1\r\n", {"a": {"b": 1}}),
    ],
)
def test_values_are_those_of_yaml_1_2(text, value):
    assert read_yaml(text, "x.yaml") == value


def test_texts_are_as_they_are_written():
    assert read_yaml_texts("[010, 1e5, true, 1.10, no, ~]", "x") == ["010", "1e5", "true", "1.10", "no", None]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lora: {rank: 4}\nlora: {alpha: 2}", "'lora' is given twice"),
        ("a: {b: {c: 1, d: 2, c: 3}}", "'c' is given twice"),
        ("a: [{b: 1, b: 1}]", "'b' is given twice"),
        ("'a': 1\na: 2", "'a' is given twice"),
        ("? [1, 2]\n: 3", "a key is not a word"),
        ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("a: !!timestamp x", "not valid YAML"),
        ("a: !!bool maybe", "not valid YAML"),
        ("a: !!binary é", "not valid YAML"),
        ("a: [1", "not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        (b"name: caf\xe9", "not UTF-8 (byte 9)"),
        ("[" * 5000, "too deeply nested"),
        ("9" * 5000, "not valid YAML"),
        ("a: \x00", "not valid YAML"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_source(text, said):
    with pytest.raises(ValueError, match=r"^x\.yaml: ") as raised:
        read_yaml(text, "x.yaml")
    assert said in str(raised.value)
