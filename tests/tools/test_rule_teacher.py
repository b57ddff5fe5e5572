import numpy as np
import pytest
from PIL import Image, ImageDraw

from rdmldg_ray.chains.format import parse_chain
from tools.iconbed.rule_teacher import write_chain

CLASSES = ["bird", "bug", "building", "clothing", "drink", "mammal"]
CLASSES += ["meal", "plant", "produce", "sea_animal", "tool", "vehicle"]


def picture(colour="blue", box=(10, 40, 86, 56)):
    image = Image.new("RGB", (96, 96), "white")
    ImageDraw.Draw(image).rectangle(box, fill=colour)
    return image


def owl(**changes):
    arguments = {
        "name": "owl",
        "keywords": ["animal", "bird", "ladybird", "wise", "24", "up", "night"],
        "label": "bird",
        "options": CLASSES,
        "image": picture(),
        "seed": 1,
    }
    return parse_chain(write_chain(**{**arguments, **changes}))


def before_conclusion(chain):
    return " ".join([chain.summary, chain.caption, chain.reasoning, chain.reflection]).lower()


def test_the_same_arguments_give_the_same_text():
    # Pinned, so that a change of wording, or a machine that draws otherwise, is noticed.
    assert write_chain(
        name="owl",
        keywords=["animal", "wise", "night"],
        label="bird",
        options=CLASSES,
        image=picture(),
        seed=7,
    ) == (
        "<SUMMARY>I look at the picture and choose one of the options.</SUMMARY>\n"
        "<CAPTION>The object is wider than tall: owl in blue.</CAPTION>\n"
        "<REASONING>This goes with wise and night, which points to a creature with feathers and wings."
        "</REASONING>\n"
        "<REFLECTION>What about sea animal? That would be a creature that lives under water, "
        "which fits less.</REFLECTION>\n"
        "<CONCLUSION>bird</CONCLUSION>"
    )


def test_seeds_and_names_vary_the_wording():
    assert len({owl(seed=seed) for seed in range(30)}) > 20
    assert len({owl(name=name).summary for name in "abcdefghijklmnop"}) > 1


@pytest.mark.parametrize("label", CLASSES)
def test_the_label_stands_in_the_conclusion_alone(label):
    shown = label.replace("_", " ")
    for seed in range(20):
        chain = owl(name=f"large {shown} with spots", keywords=[shown, f"{shown}s"], label=label, seed=seed)
        assert chain.conclusion == shown
        assert not [word for word in shown.split() if word in before_conclusion(chain)]
        assert "arge with spots" in chain.caption


def test_keywords_that_name_an_option_or_the_concept_are_passed_over():
    for seed in range(20):
        reasoning = owl(seed=seed).reasoning
        assert "wise" in reasoning and "night" in reasoning
        assert not [w for w in ("animal", "bird", "24", "up ", "owl") if w in reasoning]


def test_two_or_three_keywords_in_their_order():
    words = ["wise", "night", "forest", "hoot", "silent"]
    counts = set()
    for seed in range(20):
        reasoning = owl(keywords=words, seed=seed).reasoning
        used = [word for word in words if word in reasoning]
        assert used == sorted(used, key=reasoning.index)
        counts.add(len(used))
    assert counts == {2, 3}


def test_the_reasoning_says_what_kind_of_thing_it_is():
    assert "a creature with feathers and wings" in owl().reasoning
    assert "one clear kind of thing" in owl(label="owl", options=["owl", "cup"]).reasoning
    # A phrase that would name an option gives way.
    assert "one clear kind of thing" in owl(options=["bird", "feathers"]).reasoning


def test_the_reflection_weighs_a_relative_of_the_label():
    others = {
        o for seed in range(40) for o in ("bug", "mammal", "sea animal", "tool") if o in _low(owl(seed=seed))
    }
    assert others == {"bug", "mammal", "sea animal"}


def _low(chain):
    return chain.reflection.lower()


def test_the_reflection_avoids_an_option_that_holds_the_label():
    for seed in range(20):
        assert "cup" in _low(owl(label="dog", options=["dog", "dog house", "cup"], seed=seed))


def test_the_caption_names_the_colours_seen():
    image = picture("red")
    ImageDraw.Draw(image).rectangle((10, 40, 40, 56), fill="green")
    assert "in red and green" in owl(image=image).caption
    assert "in blue" in owl(image=picture()).caption
    assert "in brown" in owl(image=picture((120, 70, 30))).caption
    assert "in gray" in owl(image=picture((128, 128, 128))).caption


def test_the_caption_knows_black_lines_from_a_black_surface():
    lines = Image.new("L", (96, 96), "white")
    ImageDraw.Draw(lines).ellipse((8, 8, 88, 88), outline="black", width=3)
    assert "drawn in black lines" in owl(image=lines).caption
    assert "in black" in owl(image=picture("black")).caption
    assert "lines" not in owl(image=picture("black")).caption


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ((10, 40, 86, 56), "wider than tall"),
        ((40, 10, 56, 86), "taller than wide"),
        ((10, 10, 86, 80), "about as wide as tall"),
    ],
)
def test_the_caption_names_the_extent(box, words):
    assert words in owl(image=picture(box=box)).caption


def test_chains_are_short():
    lengths = [len(" ".join(vars(owl(seed=seed)).values()).split()) for seed in range(50)]
    assert max(lengths) <= 70
    assert 45 <= np.mean(lengths) <= 65


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_any_mode_of_image(mode):
    assert owl(image=Image.new(mode, (3, 2))).conclusion == "bird"


def test_transparent_pixels_are_paper():
    assert "in white" in owl(image=Image.new("RGBA", (4, 4), (255, 0, 0, 0))).caption


@pytest.mark.parametrize(
    "changes",
    [
        {"keywords": []},
        {"keywords": ["", "?", "bird"]},
        {"options": ["bird"]},
        {"options": ["bird", "", "❤️"]},
        {"name": ""},
        {"name": "bird of the"},
        {"name": "<SUMMARY>{look}"},
        {"keywords": ["</CAPTION>", "{kind}", "日本語です"]},
        {"label": "flag: Japan", "options": ["flag: Japan", "keycap: 1"], "name": "flag: Japan"},
        {"label": "日本", "options": ["日本", "中国"]},
    ],
)
def test_names_keywords_and_options_of_any_kind(changes):
    for seed in range(20):
        owl(**changes, seed=seed)


def test_a_name_that_is_the_label_is_not_shown():
    for seed in range(10):
        assert "one object" in owl(name="Birds", seed=seed).caption.lower()


@pytest.mark.parametrize(("label", "message"), [("fish", "not one of the options"), ("_", "needs a label")])
def test_a_label_that_cannot_be_concluded_with(label, message):
    with pytest.raises(ValueError, match=message):
        owl(label=label)
