import pytest

from rdmldg_ray.config.load import ConfigError, load_config
from rdmldg_ray.sweeps.variants import ablation_configs, ablation_rows, trial_configs, with_settings

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


def test_each_trial_is_a_run_with_its_own_name_and_splits():
    assert [differences(trial) for trial in trial_configs(CONFIG, "0, 2,2")] == [
        {"name": "iconbed-trial-0"},
        {"name": "iconbed-trial-2", "data.trial_seed": 2},
    ]


def test_without_trial_seeds_a_run_keeps_its_name():
    assert trial_configs(CONFIG, None) == [CONFIG]


@pytest.mark.parametrize("seeds", ["", "0,", "a", "-1", "0.5"])
def test_trial_seeds_that_are_no_numbers_are_refused(seeds):
    with pytest.raises(ConfigError, match=r"--trials .*whole numbers"):
        trial_configs(CONFIG, seeds)


def test_the_ablation_is_three_runs_that_differ_in_what_they_train_on():
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
            "evaluation.zero_shot": False,
            "evaluation.pathways": ["reasoning"],
        },
    }


def test_the_weights_of_a_recipe_stay_where_a_pathway_is_trained():
    weighted = with_settings(CONFIG, {"mtct.weights.direct": 0.5})
    assert ablation_configs(weighted)["both"].mtct.weights.direct == 0.5
    with pytest.raises(ConfigError, match="give a recipe where both are positive"):
        ablation_configs(with_settings(CONFIG, {"mtct.weights.direct": 0}))


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
        "MTCT and SARR, round 1",
        "MTCT and SARR, round 2",
    ]
    for row in rows:
        config = configs[row.run]
        assert row.model != "zero-shot" or config.evaluation.zero_shot
        assert not row.model.startswith("sarr") or config.sarr.rounds == 2
