import pyarrow as pa
import pytest

from rdmldg_ray.engines.answer_log import AnswerLog
from rdmldg_ray.engines.engine import GenerationRequest
from tests.helpers.fixed_answers import FixedAnswers

SAMPLES = pa.table({"id": [f"s{number}" for number in range(8)], "label": ["bird", "tool"] * 4})
FIRST = GenerationRequest("reasoning", 0, 0.7, 1.0, 64, seed=3, score_label=True)
SECOND = GenerationRequest("reasoning", 1, 0.7, 1.0, 64, seed=3)


def in_order(tables):
    return pa.concat_tables(tables).sort_by("id")


@pytest.fixture
def interrupted(root):
    """Where a driver has died after the first of two batches, which has four answers."""
    answers = AnswerLog(root, "mtct", FixedAnswers).generate(SAMPLES, FIRST)
    next(answers)
    answers.close()
    return root


def test_what_was_answered_is_not_asked_for_again(interrupted):
    pool = FixedAnswers()
    log = AnswerLog(interrupted, "mtct", lambda: pool)
    found = in_order(log.generate(SAMPLES, FIRST))
    assert found.equals(in_order(FixedAnswers().generate(SAMPLES, FIRST)))
    assert [sample_id for sample_id, _ in pool.asked] == ["s0", "s1", "s2", "s3"]
    assert log.read_back == 4


def test_once_all_is_answered_no_pool_is_needed(interrupted):
    list(AnswerLog(interrupted, "mtct", FixedAnswers).generate(SAMPLES, FIRST))
    again = AnswerLog(interrupted, "mtct", lambda: pytest.fail("asked for"))
    assert in_order(again.generate(SAMPLES, FIRST)).equals(in_order(FixedAnswers().generate(SAMPLES, FIRST)))
    assert in_order(again.generate(SAMPLES.slice(2, 3), FIRST))["id"].to_pylist() == ["s2", "s3", "s4"]


@pytest.mark.parametrize(
    ("model", "request_"),
    [
        ("sarr-1", FIRST),
        ("mtct", SECOND),
        ("mtct", GenerationRequest("direct", 0, 0.7, 1.0, 64, seed=3, score_label=True)),
        ("mtct", GenerationRequest("reasoning", 0, 0.7, 1.0, 64, seed=4, score_label=True)),
        ("mtct", GenerationRequest("reasoning", 0, 0.8, 1.0, 64, seed=3, score_label=True)),
        ("mtct", GenerationRequest("reasoning", 0, 0.7, 1.0, 65, seed=3, score_label=True)),
    ],
)
def test_answers_of_another_model_or_to_another_request_are_not_read(interrupted, model, request_):
    pool = FixedAnswers()
    found = in_order(AnswerLog(interrupted, model, lambda: pool).generate(SAMPLES, request_))
    assert len(pool.asked) == len(found) == 8


def test_two_drivers_that_answered_at_once_count_once(root):
    logs = [AnswerLog(root, "mtct", FixedAnswers) for _ in range(2)]
    both = [log.generate(SAMPLES, FIRST) for log in logs]
    for _ in range(2):
        for answers in both:
            next(answers)
    found = list(AnswerLog(root, "mtct", FixedAnswers).generate(SAMPLES, FIRST))
    assert sorted(pa.concat_tables(found)["id"].to_pylist()) == SAMPLES["id"].to_pylist()


def test_what_went_wrong_is_asked_for_again(root):
    class Fails(FixedAnswers):
        def generate(self, samples, request):
            for answers in super().generate(samples, request):
                errors = ["s3: the file is gone" if i == "s3" else None for i in answers["id"].to_pylist()]
                place = answers.schema.get_field_index("error")
                yield answers.set_column(place, "error", pa.array(errors, pa.string()))

    list(AnswerLog(root, "mtct", Fails).generate(SAMPLES, FIRST))
    pool = FixedAnswers()
    list(AnswerLog(root, "mtct", lambda: pool).generate(SAMPLES, FIRST))
    assert pool.asked == [("s3", 0)]
