import pytest

from rdmldg_ray.chains.format import STAGES, render_chain
from rdmldg_ray.config import FilterConfig
from rdmldg_ray.sarr.filter import judge

CLASSES = ["dog", "dog_house", "sea_animal"]
OPEN = FilterConfig()


def chain(conclusion="dog", **stages):
    return render_chain(
        {**{stage: f"about {stage.lower()}" for stage in STAGES}, **stages, "CONCLUSION": conclusion}
    )


def reason(text, label="dog", config=OPEN, num_tokens=100, logprob=-50.0, finished=True):
    verdict = judge(text, label, CLASSES, num_tokens, logprob, finished, config)
    assert verdict.kept == (verdict.reason is None)
    return verdict.reason


def test_a_chain_of_five_stages_that_concludes_with_the_label_is_kept():
    verdict = judge(chain(), "dog", CLASSES, 100, -50.0, True, OPEN)
    assert (verdict.kept, verdict.conclusion, verdict.reason) == (True, "dog", None)


@pytest.mark.parametrize("conclusion", ["sea animal", "Sea Animal.", "sea_animal", "\n sea  animal \n"])
def test_a_conclusion_may_be_written_as_people_write(conclusion):
    assert reason(chain(conclusion), "sea_animal") is None


REORDERED = "\n".join(reversed(chain().splitlines()))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("dog", "missing_stage"),
        (chain().replace("</CAPTION>", ""), "missing_stage"),
        (chain().replace("<REFLECTION>", ""), "missing_stage"),
        (REORDERED, "wrong_order"),
        (chain() + "\n<CONCLUSION>dog</CONCLUSION>", "wrong_order"),
        ("Surely! " + chain(), "text_outside"),
        (chain() + " dog", "text_outside"),
        (chain(REASONING="  "), "empty_stage"),
        (chain(""), "empty_stage"),
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
    assert judge(chain("cat"), "dog", CLASSES, 9, -1.0, True, OPEN).conclusion == "cat"
    cut = chain().replace("<CAPTION>", "")
    assert judge(cut, "dog", CLASSES, 9, -1.0, True, OPEN).conclusion == "dog"
    assert judge("nothing", "dog", CLASSES, 9, -1.0, True, OPEN).conclusion is None


@pytest.mark.parametrize(("num_tokens", "why"), [(99, None), (100, None), (101, "too_long")])
def test_a_chain_may_be_as_long_as_the_bound(num_tokens, why):
    assert reason(chain(), config=FilterConfig(max_tokens=100), num_tokens=num_tokens) == why


@pytest.mark.parametrize(("logprob", "why"), [(-49.0, None), (-50.0, None), (-51.0, "low_logprob")])
def test_the_log_probability_is_bounded_as_a_mean_over_tokens(logprob, why):
    assert reason(chain(), config=FilterConfig(min_logprob=-0.5), logprob=logprob) == why


def test_without_bounds_length_and_probability_do_not_matter():
    assert reason(chain(), num_tokens=10**6, logprob=-1e9) is None


def test_format_comes_before_bounds():
    assert reason(chain("cat"), config=FilterConfig(max_tokens=1, min_logprob=0)) == "not_a_class"
