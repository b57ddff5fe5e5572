import pytest

from rdmldg_ray.config.load import ConfigError, load_config
from rdmldg_ray.domainbed.splits import seed_hash
from rdmldg_ray.runs.cache_key import count_shared
from rdmldg_ray.runs.store import RunStore
from rdmldg_ray.sweeps.variants import (
    ablation_comparisons,
    ablation_configs,
    ablation_rows,
    sweep_config,
    trial_configs,
    with_settings,
)

CONFIG = load_config("iconbed", ["sarr.rounds=2"])


def differences(config):
    """What differs from CONFIG, by dotted path."""

    def flat(tree, prefix=""):
        if not isinstance(tree, dict):
            return {prefix[:-1]: tree}
        return {k: v for key, child in tree.items() for k, v in flat(child, f"{prefix}{key}.").items()}

    before, now = flat(CONFIG.model_dump(mode="json")), flat(config.model_dump(mode="json"))
    return {key: value for key, value in now.items() if value != before[key]}


def test_settings_are_changed_by_their_paths_and_checked_anew():
    changed = with_settings(CONFIG, {"sarr.filter.max_tokens": 80, "name": "x"})
    assert differences(changed) == {"sarr.filter.max_tokens": 80, "name": "x"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sarr.filters.max_tokens": 8}, "sarr.filters: unknown key; did you mean 'filter'?"),
        ({"sarr.filter.max_token": 8}, "sarr.filter.max_token: unknown key; did you mean 'max_tokens'?"),
        ({"lora.rank": 0}, "lora.rank: Input should be greater than 0 (given: 0)"),
        ({"mtct.weights.reasoning": 0}, "set sarr.rounds=0 for labels only"),
    ],
)
def test_settings_that_are_not_there_or_not_allowed_are_named(settings, message):
    with pytest.raises(ConfigError) as error:
        with_settings(CONFIG, settings)
    assert message in str(error.value)


def test_each_trial_is_a_run_with_its_own_name_splits_and_seed(tmp_path):
    config = CONFIG.model_copy(update={"storage": str(tmp_path)})
    trials = [differences(trial) | {"storage": 0} for trial in trial_configs(config, "0, 2,2,1")]
    # MD5 of "(0, 2)" and of "(0, 1)", modulo 2^31: DomainBed's seed_hash.
    assert trials == [
        {"storage": 0, "name": "iconbed-trial-0"},
        {"storage": 0, "name": "iconbed-trial-2", "data.trial_seed": 2, "seed": seed_hash(0, 2)},
        {"storage": 0, "name": "iconbed-trial-1", "data.trial_seed": 1, "seed": 1514274641},
    ]


def test_trials_of_another_seed_are_others(tmp_path):
    config = CONFIG.model_copy(update={"storage": str(tmp_path), "seed": 5})
    seeds = [trial.seed for trial in trial_configs(config, "0,1,2")]
    assert seeds[0] == 5 and len({*seeds, seed_hash(0, 1), seed_hash(0, 2)}) == 5


def test_a_trial_that_was_begun_with_the_configs_seed_keeps_it(tmp_path):
    config = CONFIG.model_copy(update={"storage": str(tmp_path)})
    store = RunStore(str(tmp_path), "iconbed-trial-2")
    store.write_config(with_settings(config, {"name": store.name, "data.trial_seed": 2}))
    assert [trial.seed for trial in trial_configs(config, "1,2")] == [1514274641, 0]
    [new] = trial_configs(config, "1")
    RunStore(str(tmp_path), new.name).write_config(new)
    assert trial_configs(config, "1") == [new]


@pytest.mark.parametrize(
    ("settings", "lora"),
    [
        ({"lora.rank": 8}, (8, 16)),
        ({"lora.rank": 4}, (4, 8)),
        ({"lora.rank": 24}, (24, 48)),
        ({"lora.rank": 24, "lora.alpha": 16}, (24, 16)),
        ({"lora.alpha": 4}, (8, 4)),
        ({"mtct.learning_rate": 0.1}, (8, 16)),
    ],
)
def test_a_sweep_over_ranks_keeps_the_adapters_scale(settings, lora):
    config = with_settings(CONFIG, {"lora.rank": 8, "lora.alpha": 16})
    found = sweep_config(config, settings).lora
    assert (found.rank, found.alpha) == lora


