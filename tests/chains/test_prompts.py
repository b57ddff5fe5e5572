import pytest

from rdmldg_ray.chains.format import SECTIONS, display_name
from rdmldg_ray.chains.prompts import QUESTION, direct_prompt, reasoning_prompt

CLASSES = ["dog", "sea_animal"]


@pytest.mark.parametrize("question", [QUESTION, "What is it?"])
def test_both_prompts_share_question_and_options(question):
    direct = direct_prompt(CLASSES, question)
    reasoning = reasoning_prompt(CLASSES, question)
    shared = f"{question} Choose from the following options: dog, sea animal.\n"
    assert direct.startswith(shared) and reasoning.startswith(shared)
    # What is left is the pathway's own request: it differs from its first letter on and names no class.
    own = direct.removeprefix(shared), reasoning.removeprefix(shared)
    assert own[0][0] != own[1][0]
    assert "dog" not in own[0] + own[1]


def test_the_question_is_the_papers():
    assert direct_prompt(CLASSES).startswith("What type of object is in this photo? Choose from the")


def test_only_the_reasoning_prompt_names_the_stages_and_does_so_in_order():
    prompt = reasoning_prompt(CLASSES)
    places = [prompt.index(f"<{stage}>") for stage in SECTIONS]
    assert places == sorted(places)
    assert "<" not in direct_prompt(CLASSES)


def test_the_order_of_options_is_kept():
    assert "b, a, c." in direct_prompt(["b", "a", "c"])


@pytest.mark.parametrize(
    ("name", "shown"), [("sea_animal", "sea animal"), ("Real World", "Real World"), ("_a__b_", "a b")]
)
def test_display_name(name, shown):
    assert display_name(name) == shown
