import math

import pyarrow as pa
import pytest

from rdmldg_ray.config.schema import EnginesConfig
from rdmldg_ray.models.parity import ParityError, check_parity, parity_tolerance

KNOWN = pa.table({"id": ["a", "b"], "logprobs": [[-1.0, -2.0], [-3.0]]})


def test_the_difference_is_the_mean_over_all_tokens():
    assert check_parity(KNOWN, [[-1.1, -2.0], [-2.8]], tolerance=0.2) == pytest.approx(0.1)


def test_beyond_the_tolerance_both_sides_are_shown():
    with pytest.raises(ParityError) as caught:
        check_parity(KNOWN, [[-1.5, -2.5], [-3.0]], tolerance=0.1)
    message = str(caught.value)
    assert "differ by 0.3333 a token" in message
    assert "a: trainer -1.5000, engine -2.0000" in message
    assert "b: trainer -3.0000, engine -3.0000" in message
    assert "engines.parity_tolerance" in message


def test_not_a_number_is_a_disagreement():
    with pytest.raises(ParityError):
        check_parity(KNOWN, [[math.nan, -2.0], [-3.0]], tolerance=100.0)


def test_chains_of_different_length_mean_different_tokenizers():
    with pytest.raises(ParityError, match=r"b: the trainer.s chain has 1 tokens, the engine.s 2"):
        check_parity(KNOWN, [[-1.0, -2.0], [-3.0, 0.0]], tolerance=1.0)


def test_the_tolerance_follows_the_dtype_unless_it_is_set():
    assert parity_tolerance(EnginesConfig(dtype="float32")) == 0.02
    assert parity_tolerance(EnginesConfig(dtype="bfloat16")) == 0.1
    assert parity_tolerance(EnginesConfig(dtype="bfloat16", parity_tolerance=0.3)) == 0.3