def test_a_scale_that_no_whole_alpha_has_is_refused():
    config = with_settings(CONFIG, {"lora.rank": 16, "lora.alpha": 8})
    with pytest.raises(
        ConfigError, match=r"lora\.rank 3: no whole lora\.alpha .*give lora\.alpha in the sweep"
    ):
        sweep_config(config, {"lora.rank": 3})


def test_without_trial_seeds_a_run_keeps_its_name():
    assert trial_configs(CONFIG, None) == [CONFIG]


@pytest.mark.parametrize("seeds", ["", "0,", "a", "-1", "0.5"])
def test_trial_seeds_that_are_no_numbers_are_refused(seeds):
    with pytest.raises(ConfigError, match=r"--trials .*whole numbers"):
        trial_configs(CONFIG, seeds)


def test_the_ablation_is_four_runs_that_differ_in_what_they_train_on():
    assert {name: differences(config) for name, config in ablation_configs(CONFIG).items()} == {
        "both": {"name": "iconbed-both"},
        "labels": {
            "name": "iconbed-labels",
            "mtct.weights.reasoning": 0.0,
            "sarr.rounds": 0,
            "evaluation.zero_shot": False,
            "evaluation.pathways": ["direct"],
        },
        "chains": {
            "name": "iconbed-chains",
            "mtct.weights.direct": 0.0,
            # Without the label's term there is nothing to train the other images on.
            "sarr.without_chain": "drop",
            "evaluation.zero_shot": False,
            "evaluation.pathways": ["reasoning"],
        },
        "unfiltered": {
            "name": "iconbed-unfiltered",
            "sarr.filter.conclusion": "any",
            "evaluation.zero_shot": False,
        },
    }


def test_a_recipes_way_with_images_without_a_chain_stays_where_it_can():
    by_teacher = with_settings(CONFIG, {"sarr.without_chain": "teacher"})
    assert {config.sarr.without_chain for config in ablation_configs(by_teacher).values()} == {"teacher"}


def test_without_rounds_there_is_no_filter_to_leave_out():
    assert list(ablation_configs(with_settings(CONFIG, {"sarr.rounds": 0}))) == ["both", "labels", "chains"]
    assert [(ours.title, theirs.title) for ours, theirs in ablation_comparisons(0)] == [
        ("MTCT", "zero-shot"),
        ("MTCT", "labels only"),
        ("MTCT", "chains only"),
    ]


def test_each_round_is_compared_with_mtct_and_with_itself_unfiltered():
    assert [(ours.title, theirs.title) for ours, theirs in ablation_comparisons(2)][3:] == [
        ("MTCT and SARR, round 1", "MTCT"),
        ("MTCT and SARR, round 1", "MTCT and SARR without filter, round 1"),
        ("MTCT and SARR, round 2", "MTCT"),
        ("MTCT and SARR, round 2", "MTCT and SARR without filter, round 2"),
    ]


def test_all_but_labels_only_share_what_is_the_same(info):
    runs = [ablation_configs(CONFIG)[kind] for kind in ("both", "unfiltered")]
    computed = count_shared(runs, info)
    # Of 4 folds: MTCT and the first round's draws are one for both.
    assert computed["mtct"] == (8, 4)
    assert computed["generate"] == (16, 12)


def test_the_weights_of_a_recipe_stay_where_a_pathway_is_trained():
    weighted = with_settings(CONFIG, {"mtct.weights.direct": 0.5})
    assert ablation_configs(weighted)["both"].mtct.weights.direct == 0.5
    with pytest.raises(ConfigError, match="give a recipe where both are positive"):
        ablation_configs(with_settings(CONFIG, {"mtct.weights.direct": 0, "sarr.without_chain": "drop"}))


def test_the_ablations_rows_are_stages_of_its_runs():
    configs = ablation_configs(CONFIG)
    rows = ablation_rows(2)
    assert [row.title for row in rows] == [
        "zero-shot",
        "labels only",
        "chains only",
        "MTCT",
        "SARR without MTCT, round 1",
        "SARR without MTCT, round 2",
        "MTCT and SARR without filter, round 1",
        "MTCT and SARR without filter, round 2",
        "MTCT and SARR, round 1",
        "MTCT and SARR, round 2",
    ]
    for row in rows:
        config = configs[row.run]
        assert row.model != "zero-shot" or config.evaluation.zero_shot
        assert not row.model.startswith("sarr") or config.sarr.rounds == 2
