import pytest

from rdmldg_ray.chains.format import SECTIONS, render_chain
from rdmldg_ray.sarr.scores import Agreement, repetition


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("one two three", 0.0),
        ("a b c d e f g", 0.0),
        ("a b c d a b c d", 1 - 4 / 5),
        ("so so so so so so so so", 1 - 1 / 5),
        ("A b c d a B c d", 1 - 4 / 5),
    ],
)
def test_repetition_is_the_share_of_4_grams_that_came_before(text, share):
    assert repetition(text) == pytest.approx(share)


def test_a_loop_is_found_whatever_its_length():
    for length in (1, 5, 25):
        loop = " ".join(f"w{i}" for i in range(length))
        assert repetition(" ".join([loop] * 20)) > 0.9


def test_tags_are_no_words():
    stages = {stage: f"{i}a {i}b" for i, stage in enumerate(SECTIONS)}
    assert repetition(render_chain(stages)) == repetition(" ".join(stages.values())) == 0


def test_agreement_is_the_share_of_the_images_own_candidates():
    agreement = Agreement()
    agreement.count(["a", "a", "b"], ["dog", "Dog.", "cat"])
    agreement.count(["a", "a"], ["cat", None])
    assert agreement.share("a", "dog") == 2 / 4
    assert agreement.share("a", "cat") == 1 / 4
    assert agreement.share("b", "cat") == 1
    assert agreement.share("a", None) == 0
