import pytest

from rdmldg_ray.chains.format import SECTIONS, render_chain
from rdmldg_ray.config.schema import FilterConfig
from rdmldg_ray.sarr.filter import is_hopeless, judge

CLASSES = ["dog", "dog_house", "sea_animal"]
OPEN = FilterConfig()


def chain(conclusion="dog", **stages):
    return render_chain(
        {**{stage: f"about {stage.lower()}" for stage in SECTIONS}, **stages, "CONCLUSION": conclusion}
    )


def candidate(text, label="dog", **scores):
    known = {"num_tokens": 100, "mean_logprob": -0.5, "label_prob": 0.5, "agreement": 0.5, "repetition": 0.1}
    return {"text": text, "label": label, "finished": True, "error": None, **known, **scores}


def reason(text, label="dog", config=OPEN, **scores):
    verdict = judge(candidate(text, label, **scores), CLASSES, config)
    assert verdict.accepted == (verdict.reason is None)
    return verdict.reason


def test_a_chain_of_five_stages_that_concludes_with_the_label_is_kept():
    verdict = judge(candidate(chain()), CLASSES, OPEN)
    assert (verdict.accepted, verdict.conclusion, verdict.reason) == (True, "dog", None)


@pytest.mark.parametrize("conclusion", ["sea animal", "Sea Animal.", "sea_animal", "\n sea  animal \n"])
def test_a_conclusion_may_be_written_as_people_write(conclusion):
    assert reason(chain(conclusion), "sea_animal") is None


ANY = FilterConfig(conclusion="any", max_tokens=100)


def test_without_the_papers_filter_only_the_conclusion_is_not_judged():
    assert reason(chain("dog house"), config=ANY) is None
    assert reason(chain("cat"), config=ANY) is None
    assert reason(chain(), config=ANY) is None
    assert reason(chain("cat"), config=ANY, num_tokens=101) == "too_long"
    assert reason(chain(""), config=ANY) == "empty_section"
    assert reason("dog", config=ANY) == "missing_section"
    assert reason(chain("cat"), config=ANY, finished=False) == "unfinished"


REORDERED = "\n".join(reversed(chain().splitlines()))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("dog", "missing_section"),
        (chain().replace("</CAPTION>", ""), "missing_section"),
        (chain().replace("<REFLECTION>", ""), "missing_section"),
        (REORDERED, "wrong_order"),
        (chain() + "\n<CONCLUSION>dog</CONCLUSION>", "wrong_order"),
        ("Surely! " + chain(), "text_outside"),
        (chain() + " dog", "text_outside"),
        (chain(REASONING="  "), "empty_section"),
        (chain(""), "empty_section"),
        (chain("cat"), "not_a_class"),
        (chain("dog or dog house"), "not_a_class"),
        (chain("a dog"), "not_a_class"),
        (chain("dog house"), "wrong_class"),
        (chain("sea animal"), "wrong_class"),
    ],
)
def test_each_fault_has_its_reason(text, why):
    assert reason(text) == why


def test_dog_house_is_not_dog_and_dog_is_not_dog_house():
    assert reason(chain("dog house"), "dog") == "wrong_class"
    assert reason(chain("dog"), "dog_house") == "wrong_class"
    assert reason(chain("dog house"), "dog_house") is None


def test_a_chain_cut_off_at_the_token_limit_is_unfinished_whatever_it_says():
    assert reason(chain(), finished=False) == "unfinished"
    assert reason(chain()[:60], finished=False) == "unfinished"


def test_a_rejected_chains_conclusion_is_recorded_where_it_has_one():
    cut = chain().replace("<CAPTION>", "")
    conclusions = [
        judge(candidate(text), CLASSES, OPEN).conclusion for text in (chain("cat"), cut, "nothing")
    ]
    assert conclusions == ["cat", "dog", None]


@pytest.mark.parametrize(
    ("setting", "bound", "score", "within", "beyond", "why"),
    [
        ("min_tokens", 20, "num_tokens", 20, 19, "too_short"),
        ("max_tokens", 100, "num_tokens", 100, 101, "too_long"),
        ("max_repetition", 0.25, "repetition", 0.25, 0.26, "repetitive"),
        ("min_logprob", -0.5, "mean_logprob", -0.5, -0.51, "low_logprob"),
        ("min_label_prob", 0.5, "label_prob", 0.5, 0.49, "low_label_prob"),
        ("min_agreement", 0.5, "agreement", 0.5, 0.4, "low_agreement"),
    ],
)
def test_each_bound_includes_its_own_value(setting, bound, score, within, beyond, why):
    config = FilterConfig(**{setting: bound})
    assert reason(chain(), config=config, **{score: within}) is None
    assert reason(chain(), config=config, **{score: beyond}) == why
    assert reason(chain(), **{score: beyond}) is None, "without the bound it does not matter"


def test_a_score_that_is_not_known_yet_is_not_bounded():
    assert reason(chain(), config=FilterConfig(min_agreement=1.0), agreement=None) is None


def test_format_comes_before_bounds():
    assert reason(chain("cat"), config=FilterConfig(max_tokens=1, min_logprob=0)) == "not_a_class"


def test_a_bad_image_is_rejected_as_such_and_never_worth_another_draw():
    row = candidate("", error="d/a: the image does not decode", finished=False, label_prob=None)
    assert judge(row, CLASSES, OPEN).reason == "bad_image"
    assert is_hopeless(row, OPEN)


def test_another_draw_cannot_mend_the_labels_probability_and_may_mend_all_else():
    config = FilterConfig(min_label_prob=0.5, min_logprob=-0.1, max_tokens=10)
    assert is_hopeless(candidate("?", label_prob=0.4), config)
    assert not is_hopeless(candidate("?", label_prob=0.6), config)
    assert not is_hopeless(candidate("?", label_prob=0.4), OPEN)


def test_a_candidate_with_options_of_its_own_is_judged_by_them():
    asked = {"question": "Is it day?", "options": ["yes", "no"]}
    for conclusion, why in (("Yes.", None), ("no", "wrong_class"), ("dog", "not_a_class")):
        verdict = judge(candidate(chain(conclusion), "yes", **asked), CLASSES, OPEN)
        assert verdict.reason == why
    without = candidate(chain(), question=None, options=None)
    assert judge(without, CLASSES, OPEN).accepted
