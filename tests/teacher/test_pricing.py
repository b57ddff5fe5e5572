import math

import pytest

from rdmldg_ray.teacher.pricing import Budget, Price, estimate, image_tokens, known_price, text_tokens


@pytest.mark.parametrize(
    ("size", "tokens"),
    # The first two are the examples of OpenAI's documentation.
    [((1024, 1024), 765), ((2048, 4096), 1105), ((227, 227), 255), ((513, 512), 425), ((1, 1), 255)],
)
def test_the_tokens_of_an_image_are_those_of_its_tiles(size, tokens):
    assert image_tokens("gpt-4o", *size) == tokens
    assert image_tokens("gpt-4o", *reversed(size)) == tokens


def test_a_small_model_may_count_an_image_as_more_tokens():
    assert image_tokens("gpt-4o-mini", 1024, 1024) == 2833 + 4 * 5667


def test_a_snapshot_has_its_models_price_unless_it_has_its_own():
    assert known_price("gpt-4o") == known_price("gpt-4o-2024-08-06") == Price(2.5, 10)
    assert known_price("gpt-4o-2024-05-13") == Price(5, 15)
    assert known_price("llama-in-the-cellar") is None


def test_the_estimate_is_of_one_answer_each_at_least_and_of_all_candidates_at_most():
    requests = [("a" * 400, (227, 227)), ("a" * 400, (1024, 1024))]
    found = estimate("gpt-4o", requests, candidates=3, answer_tokens=350)
    assert (found.samples, found.prompt_tokens, found.answer_tokens) == (2, 100 + 255 + 100 + 765, 700)
    least, most = found.cost(Price(2.5, 10))
    assert least == pytest.approx((1220 * 2.5 + 700 * 10) / 1e6)
    assert most == pytest.approx(3 * least)
    assert estimate("gpt-4o", [], 3, 350).cost(Price(1, 1)) == (0, 0)
    assert text_tokens("abcde") == 2


def test_requests_at_the_same_time_cannot_pass_the_budget_together():
    budget = Budget(1.0, spent=0.5)
    assert budget.reserve(0.25) and budget.reserve(0.25)
    assert not budget.reserve(0.01)
    budget.settle(0.25, 0.125)
    assert budget.reserve(0.125) and not budget.reserve(0.01)
    assert budget.spent == 0.625
    assert Budget(None).reserve(1e9)


@pytest.mark.parametrize("prices", [(-5, -5), (1, -0.1), (math.nan, 1), (1, math.nan), (math.inf, 1)])
def test_what_is_no_price_is_refused(prices):
    with pytest.raises(
        ValueError, match=r"is no price; give US dollars for a million tokens, 0 or more \(--prices"
    ):
        Price(*prices)


def test_nothing_is_a_price_too():
    assert Price(0, 0.0).of(10**6, 10**6) == 0
