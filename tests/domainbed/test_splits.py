import pytest

from rdmldg_ray.domainbed.splits import seed_hash, split_indices


def test_seed_hash_gives_domainbeds_numbers():
    assert [seed_hash(0, env) for env in range(4)] == [894182419, 1514274641, 1325548499, 1796103049]


@pytest.mark.parametrize(
    ("trial_seed", "env_index", "out"),
    [(0, 0, [7, 6, 10, 17]), (0, 1, [3, 1, 0, 17]), (1, 0, [8, 9, 18, 15])],
)
def test_split_gives_domainbeds_indices(trial_seed, env_index, out):
    assert split_indices(20, trial_seed, env_index)[1] == out


@pytest.mark.parametrize("size", [0, 1, 4, 5, 9, 287, 1001])
def test_the_parts_cover_everything_once(size):
    inside, out = split_indices(size, 2, 3)
    assert len(out) == int(0.2 * size)
    assert sorted(inside + out) == list(range(size))


def test_another_fraction_holds_out_the_first_of_the_same_order():
    assert split_indices(20, 0, 0, holdout_fraction=0.1)[1] == [7, 6]
    assert split_indices(20, 0, 0, holdout_fraction=0)[1] == []


@pytest.mark.parametrize(("size", "fraction"), [(-1, 0.2), (5, 1.5), (5, -0.1)])
def test_impossible_splits(size, fraction):
    with pytest.raises(ValueError, match="hold out"):
        split_indices(size, 0, 0, holdout_fraction=fraction)
