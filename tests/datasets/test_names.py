import pytest

from rdmldg_ray.config.load import load_config
from rdmldg_ray.datasets.ingest.names import class_fault, domain_fault, printable
from rdmldg_ray.domainbed.folds import plan_folds

GOOD = [
    "art",
    "Real World",
    "location_38",
    "100%[v]",
    'sk&<b>"x"',
    "d'été",
    "日本",
    "a|b",
    "dom=art",
    "1e3",
    "y",
]
GOOD += ["caf\u00e9", "a.b", "Sun09", "-x", "x" * 100, "🎨"]


@pytest.mark.parametrize("name", GOOD)
def test_a_good_domain_can_be_held_out_by_name(name):
    assert domain_fault(name) is None
    [fold] = plan_folds(load_config("demo", [f"data.held_out={name}"]).data.held_out, ["other", name])
    assert fold == name
    pair = load_config("demo", [f"data.held_out={name}+other"]).data.held_out
    assert plan_folds(pair, ["other", name, "third"]) == [f"other+{name}"]


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        (" art", "begins or ends with a space"),
        (".git", "begins with a dot"),
        ("..", "begins with a dot"),
        ("a/b", "has a '/'"),
        ("a\\b", "has a '\\'"),
        ("a+b", "has a '+'"),
        ("a,b", "has a ','"),
        ("a\nb", r"has the control character \n"),
        ("a\x00", r"has the control character \x00"),
        ("a\x1b[31m", r"has the control character \x1b"),
        ("a\u2028b", r"has the control character \u2028"),
        ("a\u202eb", r"has the control character \u202e"),
        ("caf\udce9", "no UTF-8"),
        ("x" * 101, "has 101 bytes; at most 100"),
        ("é" * 51, "has 102 bytes"),
        ("all", "stands for many folds"),
        ("pairs", "stands for many folds"),
        ("single-source", "stands for many folds"),
        *(
            (name, "is the name of a file or folder of a run or of chains")
            for name in (
                "analyses",
                "config.yaml",
                "report.html",
                "_journal",
                "chains.json",
                "annotation.json",
            )
        ),
        *(
            (name, "by YAML")
            for name in ("no", "On", "YES", "null", "~", "true", "2019", "0x1f", "1_000", "1.5")
        ),
        *(
            (name, "by YAML")
            for name in ("2020-01-01", "2001-99-99", "1:30", "[owl]", "{a", "- x", "*x", "&x")
        ),
        *(
            (name, "by YAML")
            for name in ("'q'", '"q"', "a: b", "a:", "a #b", "#a", "!x", "%x", "@x", "`x", "|", ">")
        ),
    ],
)
def test_a_domain_that_works_not_everywhere_is_told_why(name, fault):
    assert fault in domain_fault(name)


@pytest.mark.parametrize(
    "name", [*GOOD[:-1], "no", "0", "2020-01-01", "a, b", "pen/pencil", "dog 🐶", "all", "<b>", "C#"]
)
def test_good_names_of_classes(name):
    assert class_fault(name) is None


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("<image>", "has <image>, which prompts and chains use"),
        ("the <CONCLUSION>", "has <CONCLUSION>"),
        ("<|endoftext|>", "has <|endoftext|>"),
        ("", "has no letter or digit"),
        ("_", "has no letter or digit"),
        ("🐶", "has no letter or digit"),
        ("a\tb", r"has the control character \t"),
        ("a\x7fb", r"has the control character \x7f"),
        ("caf\udce9", "no UTF-8"),
        ("x" * 1001, "at most 1000"),
    ],
)
def test_a_class_that_works_not_everywhere_is_told_why(name, fault):
    assert fault in class_fault(name)


def test_any_name_can_be_printed():
    assert printable("caf\udce9\n.png") == "caf\\xe9\\n.png"
    assert printable("\ud800").isascii()
    assert printable("日本 é.png") == "日本 é.png"
