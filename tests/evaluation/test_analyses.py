import math

import numpy as np
import pyarrow as pa
import pytest

from rdmldg_ray.evaluation.analyses import (
    EMBEDDING_SCHEMA,
    TOKEN_SCHEMA,
    base_to_new,
    domain_distances,
    entropy_falls,
    harmonic_mean,
    mmd_squared,
    probability_shares,
    rejected_of_first,
)
from rdmldg_ray.evaluation.predictions import PREDICTION_SCHEMA
from rdmldg_ray.runs.results import rejected_by_round


def tokens(*rows):
    """From (model, target, held out, token, probability, entropy); a token \"<end>\" ends a target."""
    tokens = ["<end>", *(row[3] for row in rows)]
    positions = [0]
    for before in tokens[1:-1]:
        positions.append(0 if before == "<end>" else positions[-1] + 1)
    return pa.Table.from_pylist(
        [
            {
                "model": model,
                "target": target,
                "held_out": held_out,
                "position": position,
                "token": token,
                "logprob": math.log(probability),
                "entropy": entropy,
            }
            for (model, target, held_out, token, probability, entropy), position in zip(
                rows, positions, strict=True
            )
        ],
        schema=TOKEN_SCHEMA,
    )


def test_shares_of_unlikely_and_likely_tokens_are_counted_by_model_and_target():
    table = tokens(
        ("mtct", "chain", False, "a", 0.1, 0),
        ("mtct", "chain", False, "b", 0.2499, 0),
        ("mtct", "chain", False, "c", 0.3, 0),
        ("mtct", "chain", False, "<end>", 0.7501, 0),
        ("mtct", "class", False, "dog", 0.5, 0),
        ("mtct", "class", False, "<end>", 0.9, 0),
        ("mtct", "chain", False, "a", 0.8, 0),
        ("mtct", "chain", False, "<end>", 0.5, 0),
        ("mtct", "class", False, "rat", 0.2, 0),
        ("mtct", "class", False, "<end>", 0.99, 0),
        ("mtct", "chain", True, "a", 0.5, 0),
        ("mtct", "chain", True, "<end>", 0.9, 0),
        ("sarr-1", "chain", False, "<end>", 0.76, 0),
    )
    names = ("model", "target", "held_out", "tokens", "low", "high", "low_without_end", "high_without_end")
    assert [tuple(row[name] for name in names) for row in probability_shares(table)] == [
        ("mtct", "chain", False, 6, 2 / 6, 2 / 6, 0.5, 0.25),
        ("mtct", "class", False, 4, 0.25, 0.5, 0.5, 0.0),
        ("mtct", "chain", True, 2, 0.0, 0.5, 0.0, 0.0),
        ("sarr-1", "chain", False, 1, 0.0, 1.0, None, None),
    ]


def test_of_several_draws_the_first_is_counted_apart():
    draws = pa.table(
        {"candidate": [0, 1, 2, 0, 0, 1, 0], "accepted": [False, False, True, True, False, True, True]}
    )
    assert rejected_of_first(draws) == 0.5
    assert rejected_of_first(draws.slice(0, 1)) == 1.0
    assert rejected_of_first(draws.slice(1, 2)) is None


FALLS = tokens(
    ("zero-shot", "chain", False, "wing", 0.5, 3.0),
    ("zero-shot", "chain", False, "wing", 0.5, 1.0),
    ("zero-shot", "chain", False, "the", 0.5, 1.0),
    ("zero-shot", "chain", False, "the", 0.5, 1.0),
    ("zero-shot", "chain", False, "rare", 0.5, 9.0),
    ("zero-shot", "class", False, "dog", 0.5, 9.0),
    ("mtct", "chain", False, "wing", 0.5, 0.5),
    ("mtct", "chain", False, "wing", 0.5, 0.5),
    ("mtct", "chain", False, "the", 0.5, 1.5),
    ("mtct", "chain", False, "the", 0.5, 0.9),
    ("mtct", "chain", False, "rare", 0.5, 0.0),
    ("mtct", "class", False, "dog", 0.5, 0.0),
)


