import pytest

from rdmldg_ray.chains.format import (
    SECTIONS,
    ChainFormatError,
    display_name,
    find_alike,
    find_listed,
    find_mark,
    match_class,
    normalize_answer,
    parse_chain,
    render_chain,
)

SECTION_TEXTS = {stage: f"text of {stage.lower()}" for stage in SECTIONS}
CHAIN = render_chain(SECTION_TEXTS)


def reason(text):
    with pytest.raises(ChainFormatError) as caught:
        parse_chain(text)
    return caught.value.reason


def test_render_and_parse_are_inverse():
    chain = parse_chain(CHAIN)
    assert [getattr(chain, stage.lower()) for stage in SECTIONS] == list(SECTION_TEXTS.values())
    assert chain.render() == CHAIN


def test_white_space_around_stages_and_chain_does_not_matter():
    loose = CHAIN.replace(">text", ">\n  text").replace("</", " \n</").replace("\n<", "\n\n<")
    assert parse_chain(f"\n {loose} \n") == parse_chain(CHAIN)


def test_a_stage_may_hold_several_lines_and_other_brackets():
    text = CHAIN.replace("text of caption", "two <b>lines</b>,\n1 < 2")
    assert parse_chain(text).caption == "two <b>lines</b>,\n1 < 2"


@pytest.mark.parametrize("stage", SECTIONS)
def test_each_stage_is_needed(stage):
    missing = "\n".join(line for line in CHAIN.split("\n") if f"<{stage}>" not in line)
    assert reason(missing) == "missing_section"
    assert reason(CHAIN.replace(f"</{stage}>", "")) == "missing_section"


@pytest.mark.parametrize("stage", SECTIONS)
def test_no_stage_may_be_empty(stage):
    assert reason(CHAIN.replace(f"text of {stage.lower()}", " \n ")) == "empty_section"


def test_reordered_stages():
    lines = CHAIN.split("\n")
    assert reason("\n".join(reversed(lines))) == "wrong_order"
    assert reason("\n".join([lines[0], lines[2], lines[1], *lines[3:]])) == "wrong_order"


def test_doubled_stages():
    assert reason(CHAIN + "\n" + CHAIN) == "wrong_order"
    assert reason(CHAIN + "<CONCLUSION>another</CONCLUSION>") == "wrong_order"


def test_nested_stages():
    nested = CHAIN.replace("</SUMMARY>\n<CAPTION>", "<CAPTION>").replace("</CAPTION>", "</CAPTION></SUMMARY>")
    assert reason(nested) == "wrong_order"
    assert reason(CHAIN.replace("text of reasoning", "<CAPTION>x</CAPTION>")) == "wrong_order"


@pytest.mark.parametrize(
    "text", [f"Sure! {CHAIN}", f"{CHAIN} Done.", CHAIN.replace("\n<CAPTION>", "and <CAPTION>")]
)
def test_text_outside_the_stages(text):
    assert reason(text) == "text_outside"


@pytest.mark.parametrize("text", ["", "dog", CHAIN.lower(), CHAIN.replace("<SUMMARY>", "< SUMMARY >")])
def test_texts_that_are_no_chain(text):
    assert reason(text) == "missing_section"


def test_a_truncated_chain():
    assert reason(CHAIN[:-5]) == "missing_section"


def test_the_message_names_the_stage():
    with pytest.raises(ValueError, match="<REFLECTION> is empty"):
        parse_chain(CHAIN.replace("text of reflection", ""))


def test_normalize_answer():
    assert normalize_answer("  Sea_Animal. ") == "sea animal"
    assert normalize_answer('"Real-World"') == "real world"
    assert normalize_answer("._!") == ""


@pytest.mark.parametrize(
    ("answer", "index"),
    [
        ("dog", 0),
        ("Dog.", 0),
        ("dog house", None),
        ("a dog", None),
        ("dogs", None),
        ("Sea_Animal.", 1),
        ("sea animal", 1),
        ("sea", None),
        ("", None),
        ("dog, sea animal", None),
    ],
)
def test_match_class_needs_the_whole_name(answer, index):
    assert match_class(answer, ["dog", "sea_animal"]) == index


