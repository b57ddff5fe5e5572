"""Which chains do not fit, by the very tokens that training lays out."""

import pytest

from rdmldg_ray.config.load import load_config
from rdmldg_ray.datasets.schema import read_dataset_info
from rdmldg_ray.mtct.lengths import long_samples
from rdmldg_ray.runs.stage_data import StageData
from rdmldg_ray.runs.store import Stage

MTCT = Stage("flat", "mtct", 0)


def stage_data(store, *overrides):
    tokens = ["sarr.max_new_tokens=9", "evaluation.max_new_tokens=9"]
    config = load_config("demo", [f"storage={store}", *tokens, *overrides])
    return StageData(config, read_dataset_info(store, "iconbed"))


@pytest.fixture(scope="module")
def lengths(store):
    """Tokens of prompt and chain of a few samples."""
    short = stage_data(store, "model.max_length=10")
    samples = short._with_teacher(short.source_index("flat", "in"), MTCT).slice(0, 20)
    return samples, dict(long_samples(samples, list(short.info.classes), short.config))


def test_a_chain_fits_up_to_the_very_token(store, lengths):
    samples, tokens = lengths
    assert len(tokens) == 20
    limit = sorted(tokens.values())[10]
    data = stage_data(store, f"model.max_length={limit}")
    found = dict(long_samples(samples, list(data.info.classes), data.config))
    assert found == {sample_id: n for sample_id, n in tokens.items() if n > limit}


def test_chains_with_few_characters_are_not_looked_at_and_others_are_dropped(store):
    assert not stage_data(store).check_chains(MTCT).long or stage_data(store).long_chains(MTCT) == []
    strict = stage_data(store, "model.max_length=150", "data.long_chains=drop")
    assert strict.check_chains(MTCT).long
    long = {sample_id for sample_id, _ in strict.long_chains(MTCT)}
    kept, left_out = strict.training_set(MTCT)
    assert len(long) == left_out > 0
    assert not long & set(kept["id"].to_pylist())