def test_tokens_are_ordered_by_the_fall_of_their_mean_entropy_and_rare_ones_left_out():
    assert entropy_falls(FALLS, "zero-shot", "mtct", least_count=2) == [
        {"token": "wing", "count": 2, "before": 2.0, "after": 0.5, "fall": 1.5},
        {"token": "the", "count": 2, "before": 1.0, "after": 1.2, "fall": pytest.approx(-0.2)},
    ]


def test_a_model_that_was_not_measured_is_named_with_those_that_were():
    with pytest.raises(ValueError, match="for 'sarr-3'; there are: zero-shot, mtct"):
        entropy_falls(FALLS, "mtct", "sarr-3")


def test_mmd_is_the_squared_distance_of_the_means():
    first = np.array([[0.0, 0.0], [2.0, 4.0]])
    second = np.array([[4.0, 2.0], [4.0, 2.0], [4.0, -4.0]])
    assert mmd_squared(first, second) == pytest.approx(3**2 + 2**2)
    assert mmd_squared(first, first[::-1]) == 0


def test_distances_are_between_all_domains_for_each_kind_of_embedding():
    vectors = {"art": [[1.0, 0.0], [0.0, 1.0]], "photo": [[1.0, 0.0]], "sketch": [[0.0, -1.0]]}
    rows = [
        {"model": "mtct", "domain": domain, "kind": kind, "vector": [scale * x for x in vector]}
        for kind, scale in (("image", 1.0), ("chain", 2.0))
        for domain, found in vectors.items()
        for vector in found
    ]
    found = domain_distances(pa.Table.from_pylist(rows, schema=EMBEDDING_SCHEMA))
    assert [(row["kind"], row["first"], row["second"], row["mmd_squared"]) for row in found] == [
        ("image", "art", "photo", 0.5),
        ("image", "art", "sketch", 2.5),
        ("image", "photo", "sketch", 2.0),
        ("chain", "art", "photo", 2.0),
        ("chain", "art", "sketch", 10.0),
        ("chain", "photo", "sketch", 8.0),
    ]


def test_the_share_rejected_is_read_from_the_state_by_round():
    state = {
        "art/evaluation/mtct": {"seconds": 1.0, "accuracy": {}},
        "art/sarr-1/candidates": {"candidates": 200, "accepted": 50, "images": 100, "images_with_chain": 50},
        "art/sarr-1": {"seconds": 1.0, "samples": 50},
        "art/sarr-2/candidates": {"candidates": 160, "accepted": 80, "images": 100, "images_with_chain": 80},
    }
    assert rejected_by_round(state) == [
        {"held_out": "art", "round": 1, "candidates": 200, "rejected": 0.75, "without_chain": 0.5},
        {
            "held_out": "art",
            "round": 2,
            "candidates": 160,
            "rejected": 0.5,
            "without_chain": pytest.approx(0.2),
        },
    ]


def test_base_and_new_classes_are_told_apart_on_the_target():
    marks = {"bird": "1110", "tool": "10000", "vehicle": "1"}
    rows = [
        {"pathway": "direct", "held_out": held_out, "label": label, "correct": mark == "1"}
        for held_out in (True, False)
        for label, found in marks.items()
        for mark in (found if held_out else "0" * 9)
    ]
    table = pa.Table.from_pylist(rows, schema=PREDICTION_SCHEMA)
    [row] = base_to_new(table, ["bird"])
    assert row == {
        "pathway": "direct",
        "base": 0.75,
        "new": pytest.approx(2 / 6),
        "harmonic_mean": pytest.approx(2 * 0.75 / 3 / (0.75 + 1 / 3)),
    }
    with pytest.raises(ValueError, match="no images of the base classes, or none of the new"):
        base_to_new(table, ["bird", "tool", "vehicle"])


def test_the_harmonic_mean_of_accuracies():
    assert harmonic_mean(0.3, 0.6) == pytest.approx(0.4)
    assert harmonic_mean(0.9, 0.0) == 0.0