# Each pair is one name to whom compares letters and digits.
ALIKE = [
    ("Dog", "dog"),
    ("Alarm_Clock", "alarm clock"),
    ("alarm clock", "ALARM-CLOCK"),
    ("AlarmClock", "alarm_clock"),
    ("C", "C++"),
    ("C++", "C#"),
    ("C", "c."),
    ("caf\u00e9", "cafe\u0301"),
    ("\u1e69", "s\u0307\u0323"),  # two marks, in either order
    ("\uac00", "\u1100\u1161"),  # Hangul, composed and not
    ("\u0958", "\u0915\u093c"),  # Devanagari, likewise
    ("\u30ac", "\u30ab\u3099"),  # Katakana
    ("\uff76\uff9e", "\u30ac"),  # half-width Katakana
    ("\uff24\uff4f\uff47", "dog"),  # full-width
    ("\ufb01sh", "fish"),  # a ligature
    ("stra\u00dfe", "STRASSE"),
    ("\u0130stanbul", "istanbul"),
    ("I\u015f\u0131k", "\u0131\u015f\u0131k"),
    ("DI\u015e", "d\u0131\u015f"),
    ("\u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2", "\u03a3\u038a\u03a3\u03a5\u03a6\u039f\u03a3"),
    ("x\u00b2", "x2"),
    ("dog\u200b", "dog"),
    ("do\u00adg", "dog"),
    ("a\u00a0b", "a b"),
    ("\u2764\ufe0fheart", "heart"),
    ("\u0643\u062a\u0640\u0640\u0627\u0628", "\u0643\u062a\u0627\u0628"),  # an Arabic word, stretched
    ("dog\u3164", "dog"),  # fillers of Hangul
    ("d\u115fog", "dog"),
    ("dog\uffa0", "dog"),
    ("\u1820\u180b", "\u1820"),  # a variant of a Mongolian letter
    ("\u1780\u17b4", "\u1780"),  # a Khmer vowel that is not written
    ("dog\u2060", "dog"),
]


@pytest.mark.parametrize("pair", ALIKE)
def test_names_that_fold_to_one_are_found(pair):
    assert find_alike(["bird", pair[0], "cat", pair[1]]) == pair


@pytest.mark.parametrize("pair", ALIKE)
def test_an_answer_in_another_spelling_is_the_class(pair):
    for name, answer in (pair, pair[::-1]):
        assert match_class(answer, ["bird", name]) == 1


@pytest.mark.parametrize("pair", ALIKE)
def test_the_spelling_of_another_class_is_never_taken(pair):
    """In data sets from before such classes were refused."""
    classes = ["bird", *pair]
    places = [match_class(display_name(name), classes) for name in classes]
    if display_name(pair[0]) == display_name(pair[1]):
        assert places == [0, None, None]
    else:
        assert places == [0, 1, 2]
    # What fits both is neither.
    if normalize_answer(pair[0]) == normalize_answer(pair[1]):
        assert match_class(f"({pair[0]}!)", classes) is None


@pytest.mark.parametrize(
    "names",
    [
        ("pen", "pencil", "pen holder"),
        ("\u0915\u093f", "\u0915\u093e"),  # vowel signs, which are marks
        ("\u0e01\u0e34", "\u0e01\u0e35"),
        ("caf\u00e9", "cafe"),
        ("\u3042", "\u30a2"),
        ("1.5", "15", "1,6"),
        ("0", "1", "10"),
        ("", "+", "-"),
    ],
)
def test_names_that_differ_are_told_apart(names):
    assert find_alike(names) is None
    assert [match_class(name, names) for name in names if normalize_answer(name)] == [
        place for place, name in enumerate(names) if normalize_answer(name)
    ]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("cat", "cat, dog"), ("cat", "cat, dog")),
        (("a,B", "b"), ("b", "a,B")),
        (("cat, dog", "Dog."), ("Dog.", "cat, dog")),
        (("x, y, z", "w", "y"), ("y", "x, y, z")),
        (("tench, Tinca tinca", "goldfish, Carassius auratus"), None),
        (("cat", "dog"), None),
        (("cat,", "dog, "), None),
        (("black bear", "bear, polar bear"), None),
        (("1,5", "15"), None),
    ],
)
def test_an_option_that_reads_as_a_list_with_another_is_found(names, found):
    assert find_listed(names) == found


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("Tooth brush", "ToothBrush"),
        ("Post-it Notes", "Postit_Notes"),
        ("Flip-flops", "Flipflops"),
        ("T.V.", "TV"),
    ],
)
def test_spaces_between_words_do_not_matter(answer, name):
    assert match_class(answer, ["Bike", name]) == 1


def test_a_name_as_displayed_comes_before_one_that_folds_to_it():
    assert [match_class(answer, ["C", "C++", "C#"]) for answer in ("C#", "C", "C++", "c")] == [2, 0, 1, None]
    assert match_class("sea animal", ["Sea animal", "sea_animal"]) == 1


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("a <image> b", "<image>"),
        ("<CONCLUSION>", "<CONCLUSION>"),
        ("x</SUMMARY>", "</SUMMARY>"),
        ("<|im_end|>", "<|im_end|>"),
        ("<IMG_CONTEXT>", "<IMG_CONTEXT>"),
        ("<video>", "<video>"),
        ("<script>alert(1)<", None),
        ("1 < 2", None),
        ("a|b", None),
    ],
)
def test_marks_are_found(text, mark):
    assert find_mark(text) == mark
