import math

import pyarrow as pa
import pytest

from rdmldg_ray.config.schema import EnginesConfig
from rdmldg_ray.models.parity import ParityError, as_known, check_parity, known_answers, parity_tolerance

CONFIG = EnginesConfig(dtype="float32", parity_tolerance=0.1)
KNOWN = pa.table({"id": ["a", "b"], "pathway": ["direct", "reasoning"], "logprobs": [[-1.0, -2.0], [-3.0]]})


def known_chain(**others):
    """One chain of 200 tokens; the image decides the last twenty."""
    logprobs = [-1.0] * 180 + [-2.0] * 20
    blank = [-1.0] * 180 + [-9.0] * 20
    rows = {"logprobs": [logprobs], "blank_logprobs": [blank]} | {name: [v] for name, v in others.items()}
    return pa.table({"id": ["a"], "pathway": ["reasoning"], **rows})


def found(elsewhere, where_the_image_decides):
    return [[-1.0 + elsewhere] * 180 + [-2.0 + where_the_image_decides] * 20]


def test_the_difference_is_the_mean_over_all_tokens_when_nothing_tells_which_the_image_decides():
    assert check_parity(KNOWN, [[-1.1, -2.0], [-2.9]], CONFIG) == pytest.approx(0.2 / 3)


def test_only_tokens_that_the_image_decides_are_compared():
    config = EnginesConfig(dtype="float32")
    assert check_parity(known_chain(), found(0.5, 0.0), config) == 0
    assert check_parity(known_chain(), found(0.0, 0.001), config) == pytest.approx(0.001)
    message = r"differ by 0\.0100 on average over the 20 tokens .* more than 0\.002;"
    with pytest.raises(ParityError, match=message):
        check_parity(known_chain(), found(0.0, 0.01), config)


def test_an_engine_nearer_to_what_it_had_before_is_refused_within_the_tolerance():
    config = EnginesConfig(dtype="float32")
    start = found(0.0, 0.002)[0]
    known = known_chain(start_logprobs=start, base_logprobs=found(0.0, 0.1)[0])
    assert check_parity(known, found(0.0, 0.0004), config) == pytest.approx(0.0004)
    with pytest.raises(ParityError, match=r"0\.0015.* the model that training began with by 0\.0005"):
        check_parity(known, found(0.0, 0.0015), config)
    known = known_chain(start_logprobs=found(0.0, 0.1)[0], base_logprobs=start)
    with pytest.raises(ParityError, match=r"and from the base model by 0\.0005"):
        check_parity(known, found(0.0, 0.0015), config)
    # Where rounding decides which is nearer, it is not asked.
    known = known_chain(start_logprobs=found(0.0, 1e-5)[0])
    assert check_parity(known, found(0.0, 1e-5), config) == pytest.approx(1e-5)


def test_beyond_the_tolerance_both_sides_are_shown():
    with pytest.raises(ParityError) as caught:
        check_parity(KNOWN, [[-1.5, -2.5], [-3.0]], CONFIG)
    message = str(caught.value)
    assert "differ by 0.3333 on average" in message
    assert "a, direct: trainer -1.5000, engine -2.0000" in message
    assert "b, reasoning: trainer -3.0000, engine -3.0000" in message
    assert "engines.parity_tolerance" in message


def test_not_a_number_is_a_disagreement():
    config = EnginesConfig(dtype="float32", parity_tolerance=100.0)
    with pytest.raises(ParityError):
        check_parity(KNOWN, [[math.nan, -2.0], [-3.0]], config)


def test_answers_of_different_length_mean_different_tokenizers():
    with pytest.raises(ParityError, match=r"b: the trainer.s answer has 1 tokens, the engine.s 2"):
        check_parity(KNOWN, [[-1.0, -2.0], [-3.0, 0.0]], CONFIG)


def test_the_tolerance_follows_the_dtype_unless_it_is_set():
    assert parity_tolerance(EnginesConfig(dtype="float32")) == 0.002
    assert parity_tolerance(EnginesConfig(dtype="bfloat16")) == 0.025
    assert parity_tolerance(EnginesConfig(dtype="bfloat16", parity_tolerance=0.3)) == 0.3


def test_known_answers_are_the_label_another_option_and_the_chain():
    rows = known_answers(
        [
            {"id": "a", "label": "sea_animal", "chain": "<SUMMARY>"},
            {"id": "b", "label": "bird", "chain": ""},
            {"id": "c", "label": "no", "chain": None, "question": "Is it day?", "options": ["yes", "no"]},
        ],
        ["bird", "sea_animal"],
    )
    assert [(row["id"], row["pathway"], row["target"]) for row in rows] == [
        ("a", "direct", "sea animal"),
        ("a", "direct", "bird"),
        ("a", "reasoning", "<SUMMARY>"),
        ("b", "direct", "bird"),
        ("b", "direct", "sea animal"),
        ("c", "direct", "no"),
        ("c", "direct", "yes"),
    ]
    assert rows[-1]["question"] == "Is it day?"


def test_a_parity_file_of_chains_alone_is_read():
    left = pa.table({"id": ["a"], "chain": ["text"], "logprobs": [[-1.0]]})
    assert as_known(left).to_pylist() == [
        {"id": "a", "target": "text", "logprobs": [-1.0], "pathway": "reasoning"}
    ]
