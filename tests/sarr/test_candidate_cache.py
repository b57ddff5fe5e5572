import pyarrow as pa
import pytest

from rdmldg_ray.config.schema import SarrConfig
from rdmldg_ray.engines.engine import GenerationRequest
from rdmldg_ray.sarr.candidate_cache import CandidateCache
from rdmldg_ray.sarr.sampling import draw_candidates
from tests.helpers.fixed_answers import FixedAnswers

CLASSES = ["bird", "tool"]
SAMPLES = pa.table(
    {
        "id": [f"s{number}" for number in range(8)],
        "label": ["bird", "tool"] * 4,
        "domain": ["flat"] * 8,
    }
)


def draw(pool, **settings):
    """All candidates of a round, by image and draw."""
    parts = []
    config = SarrConfig.model_validate({"max_attempts": 4, **settings})
    draw_candidates(pool, SAMPLES, CLASSES, config, 0, parts.append, lambda *_: None)
    return pa.concat_tables(parts).sort_by([("id", "ascending"), ("candidate", "ascending")])


def rounded(candidates):
    return [
        {key: round(value, 9) if isinstance(value, float) else value for key, value in row.items()}
        for row in candidates.to_pylist()
    ]


SETTINGS = [
    {},
    {"filter": {"max_tokens": 14}},
    {"filter": {"min_logprob": -0.1}},
    {"filter": {"min_label_prob": 0.45}},
    {"sampling": "fixed", "max_attempts": 3},
    {"max_attempts": 1},
]


@pytest.mark.parametrize("first", SETTINGS)
@pytest.mark.parametrize("then", SETTINGS)
def test_a_replayed_round_has_the_candidates_that_it_would_have_had_alone(first, then):
    alone_pool, pool = FixedAnswers(), FixedAnswers()
    alone = draw(alone_pool, **then)
    earlier = draw(FixedAnswers(), **first)
    draws = CandidateCache(earlier, lambda: pool)
    assert rounded(draw(draws, **then)) == rounded(alone)
    drawn = set(zip(earlier["id"].to_pylist(), earlier["candidate"].to_pylist(), strict=True))
    assert set(pool.asked) == set(alone_pool.asked) - drawn
    assert draws.drawn_anew == len(pool.asked)


def test_the_pool_is_not_even_started_when_nothing_is_new():
    def pool():
        raise AssertionError("asked for the pool")

    strict = draw(FixedAnswers(), filter={"max_tokens": 12})
    draws = CandidateCache(strict, pool)
    draw(draws, filter={"max_tokens": 18})
    assert draws.drawn_anew == 0


def test_draws_of_several_rounds_serve_together_and_each_once():
    one = draw(FixedAnswers(), filter={"max_tokens": 13})
    two = draw(FixedAnswers(), filter={"min_logprob": -0.05})
    draws = CandidateCache(pa.concat_tables([one, two]), FixedAnswers)
    answers = list(draws.generate(SAMPLES, GenerationRequest("reasoning", 0, 1.0, 1.0, 99, 0)))
    assert [len(table) for table in answers] == [8]
