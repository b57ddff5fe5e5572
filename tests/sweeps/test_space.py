import pytest

from rdmldg_ray.config.load import ConfigError, load_config
from rdmldg_ray.sweeps.space import (
    SweepSpace,
    coordinates,
    count_evaluations,
    load_space,
    ranked,
    score,
    space_names,
    trial_row,
)

CONFIG = load_config("demo")


@pytest.fixture
def space(tmp_path):
    """Load a sweep's file of a text."""

    def space(text):
        (tmp_path / "space.yaml").write_text(text)
        return load_space(str(tmp_path / "space.yaml"), CONFIG)

    return space


def test_a_grid_is_all_combinations(space):
    found = space("settings: {sarr.filter.max_tokens: [80, null], lora.rank: [4, 8]}")
    assert found.grid() == [
        {"sarr.filter.max_tokens": 80, "lora.rank": 4},
        {"sarr.filter.max_tokens": 80, "lora.rank": 8},
        {"sarr.filter.max_tokens": None, "lora.rank": 4},
        {"sarr.filter.max_tokens": None, "lora.rank": 8},
    ]
    assert found.num_trials() == 4


def test_random_and_optuna_take_ranges_and_a_number_of_trials(space):
    text = "{search: optuna, trials: 9, settings: {mtct.learning_rate: {min: 1e-4, max: 1e-2, scale: log}}}"
    assert space(text).num_trials() == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("settings: {}", "settings: Dictionary should have at least 1 item"),
        ("settings: {lora.rank: []}", "lora.rank: no values to choose from"),
        ("settings: {lora.rang: [4]}", "unknown key; did you mean 'rank'"),
        ("settings: {lora.rank: [4, 0]}", "greater than 0"),
        ("settings: {lora.rank: {min: 1, max: 9}}", "a grid needs lists of values; lora.rank"),
        ("{search: random, settings: {lora.rank: [4]}}", "'trials' is for random and optuna"),
        ("{trials: 3, settings: {lora.rank: [4]}}", "'trials' is for random and optuna"),
        (
            "{search: random, trials: 2, settings: {lora.rank: {min: 9, max: 1}}}",
            "min 9.0 is not below max 1.0",
        ),
        ("{search: random, trials: 2, settings: {lora.rank: {min: 0, max: 1, scale: log}}}", "a min above 0"),
        ("settings: {data.trial_seed: [0, 1]}", "'data.trial_seed' must be the same in all trials"),
        ("settings: {evaluation.max_new_tokens: [9]}", "must be the same in all trials"),
        ("{pathway: verbal, settings: {lora.rank: [4]}}", "pathway: Input should be"),
        ("{colour: red, settings: {lora.rank: [4]}}", "colour: Extra inputs"),
        ("{early_stopping: true, settings: {sarr.rounds: [1, 2]}}", "sarr.rounds cannot vary with it"),
        ("settings: [", "not valid YAML"),
    ],
)
def test_what_cannot_be_tried_is_said_before_anything_runs(space, text, message):
    with pytest.raises(ConfigError) as error:
        space(text)
    assert message in str(error.value)


def test_combinations_that_contradict_each_other_are_found(space):
    with pytest.raises(ConfigError, match="min_tokens 90 is larger than max_tokens 80"):
        space("settings: {sarr.filter.min_tokens: [10, 90], sarr.filter.max_tokens: [80, 100]}")


def test_a_missing_space_is_named_with_those_there_are():
    with pytest.raises(ConfigError, match="no space 'filter'; there are: filters, weights; or give a path"):
        load_space("filter", CONFIG)


@pytest.mark.parametrize("name", space_names())
def test_shipped_spaces_fit_the_shipped_recipe(name):
    assert load_space(name, load_config("iconbed")).num_trials() >= 12


def evaluation(validation, target):
    accuracy = {"target_in": target, "target_out": target, "target_all": target, "validation": validation}
    return {"seconds": 2.0, "accuracy": {"reasoning": accuracy, "direct": accuracy | {"validation": 0.9}}}


def state(target=0.0):
    return {
        "art/evaluation/zero-shot": evaluation(0.99, target),
        "art/mtct": {"seconds": 10.0, "samples": 5, "shared": ["other"]},
        "art/evaluation/mtct": evaluation(0.6, target),
        "art/sarr-1/candidates": {"seconds": 5.0, "candidates": 30, "drawn_anew": 4, "shared": ["other"]},
        "art/evaluation/sarr-1": evaluation(0.5, target),
        "photo/evaluation/mtct": evaluation(0.3, target),
        "photo/sarr-1/candidates": {"seconds": 5.0, "candidates": 20},
        "photo/evaluation/sarr-1": evaluation(0.4, target),
    }


def test_the_score_is_the_mean_over_folds_of_the_best_trained_models_validation():
    assert score(state(), "reasoning") == pytest.approx((0.6 + 0.4) / 2)
    assert score(state(), "direct") == pytest.approx(0.9)
    assert count_evaluations(state()) == 4
    assert score({"art/mtct": {"seconds": 1.0}}, "reasoning") is None


def test_the_score_never_looks_at_the_target():
    assert len({score(state(target), "reasoning") for target in (0.0, 0.5, 1.0)}) == 1


def test_a_trials_row_tells_what_it_computed_itself():
    row = trial_row("demo-1", {"lora.rank": 4}, state(), "reasoning", "complete")
    assert row == {
        "trial": "demo-1",
        "lora.rank": 4,
        "score": pytest.approx(0.5),
        "status": "complete",
        "computed": 6,
        "shared": 2,
        "drawn": 24,
        "seconds": 30.0,
    }


def test_trials_are_ranked_and_those_without_a_score_come_last():
    rows = [
        {"trial": name, "score": value} for name, value in (("a", None), ("b", 0.2), ("c", 0.4), ("d", 0.2))
    ]
    assert [row["trial"] for row in ranked(rows)] == ["c", "b", "d", "a"]


def test_coordinates_are_numbers_whatever_the_settings_are():
    rows = [
        {"x": 1, "bound": None, "kind": "b", "score": 0.5},
        {"x": 3, "bound": -0.5, "kind": "a", "score": 0.25},
        {"x": 2, "bound": -0.1, "kind": "b", "score": None},
        {"x": 2, "bound": -0.1, "kind": "b", "score": 0.75},
    ]
    assert coordinates(rows, ["x", "bound", "kind"]) == [[1, 0, 1, 50], [3, 1, 0, 25], [2, 2, 1, 75]]
    assert coordinates([{"x": 1, "score": None}], ["x"]) == []


def test_a_space_survives_being_written():
    space = SweepSpace(settings={"lora.rank": [4, 8]})
    assert SweepSpace.model_validate(space.model_dump(mode="json")) == space
