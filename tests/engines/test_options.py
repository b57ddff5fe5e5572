import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdmldg_ray.engines.options import OptionSearch

END = 0


def search(options, logprob):
    """The answer, and the looks at the model; ``logprob`` gives that of a token after a prefix."""
    found = OptionSearch(options)
    looks = 0
    while found.found is None:
        prefix, tokens = found.wanted()
        found.add({token: logprob(tuple(prefix), token) for token in tokens})
        looks += 1
    return found.found, looks


def table(values):
    return lambda prefix, token: values.get((*prefix, token), math.log(1e-6))


def test_the_best_answer_may_begin_with_a_token_that_is_not_the_best():
    # "sea animal" and "sea bird" share the likeliest first token, and each is less likely than "tool".
    options = [[7, 1, END], [7, 2, END], [9, END]]
    likely = {
        (7,): 0.5,
        (7, 1): 0.5,
        (7, 2): 0.5,
        (7, 1, END): 1.0,
        (7, 2, END): 1.0,
        (9,): 0.4,
        (9, END): 1.0,
    }
    (number, logprob), _ = search(options, table({key: math.log(value) for key, value in likely.items()}))
    assert number == 2
    assert logprob == pytest.approx(math.log(0.4))


def test_a_sure_model_is_looked_at_once_for_each_token():
    options = [[1, 2, 3, END], [4, END], [5, 6, END]]
    _, looks = search(options, lambda prefix, token: 0.0 if token in (1, 2, 3, END) else -20.0)
    assert looks == 4


def test_of_equally_likely_answers_the_first_is_found():
    for options in ([[3, END], [1, END], [2, END]], [[5, 9, END], [5, 1, END]]):
        (number, _), _ = search(options, lambda prefix, token: -1.0)
        assert number == 0


@given(
    st.lists(st.lists(st.integers(1, 3), max_size=4), min_size=1, max_size=12, unique_by=tuple), st.randoms()
)
def test_it_finds_what_scoring_every_answer_finds(bodies, random):
    options = [[*body, END] for body in bodies]
    values: dict[tuple[int, ...], float] = {}

    def logprob(prefix, token):
        return values.setdefault((*prefix, token), -random.expovariate(1))

    (number, found), looks = search(options, logprob)
    scores = [sum(logprob(tuple(ids[:i]), ids[i]) for i in range(len(ids))) for ids in options]
    assert found == pytest.approx(max(scores))
    assert scores[number] == pytest.approx(max(scores))
    assert looks <= sum(map(len, options))
