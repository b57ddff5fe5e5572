import pytest

from rdmldg_ray.chains.format import (
    SECTIONS,
    ChainFormatError,
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
