import pytest

from rdmldg_ray.config.load import load_config
from rdmldg_ray.datasets.schema import DatasetInfo
from rdmldg_ray.runs.cache_key import count_shared, stage_keys
from rdmldg_ray.runs.plan import plan_stages

INFO = DatasetInfo("pets", ("art", "photo", "sketch"), ("cat", "dog"), {"art": 50, "photo": 31, "sketch": 12})


def addresses(*overrides, info=INFO):
    config = load_config("demo", ["data.dataset=pets", "data.held_out=photo", "sarr.rounds=2", *overrides])
    return stage_keys(config, info, plan_stages(config, info))


BEFORE = addresses()
ALL = list(BEFORE)
TRAINED = ["photo/mtct", "photo/evaluation/mtct"]
ROUND_1 = ["photo/sarr-1", "photo/evaluation/sarr-1"]
ROUND_2 = ["photo/sarr-2/candidates", "photo/sarr-2", "photo/evaluation/sarr-2"]
DRAWS_1 = ["photo/sarr-1/candidates"]
EVALUATIONS = [name for name in ALL if "/evaluation/" in name]


def changed(*overrides):
    """The stages whose address a change of settings changes."""
    after = addresses(*overrides)
    return [name for name in ALL if after.get(name) != BEFORE[name]]


def test_every_stage_has_an_address_of_its_own():
    assert len(set(BEFORE.values())) == len(ALL) == 9
    assert all(len(address) == 64 and int(address, 16) >= 0 for address in BEFORE.values())
    assert addresses() == BEFORE


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "storage=elsewhere",
        "engines.num_engines=1",
        "engines.batch_size=8",
        "workers.max_failures=0",
        "workers.cpus_per_worker=1",
    ],
)
def test_what_changes_no_result_changes_no_address(override):
    assert changed(override) == []


def test_filter_thresholds_share_all_up_to_the_first_draws():
    later = [*ROUND_1, *ROUND_2]
    assert changed("sarr.filter.max_tokens=80") == later
    assert changed("sarr.filter.min_logprob=-0.5") == later
    assert changed("sarr.max_attempts=3") == later


@pytest.mark.parametrize(
    "override", ["sarr.sampling=fixed", "sarr.best_by=num_tokens", "sarr.without_chain=teacher"]
)
def test_which_draws_are_made_and_what_becomes_of_them_shares_the_draws(override):
    assert changed(override) == [*ROUND_1, *ROUND_2]


def test_the_rounds_training_settings_share_the_first_draws_too():
    assert changed("sarr.training.learning_rate=2e-4") == [*ROUND_1, *ROUND_2]


def test_how_chains_are_drawn_shares_mtct():
    assert changed("sarr.temperatures=0.9", "sarr.max_attempts=2") == [*DRAWS_1, *ROUND_1, *ROUND_2]
    assert changed("sarr.max_new_tokens=99") == [*DRAWS_1, *ROUND_1, *ROUND_2]


def test_settings_of_mtct_share_the_zero_shot_evaluation_alone():
    for override in ("mtct.learning_rate=1e-4", "mtct.weights.direct=2", "lora.rank=4", "data.augment=none"):
        assert changed(override) == [name for name in ALL if name not in ("photo/evaluation/zero-shot",)]


def test_an_evaluations_settings_change_evaluations_alone():
    assert changed("evaluation.pathways=direct") == EVALUATIONS
    assert changed("evaluation.max_new_tokens=99") == EVALUATIONS


def test_more_rounds_and_other_folds_change_no_stage_that_stays():
    longer = addresses("sarr.rounds=3", "data.held_out=art,photo", "evaluation.zero_shot=false")
    for name in ALL:
        assert longer.get(name, BEFORE[name]) == BEFORE[name]
    assert longer["art/mtct"] != longer["photo/mtct"]


@pytest.mark.parametrize(
    "override", ["seed=1", "data.trial_seed=1", "data.holdout_fraction=0.3", "model.path=x"]
)
def test_seeds_splits_and_the_base_model_change_everything(override):
    assert changed(override) == ALL


def test_another_data_set_changes_everything():
    other = DatasetInfo(INFO.name, INFO.environments, INFO.classes, {**INFO.counts, "art": 49})
    assert not set(addresses(info=other).values()) & set(BEFORE.values())


def test_a_setting_that_nobody_entered_separates():
    """Whatever is not known to be irrelevant counts: sharing is never wrong by an omission."""
    from rdmldg_ray.runs.cache_key import relevant_settings

    for kind in ("mtct", "generate", "train", "evaluate"):
        assert relevant_settings({"data.brand_new": 1}, kind)


def test_a_groups_shared_stages_are_counted():
    configs = [
        load_config("demo", ["data.dataset=pets", "data.held_out=photo", f"sarr.filter.max_tokens={bound}"])
        for bound in (50, 60, 70)
    ]
    assert count_shared(configs, INFO) == {
        "evaluate": (9, 2 + 3),
        "mtct": (3, 1),
        "generate": (3, 1),
        "train": (3, 3),
    }
