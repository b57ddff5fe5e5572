import math

import numpy as np
import pyarrow as pa
import pytest

from rdmldg_ray.evaluation.adaptive import (
    Answers,
    adaptive_rows,
    always_reasoning,
    choose_threshold,
    curve,
    pair_answers,
    point_at,
)
from rdmldg_ray.evaluation.predictions import PREDICTION_SCHEMA


def answers(sureness, direct, reasoning, direct_tokens=2, reasoning_tokens=100):
    return Answers(
        np.array(sureness, float),
        np.array([mark == "1" for mark in direct]),
        np.array([mark == "1" for mark in reasoning]),
        np.full(len(sureness), direct_tokens),
        np.full(len(sureness), reasoning_tokens),
    )


# Sure where right; reasoning helps only with the two unsure ones.
FOUR = answers([0.9, 0.8, 0.4, 0.2], "1100", "1011")


def test_a_threshold_sends_the_unsure_to_reasoning_and_pays_for_both_answers():
    point = point_at(FOUR, 0.5)
    assert (point.accuracy, point.tokens, point.reasoned) == (1.0, 2 + 50, 0.5)
    assert point.error == 0.0
    assert point_at(FOUR, 0.3).error == pytest.approx(math.sqrt(0.75 * 0.25 / 4))


def test_the_ends_are_never_and_always_reasoning():
    never, always = curve(FOUR)[0], curve(FOUR)[-1]
    assert (never.accuracy, never.tokens, never.reasoned) == (0.5, 2.0, 0.0)
    assert (always.accuracy, always.tokens, always.reasoned) == (0.75, 102.0, 1.0)
    assert always_reasoning(FOUR).tokens == 100.0


def test_the_curve_costs_more_from_point_to_point():
    tokens = [point.tokens for point in curve(FOUR)]
    assert tokens == sorted(tokens)


def test_the_cheapest_point_within_a_standard_error_of_the_best_is_chosen():
    assert choose_threshold(FOUR).accuracy == 1.0
    # 100 images: reasoning about the unsure half gains two points of a hundred, less than an error.
    sureness = np.linspace(0, 1, 100)
    direct = "0" * 10 + "1" * 90
    reasoning = "1" * 2 + "0" * 8 + "1" * 90
    assert choose_threshold(answers(sureness, direct, reasoning)).reasoned == 0.0


def predictions(*rows):
    """From (id, held out, pathway, probability, correct, tokens)."""
    return pa.Table.from_pylist(
        [
            {
                "id": id,
                "held_out": held_out,
                "pathway": pathway,
                "logprob": math.log(probability),
                "correct": correct,
                "num_tokens": tokens,
            }
            for id, held_out, pathway, probability, correct, tokens in rows
        ],
        schema=PREDICTION_SCHEMA,
    )


TABLE = predictions(
    ("v1", False, "direct", 0.9, True, 2),
    ("v2", False, "direct", 0.3, False, 2),
    ("v1", False, "reasoning", 0.5, True, 80),
    ("v2", False, "reasoning", 0.5, True, 120),
    # On the target reasoning is never right: looking at it would choose never to reason.
    ("t2", True, "direct", 0.2, True, 2),
    ("t1", True, "direct", 0.95, True, 4),
    ("t1", True, "reasoning", 0.5, False, 90),
    ("t2", True, "reasoning", 0.5, False, 110),
)


def test_answers_of_both_pathways_meet_by_image():
    pair = pair_answers(TABLE, held_out=True)
    assert pair.sureness.tolist() == pytest.approx([0.95, 0.2])
    assert pair.direct_tokens.tolist() == [4, 2]
    assert pair.reasoning_tokens.tolist() == [90, 110]


def test_the_threshold_comes_from_the_sources_whatever_the_target_would_like():
    rows, points = adaptive_rows(TABLE)
    by_how = {row["how"]: row for row in rows}
    assert list(by_how) == ["direct", "reasoning", "adaptive"]
    assert by_how["direct"]["accuracy"] == 1.0
    assert by_how["reasoning"]["tokens"] == 100.0
    assert by_how["adaptive"]["reasoned"] == 0.5
    assert by_how["adaptive"]["accuracy"] == 0.5
    assert by_how["adaptive"]["tokens"] == 3 + 55
    assert points[0]["reasoned"] == 0.0


def test_a_pathway_that_did_not_answer_is_named():
    with pytest.raises(ValueError, match="the reasoning pathway did not answer"):
        pair_answers(TABLE.filter(pa.compute.field("pathway") == "direct"), held_out=True)
